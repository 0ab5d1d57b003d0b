"""What rules bought, counted by n: classes, the commonest, and how often the teacher was right."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from analysis.grid_plan import GridPlan
from analysis.purchases import first_answers, purchases
from storage.answers import NO_CLASS
from storage.schema import VALID
from storage.store import Store
from teacher_cache.build import build
from teacher_cache.buying import buy
from teacher_cache.selection import SelectorSpec
from tests.conftest import run_command
from tests.experiments.grids import run, small, write
from tests.teacher_cache.crash_rest import config as small_config


@pytest.fixture(scope="module")
def grid(made_once, weights):
    def fill(folder):
        document = small(weights, methods=["kd"], select=["random", "balanced"], training={"max_evals": 1})
        done = run(write(folder / "grid.yaml", document), folder / "out")
        assert done.returncode == 0, done.stderr

    return made_once("bought-by-rules", fill) / "out"


def test_every_store_is_counted_between_the_n_of_the_grid(grid):
    found = purchases(grid, GridPlan.load(grid))
    rows = found[["store", "rule", "first", "end"]].to_numpy().tolist()
    assert rows == [
        ["resnet8-digits", "random", 0, 24],
        ["resnet8-digits", "random", 24, 48],
        ["resnet8-digits-balanced", "balanced", 0, 24],
        ["resnet8-digits-balanced", "balanced", 24, 48],
    ]
    for row in found.to_dict("records"):
        store = Store.open(grid / "stores" / row["store"])
        part = slice(row["first"], row["end"])
        labels, logits = store.read("train/labels")[part], store.read("train/logits")[part, 0]
        counts = Counter(labels.tolist())
        assert (row["classes"], row["most"]) == (len(counts), max(counts.values()) / 24)
        assert row["accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == labels))


def test_the_report_says_what_each_rule_bought(grid):
    done = run_command("ckd-pipeline", "report", grid)
    assert done.returncode == 0, done.stderr
    page = (grid / "report.html").read_text()
    assert "What each rule bought" in page
    assert "resnet8-digits-balanced" in page


def test_a_grid_without_rules_has_no_such_section(tmp_path, weights):
    done = run(write(tmp_path / "grid.yaml", small(weights, methods=["kd"], n=[24])), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert purchases(tmp_path / "out", GridPlan.load(tmp_path / "out")).empty


def test_rows_that_are_not_whole_have_no_answer(tmp_path, weights):
    config = replace(
        small_config(tmp_path / "store", weights, "zarr", 20, 0), rest=None, select=SelectorSpec("balanced")
    )
    buy(config, None, lambda prepared, report: build(*prepared, report=report))
    store = Store.open(tmp_path / "store")
    assert (first_answers(store) != NO_CLASS).all()
    store.arrays.write(VALID, 3, np.zeros((1, 1), bool))
    assert (first_answers(Store.open(tmp_path / "store")) == NO_CLASS).tolist() == [row == 3 for row in range(20)]
