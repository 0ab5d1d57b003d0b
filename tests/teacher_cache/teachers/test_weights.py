"""What a teacher's file says of its training, and what it is held to before any call."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ground.errors import InvalidInput
from ground.geometry import Normalisation
from models import create_model, save_weights
from models.compute import Compute
from models.trained_on import TrainedOn
from teacher_cache.config import BuildConfig
from teacher_cache.datasets import ImageDataset, open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.teachers import TeacherSource, open_teacher

CPU = Compute.choose("cpu", "fp32")
NETWORK = create_model("resnet8", num_classes=2, seed=0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "photos"
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def opened(photos: Path, size: int = 32) -> ImageDataset:
    return open_dataset(f"imagefolder:{photos}", image_size=size)


def said_of(dataset: ImageDataset, network: str = "resnet8") -> TrainedOn:
    return TrainedOn.of(
        network,
        dataset=dataset.name,
        dataset_digest=dataset.digest,
        classes=dataset.classes,
        rendering=dataset.rendering,
    )


def test_what_is_written_is_what_is_read(photos, tmp_path):
    said = said_of(opened(photos))
    assert TrainedOn.read(said.metadata(), tmp_path) == said


def test_a_teacher_of_64_pixels_is_refused_at_32_and_taken_at_64(photos, tmp_path):
    path = tmp_path / "large.safetensors"
    save_weights(NETWORK, path, said_of(opened(photos, 64)).metadata())
    asked = BuildConfig(
        teacher="resnet8", weights=path, dataset=f"imagefolder:{photos}", n=4, store=tmp_path / "s", device="cpu"
    )
    with pytest.raises(
        InvalidInput, match=r"trained on views of 64 pixels, .* have 32; give --image-size 64, or other"
    ):
        prepare_build(asked)
    assert prepare_build(replace(asked, image_size=64)).plan.needed_calls == 4


OTHERS = {
    "another order": ({"classes": ("bee", "ant")}, r"not those of imagefolder:photos \(the same in another order\)"),
    "other names": ({"classes": ("ant", "wasp")}, r"\(label 1 is wasp there, bee here\)"),
    "more classes": (
        {"classes": ("ant", "bee", "cat")},
        r"\(3 there, 2 here\); give that data set, or other --weights",
    ),
    "another network": ({"network": "resnet14"}, r"is of a resnet14; give --teacher resnet14, or other --weights"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_file_of_something_else_is_refused(photos, tmp_path, case):
    values, message = OTHERS[case]
    data = opened(photos)
    save_weights(NETWORK, tmp_path / "other.safetensors", replace(said_of(data), **values).metadata())
    with pytest.raises(InvalidInput, match=message):
        open_teacher(TeacherSource(name="resnet8", weights=tmp_path / "other.safetensors"), data, CPU)


def test_the_student_of_another_set_of_classes_is_no_teacher(photos, tmp_path):
    save_weights(NETWORK, tmp_path / "student.safetensors", {"student": "resnet8", "method": "kd"} | {
        "classes": json.dumps(["cat", "dog"]), "dataset": "imagefolder:pets"})  # fmt: skip
    with pytest.raises(InvalidInput, match="was trained on imagefolder:pets, whose classes are not those of"):
        open_teacher(TeacherSource(name="resnet8", weights=tmp_path / "student.safetensors"), opened(photos), CPU)


def test_normalisation_is_the_files(photos, tmp_path):
    data, own = opened(photos), Normalisation(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    save_weights(NETWORK, tmp_path / "own.safetensors", replace(said_of(data), normalisation=own).metadata())
    assert (
        open_teacher(
            TeacherSource(name="resnet8", weights=tmp_path / "own.safetensors"), data, CPU
        ).card.identity.normalisation
        == own
    )


def remarks_on(path: Path, dataset: ImageDataset, caplog) -> list[str]:
    with caplog.at_level(logging.INFO, logger="teacher_cache.teachers.zoo"):
        open_teacher(TeacherSource(name="resnet8", weights=path), dataset, CPU)
    return [record.message for record in caplog.records if record.name == "teacher_cache.teachers.zoo"]


def test_a_file_that_says_all_needs_no_word(photos, tmp_path, caplog):
    data = opened(photos)
    save_weights(NETWORK, tmp_path / "own.safetensors", said_of(data).metadata())
    assert remarks_on(tmp_path / "own.safetensors", data, caplog) == []


def test_a_foreign_file_is_taken_at_the_users_word_which_is_said(photos, tmp_path, caplog):
    path = tmp_path / "foreign.pth"
    half = {key: value.half() if value.is_floating_point() else value for key, value in NETWORK.state_dict().items()}
    torch.save({"ema": half}, path)
    assert remarks_on(path, opened(photos), caplog) == [
        (
            f"{path} does not say what it was trained on; it is taken to be 2 classes in the order of "
            "imagefolder:photos, views of 32 pixels, mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225"
        ),
        f"{path} keeps its weights as float16; they are used as float32",
    ]


def test_a_teacher_of_an_earlier_release_says_nothing_of_its_size(photos, tmp_path, caplog):
    data, path = opened(photos), tmp_path / "earlier.safetensors"
    said = said_of(data).metadata()
    del said["geometry"], said["dataset_digest"], said["network"]
    save_weights(NETWORK, path, said | {"teacher": "resnet8"})
    (line,) = remarks_on(path, data, caplog)
    assert line == f"{path} does not say the pixel size of its training; it is taken to be views of 32 pixels"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"dataset": "imagefolder:pets"}, "was trained on imagefolder:pets and not on imagefolder:photos"),
        ({"dataset_digest": "0" * 64}, "was trained on other images called imagefolder:photos too"),
    ],
)
def test_other_images_of_the_same_classes_are_said(photos, tmp_path, caplog, values, line):
    data, path = opened(photos), tmp_path / "tuned.safetensors"
    save_weights(NETWORK, path, replace(said_of(data), **values).metadata())
    (found,) = remarks_on(path, data, caplog)
    assert line in found
