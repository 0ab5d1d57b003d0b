"""What a ledger costs as it grows: a batch, what builds ask of it, and the commands that read all of it.

    python -m benchmarks.ledger_scale [--calls 10000 --calls 100000 --calls 1000000] [--postgresql | --url URL]

One ledger grows through the sizes, by the batches that builders reserve and commit, shared by stores of `--rows` calls
each. At each size a batch and a build's questions are timed here, and commands in processes of their own, with the most
memory that each took. What a batch costs should not grow, a command grow no faster than the ledger, and memory neither.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.ledger import start_server
from storage.bill import Bill, Billed
from storage.ledger import Ledger
from storage.ledger_records import CallRequest, Session

_TEACHER = "ab" * 32
_OUTPUTS = ("logits", "layer1", "pooled")
_TIMED_BATCHES = 100
_LOOKS = 20
_UPPER = 4000
# Linux keeps what a process took at most since it was started: not what its parent had.
_CHILD = """
import re, sys
from pathlib import Path
from teacher_cache.cli import main
try:
    main(sys.argv[2:])
finally:
    Path(sys.argv[1]).write_text(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@click.command()
@click.option("--calls", "sizes", multiple=True, type=int, default=(10_000, 100_000, 1_000_000), show_default=True)
@click.option("--rows", default=10_000, show_default=True, help="Calls of each store that shares the ledger.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--billed", is_flag=True, help="Each call is reserved at an upper bound, and settled at a bill.")
@click.option("--postgresql", is_flag=True, help="A server of its own on loopback, instead of an SQLite file.")
@click.option("--url", help="An empty database for the ledger, instead of one that is thrown away.")
def main(sizes: Sequence[int], rows: int, batch_size: int, billed: bool, postgresql: bool, url: str | None) -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        if url is None and postgresql:
            url = stack.enter_context(closing(start_server())).new_database()
        file = folder / "ledger.sqlite"
        ledger = stack.enter_context(closing(Ledger(url or file, create=True)))
        books = Books(ledger, rows, batch_size, billed=billed)
        columns: dict[str, dict[str, str]] = {}
        for size in sorted(sizes):
            started = time.perf_counter()
            books.grow(size)
            click.echo(f"{size} calls: {time.perf_counter() - started:.0f} s to get there", err=True)
            found = {**batches(books), **questions(books, url or file), **commands(books, url or str(file), folder)}
            if url is None:
                found["file"] = f"{file.stat().st_size / 1e6:.1f} MB"
            columns[f"{size:,}"] = found
            for what, figure in found.items():
                click.echo(f"    {what:<40} {figure}", err=True)
    click.echo(f"{'SQLite' if url is None else 'PostgreSQL'}, batches of {batch_size}{', billed' * billed}")
    click.echo(f"| calls | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for what in next(iter(columns.values())):
        click.echo(f"| {what} | {' | '.join(column[what] for column in columns.values())} |")


@dataclass
class Books:
    """A ledger as builders fill it, one store after the other."""

    ledger: Ledger
    rows: int
    batch_size: int
    billed: bool
    session: int = 0
    calls: int = 0

    def grow(self, calls: int) -> None:
        """Reserve and commit until there are so many calls."""
        for _ in self.batches(calls):
            pass

    def batches(self, calls: int) -> Iterator[tuple[float, float]]:
        """The same; seconds to reserve and to commit, of each batch."""
        while self.calls < calls:
            yield self._batch(min(self.batch_size, calls - self.calls, self.rows - self.calls % self.rows))

    @staticmethod
    def input_of(number: int) -> bytes:
        """Spread as digests are: an index of numbers in order would be too easy."""
        return (number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(16, "little")

    def store_of(self, number: int) -> str:
        """Id of the store that a call is for."""
        return f"{number // self.rows:032x}"

    def _batch(self, size: int) -> tuple[float, float]:
        if self.calls % self.rows == 0:
            self._next_store()
        numbers = range(self.calls, self.calls + size)
        requests = [CallRequest(self.input_of(number), number, number % self.rows, 0) for number in numbers]
        started = time.perf_counter()
        upper = _UPPER if self.billed else 0
        ids = self.ledger.reserve(self.session, requests, upper_micros=upper).ids.values()
        reserved = time.perf_counter()
        answers = {id_: id_.to_bytes(16, "little") * len(_OUTPUTS) for id_ in ids}
        bills = {id_: _bill(id_) for id_ in ids} if self.billed else {}
        self.ledger.commit(answers, 0.1, bills)
        self.calls += size
        return reserved - started, time.perf_counter() - reserved

    def _next_store(self) -> None:
        if self.session:
            self.ledger.end_session(self.session)
        store = self.store_of(self.calls)
        self.ledger.record_store(store, {"manifest": store * 2, "made_by": "build"})
        self.session = self.ledger.start_session(
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
    said = {"tokens_in": 1100, "tokens_out": 4, "model": "model-2026-01-01", "request_id": f"req_{id_:032x}"}
    return Bill(billed=Billed.YES, cost_micros=_UPPER // 2, **said)


def batches(books: Books) -> dict[str, str]:
    """What a batch costs: to be charged and committed, and to be looked up."""
    timed = list(books.batches(books.calls + _TIMED_BATCHES * books.batch_size))
    reserving, committing = (statistics.median(seconds) for seconds in zip(*timed, strict=True))
    step = books.calls // books.batch_size

    def look(first: int) -> float:
        asked = [books.input_of(number) for number in range(first, first + books.batch_size * step, step)]
        return _seconds(lambda: books.ledger.known_calls(_TEACHER, "fp32", asked))

    known = statistics.median(look(first) for first in range(_LOOKS))
    unknown = statistics.median(look(books.calls + first) for first in range(_LOOKS))
    return {
        "reserve a batch": _milliseconds(reserving),
        "commit a batch": _milliseconds(committing),
        "look up a batch that is paid for": _milliseconds(known),
        "look up a batch that is not": _milliseconds(unknown),
    }


def questions(books: Books, url: str | Path) -> dict[str, str]:
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
            "newest entry of a call": ledger.head_of_calls,
            f"look up {len(inputs)} inputs": lambda: ledger.known_calls(_TEACHER, "fp32", inputs),
            "calls of a store that are committed": lambda: ledger.calls_of_store(store, "committed"),
        }
        return {
            what: _milliseconds(statistics.median(_seconds(ask) for _ in range(3))) for what, ask in asked.items()
        }


def commands(books: Books, url: str, folder: Path) -> dict[str, str]:
    """Commands that read the ledger, each in a process of its own: seconds with its start, and the most memory."""
    asked = {
        "budget": ["budget"],
        "summary": ["summary"],
        "list": ["list"],
        "list of one run": ["list", "--run", "1"],
        "list of what is lost": ["list", "--status", "lost"],
        "export": ["export", "--out", str(folder / "calls.csv")],
        "verify": ["verify"],
    }
    return {f"`ledger {what}`": _run(["ledger", *words, "--ledger", url], folder) for what, words in asked.items()}


def _run(arguments: list[str], folder: Path) -> str:
    peak = folder / "peak"
    command = [sys.executable, "-c", _CHILD, str(peak), *arguments]
    seconds = _seconds(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))
    return f"{seconds:.1f} s, {int(peak.read_text()) / 1e3:.0f} MB"


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


if __name__ == "__main__":
    main()
