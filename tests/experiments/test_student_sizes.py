"""Students of a grid at sizes of their own, from stores that are prepared as their teachers' libraries do it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from experiments.estimate import estimate
from experiments.execution import ExecutionConfig
from experiments.grid import Grid
from experiments.grid_file import read_grid
from experiments.layers import student_layers, teacher_layers
from experiments.plan import plan_runs, plan_stores
from ground.errors import InvalidInput
from models import network_shape
from models.origins import preprocessing_of
from storage.run_record import RunRecord
from storage.store import Store
from teacher_cache.datasets import open_dataset
from tests.experiments.grids import results, run, small, write

TEACHER = "timm:mobilenetv3_small_050"


def document(photographs: Path, weights: Path, **changes: object) -> dict[str, object]:
    teacher = {"teacher": TEACHER, "weights": str(weights)}
    return {
        "name": "sizes",
        "dataset": f"imagefolder:{photographs}",
        "image_size": 72,
        "student_size": 32,
        "pairs": [teacher | {"student": "resnet8"}, teacher | {"student": "torchvision:resnet18", "student_size": 48}],
        "methods": ["fitnets+ckd"],
        "n": [8],
        "seeds": 1,
        "training": {"max_evals": 1, "batch_size": 8},
    } | changes


@pytest.fixture
def grid(tmp_path, photographs, timm_weights) -> Grid:
    return read_grid(write(tmp_path / "grid.yaml", document(photographs, timm_weights)))


def test_a_pairs_size_stands_before_the_grids_and_is_part_of_what_a_run_is(grid):
    runs = plan_runs(grid, "fp32")
    assert {run.student: run.config.student_size for run in runs} == {"resnet8": 32, "torchvision:resnet18": 48}
    assert [run.describe()["settings"]["student_size"] for run in runs] == [32, 48]
    without = plan_runs(replace(grid, student_size=None), "fp32")
    assert [one.folder == other.folder for one, other in zip(runs, without, strict=True)] == [False, True]


def test_a_zoo_grid_without_sizes_is_planned_as_before(tmp_path, weights):
    (run, *_) = plan_runs(read_grid(write(tmp_path / "grid.yaml", small(weights))), "fp32")
    assert "student_size" not in run.describe()["settings"]
    assert "student_preprocessing" not in run.describe()["settings"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"student_size": 0}, "student_size must be a whole number from 1 to 4096"),
        ({"pairs": [{"teacher": "resnet8", "student": "resnet8", "student_size": "big"}]}, "student_size must be"),
        (
            {"pairs": [{"teacher": "resnet8", "student": "resnet8", "student_size": size} for size in (8, 16)]},
            "two pairs name resnet8 and resnet8, at different sizes; make a grid for each",
        ),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_their_line(tmp_path, photographs, timm_weights, change, says):
    path = write(tmp_path / "grid.yaml", document(photographs, timm_weights, **change))
    with pytest.raises(InvalidInput, match=rf"grid.yaml, line \d+: .*{says}"):
        read_grid(path)


def test_layers_are_those_of_networks_at_their_sizes(grid):
    # As the teacher's library shows it images, and not at the 32 pixels of the zoo.
    assert teacher_layers(TEACHER) == list(network_shape(TEACHER, image_size=224).layers)
    assert teacher_layers(TEACHER) != list(network_shape(TEACHER, image_size=32).layers)
    large = replace(grid.pairs[0], student=TEACHER, student_size=96)
    assert student_layers(grid, large) == list(network_shape(TEACHER, image_size=96).layers)
    as_views = replace(large, student_size=None)
    assert student_layers(replace(grid, student_size=None), as_views) == list(
        network_shape(TEACHER, image_size=63).layers
    )


def test_an_estimate_times_each_student_at_its_own_size(grid, tmp_path, monkeypatch):
    from experiments import estimate as module

    made = []

    def create(name, num_classes, seed, image_size):
        made.append((name, image_size))
        return network(name, num_classes, seed, image_size)

    network = module.create_model
    monkeypatch.setattr(module, "create_model", create)
    said = estimate(grid, ExecutionConfig(out=tmp_path / "out", jobs=1, device="cpu"))
    assert made == [("resnet8", 32), ("torchvision:resnet18", 48)]
    assert (said.runs, said.new_calls) == (2, 8)
    assert said.student_seconds > 0


@pytest.mark.slow
def test_such_a_grid_runs_and_its_store_is_as_its_teachers_library_prepares_it(tmp_path, photographs, timm_weights):
    path, out = write(tmp_path / "grid.yaml", document(photographs, timm_weights)), tmp_path / "out"
    done = run(path, out)
    assert done.returncode == 0, done.stderr
    need, *others = plan_stores(read_grid(path))
    assert not others
    identity = Store.open(out / need.folder).manifest.identity
    own = preprocessing_of(TEACHER)
    assert (identity.geometry.image_size, identity.geometry.crop_size, identity.geometry.padding) == (72, 63, 0)
    assert (identity.teacher.input_size, identity.teacher.interpolation) == (own.input_size, "bicubic")
    plain = open_dataset(f"imagefolder:{photographs}", image_size=72)
    assert identity.dataset.digest == plain.digest
    table = results(out)
    shown = {row["student"]: RunRecord.read(out / row["run"]).student_rendering for _, row in table.iterrows()}
    assert {student: rendering.size for student, rendering in shown.items()} == {
        "resnet8": 32,
        "torchvision:resnet18": 48,
    }
    assert len(identity.outputs) > 1
    again = json.loads(run(path, out, "--json").stdout)
    assert (again["found"], again["trained"], again["new_calls"]) == (2, 0, 0)
    assert yaml.safe_load((out / "grid.yaml").read_text())["student_size"] == 32
