"""`ckd-cache convert`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ground.errors import InvalidInput
from ground.options import StorePlace, json_option
from ground.places import ObjectUrl, Place
from ground.terminal import print_json, progress, say
from storage.store import Store
from teacher_cache.commands.options import ledger_option, ledger_url_of, place_option
from teacher_cache.convert import convert as run_conversion
from teacher_cache.publish import fetch, num_objects, publish

_OBJECTS = "objects"


@click.command()
@place_option
@click.option("--to", "array_format", required=True, help="zarr or hdf5, or objects to publish it at a URL.")
@click.option("--out", type=StorePlace(), required=True, help="New folder for the store, or s3://BUCKET/PATH.")
@ledger_option
@json_option
def convert(store: Place, array_format: str, out: Place, url: str | None, as_json: bool) -> None:
    """Copy a store into another format, with its identity and its history, or into object storage and back; no call is
    made.

    \b
    ckd-cache convert --store stores/wrn40_2 --to hdf5 --out stores/wrn40_2-hdf5
    ckd-cache convert --store stores/wrn40_2 --to objects --out s3://bucket/wrn40_2
    ckd-cache convert --store s3://bucket/wrn40_2 --to zarr --out stores/again
    """
    if (array_format == _OBJECTS) != isinstance(out, ObjectUrl):
        raise InvalidInput("--to objects goes with a URL, as --out s3://BUCKET/PATH, and other formats with a folder")
    if isinstance(store, ObjectUrl):
        _fetch(store, array_format, out, as_json=as_json)
    elif isinstance(out, ObjectUrl):
        _publish(store, out, ledger_url_of(store, url), as_json=as_json)
    else:
        _convert(store, array_format, out, ledger_url_of(store, url), as_json=as_json)


def _convert(store: Path, array_format: str, out: Path, ledger_url: str | None, *, as_json: bool) -> None:
    with progress(f"{out}: cells", int(Store.open(store).valid().sum())) as advance:
        report = run_conversion(store, array_format, out, ledger_url, advance)
    if as_json:
        print_json({**asdict(report), "store": str(store), "out": str(out)})
    else:
        say(f"{report.out} holds the {report.cells} answers of {report.store}, as {report.array_format}")


def _publish(store: Path, out: ObjectUrl, ledger_url: str | None, *, as_json: bool) -> None:
    found = Store.open(store)
    # Of HDF5, `publish` says why not.
    total = num_objects(found) if found.manifest.array_format == "zarr" else 0
    with progress(f"{out}: objects", total) as advance:
        report = publish(store, out, ledger_url, advance)
    if as_json:
        counts = {"objects": report.objects, "written": report.written}
        print_json({"store": str(store), "out": str(out), "array_format": _OBJECTS, **counts})
    else:
        say(f"{out} holds the store of {store} in {report.objects} objects, {report.written} of them written now")


def _fetch(store: ObjectUrl, array_format: str, out: Place, *, as_json: bool) -> None:
    if array_format != "zarr" or isinstance(out, ObjectUrl):
        raise InvalidInput("what is in object storage is fetched as it is, with --to zarr --out DIR; convert that then")
    with progress(f"{out}: objects", num_objects(Store.open(store))) as advance:
        fetched = fetch(store, out, advance)
    if as_json:
        print_json({"store": str(store), "out": str(out), "array_format": array_format})
        return
    manifest = fetched.manifest
    where = "the ledger.sqlite of the folder that it was published from" if manifest.ledger is None else manifest.ledger
    say(f"{out} holds the store of {store}, without its calls, which are in {where}: training needs none")
