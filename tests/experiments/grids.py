"""Small grids on the digits, whose students train in a second or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tests.conftest import run_command


def small(weights: Path, **changes: Any) -> dict[str, Any]:
    """A grid of four runs as a document."""
    return {
        "name": "small",
        "dataset": "digits",
        "pairs": [{"teacher": "resnet8", "student": "resnet8", "weights": str(weights)}],
        "methods": ["vanilla", "kd"],
        "n": [24, 48],
        "seeds": 1,
        "training": {"max_evals": 2},
    } | changes


def write(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def run(grid: Path, out: Path, *options: object):
    """One student at a time, unless the options say more: a worker is a process that takes seconds to start."""
    return run_command("ckd-pipeline", "run", grid, "--out", out, "--device", "cpu", "--jobs", 1, *options)


def results(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "results.csv")


# What two executions of the same runs may differ in.
VOLATILE = ("seconds", "store_id", "ledger_head")


def lasting(out: Path) -> list[dict[str, Any]]:
    """The table without times and random names."""
    return json.loads(results(out).drop(columns=list(VOLATILE)).to_json(orient="records"))
