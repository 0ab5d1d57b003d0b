"""Which outputs a loss pairs, and how a misfit is told."""

from __future__ import annotations

import pytest
import torch

from ground.errors import InvalidInput, UnknownName
from student_train.binding import Binding
from student_train.methods import parse_losses, parse_method
from student_train.needs import Needs, Wanted

STUDENT = ["stem", "layer1", "layer2", "layer3", "pooled", "layer1.pre", "layer2.pre", "layer3.pre", "last"]
TEACHER = ["stem", "layer1", "layer2", "layer3", "layer4", "pooled", "layer1.pre", "layer2.pre", "last"]


@pytest.mark.parametrize(
    ("outputs", "pairs"),
    [
        ("", []),
        ("logits", [("logits", "logits")]),
        ("layer2:layer4", [("layer2", "layer4")]),
        ("pooled+layer1", [("pooled", "pooled"), ("layer1", "layer1")]),
        ("stages", [(f"layer{stage}", f"layer{stage}") for stage in (1, 2, 3)]),
        ("maps", [(name, name) for name in ("stem", "layer1", "layer2", "layer3")]),
        ("stages.pre", [("layer1.pre", "layer1.pre"), ("layer2.pre", "layer2.pre")]),
        ("layer1+stages", [(f"layer{stage}", f"layer{stage}") for stage in (1, 2, 3)]),
    ],
)
def test_outputs_are_paired_by_name(outputs, pairs):
    assert list(Needs(outputs=outputs).pairs(STUDENT, TEACHER)) == pairs


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        ("layer9", UnknownName, "no layer of the student is called 'layer9'; did you mean"),
        ("layer2:layer9", UnknownName, "no layer of the teacher is called 'layer9'"),
        ("layer4", UnknownName, "no layer of the student"),
        ("+", InvalidInput, "names no layer"),
    ],
)
def test_layers_that_are_not_there_are_refused(outputs, error, message):
    with pytest.raises(error, match=message):
        Needs(outputs=outputs).pairs(STUDENT, TEACHER)
    with pytest.raises(InvalidInput, match="student or teacher has no stages; pair layers, as layers=layer2:layer3"):
        Needs(outputs="stages").pairs(["layer1"], ["pooled"])


def test_stages_of_two_libraries_are_paired_from_the_last():
    theirs = ["blocks.1", "blocks.2", "blocks.4", "bn2", "pooled", "last"]
    assert Needs(outputs="stages").pairs(["stem", "layer1", "layer2", "pooled"], theirs) == (
        ("layer1", "blocks.4"),
        ("layer2", "bn2"),
    )
    assert Needs(outputs="maps").pairs(["stem", "layer1", "layer2"], theirs) == (
        ("layer1", "blocks.4"),
        ("layer2", "bn2"),
    )


def test_a_numbered_layer_is_a_stage_of_a_network_that_names_them_otherwise():
    theirs = ["blocks.1", "blocks.2", "blocks.4", "bn2", "pooled", "last"]
    assert Needs(outputs="layer2").pairs(STUDENT, theirs) == (("layer2", "blocks.2"),)
    assert Needs(outputs="layer2").pairs(theirs, STUDENT) == (("blocks.2", "layer2"),)
    assert Needs(outputs="blocks.4:layer1").pairs(theirs, STUDENT) == (("blocks.4", "layer1"),)
    # A network's own name comes first.
    assert Needs(outputs="layer2").pairs(["layer2", "layer3"], ["layer2"]) == (("layer2", "layer2"),)
    for beyond in ("layer5", "layer0", "layer2.pre"):
        with pytest.raises(UnknownName, match=f"no layer of the teacher is called '{beyond}'"):
            Needs(outputs=f"logits:{beyond}").pairs(STUDENT, theirs)


def test_a_method_wants_what_its_losses_need_and_no_more():
    wanted = parse_method("fitnets").wanted(STUDENT, TEACHER)
    assert wanted == Wanted(student=("layer2",), teacher=("logits", "layer2"), parameters=False)
    wanted = parse_losses(["ce", "srrl:weight=0.5"]).wanted(STUDENT, TEACHER)
    assert wanted == Wanted(student=("last",), teacher=("logits", "pooled"), parameters=True)
    assert parse_method("vanilla").wanted(STUDENT, TEACHER) == Wanted((), (), parameters=False)
    # A loss of weight 0 is not computed, so nothing has to be there for it.
    assert parse_method("fitnets:weight=0").wanted(STUDENT, TEACHER).student == ()


def test_an_empty_setting_is_refused():
    with pytest.raises(InvalidInput, match="cannot read 'layers='"):
        parse_method("at:layers=")


def test_stages_without_a_common_name_are_bound_as_they_are_asked_for():
    needs, foreign = Needs(outputs="stages"), ["blocks.0", "blocks.1", "blocks.3", "blocks", "pooled"]
    stored = dict.fromkeys(TEACHER, (8, 4, 4))
    binding = Binding(
        student=dict.fromkeys(foreign, (8, 4, 4)),
        teacher=stored,
        teacher_layers=TEACHER,
        labels=torch.arange(4),
        num_classes=2,
    )
    expected = [(ours, f"layer{place}") for place, ours in enumerate(foreign[:4], 1)]
    assert list(needs.pairs(foreign, TEACHER)) == expected
    # Layers that are stored are layers that the teacher has, and count once.
    assert list(binding.pairs(needs)) == expected
