"""`ckd-cache convert`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ground.options import json_option
from ground.terminal import print_json, progress, say
from storage.store import Store
from teacher_cache.commands.options import ledger_option, ledger_url_of, store_option
from teacher_cache.convert import convert as run_conversion


@click.command()
@store_option
@click.option("--to", "array_format", required=True, help="zarr or hdf5.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the store.")
@ledger_option
@json_option
def convert(store: Path, array_format: str, out: Path, url: str | None, as_json: bool) -> None:
    """Copy a store into another format, with its identity and its history; no call is made.

    \b
    ckd-cache convert --store stores/wrn40_2 --to hdf5 --out stores/wrn40_2-hdf5
    """
    with progress(f"{out}: cells", int(Store.open(store).valid().sum())) as advance:
        report = run_conversion(store, array_format, out, ledger_url_of(store, url), advance)
    if as_json:
        print_json({**asdict(report), "store": str(store), "out": str(out)})
    else:
        say(f"{report.out} holds the {report.cells} answers of {report.store}, as {report.array_format}")
