"""What a finished run's results are bound to: digests of them, on record in the store's ledger or in `proof.json`.

When a run ends, a digest of its results (all of `run.json`), of `metrics.csv` and of its weights is recorded, with the
store's id, its manifest's digest and the ledger's head: as a chained entry of kind `run` in the store's own ledger
where that can be written, else in the run's folder, sealed with the key in `CKD_LEDGER_KEY` where there is one. A proof
never makes a training fail. What each kind of proof is worth: docs/run-folder.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct

from ground.documents import Hex32, Hex64, Line, Malformed, read_object, typed, unreadable
from ground.durable import write_json
from ground.errors import CKDError, StoreUnreadable
from ground.places import ObjectUrl, Place
from storage.ledger import Ledger
from storage.ledger_chain import GENESIS, KEY_VARIABLE, Seal
from storage.ledger_tables import entries
from storage.manifest import FILE_NAME, Manifest
from storage.run_record import METRICS_FILE, RUN_FILE, STUDENT_FILE, RunRecord
from storage.store_folder import LEDGER_FILE
from storage.store_ledger import own_ledger

log = logging.getLogger(__name__)

PROOF_FILE = "proof.json"
# Of what a run leaves: how its digest is called, and the file.
_PARTS = {"results": RUN_FILE, "metrics": METRICS_FILE, "weights": STUDENT_FILE}
_REMEDY = "bring it back from a copy, or train again"


class ProvenBy(StrEnum):
    """What vouches for a run's results."""

    LEDGER = "ledger"
    KEY = "key"
    DIGEST = "digest"
    NOTHING = "no"


class RunDigests(Struct, frozen=True, kw_only=True):
    """What is recorded of a finished run; SHA-256 in hex.

    Args:
        store: id of the store that it was trained from.
        manifest: digest of that store's manifest.
        head: hash of the ledger's newest entry when the store was read.
        results: of `run.json`, however its keys are ordered.
        metrics, weights: of the files.
    """

    store: Hex32
    manifest: Hex64
    head: Hex64 | None
    results: Hex64
    metrics: Hex64
    weights: Hex64


class ProofFile(Struct, frozen=True, kw_only=True):
    """`proof.json`: the digests, when they were taken, and the seal over both."""

    run: RunDigests
    at: Line
    seal: Line
    hash: Hex64

    @classmethod
    def sealed(cls, run: RunDigests, seal: Seal) -> ProofFile:
        """Digests under a seal, as of now."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        return cls(run=run, at=at, seal=seal.name, hash=_sealed_hash(seal, at, run))

    def problem(self, seal: Seal) -> str | None:
        """Why it is nobody's word, or None; it is checked with the key that is set, if one is."""
        if self.seal != seal.name:
            if seal.name == "sha256":
                return f"{PROOF_FILE} is sealed with a key; set it in {KEY_VARIABLE}"
            return f"{PROOF_FILE} is sealed without a key, and {KEY_VARIABLE} is set: it was made without it, or forged"
        if self.hash != _sealed_hash(seal, self.at, self.run):
            another = "" if seal.name == "sha256" else ", or sealed with another key"
            return f"{PROOF_FILE} was changed{another}: its seal does not match; {_REMEDY}"
        return None


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether a run's results are what they were when it ended.

    Args:
        by: what vouches for them.
        problems: what contradicts them, a sentence each.
        missing: why nothing vouches for them, where nothing contradicts them either.
    """

    by: ProvenBy = ProvenBy.NOTHING
    problems: tuple[str, ...] = ()
    missing: str | None = None

    @property
    def is_proven(self) -> bool:
        """Whether something vouches for the results."""
        return self.by is not ProvenBy.NOTHING

    @property
    def sentences(self) -> tuple[str, ...]:
        """Why the run is not proven; empty where it is."""
        return self.problems if self.missing is None else (*self.problems, self.missing)


def prove_run(folder: Path, record: RunRecord, store: Place, manifest: Manifest) -> None:
    """Record what a run that has just ended came to; its metrics and weights are there, its `run.json` is not yet.

    What goes wrong is said in the log, and nothing else: the run is then not proven.

    Args:
        folder: the run's.
        store: folder or URL that it was trained from.
        manifest: of the store, as it was read.
    """
    try:
        run = RunDigests(
            store=record.store_id,
            manifest=manifest.digest,
            head=record.ledger_head,
            results=_results_digest(record.document()),
            metrics=_written_digest(folder / METRICS_FILE),
            weights=_written_digest(folder / STUDENT_FILE),
        )
        why_not = _record_in_ledger(run, store, manifest)
        if why_not is None:
            (folder / PROOF_FILE).unlink(missing_ok=True)
            return
        log.info("%s: the proof of these results is %s in the run's folder, since %s", folder, PROOF_FILE, why_not)
        write_json(folder / PROOF_FILE, msgspec.to_builtins(ProofFile.sealed(run, Seal.from_environment())))
    except (CKDError, OSError) as error:
        log.warning("%s: these results are not proven (%s)", folder, error)


def _record_in_ledger(run: RunDigests, store: Place, manifest: Manifest) -> str | None:
    """Chain it in the store's own ledger; returns why it was not, or None."""
    if isinstance(store, ObjectUrl):
        return "the store is in object storage, where no ledger is"
    if manifest.ledger is not None:
        return "the store's calls are in a ledger that stores share"
    if manifest.older is not None:
        return "a store of an older format is not written to"
    if manifest.ledger_head is None or not (store / LEDGER_FILE).is_file():
        return f"there is no {LEDGER_FILE} in the store"
    try:
        with closing(own_ledger(store)) as ledger:
            ledger.require_entry(manifest.ledger_head, store)
            ledger.record_run(msgspec.to_builtins(run))
    except (CKDError, OSError, sa.exc.SQLAlchemyError) as error:
        return f"the store's ledger could not be written to ({error})"
    return None


class RunProofs:
    """Checks runs; the ledger of each store is read once."""

    def __init__(self) -> None:
        self._seal = Seal.from_environment()
        self._known: dict[Path | None, _Known] = {}

    def of(self, folder: Path, store: Path | None) -> Proof:
        """Whether a finished run's results are what they were when it ended.

        Args:
            folder: the run's.
            store: where its store is now; it need not be there, and None is nobody knows.

        Raises:
            InvalidInput: its `run.json` is no JSON object.
        """
        try:
            document = read_object(folder / RUN_FILE)
        except Malformed as error:
            raise unreadable(folder / RUN_FILE, error, _REMEDY) from error
        found = {
            "results": _results_digest(document),
            "metrics": _file_digest(folder / METRICS_FILE),
            "weights": _file_digest(folder / STUDENT_FILE),
        }
        if store not in self._known:
            self._known[store] = _read_known(store)
        known = self._known[store]
        in_ledger = _by_ledger(found, document, known)
        if in_ledger.is_proven or not _lies_there(folder / PROOF_FILE):
            return in_ledger
        in_file = self._by_file(folder / PROOF_FILE, found, document, known)
        # A digest that anybody can make does not stand against what the ledger says.
        if in_file.by is ProvenBy.DIGEST and in_ledger.problems:
            return in_ledger
        return in_file

    def _by_file(
        self, path: Path, found: Mapping[str, str | None], document: Mapping[str, Any], known: _Known
    ) -> Proof:
        try:
            proof = typed(read_object(path), ProofFile)
        except Malformed as error:
            return Proof(problems=(f"{PROOF_FILE} is no proof ({error}); {_REMEDY}",))
        problem = proof.problem(self._seal)
        if problem is not None:
            return Proof(problems=(problem,))
        problems = (
            *_differing(found, proof.run, PROOF_FILE),
            *_store_problems(proof.run, document, known),
        )
        return (
            Proof(problems=problems)
            if problems
            else Proof(by=ProvenBy.DIGEST if self._seal.name == "sha256" else ProvenBy.KEY)
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    """A `run` entry of a ledger; `holds` says whether its hash is that of what it says."""

    seq: int
    run: RunDigests
    holds: bool


@dataclass(frozen=True, slots=True)
class _Known:
    """What a store and its own ledger know.

    Args:
        ids: of the store and what it was made from; None where there is no store.
        manifests: digests of the store's manifests, now and earlier; None where the ledger was not read.
        hashes: of all entries.
        runs: newest first.
        why_no_ledger: why the ledger was not read, or None.
    """

    ids: frozenset[str] | None = None
    manifests: frozenset[str] | None = None
    hashes: frozenset[str] = frozenset()
    runs: tuple[_Entry, ...] = ()
    why_no_ledger: str | None = None


def _read_known(store: Path | None) -> _Known:
    if store is None:
        return _Known(why_no_ledger="nothing says where its store is")
    try:
        # A pipe in its place would be waited for.
        manifest = Manifest.load(store) if (store / FILE_NAME).is_file() else None
    except (CKDError, OSError):
        manifest = None
    if manifest is None:
        return _Known(why_no_ledger=f"there is no store that can be read at {store}")
    ids = frozenset(manifest.ids)
    if manifest.ledger is not None or not _lies_there(store / LEDGER_FILE):
        return _Known(ids=ids, why_no_ledger=f"{store} has no ledger of its own")
    try:
        with closing(own_ledger(store)) as ledger:
            ledger.require_key()
            return _read_ledger(ledger, manifest, ids)
    except (CKDError, OSError, sa.exc.SQLAlchemyError) as error:
        return _Known(ids=ids, why_no_ledger=f"the store's ledger cannot be asked ({error})")


def _read_ledger(ledger: Ledger, manifest: Manifest, ids: frozenset[str]) -> _Known:
    with ledger.reading() as connection:
        hashes = frozenset(connection.execute(sa.select(entries.c.hash)).scalars())
        query = sa.select(entries).where(entries.c.kind.in_(("run", "store"))).order_by(entries.c.seq.desc())
        rows = connection.execute(query).all()
    runs, manifests = [], {manifest.digest}
    for row in rows:
        try:
            content = json.loads(row.payload)
            if row.kind == "store":
                manifests |= {str(content[name]) for name in ("manifest", "replaces") if name in content}
                continue
            run = typed(content, RunDigests)
        except (ValueError, TypeError, KeyError, RecursionError):  # damage is found by `ckd-cache ledger verify`
            continue
        holds = row.hash == ledger.seal.hash(row.seq, row.kind, row.at, row.payload, row.previous)
        runs.append(_Entry(row.seq, run, holds))
    return _Known(ids, frozenset(manifests), hashes, tuple(runs))


def _by_ledger(found: Mapping[str, str | None], document: Mapping[str, Any], known: _Known) -> Proof:
    if known.why_no_ledger is not None:
        return Proof(missing=f"the run has no {PROOF_FILE}, and {known.why_no_ledger}")
    shared = {entry.seq: sum(getattr(entry.run, part) == found[part] for part in _PARTS) for entry in known.runs}
    # The first of the best is the newest.
    best = max(known.runs, key=lambda entry: (shared[entry.seq], entry.holds), default=None)
    if best is None or not shared[best.seq]:
        return Proof(
            missing=f"nothing vouches for the run: its store's ledger has no entry of it, and it has no {PROOF_FILE}; "
            "a release before proofs made it, or nothing in it is as it was"
        )
    where = f"entry {best.seq} of the ledger"
    problems = (
        *([] if best.holds else [f"{where} was changed: its hash does not match; bring the ledger back from a copy"]),
        *_differing(found, best.run, where),
        *_store_problems(best.run, document, known),
    )
    return Proof(problems=problems) if problems else Proof(by=ProvenBy.LEDGER)


def _differing(found: Mapping[str, str | None], recorded: RunDigests, where: str) -> list[str]:
    problems = []
    for part, name in _PARTS.items():
        if found[part] is None:
            problems.append(f"{name} ({part}) is missing; {_REMEDY}")
        elif found[part] != getattr(recorded, part):
            problems.append(f"{name} ({part}) is not what {where} has recorded when the run ended; {_REMEDY}")
    return problems


def _store_problems(recorded: RunDigests, document: Mapping[str, Any], known: _Known) -> list[str]:
    """Where store and ledger are not those that the proof names."""
    problems = []
    if recorded.store != document.get("store_id"):
        problems.append(f"store: the proof is of a run from store {recorded.store[:12]}, run.json names another")
    if known.ids is not None and recorded.store not in known.ids:
        problems.append(f"store: the run was trained from store {recorded.store[:12]}, which this one is not")
    elif known.manifests is not None and recorded.manifest not in known.manifests:
        problems.append(
            f"store: its manifest was {recorded.manifest[:12]} when the run was made, which neither it nor its ledger "
            "knows; bring the store back from a copy"
        )
    if known.manifests is not None and recorded.head is not None and recorded.head not in known.hashes:
        problems.append(
            f"entry: the ledger lacks entry {recorded.head[:12]} that the run saw: it was replaced or rolled back"
        )
    return problems


def _lies_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _sealed_hash(seal: Seal, at: str, run: RunDigests) -> str:
    # As an entry of a ledger is sealed, with a number that none has.
    return seal.hash(0, "run", at, _canonical(msgspec.to_builtins(run)), GENESIS)


def _results_digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(document).encode()).hexdigest()


def _canonical(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _written_digest(path: Path) -> str:
    digest = _file_digest(path)
    if digest is None:
        raise StoreUnreadable(f"{path} is gone; {_REMEDY}")
    return digest


def _file_digest(path: Path) -> str | None:
    """SHA-256 of an ordinary file, or None where there is none: a pipe would be waited for."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreUnreadable(f"{path} cannot be read ({error.strerror}); check its permissions") from error
