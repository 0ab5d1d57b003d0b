"""Weights that are left to validation: which candidates a text stands for, and who refuses them."""

from __future__ import annotations

import pytest

from ground.errors import InvalidInput, UnknownName
from student_train.auto_weights import LOSS_WEIGHTS, METHOD_WEIGHTS, weighed
from student_train.methods import default_of_method, method_names, parse_losses, parse_method
from student_train.rest.spec import default_of_rest, parse_rest
from tests.conftest import run_command


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("kd", ["kd"]),
        ("kd:weight=auto", [f"kd:weight={weight}" for weight in ("1", "0.25", "4", "16")]),
        ("dist:weight=auto,ce=0", [f"dist:weight={weight},ce=0" for weight in ("2", "0.5", "8", "32")]),
        ("cc:weight=auto", [f"cc:weight={weight}" for weight in ("0.02", "0.005", "0.08", "0.32")]),
        ("ckd:pairs=all,labels=auto", [f"ckd:pairs=all,labels={weight}" for weight in ("1", "0.25", "4", "16")]),
    ],
)
def test_a_method_has_the_usual_weight_first_and_then_its_multiples(text, texts):
    assert weighed(text, METHOD_WEIGHTS, default_of_method) == texts


def test_two_weights_are_every_combination():
    found = weighed("fitnets+ckd:labels=auto,weight=auto", METHOD_WEIGHTS, default_of_method)
    assert len(found) == len(set(found)) == 16
    assert found[0] == "fitnets+ckd:labels=1,weight=100"
    assert found[-1] == "fitnets+ckd:labels=16,weight=1600"


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("ce:weight=auto", ["ce:weight=1", "ce:weight=0.25", "ce:weight=4", "ce:weight=16"]),
        (
            "mean_teacher:decay=0.9,weight=auto",
            [f"mean_teacher:decay=0.9,weight={w}" for w in ("1", "0.25", "4", "16")],
        ),
        ("proxy:runs/a+runs/b,weight=auto", [f"proxy:runs/a+runs/b,weight={w}" for w in ("1", "0.25", "4", "16")]),
    ],
)
def test_a_loss_of_the_rest_has_the_same_multiples(text, texts):
    assert weighed(text, LOSS_WEIGHTS, default_of_rest) == texts


@pytest.mark.parametrize("name", method_names())
def test_whatever_method_has_a_weight_can_leave_it_to_validation(name):
    try:
        parse_method(f"{name}:weight=2")
    except UnknownName:
        with pytest.raises(UnknownName, match="weight"):
            weighed(f"{name}:weight=auto", METHOD_WEIGHTS, default_of_method)
        return
    first, *others = weighed(f"{name}:weight=auto", METHOD_WEIGHTS, default_of_method)
    assert parse_method(first) == parse_method(name)
    assert len({str(parse_method(text).describe()) for text in (first, *others)}) == 4


@pytest.mark.parametrize("text", ["vanilla:labels=auto", "kd:labels=auto", "ckd:weight=auto"])
def test_a_weight_that_a_method_has_not_is_unknown(text):
    with pytest.raises(UnknownName, match="no setting of method"):
        weighed(text, METHOD_WEIGHTS, default_of_method)


@pytest.mark.parametrize(
    "refused",
    [
        lambda: parse_method("kd:weight=auto"),
        lambda: parse_method("ckd:pairs=all,labels=auto"),
        lambda: parse_losses(["ce", "kd:temperature=2,weight=auto"]),
        lambda: parse_rest(["ce:weight=auto"]),
        lambda: parse_rest(["proxy:runs/none,weight=auto"]),
    ],
)
def test_one_training_refuses_to_choose_and_says_what_does(refused):
    with pytest.raises(InvalidInput, match=r"=auto, which validation chooses .* as a grid of ckd-pipeline run does"):
        refused()


def test_the_command_says_so_in_one_sentence(built_store, tmp_path):
    done = run_command("ckd-train", "--store", built_store, "--method", "kd:weight=auto", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "ckd-pipeline run does (docs/pipeline.md); write it in one, or give a number" in done.stderr
    assert not (tmp_path / "run").exists()
