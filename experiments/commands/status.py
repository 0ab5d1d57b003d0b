"""`ckd-pipeline status`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pandas as pd

from analysis.curves import accuracy_by_n, of_several_samples
from analysis.results import collect, states
from ground.options import json_option
from ground.terminal import plain, print_json, print_table, say


@click.command("status")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@json_option
def status_command(folder: Path, as_json: bool) -> None:
    """Say how far the grid in FOLDER is, while it runs or after; nothing is written."""
    results, runs = collect(folder), states(folder)
    counts = {state: int((runs["state"] == state).sum()) for state in ("finished", "failed", "begun", "waiting")}
    failed = runs[runs["state"] == "failed"]
    means = accuracy_by_n(results)
    if as_json:
        failures = dict(zip(failed["run"], failed["error"], strict=True))
        print_json({"runs": len(runs), **counts, "failures": failures, "accuracy": _records(means)})
        return
    say(f"{folder}: {len(runs)} runs, " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    for run, error in zip(failed["run"], failed["error"], strict=True):
        say(plain(f"failed: {run}: {error}"))
    if len(means):
        several = of_several_samples(means)
        print_table(
            ("teacher", "student", "method", "n", "test accuracy", "deviation", *(["samples"] * several), "seeds"),
            (_shown(mean, several=several) for mean in means.to_dict("records")),
        )


def _shown(mean: dict[str, Any], *, several: bool) -> list[Any]:
    deviation = f"{mean['std']:.4f}" if mean["runs"] > 1 else None
    named = [mean[name] for name in ("teacher", "student", "label", "n")]
    counts = [mean[name] for name in (("samples", "seeds") if several else ("seeds",))]
    return [*named, f"{mean['mean']:.4f}", deviation, *counts]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, which has no NaN."""
    rows: list[dict[str, Any]] = table.astype(object).where(table.notna(), None).to_dict("records")
    return rows
