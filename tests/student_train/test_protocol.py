"""The training protocol against a plain retelling of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from student_train.protocol import Decision, Protocol, ProtocolConfig


def retold(accuracies: list[float], patience: int, plateaus: int) -> list[str]:
    """What the released code does, evaluation by evaluation, until it ends."""
    best, last_improvement, adjusted, said = -1.0, 0, 0, []
    for evaluation, accuracy in enumerate(accuracies, start=1):
        if adjusted == plateaus:
            break
        if accuracy > best:
            best, last_improvement = accuracy, evaluation
            said.append("improved")
        elif evaluation - last_improvement >= patience:
            adjusted, last_improvement = adjusted + 1, evaluation
            said.append("stop" if adjusted == plateaus else "lower")
        else:
            said.append("go on")
    return said


NAMES = {
    Decision.IMPROVED: "improved",
    Decision.GO_ON: "go on",
    Decision.LOWER: "lower",
    Decision.STOP: "stop",
}


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), max_size=60), st.integers(1, 6), st.integers(1, 3))
def test_decisions_equal_the_retelling(accuracies, patience, plateaus):
    protocol = Protocol(ProtocolConfig(patience=patience, plateaus=plateaus))
    said = []
    for accuracy in accuracies:
        if protocol.finished:
            break
        said.append(NAMES[protocol.update(accuracy)])
    assert said == retold(accuracies, patience, plateaus)


def test_three_plateaus_of_fifty_end_the_training():
    protocol = Protocol(ProtocolConfig())
    protocol.update(0.5)
    evaluations = 1
    while not protocol.finished:
        protocol.update(0.4)
        evaluations += 1
    assert evaluations == 1 + 3 * 50
    assert protocol.reached == 3


def test_a_limit_on_evaluations_ends_it_and_still_notes_a_last_improvement():
    protocol = Protocol(ProtocolConfig(max_evals=2))
    assert protocol.update(0.1) is Decision.IMPROVED
    assert protocol.update(0.2) is Decision.IMPROVED
    assert protocol.finished


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=2, max_size=30), st.data())
def test_a_restored_protocol_goes_on_as_if_nothing_had_happened(accuracies, data):
    cut = data.draw(st.integers(0, len(accuracies)))
    config = ProtocolConfig(patience=3)
    whole, first = Protocol(config), Protocol(config)
    for accuracy in accuracies[:cut]:
        whole.update(accuracy)
        first.update(accuracy)
    second = Protocol(config)
    second.restore(first.state())
    assert [whole.update(a) for a in accuracies[cut:]] == [second.update(a) for a in accuracies[cut:]]


@pytest.mark.parametrize("change", [{"patience": 0}, {"plateaus": 0}, {"max_evals": 0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(InvalidInput, match="must be at least 1"):
        ProtocolConfig(**change)
