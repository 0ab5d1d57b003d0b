"""Grids in which validation chooses the weights of losses: a student for each candidate, of which the best counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.grid_plan import GridPlan
from experiments.grid_file import read_grid
from experiments.plan import plan_runs, plan_stores
from ground.errors import InvalidInput
from storage.run_record import RUN_FILE
from tests.conftest import run_command
from tests.experiments.grids import results, run, small, write


def planned(tmp_path: Path, document: dict):
    grid = read_grid(write(tmp_path / "grid.yaml", document))
    runs = plan_runs(grid, "fp32", tmp_path / "out", 96)
    assert len(runs) == len({run.folder for run in runs}) == grid.num_runs
    return runs


def test_each_weight_is_a_candidate_beside_those_of_the_training(tmp_path, weights):
    document = small(weights, methods=["kd:weight=auto", "kd"], n=[24], choose={"lr": [0.1, 0.05]})
    runs = planned(tmp_path, document)
    assert [(run.label, run.weights, run.config.lr) for run in runs] == [
        *(("kd:weight=auto", (f"kd:weight={w}",), lr) for w in ("1", "0.25", "4", "16") for lr in (0.1, 0.05)),
        *(("kd", (), lr) for lr in (0.1, 0.05)),
    ]
    given = [dict(planned(tmp_path, document | {"methods": [text]})[0].recipe) for text in ("kd", "kd:weight=4")]
    assert [runs[0].recipe, runs[4].recipe] == given
    assert (runs[0].describe()["weights"], runs[4].describe()["settings"]["method"]) == (
        ("kd:weight=1",),
        "kd:weight=4",
    )
    assert "weights" not in runs[-1].describe()


def test_losses_and_the_rest_are_weighed_together(tmp_path, weights):
    method = {"label": "mine", "losses": ["ce", "kd:weight=auto"], "rest": ["ce:weight=auto", "pseudo"]}
    runs = planned(tmp_path, small(weights, methods=[method], n=[24], store={"rest": "all"}, labels_only=False))
    assert len(runs) == 16
    assert [run.weights for run in runs[:3]] == [("kd:weight=1", f"ce:weight={w}") for w in ("1", "0.25", "4")]
    assert (runs[-1].text, [spec.text for spec in runs[-1].spec.rest]) == (
        "ce+kd:weight=16",
        ["ce:weight=16", "pseudo"],
    )
    kept = planned(tmp_path, small(weights, methods=["kd"], n=[24], store={"rest": "all"}))
    assert {run.store for run in runs} == {run.store for run in kept}


def test_weights_change_no_store_and_leave_other_runs_where_they_are(tmp_path, weights):
    plain, open_weight = small(weights, methods=["ckd"]), small(weights, methods=["ckd", "ckd:labels=auto"])
    assert {run.folder for run in planned(tmp_path, plain)} < {run.folder for run in planned(tmp_path, open_weight)}
    plain, more = (read_grid(write(tmp_path / "grid.yaml", document)) for document in (plain, open_weight))
    assert plan_stores(plain) == plan_stores(more)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("vanilla:weight=auto", "line 8: no setting of method vanilla is called 'weight'"),
        ("kd:labels=auto", "line 8: no setting of method kd is called 'labels'"),
        ({"losses": ["ce", "nothing:weight=auto"]}, "line 8: no loss is called 'nothing'"),
        ({"method": "kd", "rest": "cee:weight=auto"}, "line 9: no loss of the rest is called 'cee'"),
        ({"losses": ["kd:weight=auto"] * 5}, "line 8: validation would choose among more than 1000 trainings"),
        ({"losses": ["kd:weight=auto"] * 40}, "line 8: validation would choose among more than 1000 trainings"),
        (
            {"losses": ["kd:weight=auto"] * 4, "choose": {"lr": [0.1, 0.2, 0.3, 0.4]}},
            "line 8: validation would choose among more than 1000 trainings",
        ),
    ],
)
def test_what_cannot_be_weighed_is_refused_with_its_line(tmp_path, weights, method, said):
    with pytest.raises(InvalidInput, match=said) as refused:
        planned(tmp_path, small(weights, methods=[method], n=[24]))
    assert str(refused.value).count("line ") == 1


def test_a_rule_looks_at_no_students_of_several_weights(tmp_path, weights):
    document = small(weights, methods=["kd:weight=auto"], select=["uncertain:run={kd:weight=auto}"], n=[24])
    with pytest.raises(InvalidInput, match="kd:weight=auto chooses among trainings, and a rule looks at one"):
        planned(tmp_path, document)


def test_the_best_by_validation_counts_and_the_table_says_which_weight_it_has(tmp_path, weights):
    document = small(weights, methods=["kd:weight=auto"], n=[24, 48])
    done = run(write(tmp_path / "grid.yaml", document), tmp_path / "out")
    assert "8 runs, 0 found finished, 8 trained, 0 failed; 48 new teacher calls" in done.stdout, done.stderr
    table = results(tmp_path / "out")
    assert set(table["label"]) == {"kd:weight=auto"}
    for _, of_n in table.groupby("n"):
        assert of_n["weights"].tolist() == [f"kd:weight={w}" for w in ("1", "0.25", "4", "16")]
        best = of_n.loc[of_n["best_val_accuracy"].idxmax()]
        assert of_n.loc[of_n["chosen"], "run"].tolist() == [best["run"]]
        recipe = json.loads((tmp_path / "out" / best["run"] / RUN_FILE).read_text())["recipe"]
        weight = next(loss["weight"] for loss in recipe["losses"] if loss["loss"] == "kd")
        assert best["weights"] == f"kd:weight={weight:g}"
    assert [run.weights for run in GridPlan.load(tmp_path / "out").runs[:1]] == [("kd:weight=1",)]
    assert run_command("ckd-pipeline", "report", tmp_path / "out").returncode == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "kd:weight=0.25" in page
    again = run(tmp_path / "grid.yaml", tmp_path / "out")
    assert "8 runs, 8 found finished, 0 trained, 0 failed; 0 new teacher calls" in again.stdout, again.stderr
