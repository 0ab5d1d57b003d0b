"""What a ledger costs as it grows: a batch, what builds ask of it, and the commands that read all of it.

    python -m benchmarks.ledger_scale [--calls 10000 --calls 100000 --calls 1000000] [--grown FILE] [--postgresql]

One SQLite ledger grows through the sizes, by the batches that builders reserve and commit, shared by stores of `--rows`
calls each; while it grows, nothing waits for a disk. At each size a copy of it on the disk, or all its rows in a
PostgreSQL server, is measured: a batch and a build's questions are timed here, and commands in processes of their own,
with the most memory that each took. What a batch costs should not grow, a command grow no faster than the ledger, and
memory not at all.
"""

from __future__ import annotations

import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import click
import psycopg
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.schema import CreateIndex

from benchmarks.ledger import start_server
from storage.bill import Bill, Billed
from storage.ledger import Ledger
from storage.ledger_records import CallRequest, Session
from storage.ledger_tables import metadata

_TEACHER = "ab" * 32
_OUTPUTS = ("logits", "layer1", "pooled")
_TIMED_BATCHES = 100
_LOOKS = 20
_MEMORY = Path("/dev/shm")
_UPPER = 4000
_CHILD = """
import sys
from pathlib import Path
from benchmarks.measure import peak_bytes
from teacher_cache.cli import main
try:
    main(sys.argv[2:])
finally:
    Path(sys.argv[1]).write_text(str(peak_bytes()))
"""


@click.command()
@click.option("--calls", "sizes", multiple=True, type=int, default=(10_000, 100_000, 1_000_000), show_default=True)
@click.option("--rows", default=10_000, show_default=True, help="Calls of each store that shares the ledger.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--billed", is_flag=True, help="Each call is reserved at an upper bound, and settled at a bill.")
@click.option("--postgresql", is_flag=True, help="A server of its own on loopback, instead of an SQLite file.")
@click.option("--grown", type=click.Path(path_type=Path), help="Where the ledger grows; what is there goes on.")
@click.option("--leave-out", multiple=True, help="A command of `ledger` that is not measured.")
def main(
    sizes: Sequence[int],
    rows: int,
    batch_size: int,
    billed: bool,
    postgresql: bool,
    grown: Path | None,
    leave_out: Sequence[str],
) -> None:
    columns: dict[str, dict[str, str]] = {}
    with ExitStack() as stack:
        place: Place = stack.enter_context(closing(Server() if postgresql else File()))
        memory = stack.enter_context(tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        grown = grown or Path(memory) / "ledger.sqlite"
        books = Books(rows, batch_size, billed=billed)
        for size in sorted(sizes):
            with closing(Ledger(grown, create=True)) as ledger:
                books.go_on(ledger)
                seconds = _seconds(partial(books.grow, ledger, size))
            click.echo(f"{size:,} calls: {seconds:.0f} s to get there", err=True)
            url = place.measured(grown)
            click.echo(f"    {'size':<40} {place.size_bytes() / 1e6:.1f} MB", err=True)
            columns[f"{size:,}"] = found = {}
            asked = (batches(replace(books), url), questions(books, url), commands(size, url, folder, leave_out))
            for what, figure in chain(*asked):
                found[what] = figure
                click.echo(f"    {what:<40} {figure}", err=True)
            found["size"] = f"{place.size_bytes() / 1e6:.1f} MB"
    click.echo(f"{'PostgreSQL' if postgresql else 'SQLite'}, batches of {batch_size}{', billed' * billed}")
    click.echo(f"| calls | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for what in next(iter(columns.values())):
        click.echo(f"| {what} | {' | '.join(column[what] for column in columns.values())} |")


class Place(Protocol):
    """Where a ledger is measured."""

    def measured(self, grown: Path) -> str: ...

    def size_bytes(self) -> int: ...

    def close(self) -> None: ...


class File:
    """An SQLite file on the disk."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp())
        self._copy = self._folder / "ledger.sqlite"

    def measured(self, grown: Path) -> str:
        """A copy of a ledger."""
        self._copy.unlink(missing_ok=True)
        with closing(Ledger(grown)) as ledger:
            ledger.copy_to(self._copy)
        return str(self._copy)

    def size_bytes(self) -> int:
        return self._copy.stat().st_size

    def close(self) -> None:
        shutil.rmtree(self._folder)


class Server:
    """A PostgreSQL server of our own, which waits for its disk only while it is measured."""

    def __init__(self) -> None:
        self._server = start_server()
        self._url = ""

    def measured(self, grown: Path) -> str:
        """A new database with all rows of a ledger that is an SQLite file."""
        self._url = self._server.new_database()
        self._do("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        with closing(Ledger(self._url, create=True)):
            pass
        with psycopg.connect(self._url) as there, closing(sqlite3.connect(grown)) as here:
            # The rows refer to each other as they did; that is for `verify` to find, and not row by row.
            there.execute("SET session_replication_role = replica")
            indexes = [index for table in metadata.sorted_tables for index in table.indexes]
            for index in indexes:
                there.execute(f"DROP INDEX {index.name}".encode())
            for table in metadata.sorted_tables:
                names = ", ".join(f'"{column.name}"' for column in table.columns)
                there.execute(f"DELETE FROM {table.name}".encode())
                with there.cursor().copy(f"COPY {table.name} ({names}) FROM STDIN".encode()) as copy:
                    for row in here.execute(f"SELECT {names} FROM {table.name}"):
                        copy.write_row(row)
            for index in indexes:
                there.execute(str(CreateIndex(index).compile(dialect=PGDialect())).encode())
        self._do("ALTER SYSTEM SET fsync = on", "SELECT pg_reload_conf()", "CHECKPOINT")
        with psycopg.connect(self._url, autocommit=True) as there:
            there.execute("VACUUM ANALYZE")
        return self._url

    def size_bytes(self) -> int:
        with psycopg.connect(self._url) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        self._server.close()

    def _do(self, *statements: str) -> None:
        with psycopg.connect(self._server.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())


@dataclass
class Books:
    """A ledger as builders fill it, one store after the other."""

    rows: int
    batch_size: int
    billed: bool
    session: int = 0
    calls: int = 0

    def go_on(self, ledger: Ledger) -> None:
        """Begin after the calls that a ledger of such books has already."""
        self.calls, self.session = ledger.summary().spent, max(ledger.leases(), default=0)

    def grow(self, ledger: Ledger, calls: int) -> None:
        """Reserve and commit until there are so many calls."""
        for _ in self.batches(ledger, calls):
            pass

    def batches(self, ledger: Ledger, calls: int) -> Iterator[tuple[float, float]]:
        """The same; seconds to reserve and to commit, of each batch."""
        while self.calls < calls:
            yield self._batch(ledger, min(self.batch_size, calls - self.calls, self.rows - self.calls % self.rows))

    @staticmethod
    def input_of(number: int) -> bytes:
        """Spread as digests are: an index of numbers in order would be too easy."""
        return (number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(16, "little")

    def store_of(self, number: int) -> str:
        """Id of the store that a call is for."""
        return f"{number // self.rows:032x}"

    def _batch(self, ledger: Ledger, size: int) -> tuple[float, float]:
        if self.calls % self.rows == 0:
            self._next_store(ledger)
        numbers = range(self.calls, self.calls + size)
        requests = [CallRequest(self.input_of(number), number, number % self.rows, 0) for number in numbers]
        started = time.perf_counter()
        upper = _UPPER if self.billed else 0
        ids = ledger.reserve(self.session, requests, upper_micros=upper).ids.values()
        reserved = time.perf_counter()
        answers = {id_: id_.to_bytes(16, "little") * len(_OUTPUTS) for id_ in ids}
        bills = {id_: _bill(id_) for id_ in ids} if self.billed else {}
        ledger.commit(answers, 0.1, bills)
        self.calls += size
        return reserved - started, time.perf_counter() - reserved

    def _next_store(self, ledger: Ledger) -> None:
        if self.session:
            ledger.end_session(self.session)
        store = self.store_of(self.calls)
        ledger.record_store(store, {"manifest": store * 2, "made_by": "build"})
        self.session = ledger.start_session(
            Session(
                teacher=_TEACHER,
                teacher_name="wrn_40_2",
                store=store,
                location=f"/nowhere/{store}",
                purpose="build",
                device="cpu",
                precision="fp32",
                outputs=_OUTPUTS,
                host="here",
            )
        )


def _bill(id_: int) -> Bill:
    said: dict[str, Any] = {
        "tokens_in": 1100,
        "tokens_out": 4,
        "model": "model-2026-01-01",
        "request_id": f"req_{id_:032x}",
    }
    return Bill(billed=Billed.YES, cost_micros=_UPPER // 2, **said)


def batches(books: Books, url: str) -> Iterator[tuple[str, str]]:
    """What a batch costs: to be charged and committed, and to be looked up."""
    with closing(Ledger(url)) as ledger:
        step = books.calls // books.batch_size

        def look(first: int) -> float:
            asked = [books.input_of(number) for number in range(first, first + books.batch_size * step, step)]
            return _seconds(lambda: ledger.known_calls(_TEACHER, "fp32", asked))

        known = statistics.median(look(first) for first in range(_LOOKS))
        unknown = statistics.median(look(books.calls + first) for first in range(_LOOKS))
        timed = list(books.batches(ledger, books.calls + _TIMED_BATCHES * books.batch_size))
    reserving, committing = (statistics.median(seconds) for seconds in zip(*timed, strict=True))
    yield "reserve a batch", _milliseconds(reserving)
    yield "commit a batch", _milliseconds(committing)
    yield "look up a batch that is paid for", _milliseconds(known)
    yield "look up a batch that is not", _milliseconds(unknown)


def questions(books: Books, url: str) -> Iterator[tuple[str, str]]:
    """What a build of a store asks that finds everything paid for; the store is one from the middle of the ledger."""
    first = books.calls // 2 // books.rows * books.rows
    store = books.store_of(first)
    inputs = [books.input_of(number) for number in range(first, min(first + books.rows, books.calls))]
    with closing(Ledger(url)) as ledger:
        head = ledger.head()
        asked: dict[str, Callable[[], object]] = {
            "open the ledger": lambda: Ledger(url).close(),
            "find an entry by its hash": lambda: ledger.entry_number(head),
            "what a store is": lambda: ledger.store_record(store),
            "calls of a store that are reserved": lambda: ledger.calls_of_store(store, "reserved"),
            "places of a store": lambda: ledger.locations(store),
            "newest entry that is no run's": ledger.head_of_calls,
            "look up all inputs of a store": lambda: ledger.known_calls(_TEACHER, "fp32", inputs),
            "calls of a store that are committed": lambda: ledger.calls_of_store(store, "committed"),
        }
        for what, ask in asked.items():
            yield what, _milliseconds(statistics.median(_seconds(ask) for _ in range(3)))


def commands(calls: int, url: str, folder: Path, leave_out: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Commands that read the ledger, each in a process of its own: seconds with its start, of them on a processor, and
    the most memory.
    """
    asked = {
        "budget": ["budget"],
        "summary": ["summary"],
        "list": ["list"],
        "list after all but some": ["list", "--after", str(calls - 10)],
        "list of one run": ["list", "--run", "1"],
        "list of what is lost": ["list", "--status", "lost"],
        "export": ["export", "--out", str(folder / "calls.csv")],
        "verify": ["verify"],
    }
    for what, words in asked.items():
        if what not in leave_out:
            yield f"`ledger {what}`", _run(["ledger", *words, "--ledger", url], folder)


def _run(arguments: list[str], folder: Path) -> str:
    peak = folder / "peak"
    command = [sys.executable, "-c", _CHILD, str(peak), *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = _seconds(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{seconds:.1f} s ({busy:.1f}), {int(peak.read_text()) / 1e6:.0f} MB"


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


if __name__ == "__main__":
    main()
