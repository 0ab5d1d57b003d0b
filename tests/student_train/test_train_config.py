"""What a training is told is checked when it is said."""

from __future__ import annotations

import pytest

from ground.errors import InvalidInput, UnknownName
from student_train.train_config import TrainConfig


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("lr", 0.0, "--lr must be a finite number above 0, got 0.0"),
        ("lr", float("nan"), "--lr must be a finite number above 0"),
        ("momentum", -0.1, "momentum must be a finite number of at least 0"),
        ("weight_decay", float("inf"), "weight_decay must be a finite number"),
        ("batch_size", 3, "--batch-size must be at least 4, got 3"),
        ("average", 1.0, "--average must be at least 0, which is none, and below 1, got 1.0"),
        ("average", -0.1, "--average must be at least 0"),
        ("average", float("nan"), "--average must be at least 0"),
    ],
)
def test_numbers_that_cannot_train_are_refused(field, value, said):
    with pytest.raises(InvalidInput, match=said):
        TrainConfig(student="resnet8", **{field: value})


def test_an_unknown_view_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="no student view is called 'teachr'; did you mean teacher"):
        TrainConfig(student="resnet8", student_view="teachr")


def test_the_defaults_are_those_of_the_papers_code():
    config = TrainConfig(student="resnet8")
    assert (config.lr, config.momentum, config.weight_decay, config.batch_size) == (0.05, 0.9, 5e-4, 64)
    assert (config.protocol.patience, config.protocol.plateaus, config.protocol.schedule) == (50, 3, "plateau")
    assert (config.student_view, config.average) == ("auto", 0.0)
