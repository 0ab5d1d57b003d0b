"""The store: a folder with everything the teacher said, and all that training a student needs.

A row is visible once `publish` has returned: its outputs are on the disk, then its digest and its valid flag are.
Readers recompute the digest, so a row that was torn or changed is reported, not used.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from storage.arrays import ArrayFile
from storage.digest import output_digests
from storage.durable import exclusive_lock, fsync_path, remove_partials
from storage.errors import InvalidInput, StoreIncomplete, StoreUnreadable, UnknownName
from storage.hdf5_arrays import Hdf5Arrays
from storage.ledger import Ledger
from storage.manifest import FILE_NAME, Identity, Manifest
from storage.schema import DIGEST, VALID, ArraySpec, output_array, output_arrays, sample_arrays
from storage.zarr_arrays import ZarrArrays

FORMATS: dict[str, type[ArrayFile]] = {kind.format: kind for kind in (ZarrArrays, Hdf5Arrays)}
LEDGER_FILE = "ledger.sqlite"
_LOCK_FILE = "build.lock"
_PACKAGES = ("teacher-cache", "torch", "torchvision", "numpy", "zarr", "h5py")
_BLOCK_ROWS = 64


class Store:
    """An open store.

    Args:
        folder: where it is.
        manifest: what it is; `Store.open` reads it.

    Raises:
        StoreUnreadable: the arrays are not there or do not match the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        if manifest.array_format not in FORMATS:
            raise StoreUnreadable(f"{folder} holds {manifest.array_format!r} arrays; known: {', '.join(FORMATS)}")
        kind = FORMATS[manifest.array_format]
        self.folder = folder
        self.manifest = manifest
        self.arrays = kind(folder / kind.file_name, array_specs(manifest.identity))

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open what is there; raises `StoreUnreadable` when it is no store."""
        return cls(folder, Manifest.load(folder))

    @classmethod
    def create(
        cls,
        folder: Path,
        identity: Identity,
        *,
        array_format: str,
        samples: Mapping[str, np.ndarray],
        ledger: str | None = None,
    ) -> Store:
        """Make a store whose outputs are still to be paid for.

        Args:
            folder: new, empty, or left without a manifest by an earlier attempt.
            identity: what the rows will have in common.
            array_format: "zarr" or "hdf5".
            samples: array name -> values, for every sample array; row counts come from here.
            ledger: URL without password of a shared ledger, for the record.
        """
        if array_format not in FORMATS:
            raise UnknownName("format", array_format, FORMATS)
        prepare_folder(folder)
        rows = {split: len(samples[f"{split}/labels"]) for split in ("train", "val", "test")}
        kind = FORMATS[array_format]
        specs = array_specs(identity)
        kind.create(folder / kind.file_name, specs, rows)
        arrays = kind(folder / kind.file_name, specs)
        for name, values in samples.items():
            arrays.write(name, 0, values)
        _clear_flags(arrays, 0, rows["train"])
        arrays.sync()
        manifest = Manifest(
            store_id=uuid.uuid4().hex,
            array_format=array_format,
            identity=identity,
            n=rows["train"],
            num_val=rows["val"],
            num_test=rows["test"],
            samples=_sample_digests(samples),
            ledger=ledger,
            versions={package: version(package) for package in _PACKAGES},
        )
        manifest.save(folder)
        fsync_path(folder.parent)
        return cls(folder, manifest)

    def grow(self, samples: Mapping[str, np.ndarray]) -> None:
        """Append images: `samples` holds whole arrays, of which the rows the store has are left alone."""
        manifest = self.manifest.grown(len(samples["train/labels"]), len(samples["val/labels"]))
        self.arrays.grow(manifest.rows)
        for name, values in samples.items():
            first = self.manifest.rows[self.arrays.specs[name].split]
            if len(values) > first:
                self.arrays.write(name, first, values[first:])
        _clear_flags(self.arrays, self.manifest.n, manifest.n)
        self.arrays.sync()
        self._save(replace(manifest, samples=_sample_digests(samples)))

    @staticmethod
    @contextmanager
    def locked(folder: Path) -> Iterator[None]:
        """Be the only builder in a folder; raises `StoreBusy` when another one is at work."""
        busy = f"another build is writing to {folder}; wait until it ends"
        with exclusive_lock(folder / _LOCK_FILE, busy):
            remove_partials(folder)
            yield

    def record_ledger_head(self, head: str) -> None:
        """Note the ledger's state in the manifest, for readers that cannot reach a shared ledger."""
        if head != self.manifest.ledger_head:
            self._save(replace(self.manifest, ledger_head=head))

    def ledger_head(self) -> str | None:
        """Newest hash of the store's own ledger, or the one noted when the last build ended."""
        own = self.folder / LEDGER_FILE
        if self.manifest.ledger is None and own.is_file():
            ledger = Ledger(own)
            try:
                return ledger.head()
            finally:
                ledger.close()
        return self.manifest.ledger_head

    # Rows

    def read(self, name: str, rows: int | None = None) -> np.ndarray:
        """The first `rows` rows of an array, or all of them."""
        split = self.arrays.specs[name].split
        return self.arrays.read(name, 0, self.manifest.rows[split] if rows is None else rows)

    def valid(self) -> np.ndarray:
        """Which (row, view) are whole: (n, V) bool."""
        return self.read(VALID)

    def whole_rows(self, n: int | None = None) -> np.ndarray:
        """Which of the first n rows have all their views, (n,) bool; rows that the store lacks have not."""
        known = np.asarray(self.valid().all(axis=1))
        whole = np.zeros(self.manifest.n if n is None else n, dtype=np.bool_)
        whole[: len(known)] = known[: len(whole)]
        return whole

    def read_sample(self, name: str, rows: int | None = None) -> np.ndarray:
        """The first rows of a sample array, or all, after checking the whole of it against the manifest.

        Raises:
            StoreUnreadable: it is not what was written.
        """
        values = self.read(name)
        if _digest_of(values) != self.manifest.samples.get(name):
            raise self.arrays.unreadable(name, "it is not what the build wrote")
        return values[:rows]

    def valid_prefix(self) -> int:
        """Rows from the first on that are whole without a gap."""
        torn = np.flatnonzero(~self.whole_rows())
        return int(torn[0]) if len(torn) else self.manifest.n

    def write_outputs(self, first: int, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Write what the teacher said of rows first, first + 1, ...; not visible until `publish`.

        Args:
            first: row of the first entry.
            outputs: name -> (R, V, ...) array, for every kept output.

        Returns:
            Digests of the calls, (R, V, 16) uint8.
        """
        identity = self.manifest.identity
        stored = {
            output.name: np.ascontiguousarray(outputs[output.name], dtype=output.dtype) for output in identity.outputs
        }
        rows = len(stored["logits"])
        flat = {name: values.reshape(rows * identity.views, *values.shape[2:]) for name, values in stored.items()}
        digests = output_digests(identity.outputs, flat).reshape(rows, identity.views, -1)
        for name, values in stored.items():
            self.arrays.write(output_array(name), first, values)
        self.arrays.write(DIGEST, first, digests)
        return digests

    def publish(self, runs: Sequence[tuple[int, int]]) -> None:
        """Make written rows visible, each run as (first row, count); returns when they are durable."""
        self.arrays.sync()
        for first, count in runs:
            self.arrays.write(VALID, first, np.ones((count, self.manifest.identity.views), dtype=np.bool_))
        self.arrays.sync()

    def matching(self) -> np.ndarray:
        """Which (row, view) are there and match their digest: (n, V) bool."""
        matches = np.zeros((self.manifest.n, self.manifest.identity.views), dtype=np.bool_)
        for first in range(0, self.manifest.n, _BLOCK_ROWS):
            last = min(first + _BLOCK_ROWS, self.manifest.n)
            try:
                _, matches[first:last] = self._read_block(first, last)
            except StoreUnreadable:
                continue
        return matches

    def read_outputs(self, names: Sequence[str], rows: int) -> dict[str, np.ndarray]:
        """The first `rows` rows of some outputs, after checking that every one of them is whole.

        Raises:
            StoreIncomplete: fewer rows than that are there.
            StoreUnreadable: a row does not match its digest.
            UnknownName: an output is not in the store.
        """
        known = [output.name for output in self.manifest.identity.outputs]
        for name in names:
            if name not in known:
                raise UnknownName("stored output", name, known)
        self.require_rows(rows)
        kept: dict[str, np.ndarray] = {}
        for first in range(0, rows, _BLOCK_ROWS):
            last = min(first + _BLOCK_ROWS, rows)
            values, matches = self._read_block(first, last)
            if not matches.all():
                row = first + int(np.argwhere(~matches)[0, 0])
                raise StoreUnreadable(
                    f"row {row} of {self.folder} does not match its digest; see all damage with: "
                    f"ckd-cache verify --store {self.folder}"
                )
            for name in names:
                target = kept.setdefault(name, np.empty((rows, *values[name].shape[1:]), values[name].dtype))
                target[first:last] = values[name]
        return kept

    def _read_block(self, first: int, last: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """All outputs of some rows (a digest covers them all), and which (row, view) match their digest."""
        identity = self.manifest.identity
        values = {output.name: self.arrays.read(output_array(output.name), first, last) for output in identity.outputs}
        flat = {name: block.reshape(-1, *block.shape[2:]) for name, block in values.items()}
        digests = output_digests(identity.outputs, flat).reshape(last - first, identity.views, -1)
        return values, (digests == self.arrays.read(DIGEST, first, last)).all(axis=2)

    def require_rows(self, rows: int) -> None:
        """Refuse to go on with fewer whole rows than `rows`, and say how to finish."""
        n, whole = self.manifest.n, self.valid_prefix()
        if rows > n:
            raise InvalidInput(
                f"--n {rows} asks for more than the {n} images of {self.folder}; ask for fewer, or grow it with: "
                f"{self.build_command(rows)}"
            )
        if whole < rows:
            raise StoreIncomplete(
                f"{self.folder} has {whole} whole rows, {rows} are needed; finish it with: {self.build_command(n)}"
            )

    def build_command(self, n: int) -> str:
        """The command that makes this store hold n whole rows."""
        identity = self.manifest.identity
        # Of an image folder the store knows the name, not where this machine keeps it.
        dataset = identity.dataset.name.replace("imagefolder:", "imagefolder:.../")
        return (
            f"ckd-cache build --store {self.folder} --teacher {identity.teacher.name} --dataset {dataset} --n {n} "
            "(and the other settings it was built with)"
        )

    def size_bytes(self) -> int:
        """Bytes on the disk, ledger included."""
        others = (file for file in self.folder.iterdir() if file.is_file() and file != self.arrays.path)
        return self.arrays.size_bytes() + sum(file.stat().st_size for file in others)

    def _save(self, manifest: Manifest) -> None:
        manifest.save(self.folder)
        self.manifest = manifest


def array_specs(identity: Identity) -> tuple[ArraySpec, ...]:
    """Every array of a store with this identity."""
    samples = sample_arrays(identity.geometry.image_size, identity.views)
    return (*samples, *output_arrays(identity.outputs, identity.views))


def prepare_folder(folder: Path) -> None:
    """Make a store's folder; one with anything in it that is no store's, or with calls but no manifest, is refused."""
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; give another --store")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / FILE_NAME).exists():
        return
    # The ledger is begun after the manifest is written, so without one nothing in the folder was paid for.
    ours = {_LOCK_FILE, *(kind.file_name for kind in FORMATS.values())}
    foreign = [item.name for item in folder.iterdir() if item.name not in ours and not item.name.endswith(".partial")]
    if LEDGER_FILE in foreign:
        raise StoreUnreadable(
            f"{folder} has a ledger and no {FILE_NAME}: its calls are paid for; bring the manifest back, or give "
            "another --store"
        )
    if foreign:
        raise InvalidInput(f"{folder} is not empty (it holds {foreign[0]}); give a new folder as --store")


def _clear_flags(arrays: ArrayFile, first: int, last: int) -> None:
    """Write out that rows are not there yet: a chunk of flags that is missing later was lost."""
    for name in (VALID, DIGEST):
        spec = arrays.specs[name]
        arrays.write(name, first, np.zeros((last - first, *spec.row_shape), dtype=spec.dtype))


def _sample_digests(samples: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: _digest_of(values) for name, values in samples.items()}


def _digest_of(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
