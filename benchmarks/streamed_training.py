"""What training from a stream costs over training from memory, in time and in memory.

    python -m benchmarks.streamed_training [--n 8192] [--layers layer1,layer2,layer3] [--method at] [--student wrn_16_2]

Both train from the same store of random answers, in one process and in turns; what is read ahead during the other's
turn is at most four blocks. With `--cold` the system forgets the store's files before every turn. Then what the stream
does in a step is timed alone: reading and checking blocks, in one thread, against fetching rows from the buffer.

Peak memory is that of a process of its own for each, with loading, steps and an evaluation; what an empty one takes,
with everything but the rows, is subtracted: the same training from the first 128 rows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.measure import Timing, peak_bytes, take_turns
from benchmarks.stage_two import train_steps
from benchmarks.stand_ins.random_store import make_store
from models.compute import Compute
from storage.rows import Rows
from storage.store import Store
from student_train.methods import parse_method
from student_train.run_folder import RunFolder
from student_train.streamed_data import IMAGES
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer

SOURCES = {"memory": False, "stream": True}


@click.command()
@click.option("--student", default="wrn_16_2", show_default=True)
@click.option("--method", default="at", show_default=True)
@click.option("--layers", default="layer1,layer2,layer3", show_default=True, help="Feature maps in the store.")
@click.option("--n", default=8192, show_default=True)
@click.option("--steps", default=64, show_default=True, help="Steps in each round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--rows", type=int, help="As `ckd-train --stream-rows`.")
@click.option("--cold", is_flag=True, help="Read from the disk, not from what the system keeps of it.")
@click.option("--store", type=click.Path(path_type=Path), help="Kept there, and used again.")
@click.option("--peak", type=click.Choice(list(SOURCES)), help="Only print the peak memory; for the benchmark itself.")
def main(
    student: str,
    method: str,
    layers: str,
    n: int,
    steps: int,
    rounds: int,
    rows: int | None,
    cold: bool,
    store: Path | None,
    peak: str | None,
) -> None:
    if peak is not None and store is not None:
        click.echo(peak_memory(trainer_of(student, method, store, n, stream=SOURCES[peak], rows=rows), steps))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store" if store is None else store
        if not folder.exists():
            make_store(folder, n, layers=layers.split(","))
        trainers = {
            source: trainer_of(student, method, folder, n, stream=stream, rows=rows)
            for source, stream in SOURCES.items()
        }
        files = [file for file in Store.open(folder).arrays.path.rglob("*") if file.is_file()] if cold else []
        timings = take_turns(rounds, {source: turn(trainer, steps, files) for source, trainer in trainers.items()})
        print_timings(trainers["stream"], timings, steps)
        trainers["stream"].data.close()
        print_parts(trainers["stream"])
        del trainers
        given = ["--student", student, "--method", method, "--store", str(folder), "--steps", str(steps)]
        given += [] if rows is None else ["--rows", str(rows)]
        base = peak_of("memory", 128, given)
        held = {source: peak_of(source, n, given) - base for source in SOURCES}
        click.echo(f"peak memory without rows {base / 1e6:.0f} MB; with rows, beside that:")
        for source, size in held.items():
            click.echo(f"{source:<8} {size / 1e6:8.0f} MB   {size / held['memory']:6.3f} of memory's")


def trainer_of(student: str, method: str, store: Path, n: int, *, stream: bool, rows: int | None) -> Trainer:
    config = TrainConfig(student=student, stream=stream, stream_rows=rows if stream else None)
    return Trainer.open(config, store, n, parse_method(method), Compute.choose(), RunFolder(store / "unused"))


def turn(trainer: Trainer, steps: int, files: list[Path]) -> Callable[[], object]:
    def run() -> None:
        for file in files:
            forget(file)
        train_steps(trainer, steps)

    return run


def forget(file: Path) -> None:
    """Let the system drop what it keeps of a file in memory."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def print_timings(trainer: Trainer, timings: dict[str, Timing], steps: int) -> None:
    stream, compute = trainer.data.stream, trainer.data.compute
    assert stream is not None
    row_bytes = sum(array.nbytes for array in stream_arrays(trainer, 1).values())
    click.echo(
        f"{trainer.config.student}, {trainer.method.name}, {trainer.data.n} rows of {row_bytes / 1e3:.1f} kB, "
        f"{compute.describe()} {compute.precision}; blocks of {stream.block_rows} rows, {stream.order.window} of them "
        f"in a window, room for {stream.num_slots}"
    )
    for source, timing in timings.items():
        speed = timings["memory"].over(timing)
        click.echo(f"{source:<8} {timing.median / steps * 1e3:8.1f} ms/step   {speed:6.3f} of the speed from memory")


def stream_arrays(trainer: Trainer, rows: int) -> dict[str, object]:
    store = Store.open(trainer.data.place)
    names = [IMAGES, *map(store.array_of, trainer.data.outputs)]
    return {name: store.arrays.read(name, 0, rows) for name in names}


def print_parts(trainer: Trainer, blocks: int = 16) -> None:
    """Where a stream's time goes, a block of 64 rows at a time."""
    store, size = Store.open(trainer.data.place), 64
    stretches = [Rows.between(first, first + size) for first in range(0, blocks * size, size)]
    outputs = list(trainer.data.outputs)
    parts: dict[str, Callable[[Rows], object]] = {
        "read alone": lambda rows: [
            store.arrays.read(name, rows.runs[0][0], rows.end) for name in (IMAGES, *map(store.array_of, outputs))
        ],
        "images, checked": lambda rows: store.read_sample(IMAGES, rows),
        "outputs, checked": lambda rows: store.read_outputs(outputs, rows),
    }
    for label, part in parts.items():
        started = time.perf_counter()
        for rows in stretches:
            part(rows)
        click.echo(f"  {label:<18} {(time.perf_counter() - started) / blocks * 1e3:8.2f} ms for 64 rows")


def peak_of(source: str, n: int, given: list[str]) -> float:
    command = [sys.executable, "-m", "benchmarks.streamed_training", "--peak", source, "--n", str(n), *given]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_memory(trainer: Trainer, steps: int) -> float:
    train_steps(trainer, steps)
    # Of which there are as many for every n, so that batches of evaluations are no part of the difference.
    trainer.accuracy_on(trainer.data.test)
    trainer.data.close()
    return peak_bytes()


if __name__ == "__main__":
    main()
