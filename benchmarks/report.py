"""What a report takes: a folder of many fabricated runs, and where the time of `write_report` goes.

    python -m benchmarks.report [--runs 1000]

Prints seconds of the whole, then of each part with the profiler at work, and the size of the page.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import click

from analysis.report import write_report
from benchmarks.stand_ins.fabricated_grid import make_grid

_STUDENTS = ("wrn_16_2", "resnet8", "vgg8")
_METHODS = ("vanilla", "kd", "rkd", "dist", "mixup", "crd", "ckd")
_SEEDS = 5
# Functions whose time, with all they call, is told; they do not call each other.
_PARTS = {
    "browser_code": "Vega for the page",
    "svg": "figures as SVG",
    "png_of": "figures as PNG",
    "collect": "reading run.json files",
    "states": "reading what is unfinished",
    "read_ledgers": "reading ledgers",
    "answer": "targets and calls",
    "all_tables": "tables",
    "sections_of": "sections of the page",
    "_write": "files, with the figures drawn",
}


@click.command()
@click.option("--runs", default=1000, show_default=True, help="About how many.")
def main(runs: int) -> None:
    sizes = max(1, runs // (len(_STUDENTS) * len(_METHODS) * _SEEDS))
    with tempfile.TemporaryDirectory() as name:
        folder = make_grid(
            Path(name) / "grid",
            bases={label: 0.2 + 0.02 * place for place, label in enumerate(_METHODS)},
            students=_STUDENTS,
            sizes=[1600 + 400 * place for place in range(sizes)],
            seeds=_SEEDS,
            targets=(0.35, 0.3),
            budget=6400,
            store_rows=256,
        )
        started = time.perf_counter()
        summary = write_report(folder)
        seconds = time.perf_counter() - started
        # Once more for the parts, since watching costs time of its own.
        profile = cProfile.Profile()
        profile.runcall(write_report, folder)
        page_size = summary.page.stat().st_size
    click.echo(f"{summary.finished} runs, {seconds:.1f} s, {len(summary.files)} files, page {page_size / 1e6:.2f} MB")
    taken = {function: cumulative for (_, _, function), (*_, cumulative, _) in pstats.Stats(profile).stats.items()}
    for function, part in _PARTS.items():
        click.echo(f"{part:<32} {taken.get(function, 0.0):6.2f} s")


if __name__ == "__main__":
    main()
