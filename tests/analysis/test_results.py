"""What is planned, what is finished, and what a hostile folder is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analysis.grid_plan import GridPlan
from analysis.results import COLUMNS, STATES, collect, save_results, states
from ground.errors import InvalidInput
from tests.analysis.grids import PlannedRun, results_of, write_grid


def spoil(folder: Path, run: PlannedRun, content: str) -> None:
    (folder / run.folder / "run.json").write_text(content)


def test_every_finished_run_is_a_row_in_the_plans_order(tmp_path):
    planned = [PlannedRun(label=label, n=n) for label in ("kd", "ckd") for n in (1600, 800)]
    planned.insert(1, PlannedRun(label="rkd", accuracy=None))
    results = results_of(tmp_path, planned)
    finished = [(run.label, run.n) for run in planned if run.accuracy is not None]
    assert list(zip(results["label"], results["n"], strict=True)) == finished
    assert list(results.columns) == list(COLUMNS)


def test_a_row_says_what_run_json_says(tmp_path):
    run = PlannedRun(label="ckd", n=800, seed=3, accuracy=0.25, validation=0.3, more={"ledger_head": None})
    (row,) = results_of(tmp_path, [run]).to_dict("records")
    assert (row["test_accuracy"], row["best_val_accuracy"], row["seed"], row["seconds"]) == (0.25, 0.3, 3, 12.5)
    assert (row["patience"], row["plateaus"]) == (8, 3)
    assert pd.isna(row["max_evals"])
    assert json.loads(row["recipe"]) == run.result()["recipe"]
    assert json.loads(row["versions"]) == run.result()["versions"]
    assert row["ledger_head"] == ""


def test_a_moved_folder_reads_the_same(tmp_path):
    before = results_of(tmp_path / "here", [PlannedRun()])
    shutil.move(tmp_path / "here", tmp_path / "there")
    after = collect(tmp_path / "there")
    pd.testing.assert_frame_equal(before, after)
    assert after["store"].tolist() == ["stores/wrn_40_2"]


def test_an_empty_plan_is_an_empty_table_with_all_columns_and_types(tmp_path):
    empty, full = results_of(tmp_path / "empty", []), results_of(tmp_path / "full", [PlannedRun()])
    assert len(empty) == 0
    pd.testing.assert_series_equal(empty.dtypes, full.dtypes)
    assert list(states(tmp_path / "empty").columns) == list(STATES)


def test_the_best_on_validation_is_chosen_and_the_first_among_equals(tmp_path):
    candidates = [(0.1, 0.30, 0.9), (0.05, 0.40, 0.2), (0.025, 0.40, 0.8)]
    runs = [PlannedRun(lr=lr, validation=validation, accuracy=test) for lr, validation, test in candidates]
    results = results_of(tmp_path, [*runs, PlannedRun(label="kd")])
    assert results["chosen"].tolist() == [False, True, False, True]


def test_nothing_is_chosen_before_all_candidates_are_finished(tmp_path):
    runs = [PlannedRun(lr=0.1), PlannedRun(lr=0.05, accuracy=None), PlannedRun(seed=1)]
    assert results_of(tmp_path, runs)["chosen"].tolist() == [False, True]


def test_a_candidate_that_diverged_has_lost_the_choice_and_another_failure_leaves_it_open(tmp_path):
    runs = [PlannedRun(lr=0.1, accuracy=None), PlannedRun(lr=0.05)]
    write_grid(tmp_path, runs)
    failure = tmp_path / runs[0].folder / "failure.json"
    failure.parent.mkdir(parents=True)
    for kind, expected in (("Diverged", True), ("WorkerDied", False)):
        failure.write_text(json.dumps({"error": "it failed", "kind": kind, "at": "2025-01-01T00:00:00"}))
        assert collect(tmp_path)["chosen"].tolist() == [expected]


def test_states_tell_finished_failed_begun_and_waiting(tmp_path):
    runs = [PlannedRun(seed=0), *(PlannedRun(seed=seed, accuracy=None) for seed in (1, 2, 3, 4))]
    write_grid(tmp_path, runs)
    for run in runs[1:4]:
        (tmp_path / run.folder).mkdir(parents=True)
    error = {"error": "the loss is nan\nat step 3\x1b[2J", "kind": "Diverged", "at": "2025-01-01T00:00:00"}
    (tmp_path / runs[1].folder / "failure.json").write_text(json.dumps(error))
    (tmp_path / runs[2].folder / "failure.json").write_text("{")
    found = states(tmp_path)
    assert found["state"].tolist() == ["finished", "failed", "failed", "begun", "waiting"]
    assert found["error"][1] == "the loss is nan at step 3 [2J"
    assert "failure.json" in found["error"][2]
    assert found["seed"].tolist() == [0, 1, 2, 3, 4]


def test_saved_tables_equal_the_collected_one(tmp_path):
    write_grid(tmp_path, [PlannedRun(label='a, "quoted" ± label'), PlannedRun(label="kd", seed=2, accuracy=1 / 3)])
    results = save_results(tmp_path)
    kinds = {name: kind for name, kind in COLUMNS.items() if kind != "bool"}
    read = pd.read_csv(tmp_path / "results.csv", dtype=kinds, keep_default_na=False, na_values={"max_evals": [""]})
    pd.testing.assert_frame_equal(read, results)
    pytest.importorskip("pyarrow")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "results.parquet"), results)
    assert not list(tmp_path.glob(".*partial"))


def test_without_pyarrow_no_older_parquet_contradicts_the_csv(tmp_path, monkeypatch):
    write_grid(tmp_path, [PlannedRun()])
    (tmp_path / "results.parquet").write_bytes(b"of earlier")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    save_results(tmp_path)
    assert (tmp_path / "results.csv").exists()
    assert not (tmp_path / "results.parquet").exists()


@pytest.mark.parametrize(
    "place", ["../../outside", "/etc", "runs/../../outside", "..", "", "a\\..\\b", "runs/\x00", "runs/\n", 7, None]
)
@pytest.mark.parametrize("kind", ["run", "store"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, place, kind):
    folder = write_grid(tmp_path / "grid", [PlannedRun()])
    plan = json.loads((folder / "grid.json").read_text())
    plan["runs"][0][kind] = place
    (folder / "grid.json").write_text(json.dumps(plan))
    for reader in (GridPlan.load, collect, states, save_results):
        with pytest.raises(InvalidInput, match=f"grid.json.*{kind} is "):
            reader(folder)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    run = PlannedRun()
    elsewhere = write_grid(tmp_path / "elsewhere", [run])
    folder = write_grid(tmp_path / "grid", [PlannedRun(accuracy=None)])
    (folder / "runs").symlink_to(elsewhere / "runs")
    with pytest.raises(InvalidInput, match="through a link"):
        collect(folder)


def test_a_folder_reached_through_a_link_is_read(tmp_path):
    write_grid(tmp_path / "grid", [PlannedRun()])
    (tmp_path / "link").symlink_to(tmp_path / "grid")
    assert len(collect(tmp_path / "link")) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test_accuracy": float("nan")}, "NaN"),
        ({"test_accuracy": float("inf")}, "Infinity"),
        ({"test_accuracy": 1.5}, "test_accuracy is 1.5, not a number between 0 and 1"),
        ({"test_accuracy": "high"}, "test_accuracy is 'high'"),
        ({"test_accuracy": True}, "test_accuracy is True"),
        ({"n": 10**30}, "n is 1000000"),
        ({"n": 801}, "n is 801, planned was 800"),
        ({"seed": 5}, "seed is 5, planned was 0"),
        ({"student": "vgg8"}, "student is 'vgg8', planned was 'wrn_16_2'"),
        ({"protocol": None}, "protocol is None"),
        ({"device": "\x1b[2J"}, "device is "),
        ({"dataset": "\ud800"}, "dataset is "),
        ({"seconds": -1}, "seconds is -1"),
    ],
)
def test_a_damaged_run_is_refused_and_named(tmp_path, change, said):
    folder = write_grid(tmp_path, [PlannedRun(label="kd"), run := PlannedRun()])
    spoil(folder, run, json.dumps(run.result() | change))
    with pytest.raises(InvalidInput) as refused:
        collect(folder)
    assert f"{run.folder}/run.json" in str(refused.value)
    assert said in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("key", sorted(PlannedRun().result()))
def test_a_run_without_a_key_is_refused_and_the_key_named(tmp_path, key):
    run = PlannedRun()
    document = run.result()
    del document[key]
    spoil(write_grid(tmp_path, [run]), run, json.dumps(document))
    if key in ("store", "ledger_head"):  # the one is the plan's, the other a store without a ledger lacks
        assert len(collect(tmp_path)) == 1
    else:
        with pytest.raises(InvalidInput, match=f"it has no {key}"):
            collect(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "null", "7", '{"n": ' + "9" * 5000 + "}", '{"a": ' + "[" * 100_000])
def test_a_run_that_is_no_object_is_refused(tmp_path, content):
    run = PlannedRun()
    spoil(write_grid(tmp_path, [run]), run, content)
    with pytest.raises(InvalidInput, match="run.json.*delete the folder of this run"):
        collect(tmp_path)


def test_a_row_says_of_which_sample_its_run_is(tmp_path):
    runs = [PlannedRun(sample_seed=sample, seed=seed) for sample in (0, 3) for seed in (0, 1)]
    write_grid(tmp_path, runs)
    save_results(tmp_path)
    table = pd.read_csv(tmp_path / "results.csv")
    assert list(zip(table["sample_seed"], table["seed"], strict=True)) == [(0, 0), (0, 1), (3, 0), (3, 1)]
    assert states(tmp_path)["sample_seed"].tolist() == [0, 0, 3, 3]


def test_validation_chooses_within_a_sample(tmp_path):
    runs = [
        PlannedRun(sample_seed=sample, lr=lr, validation=0.5 + lr * sign)
        for sample, sign in ((0, 1), (1, -1))
        for lr in (0.1, 0.05)
    ]
    assert results_of(tmp_path, runs)["chosen"].tolist() == [True, False, False, True]


def test_a_sample_is_what_run_json_says_where_the_plan_of_an_earlier_release_does_not(tmp_path):
    told, untold = PlannedRun(more={"sample_seed": 4}), PlannedRun(seed=1)
    found = results_of(tmp_path, [told, untold])["sample_seed"]
    assert found[0] == 4
    assert pd.isna(found[1])


def test_a_run_of_another_sample_is_refused(tmp_path):
    # All else is the same for every sample.
    other, run = PlannedRun(sample_seed=0, more={"sample_seed": 0}), PlannedRun(sample_seed=1, more={"sample_seed": 1})
    folder = write_grid(tmp_path, [other, run])
    assert len(collect(folder)) == 2
    spoil(folder, run, json.dumps(other.result()))
    with pytest.raises(InvalidInput, match="sample_seed is 0, planned was 1"):
        collect(folder)


def test_spellings_of_a_network_are_one(tmp_path):
    run = PlannedRun(student="wrn16_2", more={"student": "wrn_16_2"})
    assert results_of(tmp_path, [run])["student"].tolist() == ["wrn_16_2"]


def test_a_thousand_runs_are_all_collected(tmp_path):
    runs = [PlannedRun(label=f"m{m}", n=n, seed=s) for m in range(10) for n in range(100, 2100, 100) for s in range(5)]
    results = results_of(tmp_path, runs)
    assert len(results) == 1000
    assert results["chosen"].all()


def test_no_text_of_results_csv_begins_a_formula_and_numbers_stay_numbers(tmp_path):
    formula = "=cmd|'/c calc'!A0"
    write_grid(tmp_path, [PlannedRun(label="kd", accuracy=0.5, more={"device": formula})])
    results = save_results(tmp_path)
    written = pd.read_csv(tmp_path / "results.csv")
    assert list(written["device"]) == [f"'{formula}"]
    assert list(results["device"]) == [formula]
    assert list(written["test_accuracy"]) == [0.5]
    assert written["n"].dtype == "int64"


def test_a_teacher_in_a_folder_is_the_one_that_was_planned_wherever_that_lies(tmp_path):
    run = PlannedRun(teacher="hf:/photos/teachers/vit")
    folder = write_grid(tmp_path, [run])
    spoil(folder, run, json.dumps(run.result() | {"teacher": "hf:vit"}))
    assert len(collect(folder)) == 1
    spoil(folder, run, json.dumps(run.result() | {"teacher": "hf:deit"}))
    with pytest.raises(InvalidInput, match="teacher is 'hf:deit', planned was"):
        collect(folder)


def test_the_rows_that_a_run_used_are_told_where_it_says_so(tmp_path):
    used = {"answered_rows": 800, "labelled_rows": 40, "unlabelled_rows": 2, "rest": ["ce", "pseudo:confidence=0.9"]}
    used |= {"rest_weights": {"ce": 2.5, "pseudo": 1}}
    told, untold = results_of(tmp_path, [PlannedRun(more=used), PlannedRun(seed=1)]).to_dict("records")
    assert (told["answered_rows"], told["labelled_rows"], told["unlabelled_rows"]) == (800, 40, 2)
    assert told["rest"] == "ce; pseudo:confidence=0.9"
    assert told["rest_weights"] == "ce=2.5; pseudo=1.0"
    assert (untold["rest"], untold["rest_weights"]) == ("", "")
    assert pd.isna(untold["labelled_rows"])


def test_proxies_that_nothing_vouched_for_are_told_with_the_run_that_learned_from_them(tmp_path):
    digests = ["5e7d" * 16, "a1" * 32]
    told, untold = results_of(tmp_path, [PlannedRun(more={"unproven_proxies": digests}), PlannedRun(seed=1)]).to_dict(
        "records"
    )
    assert told["unproven_proxies"] == "; ".join(digests)
    assert untold["unproven_proxies"] == ""
