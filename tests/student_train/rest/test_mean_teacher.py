"""Mean Teacher: agreement with the average of the student's own weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ground.user_code import UserCode
from models import create_model
from student_train.averaging import AveragedWeights
from student_train.rest.base import RestBatch
from student_train.rest.mean_teacher import MeanTeacher
from tests.student_train.rest.conftest import trainer_of


def test_the_cost_is_the_squared_difference_of_probabilities():
    student = create_model("resnet8", 10, seed=0)
    loss = MeanTeacher()
    loss.begin(student, None, None, UserCode.REFUSED)
    generator = torch.Generator().manual_seed(2)
    looks = {role: torch.randn(4, 10, generator=generator, dtype=torch.float64) for role in ("student", "teacher")}
    asked = []
    batch = RestBatch(
        torch.arange(4), torch.full((4,), -1), student, looks.__getitem__, lambda net, x: [asked.append(net), x][1]
    )
    shares = [np.exp(x.numpy()) / np.exp(x.numpy()).sum(axis=1, keepdims=True) for x in looks.values()]
    np.testing.assert_allclose(loss(batch).item(), ((shares[0] - shares[1]) ** 2).sum() / 4, rtol=1e-12)
    assert asked == [loss.average.network, student]


def test_the_average_follows_every_step_and_is_not_trained(rest_store, tmp_path):
    trainer = trainer_of(rest_store, tmp_path / "run", "kd:ce=0", ["mean_teacher:decay=0.5"])
    student, loss = trainer.state.student, trainer.rest[0].loss
    expected = AveragedWeights(student, 0.5)
    student.train()
    for _ in range(3):
        trainer.train_step()
        expected.update(student)
    pairs = zip(loss.average.network.parameters(), expected.network.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    optimized = {id(value) for group in trainer.state.optimizer.param_groups for value in group["params"]}
    assert not optimized & {id(value) for value in loss.parameters()}


def test_a_decay_that_is_none_is_refused():
    with pytest.raises(ValueError, match="decay is above 0 and below 1, got 1"):
        MeanTeacher(decay=1.0)
