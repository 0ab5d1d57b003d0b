"""Put stores back, fork them, loosen their ledgers and edit runs at random, and see who says so.

    python -m benchmarks.forgery [--trials 200] [--seed 0]

A small store is built and grown in steps, with a copy of each, and a student is trained from it. Then, each time, the
store or the run is changed as a backup, a careless copy or a forger would (`STORE_KINDS`, `RUN_KINDS`), from a fresh
copy of all of it, the witness included. A changed store must be reported by `ckd-cache verify`, and a build must not
show its teacher an image that was paid for; a changed run must be reported by `ckd-train verify` and `ckd-cache ledger
trace`. Forwards of the teacher are counted in a file of their own, outside the ledger. Exit status 1 if anything was
unseen or paid again, or a command crashed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.counted_teacher import count_forwards, forwards
from benchmarks.in_child import Outcome, run_command
from models import create_model, save_weights
from storage.run_record import RUN_FILE
from storage.store_folder import LEDGER_FILE
from storage.witness import VARIABLE
from student_train.cli import main as ckd_train
from teacher_cache.cli import main as ckd_cache

STEPS = (40, 70, 100)
GROWN = 130
_COLUMNS = ("trials", "reported", "UNSEEN", "PAID AGAIN", "CRASHED")


class Scene:
    """A folder with everything that one trial touches, made anew from a copy that nothing touches.

    Args:
        folder: of the trial; what it holds is dropped.
        origin: store, its earlier states, run, weights and witness.
    """

    def __init__(self, folder: Path, origin: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(origin, folder)
        self.folder, self.store, self.run = folder, folder / "store", folder / "run"
        os.environ[VARIABLE] = str(folder / "witness")

    def earlier(self, rng: random.Random) -> Path:
        """The store as it was after one of the steps but the last."""
        return self.folder / f"store-{rng.choice(STEPS[:-1])}"

    def build(self, n: int, store: Path | None = None) -> Outcome:
        """The command that made the store."""
        return self.command(ckd_cache, build_arguments(self.folder, store or self.store, n))

    def command(self, command: Callable[[list[str]], object], arguments: list[str]) -> Outcome:
        """One of our commands, in a process of its own."""
        return run_command(command, arguments, self.folder / "printed")


def build_arguments(folder: Path, store: Path, n: int) -> list[str]:
    """Of `ckd-cache`, for the store of n rows."""
    weights = str(folder / "teacher.safetensors")
    teacher = ["--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--features", "pooled"]
    return [
        "build",
        *teacher,
        "--n",
        str(n),
        "--store",
        str(store),
        "--budget",
        "1000",
        "--device",
        "cpu",
        "--trust-teacher",
    ]


# What is done to a store; each returns how many rows a build is to be asked for afterwards.


def put_back(scene: Scene, rng: random.Random) -> int:
    """Store and ledger together, from a backup."""
    replace(scene.store, scene.earlier(rng))
    return STEPS[-1]


def put_back_ledger(scene: Scene, rng: random.Random) -> int:
    """The ledger by itself, from a backup."""
    shutil.copy(scene.earlier(rng) / LEDGER_FILE, scene.store / LEDGER_FILE)
    return STEPS[-1]


def put_back_ledger_and_manifest(scene: Scene, rng: random.Random) -> int:
    """All that names the later calls, and not their answers."""
    earlier = scene.earlier(rng)
    for name in (LEDGER_FILE, "manifest.json"):
        shutil.copy(earlier / name, scene.store / name)
    return STEPS[-1]


def fork(scene: Scene, rng: random.Random) -> int:
    """A copy that was taken home grew there, with the same witness."""
    copy = scene.folder / "copy"
    scene.store.rename(scene.folder / "aside")
    shutil.copytree(scene.folder / "aside", copy)
    grown = scene.build(rng.randrange(STEPS[-1] + 1, GROWN), copy)
    assert grown.status == 0, grown.printed
    (scene.folder / "aside").rename(scene.store)
    return GROWN


def loosen_index(scene: Scene, rng: random.Random) -> int:
    """The index that keeps calls from being paid twice, replaced by one that does not, or left out."""
    made = rng.choice(
        (
            "CREATE INDEX one_call_per_input ON calls (account, input_digest, repeat) WHERE status != 'lost'",
            "CREATE UNIQUE INDEX one_call_per_input ON calls (id)",
            "CREATE UNIQUE INDEX one_call_per_input ON calls (account, input_digest, repeat) WHERE status = 'lost'",
            "",
        )
    )
    change_ledger(scene, "DROP INDEX one_call_per_input", made)
    return STEPS[-1]


def add_trigger(scene: Scene, rng: random.Random) -> int:
    """What the database does by itself when a call is recorded."""
    table, event = rng.choice(("calls", "entries", "accounts")), rng.choice(("INSERT", "UPDATE"))
    change_ledger(scene, f"CREATE TRIGGER helper AFTER {event} ON {table} BEGIN UPDATE accounts SET committed = 0; END")
    return STEPS[-1]


def put_a_view_in_place(scene: Scene, rng: random.Random) -> int:
    """A table that shows only part of what was recorded."""
    table = rng.choice(("calls", "leases", "sessions"))
    change_ledger(
        scene, f"ALTER TABLE {table} RENAME TO {table}_kept", f"CREATE VIEW {table} AS SELECT * FROM {table}_kept"
    )
    return STEPS[-1]


def record_twice(scene: Scene, rng: random.Random) -> int:
    """A call once more under another number, past an index that was put back afterwards."""
    with closing(sqlite3.connect(scene.store / LEDGER_FILE)) as database, database:
        columns = [name for _, name, *_ in database.execute("PRAGMA table_info(calls)") if name != "id"]
        (index,) = database.execute("SELECT sql FROM sqlite_master WHERE name = 'one_call_per_input'").fetchone()
        (last,) = database.execute("SELECT max(id) FROM calls").fetchone()
        listed = ", ".join(f'"{name}"' for name in columns)
        database.execute("DROP INDEX one_call_per_input")
        database.execute(
            f"INSERT INTO calls (id, {listed}) SELECT {last + 1}, {listed} FROM calls WHERE id = {rng.randint(1, last)}"
        )
        database.execute(index.replace("UNIQUE ", ""))
    return STEPS[-1]


STORE_KINDS = {
    "store and ledger put back": put_back,
    "ledger put back": put_back_ledger,
    "ledger and manifest put back": put_back_ledger_and_manifest,
    "copy and original both grew": fork,
    "unique index loosened": loosen_index,
    "trigger added": add_trigger,
    "view for a table": put_a_view_in_place,
    "call recorded twice": record_twice,
}


# What is done to a run.


def edit_result(scene: Scene, rng: random.Random) -> None:
    """One value of run.json."""
    path = scene.run / RUN_FILE
    document = json.loads(path.read_text())
    name, value = rng.choice(
        (("test_accuracy", 0.99), ("method", "ckd"), ("seed", 7), ("n", 41), ("teacher_calls", 1), ("seconds", 1.0))
    )
    path.write_text(json.dumps(document | {name: value}))


def edit_file(scene: Scene, rng: random.Random) -> None:
    """A file beside run.json: emptied, cut, one byte changed, or missing."""
    path = scene.run / rng.choice(("metrics.csv", "student.safetensors"))
    content = path.read_bytes()
    place = rng.randrange(len(content))
    changed = bytes([*content[:place], content[place] ^ 1, *content[place + 1 :]])
    kept = rng.choice((b"", content[:place], changed, None))
    path.unlink() if kept is None else path.write_bytes(kept)


def put_other_weights(scene: Scene, rng: random.Random) -> None:
    """The student of somebody else."""
    save_weights(create_model("resnet8", num_classes=10, seed=rng.randint(1, 9)), scene.run / "student.safetensors", {})


RUN_KINDS = {
    "result edited": edit_result,
    "metrics or weights changed": edit_file,
    "foreign weights": put_other_weights,
}


@click.command()
@click.option("--trials", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(trials: int, seed: int) -> None:
    torch.set_num_threads(1)
    count_forwards()
    rng, counts, failures = random.Random(seed), Counter[tuple[str, str]](), []
    with tempfile.TemporaryDirectory() as name:
        origin, folder = Path(name) / "origin", Path(name) / "scene"
        make_origin(Scene(folder, empty(origin)), origin)
        kinds = [*STORE_KINDS, *RUN_KINDS]
        for trial in range(trials):
            kind, scene = kinds[trial % len(kinds)], Scene(folder, origin)
            verdicts, printed = try_store(scene, kind, rng) if kind in STORE_KINDS else try_run(scene, kind, rng)
            counts.update((kind, verdict) for verdict in ("trials", *verdicts))
            if verdicts != {"reported"}:
                failures.append(f"{kind}: {', '.join(sorted(verdicts))}\n{printed[-2000:]}")
    print_table(counts)
    for failure in failures:
        click.echo(failure)
    sys.exit(1 if failures else 0)


def try_store(scene: Scene, kind: str, rng: random.Random) -> tuple[set[str], str]:
    """Verdicts on one change of a store, and what was printed."""
    n = STORE_KINDS[kind](scene, rng)
    checked = scene.command(ckd_cache, ["verify", "--store", str(scene.store)])
    before = forwards()
    built = scene.build(n)
    verdicts = verdicts_on(checked)
    verdicts |= {"PAID AGAIN"} if forwards() > before else set()
    verdicts |= {"CRASHED"} if built.is_crash else set()
    return verdicts, f"{checked.printed}\n{built.printed}"


def try_run(scene: Scene, kind: str, rng: random.Random) -> tuple[set[str], str]:
    """The same of a run."""
    RUN_KINDS[kind](scene, rng)
    proven = scene.command(ckd_train, ["verify", str(scene.run), "--store", str(scene.store)])
    traced = scene.command(ckd_cache, ["ledger", "trace", str(scene.run), "--store", str(scene.store)])
    return verdicts_on(proven) | verdicts_on(traced), f"{proven.printed}\n{traced.printed}"


def verdicts_on(outcome: Outcome) -> set[str]:
    """What became of a change that has to be reported."""
    return {"CRASHED" if outcome.is_crash else "reported" if outcome.is_reported else "UNSEEN"}


def empty(folder: Path) -> Path:
    """A new folder with a teacher and no store."""
    folder.mkdir()
    (folder / "witness").mkdir()
    save_weights(create_model("resnet8", num_classes=10, seed=0), folder / "teacher.safetensors", {})
    return folder


def make_origin(scene: Scene, origin: Path) -> None:
    """Build the store in steps, keep each, train a student, and keep it all."""
    for n in STEPS:
        built = scene.build(n)
        assert built.status == 0, built.printed
        shutil.copytree(scene.store, scene.folder / f"store-{n}")
    student = ["--student", "resnet8", "--method", "kd", "--max-evals", "1", "--device", "cpu"]
    trained = scene.command(ckd_train, ["--store", str(scene.store), *student, "--out", str(scene.run)])
    assert trained.status == 0, trained.printed
    replace(origin, scene.folder)
    whole = Scene(scene.folder, origin)
    for command, arguments in (
        (ckd_cache, ["verify", "--store", str(whole.store)]),
        (ckd_train, ["verify", str(whole.run), "--store", str(whole.store)]),
        (ckd_cache, ["ledger", "trace", str(whole.run), "--store", str(whole.store)]),
    ):
        checked = whole.command(command, arguments)
        assert checked.status == 0, checked.printed


def replace(folder: Path, source: Path) -> None:
    """Have a folder hold what another holds."""
    shutil.rmtree(folder)
    shutil.copytree(source, folder)


def change_ledger(scene: Scene, *statements: str) -> None:
    """Run SQL in the store's ledger."""
    with closing(sqlite3.connect(scene.store / LEDGER_FILE)) as database, database:
        for statement in filter(None, statements):
            database.execute(statement)


def print_table(counts: Counter[tuple[str, str]]) -> None:
    table = Table("what was done", *_COLUMNS)
    for kind in (*STORE_KINDS, *RUN_KINDS):
        table.add_row(kind, *(str(counts[kind, column]) for column in _COLUMNS))
    table.add_section()
    table.add_row("in all", *(str(sum(n for (_, of), n in counts.items() if of == column)) for column in _COLUMNS))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
