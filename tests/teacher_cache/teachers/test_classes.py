"""A teacher of other classes than the data set's: refused with what to do, or kept as a map says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from ground.errors import InvalidInput
from models import create_model, save_weights
from models.compute import Compute
from models.origins import class_names_of
from models.trained_on import TrainedOn
from storage.rows import Rows
from storage.store import Store
from teacher_cache.config import BuildConfig
from teacher_cache.datasets import ImageDataset, open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.rendering import RenderingOverrides
from teacher_cache.teachers import ClassChoice, TeacherSource, ZooTeacher, open_teacher
from tests.running import run_command

CPU = Compute.choose("cpu", "fp32")
# The digits 0 to 9 are classes 11 to 2 of this teacher.
COUNT = 12
# Of the ten-class teacher that tests share, by the release before there were maps.
FINGERPRINT = "aa345c5931e68441a466f78f0cafc3878e5d1d47e64f39a3e6af1ba368a8bc23"
NETWORK = create_model("resnet8", num_classes=COUNT, seed=0)
REVERSED = tuple((COUNT - 1 - digit,) for digit in range(10))


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "unnamed.safetensors"
    save_weights(NETWORK, path, {})
    return path


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    """The same weights, and a file that says what the classes are: -1, -2, then the digits from 9 to 0."""
    said = TrainedOn(network="resnet8", dataset="numbers", classes=("-1", "-2", *map(str, range(9, -1, -1))))
    path = tmp_path_factory.mktemp("weights") / "named.safetensors"
    save_weights(NETWORK, path, said.metadata())
    return path


def opened(
    name: str, weights: Path, dataset: ImageDataset, classes: ClassChoice | None = None, **how: Any
) -> ZooTeacher:
    classes = classes or ClassChoice()
    return open_teacher(TeacherSource(name=name, weights=weights, classes=classes, **how), dataset, CPU)


@pytest.fixture
def reversed_map(tmp_path) -> Path:
    path = tmp_path / "map.csv"
    path.write_text("teacher,data\n" + "".join(f"{place},{digit}\n" for digit, (place,) in enumerate(REVERSED)))
    return path


@pytest.fixture
def build(tmp_path) -> Callable:
    def run(*arguments: object, n: int = 24, store: str = "store"):
        return run_command(
            "ckd-cache", "build", "--dataset", "digits", "--store", tmp_path / store, "--n", n, "--device", "cpu",
            *arguments,
        )  # fmt: skip

    return run


def test_other_classes_without_a_map_are_refused_before_any_call(build, unnamed, tmp_path, forwards):
    refused = build("--teacher", "resnet8", "--weights", unnamed, "--budget", 24)
    assert refused.returncode == 2
    assert refused.stderr.strip() == (
        f"Error: the classes of {unnamed} are not those of digits (12 there, 10 here); say which is which with "
        "--class-map FILE (a CSV with the header teacher,data), or keep no logits, with --features LAYERS "
        "--features-only"
    )
    assert not (tmp_path / "store").exists()
    assert not forwards


def test_a_file_that_names_its_classes_is_matched_by_name_where_the_user_says_so(build, named, tmp_path):
    refused = build("--teacher", "resnet8", "--weights", named)
    assert refused.returncode == 2
    assert "(12 there, 10 here)" in refused.stderr
    assert "match them by name, with --class-map names, or say which is which" in refused.stderr
    built = build("--teacher", "resnet8", "--weights", named, "--class-map", "names")
    assert built.returncode == 0, built.stderr
    assert Store.open(tmp_path / "store").manifest.identity.teacher.class_map == REVERSED


def test_the_same_classes_in_another_order_are_said_to_be_just_that(tmp_path):
    digits = open_dataset("digits")
    said = TrainedOn(dataset="digits", classes=digits.classes[::-1])
    save_weights(create_model("resnet8", num_classes=10, seed=0), tmp_path / "w.safetensors", said.metadata())
    with pytest.raises(InvalidInput, match=r"\(the same in another order\); .* match them by name, with --class-map"):
        opened("resnet8", tmp_path / "w.safetensors", digits)
    teacher = opened("resnet8", tmp_path / "w.safetensors", digits, ClassChoice("names"))
    assert teacher.card.identity.class_map == tuple((9 - digit,) for digit in range(10))


def test_stored_logits_and_last_layer_are_those_of_the_datas_classes(build, unnamed, reversed_map, tmp_path):
    built = build("--teacher", "resnet8", "--weights", unnamed, "--class-map", reversed_map, "--features", "pooled",
                  "--feature-dtype", "float32")  # fmt: skip
    assert built.returncode == 0, built.stderr
    store = Store.open(tmp_path / "store")
    whole = opened("resnet8", unnamed, open_dataset("digits"), ClassChoice(features_only=True))
    pixels = prepare_build(config_of(tmp_path / "store", unnamed, REVERSED)).shown.pixels(range(24))
    own = whole.call(pixels, ["logits"])["logits"].numpy()
    kept = store.read_outputs(["logits", "pooled"], Rows.first(24))
    np.testing.assert_array_equal(kept["logits"][:, 0], own[:, [place for (place,) in REVERSED]])
    head = store.read_parameters()
    through = kept["pooled"][:, 0] @ head["head/weight"].T + head["head/bias"]
    np.testing.assert_allclose(through, kept["logits"][:, 0], rtol=1e-4, atol=1e-4)
    assert store.manifest.identity.teacher.num_classes == COUNT


def config_of(store: Path, weights: Path, class_map: object) -> BuildConfig:
    return BuildConfig(
        teacher="resnet8", weights=weights, dataset="digits", store=store, n=24, device="cpu", class_map=class_map,
        features="pooled", feature_dtype="float32",
    )  # fmt: skip


def test_several_classes_of_one_are_added_and_no_last_layer_is_kept(build, unnamed, tmp_path):
    path = tmp_path / "even.csv"
    path.write_text("teacher,data\n" + "".join(f"{place},{min(place, 9)}\n" for place in range(COUNT)))
    built = build("--teacher", "resnet8", "--weights", unnamed, "--class-map", path)
    assert built.returncode == 0, built.stderr
    store = Store.open(tmp_path / "store")
    assert store.manifest.identity.parameters == ()
    said = run_command("ckd-cache", "info", "--store", tmp_path / "store").stdout
    assert "classes   10 from 12 of the teacher's 12, by a class map, probabilities added\n" in said
    assert run_command("ckd-cache", "verify", "--store", tmp_path / "store").returncode == 0
    student = ("ckd-train", "--store", tmp_path / "store", "--max-evals", 1, "--out", tmp_path / "run")
    refused = run_command(*student, "--loss", "ce", "--loss", "simkd:on=pooled")
    assert refused.returncode == 2
    assert "simkd goes through the teacher's last layer, and the store keeps none" in refused.stderr
    assert run_command(*student, "--method", "kd").returncode == 0


def test_a_store_grows_by_its_own_map_when_the_file_is_gone(build, unnamed, reversed_map, tmp_path, forwards):
    arguments = ("--teacher", "resnet8", "--weights", unnamed)
    assert build(*arguments, "--class-map", reversed_map).returncode == 0
    assert build(*arguments, "--class-map", reversed_map).stdout.startswith("0 new teacher calls")
    reversed_map.unlink()
    grown = build("--weights", unnamed, n=40)
    assert grown.returncode == 0, grown.stderr
    assert grown.stdout.startswith("16 new teacher calls")
    extended = run_command(
        "ckd-cache", "extend", "--store", tmp_path / "store", "--weights", unnamed, "--features", "layer1", "--yes"
    )
    assert extended.returncode == 0, extended.stderr
    identity = Store.open(tmp_path / "store").manifest.identity
    assert identity.teacher.class_map == REVERSED
    assert list(identity.features) == ["layer1"]
    assert sum(forwards) == 24 + 16 + 40


def test_a_store_grows_by_a_map_that_changed_nothing_but_what_classes_are_called(build, tmp_path):
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    path = tmp_path / "words.safetensors"
    said = TrainedOn(network="resnet8", dataset="words", classes=words)
    save_weights(create_model("resnet8", num_classes=10, seed=0), path, said.metadata())
    (tmp_path / "map.csv").write_text("teacher,data\n" + "".join(f"{word},{row}\n" for row, word in enumerate(words)))
    arguments = ("--teacher", "resnet8", "--weights", path)
    assert build(*arguments).returncode == 2
    assert build(*arguments, "--class-map", tmp_path / "map.csv").returncode == 0
    assert Store.open(tmp_path / "store").manifest.identity.teacher.class_map is None
    (tmp_path / "map.csv").unlink()
    assert build("--weights", path, n=40).stdout.startswith("16 new teacher calls")
    extended = run_command(
        "ckd-cache", "extend", "--store", tmp_path / "store", "--weights", path, "--features", "layer1", "--yes"
    )
    assert extended.stdout.startswith("40 new teacher calls"), extended.stderr


def test_another_map_is_another_teacher(build, unnamed, reversed_map, tmp_path):
    arguments = ("--teacher", "resnet8", "--weights", unnamed)
    assert build(*arguments, "--class-map", reversed_map).returncode == 0
    rows = reversed_map.read_text().splitlines()
    reversed_map.write_text("\n".join([rows[0], "10,0", "11,1", *rows[3:]]))
    refused = build(*arguments, "--class-map", reversed_map, n=40)
    assert refused.returncode == 2
    assert "teacher.class_map (store: " in refused.stderr
    assert "teacher.fingerprint" in refused.stderr
    other = build(*arguments, "--class-map", reversed_map, store="other")
    assert other.stdout.startswith("24 new teacher calls")


def test_weights_of_fewer_classes_than_the_stores_map_names_are_refused(build, unnamed, reversed_map, tmp_path):
    assert build("--teacher", "resnet8", "--weights", unnamed, "--class-map", reversed_map).returncode == 0
    save_weights(create_model("resnet8", num_classes=10, seed=0), tmp_path / "ten.safetensors", {})
    refused = build("--weights", tmp_path / "ten.safetensors", n=40)
    assert refused.returncode == 2
    assert (
        "the store's class map has 10 classes and names the teacher's 11, and these weights are of 10" in refused.stderr
    )


def test_a_map_that_changes_nothing_makes_no_other_teacher(weights, tmp_path):
    (tmp_path / "same.csv").write_text("teacher,data\n" + "".join(f"{digit},{digit}\n" for digit in range(10)))
    digits = open_dataset("digits")
    plain = opened("resnet8", weights, digits).card.identity
    for asked in (str(tmp_path / "same.csv"), "names"):
        assert opened("resnet8", weights, digits, ClassChoice(asked)).card.identity == plain


def test_where_there_is_no_map_a_teacher_is_known_as_it_always_was(weights):
    """The fingerprint of the release before, for weights that were made from a seed."""
    identity = opened("resnet8", weights, open_dataset("digits")).card.identity
    assert identity.class_map is None
    assert identity.fingerprint == FINGERPRINT


def test_a_map_is_refused_before_any_call_by_its_line(build, unnamed, tmp_path, forwards):
    path = tmp_path / "map.csv"
    path.write_text("teacher,data\n0,0\n0,1\n")
    refused = build("--teacher", "resnet8", "--weights", unnamed, "--class-map", path)
    assert refused.returncode == 2
    assert f"Error: {path}, line 3: the teacher's class 0 means 1 (1), and 0 (0) by line 2" in refused.stderr
    assert not (tmp_path / "store").exists()
    assert not forwards


def test_a_dry_run_says_what_mapped_calls_cost(build, unnamed, reversed_map):
    planned = build("--teacher", "resnet8", "--weights", unnamed, "--class-map", reversed_map, "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["needed_calls"] == 24


def test_a_published_network_is_matched_by_the_names_of_its_library(tmp_path, photographs_of):
    torch.manual_seed(0)
    module = torchvision.models.get_model("mobilenet_v3_small", weights=None)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    data = open_dataset(f"imagefolder:{photographs_of('tench', 'warplane', 'abacus')}", image_size=64)
    name = "torchvision:mobilenet_v3_small"
    with pytest.raises(InvalidInput, match=r"\(1000 there, 3 here\); match them by name, with --class-map names"):
        opened(name, tmp_path / "w.safetensors", data, rendering=RenderingOverrides(input_size=64))
    teacher = opened(
        name, tmp_path / "w.safetensors", data, ClassChoice("names"), rendering=RenderingOverrides(input_size=64)
    )
    names = class_names_of(name)
    assert [names[place] for (place,) in teacher.card.identity.class_map] == ["abacus", "tench", "warplane"]
    assert teacher.card.parameters["head/weight"].shape == (3, 1024)
    assert teacher.card.outputs["logits"] == (3,)


@pytest.fixture
def photographs_of(tmp_path) -> Callable[..., Path]:
    from tests.test_commands import make_folder_dataset

    def make(*names: str) -> Path:
        return make_folder_dataset(tmp_path / "photos", names)

    return make
