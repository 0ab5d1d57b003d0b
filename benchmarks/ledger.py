"""What the ledger alone costs: reserving, committing and verifying many calls, with no teacher and no arrays.

    python -m benchmarks.ledger [--calls 1000000] [--batch-size 256] [--billed] [--postgresql]

Prints calls a second, the size of the file, and the time of `verify` over all of them.
"""

from __future__ import annotations

import resource
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import click

from benchmarks.stand_ins.postgres import PostgresServer, postgres_binaries
from storage.bill import Bill, Billed
from storage.ledger import Ledger
from storage.ledger_check import ledger_problems
from storage.ledger_records import CallRequest, Session

_UPPER = 4000
_OUTPUTS = ("logits", "layer1", "layer2", "layer3", "pooled")


@click.command()
@click.option("--calls", default=1_000_000, show_default=True)
@click.option("--batch-size", default=256, show_default=True)
@click.option("--billed", is_flag=True, help="Each call is reserved at an upper bound, and settled at a bill.")
@click.option("--postgresql", is_flag=True, help="A server of its own on loopback, instead of an SQLite file.")
def main(calls: int, batch_size: int, billed: bool, postgresql: bool) -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        path = Path(name) / "ledger.sqlite"
        url = stack.enter_context(closing(start_server())).new_database() if postgresql else str(path)
        with closing(Ledger(url, create=True)) as ledger:
            started = time.perf_counter()
            reserving, committing = record(ledger, calls, batch_size, billed=billed)
            recorded = time.perf_counter() - started
            started = time.perf_counter()
            problems = ledger_problems(ledger)
            verified = time.perf_counter() - started
        assert problems == [], problems
        batches = -(-calls // batch_size)
        click.echo(
            f"{'PostgreSQL' if postgresql else 'SQLite'}, {calls} {'billed ' * billed}calls in batches of {batch_size}"
        )
        click.echo(f"record  {recorded:8.1f} s   {calls / recorded:10.0f} calls/s")
        click.echo(f"reserve {1000 * reserving / batches:8.2f} ms a batch, commit {1000 * committing / batches:.2f} ms")
        click.echo(f"verify  {verified:8.1f} s   {calls / verified:10.0f} calls/s")
        if not postgresql:
            click.echo(f"size    {path.stat().st_size / 1e6:8.1f} MB  {path.stat().st_size / calls:10.0f} bytes a call")
        click.echo(f"memory  {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:8.0f} MB at most")


def start_server() -> PostgresServer:
    binaries = postgres_binaries()
    if binaries is None:
        raise click.ClickException("there is no PostgreSQL server here")
    server = PostgresServer(binaries)
    server.start()
    return server


def record(ledger: Ledger, calls: int, batch_size: int, *, billed: bool) -> tuple[float, float]:
    """Reserve and commit everything; seconds of each."""
    session = ledger.start_session(
        Session(
            teacher="ab" * 32,
            teacher_name="wrn_40_2",
            store="5" * 32,
            location="/nowhere",
            purpose="build",
            device="cpu",
            precision="fp32",
            outputs=_OUTPUTS,
            host="here",
        )
    )
    reserving = committing = 0.0
    for first in range(0, calls, batch_size):
        # Digests are spread as real ones are: an index of numbers in order would be too easy.
        requests = [
            CallRequest((number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(16, "little"), number, number, 0)
            for number in range(first, min(first + batch_size, calls))
        ]
        started = time.perf_counter()
        ids = ledger.reserve(session, requests, upper_micros=_UPPER if billed else 0).ids.values()
        reserved = time.perf_counter()
        bills = {id_: _bill(id_) for id_ in ids} if billed else {}
        ledger.commit({id_: id_.to_bytes(16, "little") * len(_OUTPUTS) for id_ in ids}, 0.1, bills)
        reserving, committing = reserving + reserved - started, committing + time.perf_counter() - reserved
    return reserving, committing


def _bill(id_: int) -> Bill:
    said = {"tokens_in": 1100, "tokens_out": 4, "model": "model-2026-01-01", "request_id": f"req_{id_:032x}"}
    return Bill(billed=Billed.YES, cost_micros=_UPPER // 2, **said)


if __name__ == "__main__":
    main()
