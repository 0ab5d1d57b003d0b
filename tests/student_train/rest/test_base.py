"""The weight of a loss of the rest rises as its paper says, and what it cannot have is refused."""

from __future__ import annotations

import math

import pytest

from ground.errors import InvalidInput, UnknownName
from ground.user_code import UserCode
from student_train.rest.base import RestLoss
from student_train.rest.labels import Labels


def test_a_weight_rises_by_the_published_curve_and_then_stays():
    loss = Labels(weight=3.0, ramp=4.0)
    for epoch in (0.0, 1.0, 3.5):
        assert loss.risen(epoch) == pytest.approx(math.exp(-5 * (1 - epoch / 4) ** 2))
    assert [loss.risen(epoch) for epoch in (4.0, 100.0)] == [1.0, 1.0]
    assert Labels().risen(0.0) == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("ratio=0", "ratio is above 0"),
        ("ratio=100", "at most 64"),
        ("weight=0", "leave the loss out"),
        ("ramp=-1", "ramp is a number of epochs"),
        ("ratio=much", "takes ratio as float"),
    ],
)
def test_settings_that_mean_nothing_are_refused_with_the_loss_named(settings, said):
    with pytest.raises(InvalidInput, match=f"loss of the rest ce.*{said}"):
        Labels.arguments(f"ce:{settings}")


def test_settings_that_a_loss_does_not_have_are_refused():
    with pytest.raises(UnknownName, match="confidence"):
        Labels.arguments("ce:confidence=0.9")


def test_a_loss_that_follows_nothing_is_complete_with_its_formula():
    class Nothing(RestLoss):
        name = "nothing"

        def forward(self, batch):
            return batch.labels.float().sum()

    loss = Nothing(1.0, 2.0, 0.0)
    loss.begin(None, None, None, UserCode.REFUSED)
    loss.after_step(None)
    assert not list(loss.parameters())
