"""The learning rate falls as its schedule says, and the training ends when it says so."""

from __future__ import annotations

import math

import pytest

from ground.errors import InvalidInput, UnknownName
from student_train.protocol import Decision, Protocol, ProtocolConfig
from student_train.schedule import SCHEDULES


def test_a_cosine_falls_from_all_of_the_rate_to_none():
    protocol = Protocol(ProtocolConfig(schedule="cosine", max_evals=8))
    shares = [protocol.share_of_lr(done) for done in (0, 2, 4, 6, 8)]
    root = math.sqrt(0.5)
    assert shares == pytest.approx([1, (1 + root) / 2, 0.5, (1 - root) / 2, 0], abs=1e-12)
    steps = [protocol.share_of_lr(step / 10) for step in range(81)]
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) == 81, "it falls within an evaluation too"


def test_a_cosine_has_no_plateaus_ends_at_its_last_evaluation_and_keeps_the_best():
    protocol = Protocol(ProtocolConfig(schedule="cosine", max_evals=9, patience=2, plateaus=1))
    decisions = [protocol.update(accuracy) for accuracy in (0.1, 0.5, *[0.3] * 7)]
    assert decisions == [Decision.IMPROVED, Decision.IMPROVED, *[Decision.GO_ON] * 6, Decision.STOP]
    assert (protocol.finished, protocol.best, protocol.reached) == (True, 0.5, 0)


def test_the_rate_is_a_tenth_after_each_plateau_whatever_the_step():
    protocol = Protocol(ProtocolConfig(patience=1, max_evals=9))
    protocol.update(0.5)
    assert protocol.share_of_lr(0.5) == protocol.share_of_lr(7) == 1
    for reached in (1, 2):
        protocol.update(0.4)
        assert protocol.share_of_lr(1.5) == 0.1**reached


def test_plateaus_are_the_default():
    assert ProtocolConfig().schedule == "plateau"
    assert list(SCHEDULES) == ["plateau", "cosine"]


def test_what_a_schedule_needs_is_asked_for_when_it_is_named():
    with pytest.raises(
        InvalidInput, match="a cosine schedule is as long as the training.*with --max-evals, or max_eva"
    ):
        ProtocolConfig(schedule="cosine")
    with pytest.raises(UnknownName, match="no schedule is called 'cosin'; did you mean cosine"):
        ProtocolConfig(schedule="cosin", max_evals=3)
