"""The demonstration is both stages in earnest; once done, it does nothing again."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from experiments.demo import DemoConfig, demo, train_on_labels_alone
from models.compute import Compute
from storage.ledger import Ledger
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from teacher_cache.teachers import ZooTeacher
from tests.conftest import run_command

CPU = Compute(torch.device("cpu"), "fp32")
SMALL = DemoConfig(teacher="resnet8", teacher_epochs=1, sizes=(40, 80), steps=2)


def test_the_demo_spends_its_budget_once(tmp_path, monkeypatch):
    out = tmp_path / "demo"
    results = demo(out, SMALL, CPU)
    expected = [(method, n) for n in (40, 80) for method in ("vanilla", "kd", "ckd")]
    assert [(result["method"], result["n"]) for result in results] == expected
    assert [result["teacher_calls"] for result in results] == [0, 40, 40, 0, 80, 80]
    ledger = Ledger(out / "store" / LEDGER_FILE)
    totals = ledger.summary()
    ledger.close()
    assert (totals.spent, totals.budget) == (80, 80 + 128)
    assert Store.open(out / "store").valid_prefix() == 80

    def forbidden(self, views):
        raise AssertionError("the teacher was called again")

    monkeypatch.setattr(ZooTeacher, "call", forbidden)
    assert demo(out, SMALL, CPU) == results
    alone = train_on_labels_alone(out, SMALL, CPU)
    # Four fifths of the 1,437 training images of the digits; the others are for validation.
    assert [alone[name] for name in ("n", "teacher_calls", "answered_rows", "labelled_rows")] == [0, 0, 0, 1150]


@pytest.mark.slow
def test_the_demo_command_prints_the_table(tmp_path, monkeypatch):
    """As long as in earnest for each student whose accuracy is asked for; `SMALL` has the other n and method."""
    of_these = partial(DemoConfig, sizes=DemoConfig().sizes[-1:], methods=("kd", "ckd"))
    monkeypatch.setattr("experiments.demo.DemoConfig", of_these)
    result = run_command("ckd-pipeline", "demo", "--out", tmp_path / "demo", "--json")
    assert result.returncode == 0, result.stderr
    table = {(row["method"], row["n"]): row["test_accuracy"] for row in json.loads(result.stdout)}
    assert table["kd", 800] > 0.8
    assert table["ckd", 800] > 0.8
    shown = run_command("ckd-pipeline", "demo", "--out", tmp_path / "demo")
    assert shown.returncode == 0
    assert "teacher calls" in shown.stdout
    assert f"ckd-cache verify --store {tmp_path / 'demo' / 'store'}" in shown.stdout
