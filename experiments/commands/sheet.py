"""`ckd-cache sheet`."""

from __future__ import annotations

from pathlib import Path

import click

from analysis.contact_sheet import Neighbours, contact_sheet
from ground.durable import write_bytes
from ground.errors import InvalidInput
from ground.options import StorePlace, allow_code_option, device_option, json_option
from ground.places import Place
from ground.terminal import print_json, progress, say
from ground.user_code import UserCode
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
@click.option(
    "--nearest",
    type=click.IntRange(0, 100),
    default=0,
    show_default=True,
    help="Bought images that are most like it to show beside each.",
)
@click.option(
    "--encoder", default="pixels", show_default=True, help="What compares images, as --select kcenter:encoder=..."
)
@device_option
@allow_code_option
@json_option
def sheet(
    store: Place, out: Path, each: int, nearest: int, encoder: str, device: str, allow_code: bool, as_json: bool
) -> None:
    """Write a page with a store's images, round by round and class by class, and what the teacher said of them.

    \b
    ckd-cache sheet --store stores/wrn40_2 --out sheet.html
    ckd-cache sheet --store stores/wrn40_2 --out sheet.html --nearest 4    # was money spent on near-duplicates?
    """
    if not out.parent.is_dir():
        raise InvalidInput(f"there is no folder {out.parent}; make it, or give another --out")
    found = Store.open(store)
    if nearest:
        page = _compared(found, each, nearest, encoder, device, UserCode.of(allowed=allow_code))
    else:
        page = contact_sheet(found, each)
    write_bytes(out, page.encode())
    if as_json:
        print_json({"page": str(out), "n": found.manifest.n, "rounds": len(found.manifest.rounds)})
    else:
        say(f"{out} shows what was bought for {store}")


def _compared(store: Store, each: int, nearest: int, encoder: str, device: str, code: UserCode) -> str:
    """The page with the images that are most alike."""
    # Only what compares images needs torch, which takes seconds to load.
    from models.compute import Compute
    from teacher_cache.selection.nearest import Looker

    looker = Looker.of(store, encoder, Compute.choose(device, "fp32"), code)
    with progress("images compared", None) as advance:
        neighbours = Neighbours(encoder, nearest, lambda rows: looker.nearest(rows, nearest, advance))
        return contact_sheet(store, each, neighbours)
