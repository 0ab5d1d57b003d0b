"""The witness: what was last seen of each ledger, kept outside it, so that putting an older copy back is found out.

A ledger proves that nothing in it was changed, and cannot prove that nothing was cut off its end. The witness is a
folder with one small file a ledger: its newest entry when somebody last recorded in it, and some that were newest
before. `CKD_WITNESS` names the folder, for instance one of another machine; the default is `$XDG_STATE_HOME/ckd`, and
"off" keeps none. It is only ever advanced, except when a rollback is accepted, which is chained into the ledger.

A ledger is known by the hash of its first entry. The own ledger of a store that was converted continues a copy of
another's, so it is known by the entry that recorded the conversion.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ground.documents import Hex64, Line, Malformed, Positive, read_object, typed
from ground.durable import write_json
from ground.errors import CKDError, InvalidInput, RolledBack, StoreUnreadable, store_command
from storage.ledger import Ledger
from storage.ledger_tables import entries
from storage.locks import FileLock

log = logging.getLogger(__name__)

VARIABLE = "CKD_WITNESS"
OFF = "off"
_MOST_EARLIER = 64
_MOST_BYTES = 1 << 20
_LOCK_SECONDS = 10.0
_POLL_SECONDS = 0.02

_told: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """An entry that was a ledger's newest: its number and its hash."""

    entry: Positive
    hash: Hex64

    def __str__(self) -> str:
        return f"entry {self.entry} ({self.hash[:12]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What is known of a ledger.

    Args:
        genesis: the entry that it is known by, see above.
        ledger: where it was, for people.
        newest: its highest entry so far.
        earlier: some that were newest before, oldest first: they tell a fork from a rollback.
    """

    genesis: Hex64
    ledger: Line
    newest: Head
    earlier: tuple[Head, ...] = ()


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A ledger that is not a continuation of what was seen.

    Args:
        seen: newest entry of the witness, which the ledger lacks.
        found: newest entry of the ledger.
        common: the last one of both that is known; None if that is none.
        is_fork: both have entries of their own after the common one; otherwise the ledger is an older state.
    """

    seen: Head
    found: Head
    common: Head | None
    is_fork: bool


class Witness:
    """What is kept of one ledger outside it.

    Args:
        own: whether the ledger is a store's own; a shared one is never copied by a conversion.
        store: whose ledger it is, for the remedy that a message names.
    """

    def __init__(self, ledger: Ledger, *, own: bool, store: Path | None = None) -> None:
        self._ledger, self._own, self._store = ledger, own, store

    def disagreement(self) -> Disagreement | None:
        """How the ledger contradicts what was seen of it; None if it does not, or nothing was.

        Raises:
            InvalidInput: the witness's file is damaged.
            StoreUnreadable: the ledger cannot be read.
        """
        path = self._path()
        # The witness first: what is recorded in between only makes the ledger longer.
        sighting = None if path is None else self._read(path)
        return None if sighting is None else self._compare(sighting)

    def require_newest(self) -> None:
        """Raise `RolledBack` if the ledger is an older state of what was seen, or a fork of it."""
        found = self.disagreement()
        if found is not None:
            raise RolledBack(self.explain(found))

    def advance(self) -> None:
        """Note how far the ledger has come. What hinders that is said in a warning, and stops nobody."""
        try:
            path = self._path()
            if path is not None:
                with self._locked(path):
                    self._advance(path)
        except (CKDError, OSError) as error:
            self._warn(f"the witness of the ledger at {self._ledger.shown_url} was not advanced: {error}")

    def accept(self) -> Disagreement | None:
        """Go on with a ledger that is older than what was seen, or a fork: chain that into it, and begin anew from
        there. Nothing is done for one that agrees.

        Returns:
            What was accepted.
        """
        found = self.disagreement()
        path = self._path()
        if found is None or path is None:
            return None
        content = {"witness": asdict(found.seen), "ledger": asdict(found.found), "fork": found.is_fork}
        self._ledger.record_rollback(content)
        try:
            with self._locked(path):
                self._write(path, Sighting(genesis=path.stem, ledger=self._shown(), newest=self._newest()))
        except OSError as error:
            self._warn(f"the witness at {path} could not be set to the ledger that was accepted: {error}")
        return found

    def explain(self, found: Disagreement) -> str:
        """A disagreement with both heads, and what to do."""
        ledger, path = self._ledger.shown_url, self._path()
        seen = f"the ledger at {ledger} ends with {found.found}, and the witness at {path} has seen {found.seen} of it"
        shared = None if self._own else ledger
        options = {"ledger": shared, "accept_rollback": True}
        command = "" if self._store is None else f": {store_command('repair', self._store, **options)}"
        go_on = f"go on from this one with{command or ' --accept-rollback'}"
        if not found.is_fork:
            return f"{seen}: it was rolled back to an older state; bring back the newer one, or {go_on}"
        after = "two heads follow the same beginning" if found.common is None else f"two heads follow {found.common}"
        return (
            f"{seen}, which it lacks: it is a fork, {after}, so two copies of one ledger both grew; go on with the "
            f"other copy, or {go_on}"
        )

    def _advance(self, path: Path) -> None:
        before = self._read(path)
        if before is not None and (found := self._compare(before)) is not None:
            raise RolledBack(self.explain(found))
        newest = self._newest()
        if before is None or newest.entry > before.newest.entry:
            earlier = () if before is None else (*before.earlier, before.newest)[-_MOST_EARLIER:]
            self._write(path, Sighting(genesis=path.stem, ledger=self._shown(), newest=newest, earlier=earlier))

    def _compare(self, sighting: Sighting) -> Disagreement | None:
        if self._has(sighting.newest):
            return None
        found = self._newest()
        shared = [self._has(head) for head in sighting.earlier]
        common = next((head for head, has in zip(sighting.earlier[::-1], shared[::-1], strict=True) if has), None)
        lacks = [head for head, has in zip(sighting.earlier, shared, strict=True) if not has]
        is_fork = any(head.entry <= found.entry for head in [*lacks, sighting.newest])
        return Disagreement(sighting.newest, found, common, is_fork)

    def _has(self, head: Head) -> bool:
        found: str | None = self._one(sa.select(entries.c.hash).where(entries.c.seq == head.entry))
        return found == head.hash

    def _newest(self) -> Head:
        with self._ledger.reading() as connection:
            query = sa.select(entries.c.seq, entries.c.hash).order_by(entries.c.seq.desc()).limit(1)
            row = connection.execute(query).first()
        if row is None:
            raise StoreUnreadable(f"the ledger at {self._ledger.shown_url} has no entries; bring it back from a copy")
        return Head(entry=row.seq, hash=self._ledger.checked_hash(row.hash))

    def _genesis(self) -> str:
        """Hash of the entry that the ledger is known by."""
        query = sa.select(entries.c.payload, entries.c.hash).where(entries.c.kind == "store")
        with self._ledger.reading() as connection:
            stores = connection.execute(query.order_by(entries.c.seq.desc())).all() if self._own else []
        for payload, hash_ in stores:
            with suppress(ValueError, RecursionError, AttributeError):  # a damaged entry is found by its hash
                if json.loads(payload).get("made_by") == "convert":
                    return self._ledger.checked_hash(hash_)
        return self._ledger.genesis()

    def _one(self, query: sa.Select[Any]) -> Any:
        with self._ledger.reading() as connection:
            return connection.execute(query).scalar()

    def _shown(self) -> str:
        return self._ledger.shown_url if self._ledger.shown_url.isprintable() else ascii(self._ledger.shown_url)

    def _path(self) -> Path | None:
        folder = witness_folder()
        if folder is not None:
            return folder / f"{self._genesis()}.json"
        if os.environ.get(VARIABLE) == OFF:
            reason = f"{VARIABLE} is {OFF}"
        else:
            reason = f"there is no home folder; name one in {VARIABLE}"
        self._warn(f"no witness is kept of the ledger at {self._ledger.shown_url}: {reason}")
        return None

    def _read(self, path: Path) -> Sighting | None:
        try:
            path.lstat()
            sighting = typed(read_object(path, _MOST_BYTES), Sighting)
            if sighting.genesis != path.stem:
                raise Malformed("it is of another ledger")
        except FileNotFoundError:
            return None
        except (OSError, Malformed) as error:
            if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
                self._warn(f"the witness at {path} cannot be read, and nothing was compared with it: {error}")
                return None
            raise InvalidInput(
                f"the witness at {path} is damaged ({error}); bring it back from a copy, or delete it to begin anew"
            ) from error
        return sighting

    def _write(self, path: Path, sighting: Sighting) -> None:
        write_json(path, asdict(sighting))

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold the lock of a ledger's file; raises `OSError` where it cannot be made, or is held for long."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")) as lock:
            _wait_for(lock.try_exclusive, path)
            yield

    def _warn(self, text: str) -> None:
        # A command opens its ledger several times; once is enough to say it.
        if text not in _told:
            _told.add(text)
            log.warning("%s", text)


def witness_folder() -> Path | None:
    """Where witnesses are kept; None if they are not, or if there is no home folder."""
    named = os.environ.get(VARIABLE)
    if named:
        folder = os.path.expanduser(named)
        return None if named == OFF or folder.startswith("~") else Path(folder).absolute()
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if state.is_absolute():
        return state / "ckd"
    home = Path("~").expanduser() if os.environ.get("HOME") else Path()
    return home / ".local" / "state" / "ckd" if home.is_absolute() else None


def _wait_for(attempt: Callable[[], bool], path: Path) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while not attempt():
        if time.monotonic() > deadline:
            raise TimeoutError(f"somebody has held the lock of {path} for {_LOCK_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
