"""A run's folder says all its settings; a changed grid trains anew what it changed and nothing else."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.execution import cost
from experiments.grid_file import read_grid
from experiments.plan import one_a_teacher, plan_runs, plan_stores
from experiments.stores import Stores
from ground.errors import InvalidInput
from tests.experiments.grids import small, write


@pytest.fixture
def grid(tmp_path, weights):
    return read_grid(write(tmp_path / "grid.yaml", small(weights, seeds=2)))


def folders(grid, precision="fp32") -> set[str]:
    return {run.folder for run in plan_runs(grid, precision)}


def test_every_run_has_a_folder_of_its_own(grid):
    assert len(folders(grid)) == grid.num_runs == 8


def test_the_runs_of_one_seed_come_before_those_of_the_next(grid):
    assert [run.config.seed for run in plan_runs(grid, "fp32")] == [0] * 4 + [1] * 4


def test_more_methods_seeds_and_sizes_leave_the_other_runs_where_they_are(tmp_path, weights, grid):
    document = small(weights, seeds=3, methods=["vanilla", "kd", "ckd"], n=[24, 48, 96])
    assert folders(grid) < folders(read_grid(write(tmp_path / "more.yaml", document)))


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"max_evals": 3}},
        {"training": {"max_evals": 2, "lr": 0.1}},
        {"training": {"max_evals": 2, "patience": 7}},
        {"training": {"max_evals": 2, "average": 0.99}},
        {"training": {"max_evals": 2, "schedule": "cosine"}},
        {"training": {"max_evals": 2, "student_view": "trivial"}},
        {"training": {"max_evals": 2, "steps_per_eval": 5}},
        {"training": {"max_evals": 2, "stream": True}},
        {"training": {"max_evals": 2, "stream_rows": 128}},
        {"store": {"seed": 1}},
        {"store": {"views": 2}},
        {"store": {"view_policy": "plain"}},
        {"dataset": "cifar10"},
    ],
)
def test_whatever_changes_a_result_changes_the_folder(tmp_path, weights, grid, change):
    changed = read_grid(write(tmp_path / "changed.yaml", small(weights, seeds=2, **change)))
    assert not folders(grid) & folders(changed)


def test_what_is_measured_for_curves_changes_no_folder_and_no_description(tmp_path, weights, grid):
    training = {"max_evals": 2, "test_every": 1}
    measured = read_grid(write(tmp_path / "measured.yaml", small(weights, seeds=2, training=training)))
    runs, others = (plan_runs(planned, "fp32") for planned in (grid, measured))
    assert {run.config.test_every for run in others} == {1}
    assert [run.describe() for run in runs] == [run.describe() for run in others]


def test_settings_that_say_what_is_the_case_without_them_leave_runs_where_they_are(tmp_path, weights, grid):
    training = {"max_evals": 2, "average": 0, "schedule": "plateau", "steps_per_eval": None}
    assert folders(read_grid(write(tmp_path / "said.yaml", small(weights, seeds=2, training=training)))) == folders(
        grid
    )
    settings = [run.describe()["settings"] for run in plan_runs(grid, "fp32")]
    assert not any({"average", "schedule", "steps_per_eval"} & said.keys() for said in settings)


def test_views_that_a_method_would_not_draw_are_refused_with_its_line(tmp_path, weights):
    methods = ["kd", {"method": "mlkd", "training": {"student_view": "resized"}}]
    grid = read_grid(write(tmp_path / "grid.yaml", small(weights, methods=methods)))
    with pytest.raises(InvalidInput, match="line 9: mlkd: mlkd shows the student every stored view of an image"):
        plan_runs(grid, "fp32")


def test_folders_keep_the_names_that_earlier_releases_gave_them():
    grid = read_grid(Path(__file__).parents[2] / "grids" / "smoke.yaml")
    assert [run.folder for run in plan_runs(grid, "fp32")][:6] == [
        "runs/resnet20-resnet8-digits/vanilla-n200-seed0-92a7ffd4fb",
        "runs/resnet20-resnet8-digits/kd-n200-seed0-f38a7fef2b",
        "runs/resnet20-resnet8-digits/mixup-n200-seed0-9dc955f251",
        "runs/resnet20-resnet8-digits/ckd-n200-seed0-e49721ca08",
        "runs/resnet20-resnet8-digits/ckd-pairs-all-n200-seed0-99db2985e0",
        "runs/resnet20-resnet8-digits/vanilla-n400-seed0-afc3795cb4",
    ]


@pytest.fixture
def sampled(tmp_path, weights):
    """The grid with two samples more."""
    document = small(weights, seeds=2, sample_seeds=[0, 1, 12], test_images=8)
    return read_grid(write(tmp_path / "sampled.yaml", document))


def test_another_sample_is_another_run_in_a_store_of_its_own(grid, sampled):
    runs = plan_runs(sampled, "fp32")
    assert len({run.folder for run in runs}) == sampled.num_runs == 3 * grid.num_runs
    stores = {0: "stores/resnet8-digits", 1: "stores/resnet8-digits-sample1", 12: "stores/resnet8-digits-sample12"}
    assert {need.sample_seed: need.folder for need in plan_stores(sampled)} == stores
    assert all(run.store == stores[run.sample_seed] for run in runs)
    assert all(f"-sample{run.sample_seed}-seed" in run.folder for run in runs if run.sample_seed)


def test_sample_0_is_the_one_that_a_grid_has_by_default(grid, sampled):
    assert folders(grid) == {run.folder for run in plan_runs(sampled, "fp32") if run.sample_seed == 0}


def test_the_run_of_a_sample_is_the_same_whichever_others_there_are(tmp_path, weights, sampled):
    one = read_grid(write(tmp_path / "one.yaml", small(weights, seeds=2, sample_seeds=[12])))
    assert folders(one) == {run.folder for run in plan_runs(sampled, "fp32") if run.sample_seed == 12}


def test_what_is_finished_early_covers_all_samples(sampled):
    runs = plan_runs(sampled, "fp32")
    assert [run.config.seed for run in runs] == [0] * 12 + [1] * 12
    assert [run.sample_seed for run in runs] == ([0] * 4 + [1] * 4 + [12] * 4) * 2


def test_a_teacher_and_its_test_images_are_the_same_for_every_sample(tmp_path, sampled):
    needs = [replace(need, teacher_epochs=3) for need in plan_stores(sampled)]
    stores = Stores(sampled, tmp_path / "out", "cpu")
    weights = tmp_path / "out" / "teachers" / "resnet8-digits-3epochs.safetensors"
    assert {stores.own_weights(need) for need in needs} == {weights}
    assert {need.folder_of_tests for need in needs} == {"stores/resnet8-digits-test"}
    assert len(one_a_teacher(needs)) == 1


def test_each_sample_costs_its_own_calls_and_test_images_are_called_once(sampled):
    spent = cost(sampled, plan_runs(sampled, "fp32"))
    assert spent["calls"] == 3 * 48 + 8
    assert spent["calls_without_nesting"] == 3 * (24 + 48) + 8
    # Two seeds and three samples of kd at each size.
    assert spent["calls_without_store"] == 2 * 3 * (24 + 48) + 8


def test_a_run_is_sent_to_a_worker_whole(grid):
    runs = plan_runs(grid, "fp32")
    assert pickle.loads(pickle.dumps(runs)) == runs  # noqa: S301
    assert len(set(runs)) == len(runs)


def test_another_precision_is_another_run(grid):
    assert not folders(grid) & folders(grid, "bf16")


def test_what_changes_no_result_changes_no_folder(tmp_path, weights, grid):
    document = small(weights, seeds=2, targets=[0.5], test_images=10, store={"budget": 99, "format": "hdf5"})
    same = read_grid(write(tmp_path / "same.yaml", document))
    assert folders(grid) == folders(same)


def test_a_type_of_features_that_is_left_to_the_store_changes_no_folder(tmp_path, weights, grid):
    said = {
        name: folders(read_grid(write(tmp_path / name, small(weights, seeds=2, store={"feature_dtype": name}))))
        for name in ("float16", "bfloat16")
    }
    assert folders(grid) == said["float16"]
    assert not folders(grid) & said["bfloat16"]


def test_a_label_changes_the_name_of_the_folder_and_not_the_digest(tmp_path, weights, grid):
    methods = ["vanilla", {"label": "Hinton's", "method": "kd"}]
    renamed = read_grid(write(tmp_path / "renamed.yaml", small(weights, seeds=2, methods=methods)))
    digests = {folder[-10:] for folder in folders(grid)}
    assert {folder[-10:] for folder in folders(renamed)} == digests


def test_the_cost_of_the_papers_grid_is_its_largest_sample(grid):
    paper = replace(grid, sizes=tuple(range(1600, 6401, 400)), test_images=0)
    spent = cost(paper, plan_runs(paper, "fp32"))
    # design.md: 6,400 calls, not 52,000
    assert spent["calls"] == 6400
    assert spent["calls_without_nesting"] == 52000
    # Two seeds of kd at each size; vanilla asks no teacher.
    assert spent["calls_without_store"] == 2 * 52000
