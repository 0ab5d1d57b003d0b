"""What is saved of a student is all that its training has changed."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import nn

from models import create_model
from student_train.bound_method import Losses
from student_train.protocol import Protocol, ProtocolConfig
from student_train.student_state import StudentState

CPU = torch.device("cpu")


def fresh(seed: int) -> StudentState:
    student, learned = (
        create_model("resnet8", num_classes=5, seed=seed),
        nn.ModuleList([nn.Identity(), nn.Linear(2, 2)]),
    )
    parameters = [*student.parameters(), *learned.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    return StudentState(student, learned, optimizer, Protocol(ProtocolConfig()))


def step(state: StudentState) -> None:
    said = state.student(torch.ones(2, 3, 32, 32))
    state.optimizer.zero_grad()
    said.square().sum().backward()
    state.optimizer.step()
    state.step += 1
    state.losses.append(Losses(said.detach().sum(), torch.stack([said.detach().mean(), torch.tensor(2.0)])))


def written_and_read(saved: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weights(state: StudentState) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.modules.parameters()])


def test_a_restored_state_goes_on_as_the_saved_one():
    one, other = fresh(0), fresh(1)
    for _ in range(2):
        step(one)
    one.remember()
    step(one)
    one.protocol.update(0.5)
    one.rows.append({"step": 3, "test_accuracy": None})
    one.seconds = 1.5
    other.restore(written_and_read(one.saved()), CPU)
    assert (other.step, other.seconds, other.rows) == (3, 1.5, one.rows)
    assert other.protocol == one.protocol
    for state in (one, other):
        step(state)
    assert torch.equal(weights(one), weights(other))
    assert one.take_losses() == other.take_losses()
    for state in (one, other):
        state.go_back()
        step(state)
    assert torch.equal(weights(one), weights(other))


def test_losses_are_means_over_the_steps_since_they_were_taken():
    state = fresh(0)
    for total in (1.0, 3.0):
        state.losses.append(Losses(torch.tensor(total), torch.tensor([total / 2, 7.0])))
    assert state.take_losses() == (2.0, [1.0, 7.0])
    state.losses.append(Losses(torch.tensor(5.0), torch.tensor([5.0, 5.0])))
    assert state.take_losses() == (5.0, [5.0, 5.0])


def test_a_state_of_a_release_that_kept_the_sum_alone_goes_on():
    one, other = fresh(0), fresh(1)
    step(one)
    kept = written_and_read(one.saved())
    del kept["terms"]
    other.restore(kept, CPU)
    step(one)
    step(other)
    total, terms = other.take_losses()
    assert total == one.take_losses()[0]
    assert terms == [None, None], "what was not recorded is not guessed"


def test_going_back_forgets_the_momentum():
    state = fresh(0)
    before = weights(state)
    step(state)
    assert state.optimizer.state
    state.go_back()
    assert torch.equal(weights(state), before)
    assert not state.optimizer.state


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_seen(value):
    state = fresh(0)
    assert state.is_finite()
    with torch.no_grad():
        state.student.head.weight[0, 0] = value
    assert not state.is_finite()
