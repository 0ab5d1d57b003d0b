"""What a loss requires of its outputs: who passes, and what the refusal shows."""

from __future__ import annotations

import pytest

from ground.errors import InvalidInput
from student_train.losses import requirements
from tests.student_train.losses.checks import binding_for

MAP, WIDER, VECTOR, OTHER = (3, 4, 4), (5, 4, 4), (3,), (2, 2)


@pytest.mark.parametrize(
    ("require", "student", "teacher"),
    [
        (requirements.are_maps, [MAP, MAP], [WIDER, MAP]),
        (requirements.are_vectors_or_maps, [MAP, VECTOR], [VECTOR, MAP]),
        (requirements.are_of_one_kind, [MAP, VECTOR], [WIDER, VECTOR]),
        (requirements.have_equal_channels, [MAP, MAP], [MAP, (3, 2, 2)]),
        (requirements.are_consecutive, [MAP, MAP], [MAP, VECTOR]),
        (requirements.is_one_output("give one"), [MAP], [VECTOR]),
        (requirements.has_other_classes, [], []),
    ],
)
def test_what_fits_passes(require, student, teacher):
    assert require("some", *bound(student, teacher)) is None


@pytest.mark.parametrize(
    ("require", "student", "teacher", "message", "shown"),
    [
        (requirements.are_maps, [MAP, VECTOR], [MAP, MAP], "both must be maps of channels", ["layer1"]),
        (requirements.are_vectors_or_maps, [MAP, MAP], [OTHER, VECTOR], "both must be vectors or maps", ["layer0"]),
        (requirements.are_of_one_kind, [MAP, OTHER], [VECTOR, OTHER], "or both vectors", ["layer0", "layer1"]),
        # All of them: each is related to its neighbours.
        (requirements.have_equal_channels, [MAP, MAP], [MAP, WIDER], "as many channels", ["layer0", "layer1"]),
        (requirements.have_equal_channels, [MAP, VECTOR], [MAP, VECTOR], "must be maps", ["layer0", "layer1"]),
        (requirements.are_consecutive, [MAP], [MAP], "needs two at least", ["layer0"]),
        (requirements.is_one_output("give one"), [MAP, MAP], [MAP, MAP], "give one", ["layer0", "layer1"]),
    ],
)
def test_what_does_not_fit_is_refused_with_a_table(require, student, teacher, message, shown):
    with pytest.raises(InvalidInput, match=rf"some: .*{message}") as refusal:
        require("some", *bound(student, teacher))
    rows = str(refusal.value).splitlines()[2:]
    assert [row.split()[0] for row in rows] == shown


def test_a_single_class_is_refused():
    with pytest.raises(InvalidInput, match="some: there must be another class besides the target"):
        requirements.has_other_classes("some", binding_for({}, {}, classes=1), [("logits", "logits")])


def bound(student, teacher):
    ours, theirs = ({f"layer{place}": shape for place, shape in enumerate(shapes)} for shapes in (student, teacher))
    return binding_for(ours, theirs), [(name, name) for name in ours]
