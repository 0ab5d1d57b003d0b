"""What the user says of how a teacher is shown images: against timm's own transforms, and what is kept of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ground.errors import InvalidInput, UnknownName
from ground.geometry import Normalisation, ViewGeometry
from ground.views import render
from models import create_model, save_weights
from models.origins import Preprocessing
from models.trained_on import TrainedOn
from storage.store import Store
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build
from teacher_cache.rendering import RenderingOverrides
from tests.running import run_command

CLASSES = ("cat", "dog")
SIZES = ((80, 60), (64, 100), (72, 72), (150, 40))
OWN = Preprocessing(
    resize_size=256, input_size=224, interpolation="bicubic", normalisation=Normalisation(mean=(0, 0, 0), std=(1, 1, 1))
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    root, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for place, size in enumerate(SIZES):
                coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
                image.save(root / split / name / f"{place}.png")
    return root


@pytest.fixture(scope="module")
def zoo_weights(tmp_path_factory) -> Path:
    """Of a file that says nothing of its training."""
    path = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
    save_weights(create_model("resnet8", num_classes=len(CLASSES), seed=0), path, {})
    return path


def config(photographs: Path, weights: Path, store: Path, **said: object) -> BuildConfig:
    return BuildConfig(
        teacher="resnet8", dataset=f"imagefolder:{photographs}", weights=weights, n=6, store=store, device="cpu",
        view_policy="plain", rendering=RenderingOverrides(**said),
    )  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"input_size": 112},
        {"input_size": 96, "crop_pct": 0.75},
        {"input_size": 64, "crop_pct": 1.0, "interpolation": "bilinear"},
        # Margins of 3, 5 and 11 pixels, of which the half pixel is rounded.
        {"input_size": 64, "crop_pct": 0.95},
        {"input_size": 96, "crop_pct": 0.95},
        {"input_size": 224, "crop_pct": 0.95},
        {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
    ],
)
def test_a_plain_view_is_what_timms_own_transforms_give_by_the_same_words(photographs, tmp_path, said):
    timm = pytest.importorskip("timm")
    from timm.data import create_transform, resolve_data_config

    name = "mobilenetv3_small_050"
    module = timm.create_model(name, pretrained=False, num_classes=len(CLASSES))
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    asked = config(photographs, tmp_path / "weights.pth", tmp_path / "s", **said)
    prepared = prepare_build(replace(asked, teacher=f"timm:{name}"))
    shown, rendering = prepared.shown, prepared.teacher.card.rendering
    size = said.get("input_size", 224)
    words = {**said, "input_size": (3, size, size)}
    settings = resolve_data_config(words, model=module)
    assert (rendering.size, rendering.interpolation) == (size, settings["interpolation"])
    transform = create_transform(**settings)
    files = [file for name in CLASSES for file in sorted((photographs / "train" / name).iterdir())]
    expected = torch.stack([transform(Image.open(files[place])) for place in shown.source_index])
    torch.testing.assert_close(render(shown.pixels(range(6)), rendering), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("own", "image_size", "said", "sizes"),
    [
        (None, None, {}, None),
        (None, 64, {"input_size": 96}, None),
        (OWN, None, {}, (256, 224)),
        (OWN, 64, {}, (64, 56)),
        (OWN, None, {"input_size": 288}, (329, 288)),
        (OWN, None, {"crop_pct": 0.9}, (248, 224)),
        (OWN, 100, {"crop_pct": 0.5, "input_size": 96}, (100, 50)),
        (None, None, {"crop_pct": 0.875}, (32, 28)),
        (None, None, {"crop_pct": 0.875, "input_size": 64}, (73, 64)),
        (None, 64, {"crop_pct": 1.0}, (64, 64)),
    ],
)
def test_sizes_of_a_folders_images_and_views(own, image_size, said, sizes):
    expected = None if sizes is None else ViewGeometry(image_size=sizes[0], crop_size=sizes[1], padding=0)
    assert RenderingOverrides(**said).folder_geometry(own, image_size) == expected


def test_published_sizes_are_kept_to_the_pixel():
    for resized in range(224, 400):
        geometry = RenderingOverrides().folder_geometry(replace(OWN, resize_size=resized), None)
        assert (geometry.image_size, geometry.crop_size) == (resized, 224)


@pytest.mark.parametrize(
    "said",
    [
        {"input_size": 48},
        {"interpolation": "bicubic"},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.1, 0.2, 0.3)},
    ],
)
def test_what_is_said_is_another_teacher(photographs, zoo_weights, tmp_path, said):
    usual, other = (
        prepare_build(config(photographs, zoo_weights, tmp_path / "s", **words)).plan.identity for words in ({}, said)
    )
    assert usual.teacher.fingerprint != other.teacher.fingerprint
    rendering = other.teacher_rendering
    assert rendering.interpolation == said.get("interpolation", "bilinear")
    assert rendering.size == said.get("input_size", 32)
    assert rendering.normalisation == Normalisation(
        mean=said.get("mean", usual.teacher.normalisation.mean), std=said.get("std", usual.teacher.normalisation.std)
    )


def test_another_crop_is_other_inputs_of_the_same_teacher(photographs, zoo_weights, tmp_path):
    said = {"input_size": 32}
    whole, part = (
        prepare_build(config(photographs, zoo_weights, tmp_path / "s", **said, crop_pct=share)).plan
        for share in (1.0, 0.8)
    )
    assert whole.identity.teacher == part.identity.teacher
    assert whole.identity.geometry != part.identity.geometry
    assert not {digest for row in whole.input_digests for digest in row} & {
        digest for row in part.input_digests for digest in row
    }


@pytest.mark.parametrize("policy", ["plain", "resized"])
def test_a_store_says_how_its_teacher_was_shown_images_and_grows_without_being_told(
    photographs, zoo_weights, tmp_path, policy
):
    folder = tmp_path / "store"
    common = (
        "ckd-cache", "build", "--store", folder, "--dataset", f"imagefolder:{photographs}", "--weights", zoo_weights,
        "--device", "cpu", "--json",
    )  # fmt: skip
    made = run_command(
        *common, "--teacher", "resnet8", "--n", 4, "--view-policy", policy, "--input-size", 40, "--interpolation",
        "bicubic", "--crop-pct", 0.8, "--mean", 0.5, 0.4, 0.3, "--std", 0.2, 0.3, 0.25,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    info = run_command("ckd-cache", "info", "--store", folder).stdout
    assert "views of 40 of 50 pixels, shown at 40 (bicubic); mean 0.5 0.4 0.3, std 0.2 0.3 0.25" in info
    before = Store.open(folder).manifest.identity
    grown = run_command(*common, "--n", 6)
    assert grown.returncode == 0, grown.stderr
    assert json.loads(grown.stdout)["new_calls"] == 2
    assert Store.open(folder).manifest.identity == before
    for option, says in (
        (("--crop-pct", 1), "geometry.crop_size (store: 40, asked: 50)"),
        (("--interpolation", "bilinear"), "teacher.interpolation (store: bicubic, asked: bilinear)"),
        (("--mean", 0.1, 0.1, 0.1), "teacher.normalisation.mean"),
        (("--input-size", 50), "teacher.input_size (store: 40, asked: 50)"),
    ):
        refused = run_command(*common, "--n", 6, *option)
        assert refused.returncode == 2
        assert says in refused.stderr, option


def test_a_stores_of_padded_views_grows_with_its_padding(photographs, zoo_weights, tmp_path):
    folder = tmp_path / "store"
    common = (
        "ckd-cache", "build", "--store", folder, "--dataset", f"imagefolder:{photographs}", "--weights", zoo_weights,
        "--device", "cpu", "--json",
    )  # fmt: skip
    for options, calls in (("--teacher", "resnet8", "--n", 4), 4), (("--n", 6), 2):
        built = run_command(*common, *options)
        assert built.returncode == 0, built.stderr
        assert json.loads(built.stdout)["new_calls"] == calls
    assert Store.open(folder).manifest.identity.geometry.padding == 4


BAD = {
    "an unknown filter": (("--interpolation", "bicubical"), "did you mean bicubic"),
    "no share": (("--crop-pct", 1.5), "--crop-pct must be a share from 0.1 to 1, got 1.5"),
    "no number": (("--crop-pct", "nan"), "--crop-pct must be a share from 0.1 to 1, got nan"),
    "no deviation": (("--std", 0, 1, 1), "--mean and --std: three finite means and three positive deviations"),
    "no mean": (("--mean", "inf", 1, 1), "--mean and --std: three finite means and three positive deviations"),
    "two numbers": (("--mean", 0.5, 0.5), "requires 3 arguments"),
    "an input of nothing": (("--input-size", 0), "--input-size"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_rendering_that_cannot_be_is_refused(photographs, zoo_weights, tmp_path, case):
    options, says = BAD[case]
    refused = run_command(
        "ckd-cache", "build", "--teacher", "resnet8", "--store", tmp_path / "s", "--weights", zoo_weights, "--n", 4,
        "--dataset", f"imagefolder:{photographs}", *options,
    )  # fmt: skip
    assert refused.returncode == 2
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "s").exists()


def test_the_same_in_a_program():
    with pytest.raises(UnknownName, match="no interpolation is called 'nearest'"):
        RenderingOverrides(interpolation="nearest")
    with pytest.raises(InvalidInput, match="must be 1 to 4096 pixels, got 5000"):
        RenderingOverrides(input_size=5000)


def test_a_data_set_that_cuts_its_own_views_takes_no_crop(weights, tmp_path):
    refused = run_command(
        "ckd-cache", "build", "--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--n", 4,
        "--store", tmp_path / "s", "--crop-pct", 0.9,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "--crop-pct is for images of your own, and digits has views of its own" in refused.stderr


@pytest.fixture
def trained(photographs, tmp_path) -> Path:
    """A file that says that it was trained on views of 56 of 64 pixels, with numbers of its own."""
    said = TrainedOn(
        network="resnet8",
        classes=CLASSES,
        geometry=ViewGeometry(image_size=64, crop_size=56, padding=0),
        input_size=48,
        normalisation=Normalisation(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)),
    )
    save_weights(create_model("resnet8", num_classes=2, seed=0), tmp_path / "trained.safetensors", said.metadata())
    return tmp_path / "trained.safetensors"


def test_a_file_holds_the_user_to_what_it_was_trained_with(photographs, trained, tmp_path):
    def prepared(image_size: int | None, **said: object):
        asked = config(photographs, trained, tmp_path / "s", **said)
        return prepare_build(replace(asked, image_size=image_size))

    with pytest.raises(InvalidInput, match=r"views of 56 pixels, .* have 32; give --image-size 64 --crop-pct 0.875, "):
        prepared(None)
    with pytest.raises(InvalidInput, match=r"inputs of 48 pixels, and would be given 56; give --input-size 48"):
        prepared(64, crop_pct=0.875)
    sizes = {"crop_pct": 0.875, "input_size": 48}
    assert prepared(64, **sizes).plan.identity.teacher.normalisation.mean == (0.1, 0.2, 0.3)
    assert prepared(64, **sizes, mean=(0.1, 0.2, 0.3)).plan.needed_calls == 6
    with pytest.raises(
        InvalidInput,
        match=r"trained with mean 0.1, 0.2, 0.3 and std 0.5, 0.5, 0.5, and would be given mean 0.1, 0.2, 0.3 and std "
        r"1, 1, 1; leave out --mean and --std, or give other --weights",
    ):
        prepared(64, **sizes, std=(1, 1, 1))


def test_weights_that_say_another_mean_do_not_grow_a_store(photographs, zoo_weights, trained, tmp_path):
    """What a store says of itself is held against them like what a user says."""
    folder = tmp_path / "store"
    common = ("ckd-cache", "build", "--store", folder, "--dataset", f"imagefolder:{photographs}", "--device", "cpu")
    sizes = ("--image-size", 64, "--crop-pct", 0.875, "--input-size", 48)
    assert not run_command(*common, "--teacher", "resnet8", "--n", 4, "--weights", zoo_weights, *sizes).returncode
    other = shutil.copy(trained, tmp_path / "other.safetensors")
    refused = run_command(*common, "--n", 6, "--weights", other)
    assert refused.returncode == 2
    assert "was trained with mean 0.1, 0.2, 0.3" in refused.stderr
