"""What lies in a store's folder beside its arrays, and the folders in which stores are made."""

from __future__ import annotations

import os
from pathlib import Path

from ground.errors import InvalidInput, StoreUnreadable
from storage.formats import FORMATS
from storage.manifest import FILE_NAME

LEDGER_FILE = "ledger.sqlite"
BUILD_LOCK = "build.lock"
CELL_LOCK = "cells.lock"
# Names the folder of `desks`.
DESKS = "CKD_DESKS"


def desks() -> Path:
    """Folder of this machine that holds a folder for each store in object storage that was built from here."""
    named = os.environ.get(DESKS)
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return Path(named) if named else state / "ckd" / "desks"


def prepare_folder(folder: Path) -> None:
    """Make a store's folder; one with anything in it that is no store's, or with calls but no manifest, is refused."""
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; give another folder")
    if not str(folder).isprintable():
        raise InvalidInput(f"{str(folder)!a} is no printable text; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / FILE_NAME).exists():
        return
    # The ledger is begun after the manifest is written, so without one nothing in the folder was paid for.
    ours = {BUILD_LOCK, CELL_LOCK, *(f"data{kind.suffix}" for kind in FORMATS.values())}
    foreign = [item.name for item in folder.iterdir() if item.name not in ours and not item.name.endswith(".partial")]
    if LEDGER_FILE in foreign:
        raise StoreUnreadable(
            f"{folder} has a ledger and no {FILE_NAME}: its calls are paid for; bring the manifest back, or give "
            "another folder"
        )
    if foreign:
        raise InvalidInput(f"{folder} is not empty (it holds {foreign[0]}); give a new folder")
