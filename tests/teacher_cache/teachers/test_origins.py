"""Networks of other libraries as teachers: shown images as their library shows them, and kept like any other."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2

from ground.errors import CheckpointMismatch, IdentityMismatch, InvalidInput, UnknownName
from ground.user_code import UserCode
from models import read_metadata
from models.compute import Compute
from models.origins import preprocessing_of
from models.trained_on import TrainedOn
from storage.store import Store
from storage.store_ledger import own_ledger
from storage.verify import store_problems
from teacher_cache.build import build
from teacher_cache.config import BuildConfig, ExtensionConfig
from teacher_cache.datasets import open_dataset
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build
from teacher_cache.rendering import RenderingOverrides
from teacher_cache.teachers import TeacherSource, open_teacher
from tests.running import run_command

NAME = "torchvision:mobilenet_v3_small"
CLASSES = ("cat", "dog", "owl")
SIZES = ((80, 60), (64, 100), (72, 72), (300, 40), (60, 61), (96, 70))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Images of many shapes."""
    root, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for place, (width, height) in enumerate(SIZES):
                coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{place}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    module = torchvision.models.get_model("mobilenet_v3_small", weights=None, num_classes=len(CLASSES))
    path = tmp_path_factory.mktemp("weights") / "mobilenet.safetensors"
    save_file(module.state_dict(), path)
    return path


def config(store: Path, photographs: Path, weights: Path, **changes: object) -> BuildConfig:
    settings = {"view_policy": "plain", "features": "pooled", "device": "cpu", "batch_size": 4, "n": 6} | changes
    return BuildConfig(teacher=NAME, dataset=f"imagefolder:{photographs}", weights=weights, store=store, **settings)


def shown_at(size: int | None) -> RenderingOverrides:
    return RenderingOverrides(input_size=size)


@pytest.fixture(scope="module")
def store(tmp_path_factory, photographs, weights) -> Path:
    folder = tmp_path_factory.mktemp("store") / "store"
    build(*prepare_build(config(folder, photographs, weights)))
    return folder


def module_of(weights: Path) -> torch.nn.Module:
    module = torchvision.models.get_model("mobilenet_v3_small", weights=None, num_classes=len(CLASSES))
    module.load_state_dict(load_file(weights))
    return module.eval()


def test_a_plain_view_gives_what_the_librarys_own_transforms_give(store, photographs, weights):
    opened = Store.open(store)
    files = [file for name in CLASSES for file in sorted((photographs / "train" / name).iterdir())]
    transforms = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.transforms(antialias=True)
    index = opened.read_sample("train/source_index")
    with torch.inference_mode():
        expected = torch.cat([module_of(weights)(transforms(Image.open(files[place]))[None]) for place in index])
    np.testing.assert_allclose(opened.read("train/logits")[:, 0], expected.numpy(), rtol=1e-4, atol=1e-4)


def test_a_store_says_how_its_teacher_was_shown_images(store):
    identity = Store.open(store).manifest.identity
    own = preprocessing_of(NAME)
    assert own is not None
    assert (own.resize_size, own.input_size, own.interpolation) == (256, 224, "bilinear")
    assert identity.teacher.name == NAME
    assert (identity.geometry.image_size, identity.geometry.crop_size, identity.geometry.padding) == (256, 224, 0)
    assert (identity.teacher_rendering.size, identity.teacher_rendering.interpolation) == (224, "bilinear")
    assert identity.teacher.normalisation == own.normalisation
    assert run_command("ckd-cache", "info", "--store", store).stdout.count("224 of 256 pixels") == 1


def test_a_smaller_base_image_is_cropped_alike_and_shown_at_the_networks_size(tmp_path, photographs, weights):
    folder = tmp_path / "store"
    build(*prepare_build(config(folder, photographs, weights, image_size=64)))
    opened = Store.open(folder)
    geometry = opened.manifest.identity.geometry
    assert (geometry.image_size, geometry.crop_size) == (64, 56)
    image = torch.from_numpy(opened.read_sample("train/images")[0]).permute(2, 0, 1)
    shown = v2.functional.resize(image[:, 4:60, 4:60], [224, 224], antialias=True)
    own = preprocessing_of(NAME)
    with torch.inference_mode():
        expected = module_of(weights)(own.normalisation.apply(shown[None]))
    np.testing.assert_allclose(opened.read("train/logits")[:1, 0], expected.numpy(), rtol=1e-4, atol=1e-4)


def test_another_input_size_is_another_teacher(store, photographs, weights):
    plans = [
        prepare_build(config(store.parent / "none", photographs, weights, rendering=shown_at(size))).plan
        for size in (None, 96)
    ]
    fingerprints = {plan.identity.teacher.fingerprint for plan in plans}
    assert len(fingerprints) == 2
    assert Store.open(store).manifest.identity.teacher.fingerprint in fingerprints
    with pytest.raises(IdentityMismatch, match="another teacher.fingerprint"):
        prepare_build(config(store, photographs, weights, rendering=shown_at(96)))


def test_a_store_grows_and_is_extended_without_its_sizes_being_said_again(tmp_path, photographs, weights):
    folder = tmp_path / "store"
    build(*prepare_build(config(folder, photographs, weights, rendering=shown_at(96), image_size=100)))
    grown = run_command(
        "ckd-cache", "build", "--store", folder, "--n", 9, "--dataset", f"imagefolder:{photographs}",
        "--weights", weights, "--json",
    )  # fmt: skip
    assert grown.returncode == 0, grown.stderr
    assert json.loads(grown.stdout)["new_calls"] == 3
    report = extend(*prepare_extension(ExtensionConfig(store=folder, features="features.3", weights=weights)))
    assert report.new_calls == 9
    opened = Store.open(folder)
    assert opened.read("train/features/features.3").shape[:3] == (9, 1, 24)
    with closing(own_ledger(folder)) as ledger:
        assert list(store_problems(opened, ledger)) == []


def test_students_of_any_size_learn_from_such_a_store(store, tmp_path):
    common = ("ckd-train", "--store", store, "--method", "kd", "--max-evals", 1, "--n", 6)
    for student, size in (("resnet8", 32), ("torchvision:resnet18", 64)):
        trained = run_command(
            *common, "--student", student, "--student-size", size, "--out", tmp_path / f"run-{size}", "--json"
        )  # fmt: skip
        assert trained.returncode == 0, trained.stderr
        shown = json.loads(trained.stdout)["student_rendering"]
        assert (shown["geometry"]["crop_size"], shown["input_size"]) == (224, size)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"teacher": "torchvision:mobilenet_v3_smal"}, UnknownName, "did you mean mobilenet_v3_small"),
        ({"teacher": "tim:resnet18"}, UnknownName, "no origin of networks is called 'tim'"),
        ({"teacher": "torchvision:resnet18"}, CheckpointMismatch, "mobilenet.safetensors"),
        ({"weights": None}, InvalidInput, "give --weights FILE"),
    ],
)
def test_what_cannot_be_such_a_teacher_is_refused_before_a_call(tmp_path, photographs, weights, change, error, says):
    with pytest.raises(error, match=says):
        prepare_build(replace(config(tmp_path / "store", photographs, weights), **change))
    assert not (tmp_path / "store").exists()


def test_training_a_teacher_of_another_library_is_left_to_that_library(photographs):
    refused = run_command("ckd-cache", "train-teacher", "--teacher", NAME, "--dataset", f"imagefolder:{photographs}")
    assert refused.returncode == 2
    assert "train it with its own library" in refused.stderr


def test_a_students_file_is_held_to_the_size_of_its_input(store, tmp_path):
    run = tmp_path / "run"
    trained = run_command(
        "ckd-train", "--store", store, "--method", "kd", "--max-evals", 1, "--student", "resnet8",
        "--student-size", 40, "--out", run,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    said = TrainedOn.read(read_metadata(run / "student.safetensors"), run)
    assert (said.network, said.input_size, said.geometry.crop_size) == ("resnet8", 40, 224)
    dataset = replace(
        open_dataset("digits"), classes=said.classes, geometry=replace(said.geometry), normalisation=said.normalisation
    )
    compute = Compute.choose("cpu", "fp32")
    with pytest.raises(InvalidInput, match="inputs of 40 pixels, and would be given 224; give --input-size 40"):
        open_teacher(TeacherSource(name="resnet8", weights=run / "student.safetensors"), dataset, compute)
    assert (
        open_teacher(
            TeacherSource(name="resnet8", weights=run / "student.safetensors", rendering=shown_at(40)), dataset, compute
        ).card.rendering.size
        == 40
    )


def without_bias(num_classes):
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, num_classes, False),
    )


def test_a_last_layer_without_a_bias_is_kept_with_one_that_adds_nothing(tmp_path):
    torch.save(without_bias(10).state_dict(), tmp_path / "w.pth")
    source = TeacherSource(name=f"python:{__name__}:without_bias", weights=tmp_path / "w.pth", code=UserCode.ALLOWED)
    parameters = open_teacher(source, open_dataset("digits"), Compute.choose("cpu", "fp32")).card.parameters
    assert parameters["head/weight"].shape == (10, 4)
    np.testing.assert_array_equal(parameters["head/bias"], np.zeros(10))
