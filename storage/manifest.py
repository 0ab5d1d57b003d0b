"""The manifest: what a store is, so that nothing that does not match is ever mixed into it.

`Identity` (`storage.identity`) is what must agree before rows are added; `Manifest` adds what may change (how many
rows) and what is only worth knowing (versions). It is a JSON file, written atomically, and the last thing written when
a store is made: a folder without one holds no calls.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from ground.documents import Hex32, Hex64, Line, Malformed, parse_object, read_object, typed
from ground.durable import json_content, write_bytes
from ground.errors import StoreUnreadable, store_command
from ground.places import ObjectUrl, Place
from storage.blocks import DIGEST_DIGITS
from storage.foreign import no_store
from storage.identity import Identity, Seed, check_identity, checked_arrays, require
from storage.ledger_chain import KEY_VARIABLE, Seal
from storage.migrations import OlderManifest, brought_forward, require_readable
from storage.row_places import are_sound, end_of, places_of
from storage.schema import ArraySpec, RowCounts

FORMAT_VERSION = 4
FILE_NAME = "manifest.json"
# The manifest of a store that is to take the place of the one beside it.
EXTENSION = "extension.json"
MOST_MANIFEST_BYTES = 64 << 20
ARRAYS_NAME = r"data(-[0-9]{1,6})?\.(zarr|h5)"

_Rows = Annotated[int, Meta(ge=0, le=1 << 24, description=f"a number of rows up to {1 << 24}")]
_Arrays = Annotated[str, Meta(pattern=rf"\A{ARRAYS_NAME}\Z", description="the name of arrays beside the manifest")]
_Digests = Annotated[str, Meta(pattern=r"\A[0-9a-f]*\Z", description="digests in hexadecimal digits")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Rows that were chosen together, before any of their calls was made.

    Args:
        rule: that chose them, as rules are usually written, or as it was given: "kcenter:subset=4000".
        seed: of what the rule left to chance, with `first`.
        first, end: the rows of the store.
        looked_at: what the rule computed on beside images and labels -> what identifies it, a digest mostly.
    """

    rule: Line
    seed: Seed
    first: _Rows
    end: _Rows
    looked_at: Mapping[str, Line] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A store's identity, its size, and where its calls are recorded.

    Args:
        store_id: 32 hex digits, made once.
        array_format: "zarr" or "hdf5".
        arrays: name of the file or folder of the arrays, next to the manifest.
        n: training images that the teacher is asked about; val and test likewise.
        samples: sample array, or parameter of the teacher -> SHA-256 of each block of its rows, in hex, one after the
            other.
        ledger: URL without password, or None for the store's own `ledger.sqlite`.
        ledger_genesis: hash of the ledger's entry 1, which it is known by wherever it is; None in stores from before
            it was noted.
        ledger_head: hash of the ledger's newest entry when the last build ended.
        history: the stores it was made from, oldest first: store_id, and made_by (convert, extend, upgrade, widen).
        versions: package versions that made the store.
        sources: what it was last built from, as far as it is known and only for who reads it: options of a command with
            full paths (dataset, data_root, weights), and listing, what was listed of an image folder.
        aligned_chunks: whether chunks of all arrays end together (`ArraySpec.aligned`), as in object storage, where who
            builds writes whole ones.
        rest: further training images, after the n, which the teacher is not asked about.
        rest_labelled: how many of those have a label; None in stores from before it was counted.
        rounds: how rows were chosen, in order and without a gap, from the first on that the sample's seed did not
            choose; none where it chose all.
        places: where training rows lie in their sample arrays, as runs (`storage.row_places`), where a rule bought
            images of a rest; none where each lies at its own number.
        older: what it is on the disk, where that is of an older format: then it can be read, and not be saved.
    """

    store_id: Hex32
    array_format: Line
    arrays: _Arrays
    identity: Identity
    n: _Rows
    num_val: _Rows
    num_test: _Rows
    samples: Mapping[str, _Digests]
    ledger: Line | None = None
    ledger_genesis: Hex64 | None = None
    ledger_head: Line | None = None
    history: tuple[Mapping[str, Line], ...] = ()
    versions: Mapping[str, Line] = field(default_factory=dict)
    sources: Mapping[str, Line] = field(default_factory=dict)
    aligned_chunks: bool = False
    rest: _Rows = 0
    rest_labelled: _Rows | None = None
    rounds: tuple[Round, ...] = ()
    places: tuple[tuple[_Rows, _Rows], ...] = ()
    older: OlderManifest | None = None

    @property
    def format_version(self) -> int:
        """Of what is on the disk."""
        return FORMAT_VERSION if self.older is None else self.older.version

    @property
    def num_images(self) -> int:
        """Training images, asked about or not."""
        return self.n + self.rest

    @property
    def num_places(self) -> int:
        """Of training images, those that are no row's any more among them."""
        return end_of(self.places) if self.places else self.num_images

    def rows_of(self, spec: ArraySpec) -> int:
        """Rows of an array; those of answers are fewer where there is a rest."""
        return RowCounts(n=self.n, rest=self.rest, num_val=self.num_val, num_test=self.num_test).of(spec)

    def array_rows(self, spec: ArraySpec) -> int:
        """Rows that an array has to have: more than there are, where images of a rest were bought and lie twice."""
        return self.num_places if self.places and spec.is_training_sample else self.rows_of(spec)

    def places_of(self, spec: ArraySpec, rows: np.ndarray) -> np.ndarray:
        """Where (m,) rows lie in an array, (m,) int64."""
        return places_of(self.places, rows) if spec.is_training_sample else rows

    def block_rows(self, spec: ArraySpec) -> int:
        """Rows of a sample array that have one digest: all of them in formats before 4."""
        return spec.block_rows if self.older is None else max(1, self.rows_of(spec))

    def block_digest(self, name: str, block: int) -> str:
        """SHA-256, in hex, of one block of a sample array."""
        return self.samples[name][block * DIGEST_DIGITS : (block + 1) * DIGEST_DIGITS]

    @property
    def ids(self) -> set[str]:
        """Ids of the store and of those it was made from: calls of any of these may be kept in it."""
        return {self.store_id, *(step["store_id"] for step in self.history)}

    @property
    def ids_in_place(self) -> set[str]:
        """Ids that the store had in its own folder: those since it was last made as a copy, in a new one."""
        since = takewhile(lambda step: step["made_by"] != "convert", reversed(self.history))
        return {self.store_id, *(step["store_id"] for step in since)}

    def grown(self, n: int, num_images: int, num_val: int, rounds: tuple[Round, ...] | None = None) -> Manifest:
        """The same store with more rows, of which the first of its rest may be some that the teacher is asked about.

        Args:
            rounds: how all rows were chosen; None for as it is.
        """
        rounds = self.rounds if rounds is None or n <= self.n else rounds
        n, num_images = max(n, self.n), max(n, num_images, self.num_images)
        return replace(self, n=n, rest=num_images - n, num_val=max(num_val, self.num_val), rounds=rounds)

    def round_of(self, row: int) -> Round | None:
        """The round that a row was chosen in; None where the sample's seed alone chose it."""
        return next((chosen for chosen in self.rounds if chosen.first <= row < chosen.end), None)

    @property
    def digest(self) -> str:
        """SHA-256 of all that may not change between builds: what a ledger records of a store."""
        if self.older is not None:
            return self.older.digest
        document = self._document()
        del document["ledger_head"]
        # An entry is of the ledger that it is in: it need not say which.
        document.pop("ledger_genesis", None)
        return digest_of(document)

    def save(self, folder: Path, file_name: str = FILE_NAME) -> None:
        """Write it, atomically and durably; see `content`."""
        write_bytes(folder / file_name, self.content())

    def content(self) -> bytes:
        """Of its file: with a digest of its own, sealed with the key where there is one."""
        assert self.older is None, "a store of an older format is upgraded before it is written to"
        document = {"format_version": FORMAT_VERSION, **self._document()}
        digest = digest_of(document)
        seal = Seal.from_environment().manifest(digest)
        sealed = {} if seal is None else {"seal": seal}
        return json_content({**document, "digest": digest, **sealed})

    def _document(self) -> dict[str, Any]:
        # As `asdict`, which takes a hundred times as long, a tenth of a second over the names of many classes.
        document: dict[str, Any] = msgspec.to_builtins(self)
        del document["older"]
        # Stores from before it was recorded keep their digest.
        if not self.sources:
            del document["sources"]
        if not self.aligned_chunks:
            del document["aligned_chunks"]
        if not self.rest:
            del document["rest"]
        if not self.rest or self.rest_labelled is None:
            del document["rest_labelled"]
        if not self.rounds:
            del document["rounds"]
        if not self.places:
            del document["places"]
        if self.ledger_genesis is None:
            del document["ledger_genesis"]
        teacher = document["identity"]["teacher"]
        for name in ("input_size", "interpolation", "class_map"):
            if teacher[name] is None:
                del teacher[name]
        if document["identity"]["dataset"]["squares"] is None:
            del document["identity"]["dataset"]["squares"]
        if document["identity"]["answer"] is None:
            del document["identity"]["answer"]
        return document

    @classmethod
    def load(cls, place: Place, file_name: str = FILE_NAME) -> Manifest:
        """Read and check it; one of an older format is brought forward, in memory alone.

        Raises:
            StoreUnreadable: it is missing, malformed, of a newer format, or of one that nothing leads on from.
            StorageFailed: object storage does not give it.
        """
        path = place / file_name
        try:
            document = _document_at(place, file_name)
            if "format_version" not in document:
                raise Malformed("it has no format_version")
            digest, seal = document.pop("digest", None), document.pop("seal", None)
            version = document["format_version"]
            require_readable(path, version, FORMAT_VERSION)
            if digest != digest_of(document):
                raise Malformed("it was changed: it does not match its own digest")
            _require_seal(seal, digest)
            del document["format_version"]
            older = None
            if version != FORMAT_VERSION:
                of_ledger = ("ledger_head", "ledger_genesis")
                recorded = {name: value for name, value in document.items() if name not in of_ledger}
                older = OlderManifest(version, digest_of(recorded))
                document = brought_forward(document, version, FORMAT_VERSION)
            if "older" in document:
                raise Malformed("it has a key older, which is not for a document to say")
            # Manifests from before they were noted, or of teachers that have none, lack these.
            identity = document["identity"]
            teacher = {"input_size": None, "interpolation": None, "class_map": None, **identity["teacher"]}
            dataset = {"squares": None, **identity["dataset"]}
            document = {
                "ledger_genesis": None,
                "sources": {},
                "aligned_chunks": False,
                "rest": 0,
                "rest_labelled": None,
                "rounds": (),
                "places": (),
                **document,
                "identity": {"answer": None, **identity, "teacher": teacher, "dataset": dataset},
                "older": None,
            }
            manifest = replace(typed(document, cls, exact=True), older=older)
            _check_content(manifest)
        # The last three: what steps from older formats make of a document that no release wrote.
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreUnreadable(
                f"{path} is not a manifest this release can read ({error}); bring it back from a copy, or build "
                "the store again in a new folder"
            ) from error
        return manifest


def is_store(place: Place) -> bool:
    """Whether there is a store, of whatever kind; raises `StorageFailed` where object storage does not say."""
    if not isinstance(place, ObjectUrl):
        return (place / FILE_NAME).exists()
    if place.scheme == "file" and not os.path.lexists(f"/{place.path}"):
        return False  # nor is there a folder yet: who builds there makes it
    from storage.objects import Objects  # obstore, for who needs it

    return Objects(place).has(FILE_NAME)


def is_sealed(place: Place) -> bool:
    """Whether the manifest of a store says that it was written with a key; raises `Malformed` if it cannot be read."""
    return "seal" in _document_at(place, FILE_NAME)


def _document_at(place: Place, file_name: str) -> dict[str, Any]:
    """What a manifest holds; raises `StoreUnreadable` where there is none, and `Malformed` where it is no JSON."""
    if not isinstance(place, ObjectUrl):
        if not (place / file_name).exists():
            raise StoreUnreadable(no_store(place, file_name))
        return read_object(place / file_name, MOST_MANIFEST_BYTES)
    from storage.objects import Objects  # obstore, for who needs it

    try:
        return parse_object(Objects(place).read(file_name, MOST_MANIFEST_BYTES))
    except FileNotFoundError as error:
        raise StoreUnreadable(
            f"there is no store at {place} (no {file_name}: none was published there, or not to its end); publish one "
            f"with: {store_command('convert', 'DIR', to='objects', out=place)}"
        ) from error


def _require_seal(seal: object, digest: str) -> None:
    """Refuse what somebody without the key made; who has no key, and manifests from before seals, do without."""
    expected = Seal.from_environment().manifest(digest)
    if seal is None or expected is None:
        return
    if not isinstance(seal, str) or not hmac.compare_digest(seal.encode(), expected.encode()):
        raise Malformed(
            f"it was changed, or sealed with another key than the one in {KEY_VARIABLE}: unset that to read what "
            "others have sealed"
        )


def _check_content(manifest: Manifest) -> None:
    """Refuse what no build writes though its types are right; the arrays are checked against the manifest when they
    are opened.
    """
    check_identity(manifest.identity)
    known = {spec.name: spec for spec in checked_arrays(manifest.identity)}
    require(manifest.samples.keys() == known.keys(), "samples", sorted(manifest.samples))
    require(manifest.older is None or not manifest.rest, "rest", manifest.rest)
    require((manifest.rest_labelled or 0) <= manifest.rest, "rest_labelled", manifest.rest_labelled)
    are_places = manifest.older is None and are_sound(manifest.places, manifest.num_images)
    require(not manifest.places or are_places, "places", manifest.places)
    for name, spec in known.items():
        # Also an array without rows had one in formats before 4.
        blocks = -(-manifest.array_rows(spec) // manifest.block_rows(spec)) if manifest.older is None else 1
        digits = len(manifest.samples[name])
        require(digits == blocks * DIGEST_DIGITS, f"the number of digits in samples.{name}", digits)
    ends = [manifest.rounds[0].first if manifest.rounds else manifest.n]
    for chosen in manifest.rounds:
        require(chosen.first == ends[-1] < chosen.end, "rounds", (chosen.first, chosen.end))
        ends.append(chosen.end)
    require(ends[-1] == manifest.n, "the end of rounds", ends[-1])
    for step in manifest.history:
        require(step.keys() == {"store_id", "made_by"}, "history", step)


def digest_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content, however its keys are ordered."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
