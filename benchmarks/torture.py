"""Kill builds at random moments, again and again, and see what is left.

    python -m benchmarks.torture [--kills 200] [--rounds 2] [--fills 2] [--seed 0] [--databases sqlite,postgresql]

For each array format and database, a store of a small teacher is built in two steps (made, then grown) by processes
that are killed with SIGKILL after a random time, until the asked number of kills is reached; each store is finished
in the end. Then eight builders at once work on one store and one ledger, and some of them are killed. Then the store
lies on a small disk that is filled to the last byte at every step of a build in turn (`stand_ins/full_disk.py`; where
this user may mount one), and has room again for the next build: of these, no call may be lost.

The teacher's forwards are counted in a file of their own, before they happen, outside the ledger; each image passes
through it alone, so that its answers do not depend on what else was in the batch. Printed for each case: stores built,
kills, calls adopted and lost, inputs whose committed call was repeated, problems that verify finds, and differences,
array by array, from a store that was built without a crash; of the small disk how often it was full, and answers that
were in hand then and were dropped. Exit status 1 if any of the last five but the count of full disks is not zero.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import click
import numpy as np
import sqlalchemy as sa
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.counted_teacher import count_forwards, forwards
from benchmarks.stand_ins.full_disk import MOMENTS, full_from, small_disk
from benchmarks.stand_ins.postgres import PostgresServer, postgres_binaries
from models import create_model, save_weights
from storage.ledger import Ledger
from storage.ledger_tables import calls, entries
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from storage.verify import store_problems
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import Prepared, prepare_build

N_STEPS = (64, 128)
LEASE_SECONDS = 1.0
# Above what a store may need before its first call is made.
DISK_MB = 96


@dataclass(slots=True)
class Tally:
    """What became of the stores of one case; all but stores, kills and fills in teacher calls, problems and arrays."""

    stores: int = 0
    kills: int = 0
    fills: int = 0
    forwards: int = 0
    spent: int = 0
    adopted: int = 0
    lost: int = 0
    dropped: int = 0
    repeated: int = 0
    uncounted: int = 0
    problems: int = 0
    different: int = 0

    @property
    def is_sound(self) -> bool:
        return not (self.dropped or self.repeated or self.uncounted or self.problems or self.different)


@dataclass(frozen=True, slots=True)
class Arena:
    """Where one case happens: plans for each step, the ledger's URL, None for the store's own, and forwards so far."""

    folder: Path
    plans: tuple[Prepared, ...]
    ledger: str | None
    before: int

    @property
    def store(self) -> Path:
        return self.plans[0].plan.config.store

    def opened_ledger(self) -> Ledger:
        return Ledger(self.store / LEDGER_FILE if self.ledger is None else self.ledger)


@click.command()
@click.option("--kills", default=200, show_default=True, help="Of single builders, over all cases.")
@click.option("--rounds", default=2, show_default=True, help="Of eight builders at once, for each case.")
@click.option("--fills", default=2, show_default=True, help="Times that each step is come to before the disk is full.")
@click.option("--seed", default=0, show_default=True)
@click.option("--databases", default="sqlite,postgresql", show_default=True)
def main(kills: int, rounds: int, fills: int, seed: int, databases: str) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rng = random.Random(seed)
    cases = [(database, array_format) for database in databases.split(",") for array_format in ("zarr", "hdf5")]
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as name, servers(databases) as new_database:
        folder = Path(name)
        save_weights(create_model("resnet8", num_classes=10, seed=0), folder / "teacher.safetensors", {})
        count_forwards()
        for database, array_format in cases:
            reference, seconds = build_reference(folder, array_format)
            wanted, alone, together = -(-kills // len(cases)), Tally(), Tally()
            while alone.kills < wanted:
                arena = make_arena(folder, array_format, new_database(database))
                torture_one(arena, alone, rng, wanted, seconds)
                examine(arena, alone, reference)
            for _ in range(rounds):
                arena = make_arena(folder, array_format, new_database(database))
                torture_eight(arena, together, rng, seconds)
                examine(arena, together, reference)
            full = torture_disk(folder, array_format, partial(new_database, database), fills, reference)
            case = f"{database} {array_format}"
            tallies |= {case: alone, f"{case}, 8 builders": together, f"{case}, full disk": full}
            click.echo(f"{case}: {alone.kills} + {together.kills} kills, {full.fills} full disks", err=True)
    print_table(tallies)
    sys.exit(0 if all(tally.is_sound for tally in tallies.values()) else 1)


@contextmanager
def servers(databases: str) -> Iterator[Callable[[str], str | None]]:
    """Yields a function: the kind of database -> URL of a new ledger, None for a file in the store."""
    if "postgresql" not in databases.split(","):
        yield lambda kind: None
        return
    binaries = postgres_binaries()
    if binaries is None:
        raise click.ClickException("there is no PostgreSQL server here; install one, or give --databases sqlite")
    with closing(PostgresServer(binaries)) as server:
        server.start()
        yield lambda kind: server.new_database() if kind == "postgresql" else None


def make_arena(folder: Path, array_format: str, ledger: str | None, place: Path | None = None) -> Arena:
    store = (folder if place is None else place) / "store"
    shutil.rmtree(store, ignore_errors=True)
    base = BuildConfig(
        teacher="resnet8",
        n=N_STEPS[0],
        store=store,
        dataset="digits",
        weights=folder / "teacher.safetensors",
        array_format=array_format,
        features="layer1,pooled",
        ledger=ledger,
        batch_size=16,
        device="cpu",
        lease_seconds=LEASE_SECONDS,
        trust_teacher=True,
    )
    return Arena(folder, tuple(prepare_build(replace(base, n=n)) for n in N_STEPS), ledger, forwards())


def build_reference(folder: Path, array_format: str) -> tuple[dict[str, np.ndarray], float]:
    """The arrays of a store that was built without a crash, and how long that takes."""
    for _ in range(2):
        arena = make_arena(folder, array_format, None)
        started = time.perf_counter()
        build(*arena.plans[-1])
        seconds = time.perf_counter() - started
    return read_arrays(arena.store), seconds


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    store = Store.open(folder)
    return {name: store.read(name) for name in store.arrays.specs}


def start(prepared: Prepared, before: Callable[[], None] = lambda: None) -> int:
    """A process that builds, after doing something else; what it says is dropped."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        before()
        build(*prepared)
        code = 0
    finally:
        os._exit(code)


def kill_after(child: int, seconds: float) -> bool:
    """Whether the process was killed; False if it had ended on its own."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def torture_one(arena: Arena, tally: Tally, rng: random.Random, wanted: int, seconds: float) -> None:
    """Build both steps with one process at a time, killed up to some times at random moments."""
    tally.stores += 1
    for prepared in arena.plans:
        for _ in range(rng.randint(2, 6)):
            if tally.kills < wanted:
                tally.kills += kill_after(start(prepared), rng.uniform(0.0, seconds))
        finish(prepared)


def torture_eight(arena: Arena, tally: Tally, rng: random.Random, seconds: float) -> None:
    """Eight builders at once; three are killed, and the others go on alone."""
    tally.stores += 1
    children = [start(arena.plans[-1]) for _ in range(8)]
    for child in rng.sample(children, 3):
        tally.kills += kill_after(child, rng.uniform(0.2, 1.0) * seconds)
        children.remove(child)
    for child in children:
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status):
            tally.problems += 1
    finish(arena.plans[-1])


def torture_disk(
    folder: Path,
    array_format: str,
    new_ledger: Callable[[], str | None],
    fills: int,
    reference: dict[str, np.ndarray],
) -> Tally:
    """Builds on a disk that is full from each step on, for the first, second, ... time that it is come to."""
    tally = Tally()
    with small_disk(folder / "disk", DISK_MB) as disk:
        if disk is None:
            click.echo("this user may not mount a disk: none is filled", err=True)
        for moment, at_call in product(MOMENTS, range(1, fills + 1)) if disk is not None else ():
            arena = make_arena(folder, array_format, new_ledger(), disk.folder)
            child = start(arena.plans[-1], partial(full_from, disk, moment, at_call))
            _, status = os.waitpid(child, 0)
            tally.stores, tally.fills = tally.stores + 1, tally.fills + 1
            tally.problems += not os.WIFEXITED(status)
            disk.free()
            lost = tally.lost
            finish(prepare_anew(arena))
            examine(arena, tally, reference)
            tally.dropped += tally.lost - lost
            shutil.rmtree(arena.store)
    (folder / "disk").rmdir()
    return tally


def prepare_anew(arena: Arena) -> Prepared:
    """The last step's plan as the next command draws it up."""
    config = arena.plans[-1].plan.config
    assert isinstance(config, BuildConfig)
    return prepare_build(config)


def finish(prepared: Prepared) -> None:
    """A build that is left in peace."""
    _, status = os.waitpid(start(prepared), 0)
    if os.waitstatus_to_exitcode(status):
        build(*prepared)


def examine(arena: Arena, tally: Tally, reference: dict[str, np.ndarray]) -> None:
    """Compare what is left with the count of forwards, with the ledger, and with a store that never crashed."""
    made = forwards() - arena.before
    with closing(arena.opened_ledger()) as ledger:
        summary = ledger.summary()
        tally.problems += len(store_problems(Store.open(arena.store), ledger)) + (summary.reserved > 0)
        with ledger.reading() as connection:
            committed = sa.select(calls.c.input_digest).where(calls.c.status == "committed")
            inputs = list(connection.execute(committed).scalars())
            settled = [
                json.loads(payload)
                for payload in connection.execute(
                    sa.select(entries.c.payload).where(entries.c.kind == "commit")
                ).scalars()
            ]
    tally.forwards += made
    tally.spent += summary.spent
    tally.lost += summary.lost
    tally.repeated += len(inputs) - N_STEPS[-1]
    tally.uncounted += max(0, made - summary.spent)
    # What a later process commits was not timed by it.
    tally.adopted += sum(
        last - first + 1 for entry in settled if not entry["seconds"] for first, last in entry["calls"]
    )
    found = read_arrays(arena.store)
    tally.different += sum(not np.array_equal(found[name], values) for name, values in reference.items())


def print_table(tallies: dict[str, Tally]) -> None:
    columns = list(Tally.__dataclass_fields__)
    table = Table("case", *columns)
    for name, tally in tallies.items():
        table.add_row(name, *(str(getattr(tally, column)) for column in columns))
    table.add_section()
    table.add_row("in all", *(str(sum(getattr(tally, column) for tally in tallies.values())) for column in columns))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
