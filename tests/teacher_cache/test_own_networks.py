"""A teacher that is the user's own code, through the commands: described, built, extended, grown, and trained from."""

from __future__ import annotations

import json

import pytest
import torch

from storage.manifest import Manifest
from tests.running import run_command

MODULE = """
from torch import nn


def made(width, classes):
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


def teacher(num_classes):
    return made(8, num_classes)


def student(num_classes):
    return made(4, num_classes)
"""


@pytest.fixture
def place(tmp_path):
    """A folder with a module of networks, and weights of its teacher."""
    (tmp_path / "networks_of_mine.py").write_text(MODULE)
    scope: dict[str, object] = {}
    exec(MODULE, scope)
    torch.manual_seed(0)
    torch.save(scope["teacher"](10).state_dict(), tmp_path / "mine.pth")
    return tmp_path


def run(place, *arguments):
    return run_command(*arguments, cwd=place)


def test_a_teacher_and_a_student_of_the_users_own_in_one_file(place):
    own = ("--teacher", "python:networks_of_mine:teacher", "--weights", "mine.pth", "--allow-code")
    built = run(
        place, "ckd-cache", "build", *own, "--dataset", "digits", "--n", 20, "--features", "all", "--store", "s"
    )
    assert built.returncode == 0, built.stderr
    identity = Manifest.load(place / "s").identity
    assert identity.teacher.name == "python:networks_of_mine.teacher"
    assert [output.name for output in identity.outputs] == ["logits", "0", "1", "pooled"]

    # A module that is none of its own choice is called for like any other layer.
    added = run(place, "ckd-cache", "extend", "--store", "s", "--features", "0.0", "--yes", *own)
    assert (added.returncode, added.stdout) == (0, "20 new teacher calls; s holds 20 of 20 rows whole\n")
    again = run(place, "ckd-cache", "extend", "--store", "s", "--features", "0.0", "--yes")
    assert "keeps these features already" in again.stdout
    unknown = run(place, "ckd-cache", "extend", "--store", "s", "--features", "0.9", "--yes", *own)
    assert unknown.returncode == 2
    assert "no layer of the network is called '0.9'; did you mean 0.1, 0.0" in unknown.stderr

    # Only the user can say where code lies.
    grown = run(place, "ckd-cache", "build", "--store", "s", "--n", 24)
    assert grown.returncode == 2
    assert "--teacher python:networks_of_mine:teacher --weights" in grown.stderr
    grown = run(place, "ckd-cache", "build", "--store", "s", "--n", 24, *own)
    assert grown.stdout == "4 new teacher calls; s holds 24 of 24 rows whole\n"
    assert run(place, "ckd-cache", "verify", "--store", "s").returncode == 0

    train = ("ckd-train", "--store", "s", "--student", "python:networks_of_mine:student", "--method", "fitnets+ckd")
    refused = run(place, *train, "--max-evals", 1)
    assert (refused.returncode, "give --allow-code" in refused.stderr) == (2, True)
    trained = run(place, *train, "--max-evals", 1, "--allow-code", "--out", "r")
    assert trained.returncode == 0, trained.stderr
    assert json.loads((place / "r" / "run.json").read_text())["student"] == "python:networks_of_mine:student"


def test_what_a_network_would_be_as_a_teacher_is_said_without_a_call(place):
    found = run(place, "ckd-cache", "teacher", "python:networks_of_mine:teacher", "--allow-code", "--json")
    described = json.loads(found.stdout)
    shapes = {layer["name"]: tuple(layer["shape"]) for layer in described["layers"]}
    assert shapes == {"logits": (2,), "0": (8, 16, 16), "1": (16, 8, 8), "pooled": (16,), "last": (16, 8, 8)}
    assert {layer["name"] for layer in described["layers"] if layer["in_all"]} == {"logits", "0", "1", "pooled"}
    assert described["parameters"] == 8 * 27 + 8 + 16 * 8 * 9 + 16 + 2 * 16 + 2
    assert described["calls_per_second"] > 0
    assert {"0.0", "0.1", "1.0", "1.1", "2"} <= {layer["name"] for layer in described["further_layers"]}


def test_a_library_says_how_its_network_is_shown_images_and_which_classes_it_knows(tmp_path):
    found = run(tmp_path, "ckd-cache", "teacher", "torchvision:mobilenet_v3_small", "--input-size", 64)
    assert found.returncode == 0, found.stderr
    assert "classes   1000 (tench, goldfish, " in found.stdout
    assert "shown     shorter side 256, centre 224 (bilinear)" in found.stdout
    assert "input     64 pixels; mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in found.stdout
    assert "more modules can be named; --modules lists them" in found.stdout


def test_a_network_of_the_zoo_is_described_too(tmp_path):
    described = json.loads(run(tmp_path, "ckd-cache", "teacher", "resnet8", "--json").stdout)
    assert (described["name"], described["classes"], described["further_layers"]) == ("resnet8", None, [])
    assert [layer["name"] for layer in described["layers"]][:2] == ["logits", "stem"]


WITH_CLASSES = """
import torch


def unnamed():
    torch.manual_seed(0)
    return made(8, 10)


def others():
    torch.manual_seed(0)
    return made(8, 12)


others.classes = ("eleven", "ten", *map(str, range(9, -1, -1)))
"""


def test_a_teacher_with_classes_of_its_own_is_mapped_like_any_other(tmp_path):
    (tmp_path / "networks_of_mine.py").write_text(MODULE + WITH_CLASSES)
    build = ("ckd-cache", "build", "--dataset", "digits", "--n", 20, "--allow-code", "--teacher")
    built = run(tmp_path, *build, "python:networks_of_mine:unnamed", "--store", "unnamed")
    assert built.returncode == 0, built.stderr
    said = " ".join(built.stderr.split())
    assert "does not say what its classes are called; they are taken to be 10 classes in the order of digits" in said
    others = (*build, "python:networks_of_mine:others", "--store", "others")
    refused = run(tmp_path, *others)
    assert refused.returncode == 2
    assert "the classes of python:networks_of_mine:others are not those of digits (12 there, 10 here)" in refused.stderr
    assert run(tmp_path, *others, "--class-map", "names").returncode == 0
    teacher = Manifest.load(tmp_path / "others").identity.teacher
    assert teacher.class_map == tuple((11 - digit,) for digit in range(10))
    assert run(tmp_path, *others[:5], 24, *others[6:]).stdout.startswith("4 new teacher calls")
