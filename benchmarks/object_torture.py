"""Kill builds in object storage at random moments, while the service fails, and see what is left.

    python -m benchmarks.object_torture [--rounds 4] [--machines 1,2] [--seed 0]

Each round, four builders at once build one store in the bucket of moto's server, through a proxy that answers requests
with 503, late, or not at all, before the server sees them or after it has done what they ask. Three builders are killed
with SIGKILL at random moments and started anew, the last one to its end. They are on one machine, where what a killed
one had in hand is gone on with, or on two, by desks of their own: of these one is gone in the end, and what it had in
hand is settled from the other. The ledger is in PostgreSQL.

The teacher's forwards are counted as `benchmarks.torture` counts them, and the same is printed: calls that were spent,
adopted and lost, inputs whose committed call was repeated, forwards that no call speaks of, problems that verify finds,
and arrays that differ from those of a store that was built in a folder. Then a student is trained from the bucket. Exit
status 1 if repeated, uncounted, problems or different is not zero, or the training fails.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import sqlalchemy as sa
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.counted_teacher import count_forwards, forwards
from benchmarks.in_child import run_command
from benchmarks.stand_ins.faulty_proxy import FaultyProxy, faulty_proxy
from benchmarks.stand_ins.moto import BUCKET, moto_program, moto_server
from benchmarks.stand_ins.postgres import PostgresServer, postgres_binaries
from benchmarks.torture import kill_after, read_arrays
from ground.places import ObjectUrl, Place
from models import create_model, save_weights
from storage.ledger import Ledger
from storage.ledger_tables import calls
from storage.store import Store
from storage.store_folder import DESKS
from storage.verify import published_problems
from student_train.cli import main as train
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build

N, BUILDERS, DEATHS, LEASE_SECONDS = 480, 4, 3, 5.0
SHARES = {"503": 0.06, "slow": 0.02, "cut before": 0.02, "cut after": 0.02}


@dataclass(slots=True)
class Tally:
    """What became of the stores of one case; all but rounds and kills in teacher calls, problems and arrays."""

    rounds: int = 0
    kills: int = 0
    forwards: int = 0
    spent: int = 0
    lost: int = 0
    repeated: int = 0
    uncounted: int = 0
    problems: int = 0
    different: int = 0
    trained: int = 0

    @property
    def is_sound(self) -> bool:
        return not (self.repeated or self.uncounted or self.problems or self.different) and self.trained == self.rounds


@dataclass(frozen=True, slots=True)
class Round:
    """One store, its ledger, and how long a build of it takes."""

    folder: Path
    store: ObjectUrl
    ledger: str
    seconds: float


@click.command()
@click.option("--rounds", default=4, show_default=True, help="Stores for each case.")
@click.option("--machines", default="1,2", show_default=True, help="How many of them, by cases.")
@click.option("--seed", default=0, show_default=True)
def main(rounds: int, machines: str, seed: int) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    binaries, rng, tallies = postgres_binaries(), random.Random(seed), dict[str, Tally]()
    if binaries is None:
        raise click.ClickException("there is no PostgreSQL server here; install one")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(closing(PostgresServer(binaries)))
        postgres.start()
        proxy = stack.enter_context(faulty_proxy(stack.enter_context(moto_server(moto_program())), SHARES, seed))
        os.environ |= environment(proxy)
        save_weights(create_model("resnet8", num_classes=10, seed=0), folder / "teacher.safetensors", {})
        count_forwards()
        build(*prepare_build(config(folder, folder / "reference", None)))
        reference = read_arrays(folder / "reference")
        [seconds] = in_child(partial(timed_build, folder, postgres.new_database()))
        for count in map(int, machines.split(",")):
            tally = tallies[f"{count} machine{'s' if count > 1 else ''}"] = Tally()
            for number in range(rounds):
                one = Round(folder, url(f"{count}-{number}"), postgres.new_database(), seconds)
                torture(one, count, tally, rng, reference)
        click.echo(f"requests: {dict(proxy.met)}", err=True)
    print_table(tallies)
    sys.exit(0 if all(tally.is_sound for tally in tallies.values()) else 1)


def environment(proxy: FaultyProxy) -> dict[str, str]:
    """What clients of the service are configured by."""
    keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    return {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", "NO_PROXY": "127.0.0.1"}


def url(name: str) -> ObjectUrl:
    return ObjectUrl("s3", BUCKET, f"stores/{name}")


def config(folder: Path, store: Place, ledger: str | None) -> BuildConfig:
    return BuildConfig(
        teacher="resnet8",
        n=N,
        store=store,
        dataset="digits",
        weights=folder / "teacher.safetensors",
        features="layer1,pooled",
        ledger=ledger,
        batch_size=16,
        device="cpu",
        lease_seconds=LEASE_SECONDS,
        trust_teacher=True,
    )


def timed_build(folder: Path, ledger: str) -> list[float]:
    """Seconds that one builder takes, whom nobody kills."""
    os.environ[DESKS] = str(folder / "timed")
    started = time.perf_counter()
    build(*prepare_build(config(folder, url("timed"), ledger)))
    return [time.perf_counter() - started]


def in_child(work: Callable[[], list[float]]) -> list[float]:
    """What work returns that is done in a process of its own: obstore's threads do not live through a fork."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as told:
                json.dump(work(), told)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        content = told.read()
    os.waitpid(child, 0)
    found: list[float] = json.loads(content)
    return found


def start(one: Round, machine: int) -> int:
    """A process that builds, on a machine of this number; what it says goes to a file of its own."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(one.folder / f"{os.getpid()}.log", "w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        os.environ[DESKS] = str(desk(one, machine))
        build(*prepare_build(config(one.folder, one.store, one.ledger)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended_well(one: Round, child: int) -> bool:
    """Whether a builder that nobody killed finished the store; what it says otherwise is shown."""
    is_well = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    if not is_well:
        click.echo((one.folder / f"{child}.log").read_text(), err=True)
    return is_well


def desk(one: Round, machine: int) -> Path:
    return one.folder / "desks" / one.store.name / str(machine)


def torture(one: Round, machines: int, tally: Tally, rng: random.Random, reference: dict[str, np.ndarray]) -> None:
    """Four builders at once; some are killed at random moments, and another is started in the place of each."""
    before = forwards()
    children = [start(one, number % machines) for number in range(BUILDERS)]
    for number in range(DEATHS):
        was_killed = kill_after(children[number], rng.uniform(0.05, 0.35) * one.seconds)
        tally.kills += was_killed
        children[number] = start(one, number % machines)
    if machines > 1:
        # The second machine is gone, with all that its builders had in hand.
        for number in range(1, BUILDERS, machines):
            tally.kills += kill_after(children[number], rng.uniform(0.0, 0.2) * one.seconds)
            children[number] = 0
        shutil.rmtree(desk(one, 1), ignore_errors=True)
    for child in filter(None, children):
        tally.problems += not ended_well(one, child)
    tally.problems += not ended_well(one, start(one, 0))
    made = forwards() - before
    problems, spent, lost, inputs, different = map(int, in_child(partial(examined, one, reference)))
    tally.rounds += 1
    tally.problems += problems
    tally.forwards += made
    tally.spent += spent
    tally.lost += lost
    tally.repeated += inputs - N
    tally.uncounted += max(0, made - spent)
    tally.different += different
    options = ("--student", "resnet8", "--method", "kd", "--max-evals", "1", "--device", "cpu")
    out = ("--out", str(one.folder / "runs" / one.store.name))
    outcome = run_command(train, ["--store", str(one.store), *options, *out], one.folder / "printed")
    tally.trained += outcome.status == 0


def examined(one: Round, reference: dict[str, np.ndarray]) -> list[float]:
    """Problems of a store; calls spent and lost; committed calls; arrays that differ."""
    with closing(Ledger(one.ledger)) as ledger:
        store, summary = Store.open(one.store), ledger.summary()
        found = published_problems(store, ledger)
        for problem in found:
            click.echo(str(problem), err=True)
        with ledger.reading() as connection:
            committed = sa.select(sa.func.count()).where(calls.c.status == "committed")
            inputs = connection.execute(committed).scalar_one()
    different = sum(not np.array_equal(store.read(name), values) for name, values in reference.items())
    return [len(found) + (summary.reserved > 0), summary.spent, summary.lost, inputs, different]


def print_table(tallies: dict[str, Tally]) -> None:
    columns = list(Tally.__dataclass_fields__)
    table = Table("case", *columns)
    for name, tally in tallies.items():
        table.add_row(name, *(str(getattr(tally, column)) for column in columns))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
