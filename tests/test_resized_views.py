"""Both stages on a store of boxes: what the teacher is asked, what is kept of it, and what students are shown."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from ground.errors import InvalidInput
from ground.geometry import Rendering
from models import create_model, load_weights
from models.compute import Compute
from storage.manifest import Manifest
from storage.store import Store
from storage.store_ledger import own_ledger
from storage.verify import store_problems
from student_train.data import StudentData
from student_train.needs import Wanted
from student_train.sampling import Batch
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build, prepare_test_build
from tests.experiments.grids import run, small, write
from tests.manifests import sealed
from tests.running import run_command

N, VIEWS = 24, 2
CPU = Compute(torch.device("cpu"), "fp32")
ROWS = torch.tensor([5, 17, 3, 21])


def build(store: Path, weights: Path, *options: object, n: int = N) -> dict[str, object]:
    result = run_command(
        "ckd-cache", "build", "--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--n", n,
        "--store", store, "--device", "cpu", "--json", *options,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def store(tmp_path_factory, weights) -> Path:
    folder = tmp_path_factory.mktemp("boxes") / "store"
    report = build(folder, weights, "--views", VIEWS, "--view-policy", "resized", "--features", "layer2,pooled")
    assert report["new_calls"] == N * VIEWS
    return folder


@pytest.fixture
def copy(store, tmp_path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "store"))


def problems(store: Path) -> list[str]:
    with closing(own_ledger(store)) as ledger:
        return [str(problem) for problem in store_problems(Store.open(store), ledger)]


def shown_by_torchvision(image: np.ndarray, box: list[int], size: int, rendering: Rendering) -> torch.Tensor:
    top, left, flip, height, width = box
    cut = tv.crop(torch.from_numpy(image).permute(2, 0, 1), top, left, height, width)
    cut = tv.resize(tv.horizontal_flip(cut) if flip else cut, [size, size], antialias=True)
    return tv.normalize(cut.float() / 255, rendering.normalisation.mean, rendering.normalisation.std)


def test_the_teacher_answers_for_boxes_as_torchvision_shows_them(store, weights):
    opened = Store.open(store)
    identity = opened.manifest.identity
    images, views = (opened.read_sample(f"train/{name}") for name in ("images", "views"))
    assert (views.shape, views.dtype) == ((N, VIEWS, 5), np.int16)
    assert len(np.unique(views[..., 3:].reshape(-1, 2), axis=0)) > N
    network = create_model("resnet8", num_classes=10)
    load_weights(network, weights)
    boxes = [
        shown_by_torchvision(images[row], views[row, view].tolist(), 32, identity.teacher_rendering)
        for row in range(N)
        for view in range(VIEWS)
    ]
    with torch.inference_mode():
        expected = network.eval()(torch.stack(boxes)).numpy()
    np.testing.assert_allclose(opened.read("train/logits").reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)
    assert problems(store) == []


def test_how_boxes_were_resized_is_part_of_what_the_teacher_is_known_by(store, weights, tmp_path):
    identity = Store.open(store).manifest.identity
    assert (identity.teacher.input_size, identity.teacher.interpolation) == (32, "bilinear")
    config = BuildConfig(teacher="resnet8", weights=weights, dataset="digits", n=N, store=tmp_path / "s", device="cpu")
    assert prepare_build(config).plan.identity.teacher.fingerprint != identity.teacher.fingerprint
    boxes = replace(config, view_policy="resized")
    assert prepare_build(boxes).plan.identity.teacher == identity.teacher
    # Calls on test images are plain, and of the same teacher.
    tested = prepare_test_build(boxes).plan.identity
    assert (tested.teacher, tested.view_policy) == (identity.teacher, "plain")
    info = run_command("ckd-cache", "info", "--store", store).stdout
    assert "boxes of 8% to 100% of an image's area; plain views of 32 of 32 pixels" in info
    assert "shown at 32 (bilinear)" in info


def test_the_same_build_makes_no_call_and_a_larger_one_keeps_the_boxes(copy, weights):
    before = Store.open(copy).read_sample("train/views")
    assert build(copy, weights)["new_calls"] == 0
    assert build(copy, weights, n=36)["new_calls"] == 12 * VIEWS
    after = Store.open(copy).read_sample("train/views")
    assert after.shape == (36, VIEWS, 5)
    np.testing.assert_array_equal(after[:N], before)
    assert problems(copy) == []


def test_a_store_of_boxes_is_extended_and_converted(copy, weights, tmp_path):
    extended = run_command(
        "ckd-cache", "extend", "--store", copy, "--features", "layer1", "--weights", weights, "--yes", "--device", "cpu"
    )  # fmt: skip
    assert extended.returncode == 0, extended.stderr
    other = tmp_path / "converted"
    converted = run_command("ckd-cache", "convert", "--store", copy, "--to", "hdf5", "--out", other)
    assert converted.returncode == 0, converted.stderr
    for name in ("train/views", "train/logits", "train/features/layer1"):
        np.testing.assert_array_equal(Store.open(other).read(name), Store.open(copy).read(name))
    assert problems(copy) == problems(other) == []


def write_box(store: Path, box: tuple[int, ...]) -> np.ndarray:
    arrays = Store.open(store).arrays
    views = arrays.read("train/views", 0, N)
    views[3, 1] = box
    arrays.write("train/views", 0, views)
    arrays.sync()
    return views


OUTSIDE = [(0, 0, 0, 33, 8), (-1, 0, 0, 8, 8), (0, 0, 0, 0, 0), (30000, 0, 0, 30000, 8)]


@pytest.mark.parametrize("box", OUTSIDE)
def test_a_box_outside_its_image_is_a_problem_and_no_crash(copy, box):
    write_box(copy, box)
    verified = run_command("ckd-cache", "verify", "--store", copy)
    assert verified.returncode == 1, verified.stderr
    assert "train/views" in verified.stdout
    assert "Traceback" not in verified.stderr


def test_a_strangers_store_that_vouches_for_such_a_box_is_refused_by_all_who_would_cut_it(copy, weights, tmp_path):
    digest = hashlib.sha256(write_box(copy, OUTSIDE[0]).tobytes()).hexdigest()
    path = copy / "manifest.json"
    document = json.loads(path.read_text())
    document["samples"]["train/views"] = digest
    path.write_text(json.dumps(sealed(document)))
    for command, code in (
        (("ckd-cache", "verify", "--store", copy), 1),
        (("ckd-cache", "extend", "--store", copy, "--features", "layer1", "--weights", weights, "--yes"), 2),
        (("ckd-train", "--store", copy, "--student", "resnet8", "--out", tmp_path / "run", "--max-evals", 1), 2),
    ):
        refused = run_command(*command)
        assert refused.returncode == code, command
        said = refused.stdout + refused.stderr
        assert "train/views" in said, command
        assert "Traceback" not in said, command


def load(store: Path, size: int | None) -> StudentData:
    opened = Store.open(store)
    rendering = replace(opened.manifest.identity.teacher_rendering, input_size=size)
    return StudentData.load(
        opened, N, Wanted(student=(), teacher=("logits",), parameters=False), CPU, None if size is None else rendering
    )


def inputs(data: StudentData, student_view: str, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return data.inputs(Batch(ROWS, (slice(0, len(ROWS)),)), step, seed=0, student_view=student_view)


@pytest.mark.parametrize("size", [None, 20, 48])
def test_a_student_replays_the_teachers_boxes_at_its_own_size(store, size):
    data = load(store, size)
    found, which = inputs(data, "teacher")
    images = data.train.images[ROWS].numpy()
    expected = [
        shown_by_torchvision(image, box, size or 32, data.rendering)
        for image, box in zip(images, data.views[ROWS, which].tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_fresh_views_are_boxes_too(store, monkeypatch):
    data, seen = load(store, 20), []
    from student_train import student_views as module

    def spy(images: torch.Tensor, views: torch.Tensor, rendering: Rendering) -> torch.Tensor:
        seen.append(views)
        return shown(images, views, rendering)

    shown = module.view_pixels
    monkeypatch.setattr(module, "view_pixels", spy)
    for step in (0, 0, 1):
        assert inputs(data, "fresh", step)[0].shape == (len(ROWS), 3, 20, 20)
    assert all(views.shape == (len(ROWS), 5) for views in seen)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize(("method", "options"), [("kd", ("--student-size", 24)), ("hint", ()), ("fitnets+ckd", ())])
def test_students_learn_from_boxes(store, tmp_path, method, options):
    trained = run_command(
        "ckd-train", "--store", store, "--student", "resnet8", "--method", method, "--max-evals", 1, "--out",
        tmp_path / "run", "--device", "cpu", "--json", *options,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert result["student_rendering"]["input_size"] == (24 if options else None)
    assert result["student_view"] == ("fresh" if method == "kd" else "teacher")


def test_a_teacher_that_says_no_size_is_not_shown_boxes(weights, tmp_path):
    """As a stand-in that somebody else opens: the plan is refused before any call."""
    from teacher_cache.datasets import open_dataset
    from teacher_cache.teachers import TeacherSource, untrained_teacher

    digits = open_dataset("digits")
    config = BuildConfig(
        teacher="resnet8", dataset="digits", n=N, store=tmp_path / "s", device="cpu", view_policy="resized"
    )
    with pytest.raises(InvalidInput, match="input_size is None"):
        prepare_build(config, digits, untrained_teacher(TeacherSource(name="resnet8"), digits, CPU))
    assert (
        prepare_build(
            config, digits, untrained_teacher(TeacherSource(name="resnet8", boxes=True), digits, CPU)
        ).plan.needed_calls
        == N
    )


@pytest.mark.slow
def test_a_grid_of_boxes_pays_one_teacher_for_training_and_test_images(weights, tmp_path):
    boxes = {"methods": ["kd"], "n": [24], "test_images": 8, "store": {"view_policy": "resized", "views": 2}}
    path, out = write(tmp_path / "grid.yaml", small(weights, **boxes)), tmp_path / "out"
    estimate = run(path, out, "--dry-run", "--json")
    assert json.loads(estimate.stdout)["new_calls"] == 24 * 2 + 8, estimate.stderr
    done = run(path, out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new_calls"] == 24 * 2 + 8
    teachers = {Manifest.load(folder.parent).identity.teacher for folder in out.rglob("manifest.json")}
    assert len(teachers) == 1


def test_a_grid_of_boxes_says_what_a_teacher_costs_that_is_yet_to_be_trained(tmp_path):
    pairs = [{"teacher": "resnet8", "student": "resnet8", "teacher_epochs": 1}]
    document = small(tmp_path, pairs=pairs, n=[24], test_images=8, store={"view_policy": "resized"})
    estimate = run(write(tmp_path / "grid.yaml", document), tmp_path / "out", "--dry-run", "--json")
    assert json.loads(estimate.stdout)["new_calls"] == 24 + 8, estimate.stderr
