"""What a store keeps decides which methods learn from it; see teacher_cache/test_features_only.py for the commands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ground.errors import InvalidInput
from storage.identity import Identity
from storage.schema import OutputSpec
from student_train.answers import require_answers
from student_train.method_spec import MethodSpec
from student_train.methods import parse_losses, parse_method
from tests.storage.conftest import CLASSES, make_identity

STUDENT = ("stem", "layer1", "layer2", "pooled", "layer1.pre", "layer2.pre", "last")


def keeping(*names: str, classes: int = CLASSES) -> Identity:
    shapes = {"logits": (CLASSES,), "layer1": (3, 4, 4), "layer2": (6, 2, 2), "pooled": (6,), "last": (6, 2, 2)}
    identity = make_identity()
    return replace(
        identity,
        teacher=replace(identity.teacher, num_classes=classes),
        outputs=tuple(OutputSpec(name, shapes[name], "float32") for name in names),
        parameters=identity.parameters[:2] if "logits" in names else (),
    )


@pytest.mark.parametrize("method", ["vanilla", "kd", "fitnets", "simkd", "ckd"])
def test_with_logits_and_the_last_layer_everything_may_be_asked_for(method):
    require_answers(parse_method(method), STUDENT, keeping("logits", "layer1", "last"))


@pytest.mark.parametrize("method", ["vanilla", "fitnets:kd=0", "cc:kd=0"])
def test_without_them_features_and_labels_are_left(method):
    require_answers(parse_method(method), STUDENT, keeping("layer1", "layer2", "pooled"))


def refusal(method: MethodSpec, identity: Identity) -> str:
    with pytest.raises(InvalidInput) as refused:
        require_answers(method, STUDENT, identity)
    return str(refused.value)


def test_each_loss_of_logits_is_named():
    said = refusal(parse_losses(["ce", "kd", "hint", "dist"]), keeping("layer2"))
    assert said.startswith("kd and dist learn from the teacher's logits, and the store keeps features only; give ")


def test_logits_that_could_be_added_are_a_remedy_too():
    added = ", or add the logits with ckd-cache extend --features logits"
    assert refusal(parse_method("kd"), keeping("layer2")).endswith(added)
    assert added not in refusal(parse_method("kd"), keeping("layer2", classes=CLASSES + 1))


def test_where_nothing_fits_that_is_said():
    assert "give --method vanilla, or keep more features" in refusal(parse_method("kd"), keeping("layer1", classes=9))


def test_what_goes_through_a_last_layer_needs_one():
    no_head = replace(keeping("logits", "last"), parameters=make_identity().parameters[2:])
    assert refusal(parse_method("simkd"), no_head).startswith("simkd goes through the teacher's last layer, and the")
    assert "simkd" not in refusal(parse_method("simkd"), no_head).partition(", as ")[2]
