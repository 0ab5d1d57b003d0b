"""Damage files of a store at random, and see whether `ckd-cache verify` says so.

    python -m benchmarks.fuzz [--damages 1000] [--plants 200] [--seed 0]

Each time, one file of a small store (manifest, array metadata, arrays, ledger) has one byte changed, is cut short, or
is deleted; then `verify` runs in a process of its own, and the file is put back. Whether the damage changed a value is
found without our code: by reading all arrays with the zarr or h5py library, the ledger's tables with sqlite3, and the
manifest as JSON. Every damage that changed a value must be reported, and none may end in a traceback or a crash.
The lock files are empty and left alone.

Then a file's place is given to a link to the same file outside the store or to a pipe, or a rollback journal that names
a file outside is laid beside the ledger: every one must be reported, no file outside may change, and nobody may wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import torch
import zarr
from rich.console import Console
from rich.table import Table

from benchmarks.in_child import Outcome, run_command
from benchmarks.stand_ins.planted_journal import plant_journal
from models import create_model, save_weights
from storage.store import Store
from storage.store_folder import BUILD_LOCK, CELL_LOCK, LEDGER_FILE
from teacher_cache.build import build
from teacher_cache.cli import main as ckd_cache
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build


@click.command()
@click.option("--damages", default=1000, show_default=True)
@click.option("--plants", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(damages: int, plants: int, seed: int) -> None:
    torch.set_num_threads(1)
    rng, counts, failures = random.Random(seed), Counter[tuple[str, str]](), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(create_model("resnet8", num_classes=10, seed=0), folder / "teacher.safetensors", {})
        for array_format in ("zarr", "hdf5"):
            store = make_store(folder, array_format)
            healthy = values_of(store, array_format)
            assert verify(store, folder / "printed").status == 0
            for _ in range(damages // 2):
                kind, file, undo = damage(store, rng)
                outcome = verify(store, folder / "printed")
                is_changed = values_of(store, array_format) != healthy
                counts[kind, verdict(outcome, is_changed=is_changed)] += 1
                if outcome.is_crash or (is_changed and not outcome.is_reported):
                    failures.append(f"{array_format} {kind} {file}: status {outcome.status}\n{outcome.printed[-2000:]}")
                undo()
            for _ in range(plants // 2):
                kind, file, undo = plant(store, folder / "outside", rng)
                before = contents(folder / "outside")
                outcome = verify(store, folder / "printed")
                is_harmed = contents(folder / "outside") != before
                counts[kind, "HARMED" if is_harmed else verdict(outcome, is_changed=True)] += 1
                if is_harmed or outcome.is_crash or not outcome.is_reported:
                    failures.append(f"{array_format} {kind} {file}: status {outcome.status}\n{outcome.printed[-2000:]}")
                undo()
            assert verify(store, folder / "printed").status == 0, "the damage was undone"
    print_table(counts)
    for failure in failures:
        click.echo(failure)
    sys.exit(1 if failures else 0)


def make_store(folder: Path, array_format: str) -> Path:
    """A whole store, grown once, so that its arrays and its ledger have seen all there is."""
    store = folder / array_format
    for n in (40, 70):
        config = BuildConfig(
            teacher="resnet8",
            n=n,
            store=store,
            dataset="digits",
            weights=folder / "teacher.safetensors",
            array_format=array_format,
            features="pooled,layer3.pre",
            budget=100,
            device="cpu",
            trust_teacher=True,
        )
        build(*prepare_build(config))
    return store


def damage(store: Path, rng: random.Random) -> tuple[str, Path, Callable[[], None]]:
    """Change one file; returns how, which, and what puts it back."""
    file = rng.choice(files_of(store))
    content = file.read_bytes()
    kind = rng.choices(("flipped byte", "truncated", "deleted"), (8, 1, 1))[0]
    if kind == "flipped byte":
        place = rng.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= rng.randrange(1, 256)
        overwrite(file, bytes(changed))
    elif kind == "truncated":
        os.truncate(file, rng.randrange(len(content)))
    else:
        file.unlink()

    def undo() -> None:
        for stray in store.glob(f"{LEDGER_FILE}-*"):
            stray.unlink()
        overwrite(file, content)

    return f"{family(file)}, {kind}", file, undo


def plant(store: Path, outside: Path, rng: random.Random) -> tuple[str, Path, Callable[[], None]]:
    """Have a place in a store lead out of it, to a file in a folder `outside`; returns as `damage`."""
    outside.mkdir(exist_ok=True)
    kind = rng.choice(("a link", "a pipe", "a planted journal"))
    file = store / LEDGER_FILE if kind == "a planted journal" else rng.choice(files_of(store))
    kept, content = outside / file.name, file.read_bytes()
    kept.write_bytes(content)
    if kind == "a planted journal":
        planted = plant_journal(file, kept)
    else:
        planted = file
        file.unlink()
        file.symlink_to(kept) if kind == "a link" else os.mkfifo(file)

    def undo() -> None:
        planted.unlink(missing_ok=True)
        for stray in store.glob(f"{LEDGER_FILE}-*"):
            stray.unlink()
        kept.unlink(missing_ok=True)
        file.write_bytes(content)

    return f"{family(file)}, {kind}", file, undo


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def files_of(store: Path) -> list[Path]:
    """Files of the store, each kind as likely as the others: a store has many more chunks than ledgers."""
    files = [path for path in sorted(store.rglob("*")) if path.is_file() and path.name not in (BUILD_LOCK, CELL_LOCK)]
    families: dict[str, list[Path]] = {}
    for path in files:
        families.setdefault(family(path), []).append(path)
    most = max(map(len, families.values()))
    return [path for members in families.values() for path in members * (most // len(members))]


def family(file: Path) -> str:
    """What a file is."""
    names = {"manifest.json": "manifest", LEDGER_FILE: "ledger", "zarr.json": "array metadata"}
    return names.get(file.name, "arrays")


def overwrite(file: Path, content: bytes) -> None:
    """In place, so that neither name nor inode changes."""
    with file.open("r+b" if file.exists() else "wb") as stream:
        stream.write(content)
        stream.truncate()


def verify(store: Path, printed: Path) -> Outcome:
    """`ckd-cache verify` in a process of its own."""
    return run_command(ckd_cache, ["verify", "--store", str(store)], printed)


def values_of(store: Path, array_format: str) -> dict[str, Any]:
    """Everything the store says, by other means than ours; what cannot be read is an error's text."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        # A damaged file may end the process that reads it.
        text = json.dumps(
            {
                "manifest": attempt(lambda: json.loads((store / "manifest.json").read_bytes())),
                "ledger": attempt(lambda: ledger_rows(store / LEDGER_FILE)),
                "arrays": attempt(lambda: array_digests(store, array_format)),
            }
        )
        with os.fdopen(write, "w") as pipe:
            pipe.write(text)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(text) if text else {"died": True}
    return found


def attempt(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        return repr(type(error))


def ledger_rows(path: Path) -> dict[str, list[str]]:
    """Every row of every table."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: [repr(row) for row in database.execute(f"SELECT * FROM {table}")] for table in tables}


_NAMES: dict[str, list[tuple[str, int]]] = {}


def array_digests(store: Path, array_format: str) -> dict[str, str]:
    """The bytes of the rows of every array, as the format's own library reads them."""
    if array_format not in _NAMES:
        opened = Store.open(store)
        _NAMES[array_format] = [(name, opened.manifest.rows_of(spec)) for name, spec in opened.arrays.specs.items()]
    found = {}
    for name, rows in _NAMES[array_format]:
        if array_format == "hdf5":
            with h5py.File(store / "data.h5", "r") as file:
                values = file[name][:rows]
        else:
            if missing := missing_chunks(store / "data.zarr" / name, rows):
                return {"missing": missing}
            values = np.asarray(zarr.open_array(store / "data.zarr" / name, mode="r")[:rows])
        found[name] = f"{values.dtype} {values.shape} {hash_of(values)}"
    return found


def missing_chunks(folder: Path, rows: int) -> str:
    """Zarr reads a missing chunk as zeros: here it counts as changed."""
    there = {file.name.split(".")[1] for file in folder.glob("c.*")}
    return "".join(f"{folder.name} {chunk}" for chunk in range(-(-rows // 64)) if str(chunk) not in there)


def hash_of(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def verdict(outcome: Outcome, *, is_changed: bool) -> str:
    if outcome.is_crash:
        return "CRASHED"
    if is_changed:
        return "changed, reported" if outcome.is_reported else "changed, NOT REPORTED"
    return "unchanged, reported" if outcome.is_reported else "unchanged, silent"


def print_table(counts: Counter[tuple[str, str]]) -> None:
    verdicts = (
        "changed, reported",
        "changed, NOT REPORTED",
        "unchanged, reported",
        "unchanged, silent",
        "CRASHED",
        "HARMED",
    )
    table = Table("damage", *verdicts)
    for kind in sorted({kind for kind, _ in counts}):
        table.add_row(kind, *(str(counts[kind, verdict]) for verdict in verdicts))
    table.add_section()
    table.add_row("in all", *(str(sum(n for (_, of), n in counts.items() if of == verdict)) for verdict in verdicts))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
