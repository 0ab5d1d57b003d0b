"""`ckd-cache verify`."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from ground.documents import Malformed
from ground.errors import StoreUnreadable
from ground.options import json_option
from ground.places import ObjectUrl, Place
from ground.terminal import plain, print_json, say
from storage.ledger import Ledger
from storage.ledger_chain import KEY_VARIABLE
from storage.ledger_check import ledger_problems
from storage.manifest import FILE_NAME, Manifest, is_sealed
from storage.store import Store
from storage.store_ledger import require_named
from storage.verify import published_problems, store_problems, unknown_files
from teacher_cache.commands.ledger.options import open_ledger
from teacher_cache.commands.options import ledger_option, ledger_url_of, place_option

log = logging.getLogger(__name__)


@click.command()
@place_option
@ledger_option
@json_option
def verify(store: Place, url: str | None, as_json: bool) -> None:
    """Check every row, the manifest and the ledger against each other; nothing is changed.

    Of a store in object storage, calls are compared where --ledger says which: the folder's ledger.sqlite, or a URL.

    Files in the folder that belong to no store are named as hints.

    Exit status: 0 whole, 1 not: every problem is listed.
    """
    checked = _check_published(store, url) if isinstance(store, ObjectUrl) else _check(store, url)
    _hint_at_seal(store)
    if as_json:
        print_json({"store": str(store), **asdict(checked)})
    elif checked.problems:
        say("\n".join(plain(problem) for problem in checked.problems))
        say(f"{store}: {len(checked.problems)} problem{'s' if len(checked.problems) > 1 else ''}")
    elif checked.calls is None:
        say(f"{store}: {_whole(checked)}; calls were not compared, give the ledger for that, with --ledger")
    else:
        say(f"{store}: {_whole(checked)}, {checked.calls} calls committed, the ledger's chain holds")
    for hint in () if as_json else checked.hints:
        say(f"hint: {plain(hint)}")
    sys.exit(1 if checked.problems else 0)


def _hint_at_seal(folder: Place) -> None:
    """Say that a manifest is not sealed, though a key is set; that alone is nothing wrong."""
    with suppress(Malformed):  # which is among the problems
        if os.environ.get(KEY_VARIABLE) and not is_sealed(folder):
            log.warning(
                "%s is not sealed with the key in %s: it is from before seals, was last written without the key, or "
                "lost its seal; the next build of %s that records anything seals it",
                folder / FILE_NAME,
                KEY_VARIABLE,
                folder,
            )


@dataclass(slots=True)
class _Checked:
    rows: int | None = None
    rest: int | None = None
    calls: int | None = None
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


def _whole(checked: _Checked) -> str:
    rest = f" and {checked.rest} images that were not asked about" if checked.rest else ""
    return f"{checked.rows} rows{rest} whole"


def _check_published(url: ObjectUrl, ledger_url: str | None) -> _Checked:
    """Look at a store in object storage, and at its ledger if that was named."""
    store, checked = Store.open(url), _Checked()
    checked.rows, checked.rest = store.manifest.n, store.manifest.rest
    checked.hints = [f"{path} belongs to no store, and no command reads it" for path in unknown_files(store)]
    if ledger_url is None:
        checked.problems = [str(problem) for problem in published_problems(store, None)]
        return checked
    with closing(Ledger(ledger_url)) as ledger:
        require_named(url, store.manifest, ledger)
        checked.problems = [str(problem) for problem in published_problems(store, ledger)]
        with suppress(StoreUnreadable):
            checked.calls = ledger.summary(store.manifest.identity.teacher.fingerprint).committed
    return checked


def _check(folder: Path, url: str | None) -> _Checked:
    """Look at store and ledger, each as far as it can be opened."""
    checked = _Checked()
    if not (folder / FILE_NAME).exists():
        Manifest.load(folder)  # says that there is no store, and how to build one
    store = ledger = None
    try:
        store = Store.open(folder)
        checked.rows, checked.rest = store.manifest.n, store.manifest.rest
        checked.hints = [f"{path} belongs to no store, and no command reads it" for path in unknown_files(store)]
    except StoreUnreadable as error:
        checked.problems.append(str(error))
    try:
        ledger = open_ledger(folder, ledger_url_of(folder, url))
    except StoreUnreadable as error:
        checked.problems.append(str(error))
    if ledger is None:
        return checked
    with closing(ledger):
        if store is None:
            checked.problems += ledger_problems(ledger)
        else:
            checked.problems += [str(problem) for problem in store_problems(store, ledger)]
            with suppress(StoreUnreadable):
                checked.calls = ledger.summary(store.manifest.identity.teacher.fingerprint).committed
    return checked
