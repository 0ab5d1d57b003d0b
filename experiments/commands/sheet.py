"""`ckd-cache sheet`."""

from __future__ import annotations

from pathlib import Path

import click

from analysis.contact_sheet import contact_sheet
from ground.durable import write_bytes
from ground.errors import InvalidInput
from ground.options import StorePlace, json_option
from ground.places import Place
from ground.terminal import print_json, say
from storage.store import Store


@click.command()
@click.option("--store", type=StorePlace(), required=True, help="Folder of the store, or its URL.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("sheet.html"), show_default=True)
@click.option(
    "--each",
    type=click.IntRange(1, 1000),
    default=8,
    show_default=True,
    help="Images of a class to show of each round.",
)
@json_option
def sheet(store: Place, out: Path, each: int, as_json: bool) -> None:
    """Write a page with a store's images, round by round and class by class, and what the teacher said of them.

    \b
    ckd-cache sheet --store stores/wrn40_2 --out sheet.html
    """
    if not out.parent.is_dir():
        raise InvalidInput(f"there is no folder {out.parent}; make it, or give another --out")
    found = Store.open(store)
    write_bytes(out, contact_sheet(found, each).encode())
    if as_json:
        print_json({"page": str(out), "n": found.manifest.n, "rounds": len(found.manifest.rounds)})
    else:
        say(f"{out} shows what was bought for {store}")
