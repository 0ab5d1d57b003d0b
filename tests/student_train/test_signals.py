"""What a loss is given: outputs by name, labels as vectors, and random numbers that depend on the step alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import Representation
from student_train.signals import Moment, Signals


def make_signals(labels=None) -> Signals:
    generator = torch.Generator().manual_seed(0)
    said = [
        Representation(
            torch.randn(4, 3, generator=generator),
            {name: torch.randn(4, 2, generator=generator) for name in ("layer1", "pooled")},
        )
        for _ in range(2)
    ]
    return Signals(said[0], said[1], torch.tensor([2, 0, 1, 1]) if labels is None else labels, torch.arange(4))


def test_labels_are_one_hot_until_they_are_compared():
    np.testing.assert_array_equal(make_signals().label_targets, np.eye(3, dtype=np.float32)[[2, 0, 1, 1]])
    compared = torch.tensor([[1.0, -1.0, 0.0]] * 4)
    assert make_signals(compared).label_targets is compared


def test_reordering_moves_the_teacher_labels_and_index_and_leaves_the_student():
    signals, order = make_signals(), torch.tensor([3, 1, 0, 2])
    moved = signals.reordered(order)
    assert moved.student is signals.student
    assert torch.equal(moved.teacher.logits, signals.teacher.logits[order])
    assert torch.equal(moved.teacher.features["pooled"], signals.teacher.features["pooled"][order])
    assert moved.labels.tolist() == [1, 0, 2, 1]
    assert moved.index.tolist() == order.tolist()


def test_a_pair_is_an_output_of_each_by_name():
    signals = make_signals()
    student, teacher = signals.pair("layer1", "logits")
    assert student is signals.student.features["layer1"]
    assert teacher is signals.teacher.logits


def test_only_the_named_features_are_left():
    left = make_signals().only([("logits", "pooled"), ("layer1", "pooled")])
    assert list(left.student.features) == ["layer1"]
    assert list(left.teacher.features) == ["pooled"]


@pytest.mark.parametrize("other", [Moment(seed=1, step=5), Moment(seed=2, step=4)])
def test_random_numbers_depend_on_seed_purpose_and_step_alone(other):
    def draw(moment: Moment, purpose: str = "mixing") -> list[float]:
        return torch.rand(4, generator=moment.generator(purpose)).tolist()

    here = Moment(seed=1, step=4, epoch=0.5)
    assert draw(here) == draw(Moment(seed=1, step=4, epoch=0.9))
    assert draw(here) != draw(other)
    assert draw(here) != draw(here, "views")
