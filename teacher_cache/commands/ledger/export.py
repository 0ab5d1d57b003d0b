"""`ckd-cache ledger export`: calls as a table for other programs, a batch at a time, whole or not at all."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import IO, Any

import click

from ground.cells import neutral
from ground.durable import replacing
from ground.errors import Interrupted, InvalidInput
from ground.places import Place
from ground.terminal import StopRequest, graceful_stop, json_text
from storage.ledger_report import COLUMN_TYPES, list_calls
from teacher_cache.commands.ledger.options import call_filter, filter_options, ledger_options, opened_ledger

BATCH_ROWS = 16384
_SQLITE_MAGIC = b"SQLite format 3\0"
_Rows = Iterable[dict[str, Any]]


@click.command()
@ledger_options
@filter_options
@click.option("--format", "kind", type=click.Choice(("csv", "jsonl", "parquet")), default="csv", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    default="-",
    help="File to write; one that exists is replaced.  [default: stdout]",
)
@click.option("--raw", is_flag=True, help="CSV with its texts as they are, formulas too.")
def export(store: Place | None, url: str | None, kind: str, out: Path, raw: bool, **filters: Any) -> None:
    """Write calls, with digests and times, as CSV, JSON lines or Parquet; any number of them.

    A text of the CSV that a spreadsheet would take for a formula gets an apostrophe before it, and what cannot be
    printed is spelled out.

    \b
    ckd-cache ledger export --store stores/wrn40_2 --format parquet --out calls.parquet
    """
    write = _write_raw_csv if raw and kind == "csv" else _WRITERS[kind]
    to_stdout = str(out) == "-"
    if kind == "parquet":
        _pyarrow()
        if to_stdout:
            raise InvalidInput("Parquet is not written to stdout; give --out FILE")
    with closing(opened_ledger(store, url)) as opened, graceful_stop() as stop:
        rows = _until_stopped(list_calls(opened, call_filter(opened, **filters)), stop)
        if to_stdout:
            write(rows, sys.stdout)
            return
        _require_replaceable(out)
        with replacing(out, binary=kind == "parquet") as file:
            write(rows, file)


def _until_stopped(rows: _Rows, stop: StopRequest) -> Iterator[dict[str, Any]]:
    for row in rows:
        if stop.requested:
            raise Interrupted("stopped before the export was whole; run the same command again")
        yield row


def _require_replaceable(path: Path) -> None:
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no folder {path.parent}; make it, or give another --out")
    if not path.exists():
        return
    if not path.is_file():
        raise InvalidInput(f"{path} is no regular file; give another --out, or leave it out to write to stdout")
    with path.open("rb") as file:
        if file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC:
            raise InvalidInput(f"{path} is a database, perhaps a ledger; give another --out")


def _write_csv(rows: _Rows, out: IO[str]) -> None:
    _write_raw_csv(({name: neutral(value) for name, value in row.items()} for row in rows), out)


def _write_raw_csv(rows: _Rows, out: IO[str]) -> None:
    # Lines end as RFC 4180 has it: with "\n" alone, a "\r" in the name of a folder would not be quoted.
    writer = csv.DictWriter(out, fieldnames=list(COLUMN_TYPES), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)


def _write_json_lines(rows: _Rows, out: IO[str]) -> None:
    for row in rows:
        out.write(json_text(row) + "\n")


def _write_parquet(rows: _Rows, out: IO[bytes]) -> None:
    arrow, parquet = _pyarrow()
    types = {int: arrow.int64(), str: arrow.string()}
    schema = arrow.schema([(name, types[type_]) for name, type_ in COLUMN_TYPES.items()])
    with parquet.ParquetWriter(out, schema) as writer:
        left = iter(rows)
        while batch := list(islice(left, BATCH_ROWS)):
            writer.write_table(arrow.Table.from_pylist(batch, schema=schema))


def _pyarrow() -> tuple[Any, Any]:
    """The optional package; raises `InvalidInput` with how to get it."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InvalidInput(
            "Parquet needs the package pyarrow; install it with: pip install 'teacher-cache[parquet]'"
        ) from error
    return pyarrow, parquet


_WRITERS: dict[str, Callable[[_Rows, IO[Any]], None]] = {
    "csv": _write_csv,
    "jsonl": _write_json_lines,
    "parquet": _write_parquet,
}
