"""Which ledger and which calls: the same for all of `ckd-cache ledger`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

import click

from ground.errors import InvalidInput
from ground.options import StorePlace
from ground.places import ObjectUrl, Place
from models.names import identity_name
from storage.ledger import Ledger
from storage.ledger_report import CallFilter, find_teacher
from storage.manifest import Manifest
from storage.store_ledger import own_ledger, require_named
from teacher_cache.commands.options import ledger_to_build

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MOST = 1 << 40
_MOST_PRICE = 1e9


def open_ledger(store: Place | None, url: str | None) -> Ledger:
    """The ledger at a URL, or the one that a store's calls are recorded in.

    Args:
        url: as the user gave it; what a manifest names is not opened unless the user names it as well.

    Raises:
        InvalidInput: neither was given, or a store's own ledger was not meant.
        IdentityMismatch: it is another ledger than the store's.
        StoreUnreadable: there is no store, or no ledger.
    """
    if store is None:
        if url is None:
            raise InvalidInput("say which ledger: give --store DIR or --ledger URL")
        return Ledger(url)
    manifest = Manifest.load(store)
    if manifest.ledger is None and not isinstance(store, ObjectUrl):
        if url is not None:
            raise InvalidInput(f"the calls of {store} are recorded in its own ledger; leave --ledger or --store out")
        return own_ledger(store)
    if url is None and manifest.ledger is None:
        raise InvalidInput(
            f"the calls of {store} are recorded in the ledger.sqlite of the folder that it was published from; give "
            "that as --ledger"
        )
    if url is None:
        raise InvalidInput(
            f"the calls of {store} are recorded in a shared ledger; name it too, with its password if it has one, "
            f"with: --ledger {shlex.quote(str(manifest.ledger))}"
        )
    ledger = Ledger(url)
    try:
        require_named(store, manifest, ledger)
    except BaseException:
        ledger.close()
        raise
    return ledger


def opened_ledger(store: Place | None, url: str | None) -> Ledger:
    """`open_ledger` of what a command was given, or of $CKD_LEDGER where that is what is meant.

    A store with a ledger of its own is always read with that, whatever the environment says.
    """
    if store is not None:
        return open_ledger(store, ledger_to_build(store, url))
    return open_ledger(None, url or os.environ.get("CKD_LEDGER") or None)


def ledger_options(command: _Command) -> _Command:
    """--store and --ledger."""
    store = click.option("--store", type=StorePlace(), help="Folder of a store, or its URL.")
    return store(click.option("--ledger", "url", help="URL of a shared ledger.  [default: $CKD_LEDGER]")(command))


_FILTERS = (
    click.option("--teacher", help="Only calls to this teacher: its name, or the first digits of its fingerprint."),
    click.option("--store-id", help="Only calls for this store: the first digits of its id."),
    click.option(
        "--status",
        type=click.Choice(("reserved", "committed", "lost", "returned")),
        help="Only calls with this status.",
    ),
    click.option("--run", type=click.IntRange(1, _MOST), help="Only calls of this run of a builder."),
    click.option("--since", help="Only calls charged at this time or later: ISO 8601, UTC unless it says otherwise."),
    click.option("--until", help="Only calls charged before this time."),
)


def filter_options(command: _Command) -> _Command:
    """--teacher, --store-id, --status, --run, --since, --until."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def paging_options(command: _Command) -> _Command:
    """--limit and --offset."""
    offset = click.option(
        "--offset", type=click.IntRange(0, _MOST), default=0, show_default=True, help="Calls to pass over."
    )
    limit = click.option("--limit", type=click.IntRange(1, _MOST), default=50, show_default=True, help="Calls to show.")
    return limit(offset(command))


def price_option(command: _Command) -> _Command:
    """--price-per-call."""
    return click.option("--price-per-call", "price", type=float, callback=_price, help="Say also what they cost.")(
        command
    )


def _price(_: click.Context, __: click.Parameter, price: float | None) -> float | None:
    # Not a FloatRange, which lets "nan" through.
    if price is not None and not 0 <= price <= _MOST_PRICE:
        raise InvalidInput(f"--price-per-call must be 0 to {_MOST_PRICE:g}, got {price:g}")
    return price


def cost_of(calls: int, price: float) -> float:
    """Calls times price, without the noise of binary fractions."""
    return float(calls * Decimal(repr(price)))


def call_filter(
    ledger: Ledger,
    *,
    teacher: str | None,
    store_id: str | None,
    status: str | None,
    run: int | None,
    since: str | None,
    until: str | None,
) -> CallFilter:
    """The filter that the options describe.

    Raises:
        InvalidInput: no single teacher is called so, or a time cannot be read.
    """
    return CallFilter(
        teacher=None if teacher is None else teacher_called(ledger, teacher),
        store=store_id,
        status=status,
        run=run,
        since=None if since is None else _utc("--since", since),
        until=None if until is None else _utc("--until", until),
    )


def teacher_called(ledger: Ledger, text: str | None) -> str:
    """Fingerprint of a teacher, by its name in any spelling or its first digits; None for the only one there is."""
    try:
        return find_teacher(ledger, None if text is None else identity_name(text))
    except InvalidInput:
        return find_teacher(ledger, text)


def _utc(option: str, text: str) -> str:
    """A time as the ledger writes it."""
    try:
        time = datetime.fromisoformat(text)
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{option} takes a time like 2026-01-31T12:00 or 2026-01-31, got {text!r}") from error
    return time.isoformat(timespec="milliseconds")
