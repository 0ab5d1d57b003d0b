"""The store: a folder with everything the teacher said, and all that training a student needs.

A *cell* is one view of one row, the place of one teacher call. It is visible once `publish` has returned: its outputs
are on the disk, then their digests and its valid flag are. Readers recompute the digests, so a cell that was torn or
changed is reported, not used.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np

from ground.durable import fsync_path, remove_partials
from ground.errors import InvalidInput, StoreIncomplete, StoreUnreadable, UnknownName, store_command
from storage.digest import output_digests
from storage.formats import FORMATS
from storage.ledger import Ledger
from storage.locks import exclusive_lock
from storage.manifest import FILE_NAME, Identity, Manifest
from storage.schema import (
    DIGEST,
    DIGEST_BYTES,
    VALID,
    ArraySpec,
    OutputSpec,
    output_array,
    output_arrays,
    parameter_array,
    parameter_arrays,
    sample_arrays,
)

LEDGER_FILE = "ledger.sqlite"
BUILD_LOCK = "build.lock"
CELL_LOCK = "cells.lock"
_PACKAGES = ("teacher-cache", "torch", "torchvision", "numpy", "zarr", "h5py")
_BLOCK_ROWS = 64


class Store:
    """An open store.

    Args:
        folder: where it is.
        manifest: what it is; `Store.open` reads it.
        file_name: of the manifest.

    Raises:
        StoreUnreadable: the arrays are not there or do not match the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest, file_name: str = FILE_NAME) -> None:
        if manifest.array_format not in FORMATS:
            raise StoreUnreadable(f"{folder} holds {manifest.array_format!r} arrays; known: {', '.join(FORMATS)}")
        kind = FORMATS[manifest.array_format]
        if Path(manifest.arrays).suffix != kind.suffix:
            raise StoreUnreadable(
                f"{folder} holds {manifest.arrays}, which is no name of {manifest.array_format} arrays"
            )
        self.folder = folder
        self.manifest = manifest
        self.file_name = file_name
        self.arrays = kind.load()(folder / manifest.arrays, array_specs(manifest.identity))
        for name, spec in self.arrays.specs.items():
            if self.arrays.num_rows(name) < manifest.rows[spec.split]:
                raise self.arrays.unreadable(
                    name, f"it has {self.arrays.num_rows(name)} rows, {manifest.rows[spec.split]} are needed"
                )

    @classmethod
    def open(cls, folder: Path, file_name: str = FILE_NAME) -> Store:
        """Open what is there; raises `StoreUnreadable` when it is no store."""
        return cls(folder, Manifest.load(folder, file_name), file_name)

    @classmethod
    def create(
        cls,
        folder: Path,
        identity: Identity,
        *,
        array_format: str,
        samples: Mapping[str, np.ndarray],
        ledger: str | None = None,
        history: Sequence[Mapping[str, str]] = (),
    ) -> Store:
        """Make a store whose outputs are still to be paid for.

        Args:
            folder: new, empty, or left without a manifest by an earlier attempt.
            identity: what the rows will have in common.
            array_format: "zarr" or "hdf5".
            samples: array name -> values, for every sample array and, with a row axis, every parameter of the
                teacher; row counts come from here.
            ledger: URL without password of a shared ledger, for the record.
            history: the stores it is made from.
        """
        if array_format not in FORMATS:
            raise UnknownName("format", array_format, FORMATS)
        prepare_folder(folder)
        store = cls.lay_out(
            folder,
            Manifest(
                store_id=uuid.uuid4().hex,
                array_format=array_format,
                arrays=f"data{FORMATS[array_format].suffix}",
                identity=identity,
                n=len(samples["train/labels"]),
                num_val=len(samples["val/labels"]),
                num_test=len(samples["test/labels"]),
                samples=sample_digests(samples),
                ledger=ledger,
                history=tuple(history),
                versions={package: version(package) for package in _PACKAGES},
            ),
            samples,
        )
        store.save()
        fsync_path(folder.parent)
        return store

    @classmethod
    def lay_out(
        cls, folder: Path, manifest: Manifest, samples: Mapping[str, np.ndarray], file_name: str = FILE_NAME
    ) -> Store:
        """Make the arrays that a manifest describes, durably; `save` is what makes them a store."""
        kind, specs = FORMATS[manifest.array_format], array_specs(manifest.identity)
        kind.load().create(folder / manifest.arrays, specs, manifest.rows)
        store = cls(folder, manifest, file_name)
        for name, values in samples.items():
            store.arrays.write(name, 0, values)
        store.arrays.sync()
        return store

    def grow(self, samples: Mapping[str, np.ndarray]) -> None:
        """Append images: `samples` holds whole arrays, of which the rows the store has are left alone."""
        manifest = self.manifest.grown(len(samples["train/labels"]), len(samples["val/labels"]))
        self.arrays.grow(manifest.rows)
        for name, values in samples.items():
            first = self.manifest.rows[self.arrays.specs[name].split]
            if len(values) > first:
                self.arrays.write(name, first, values[first:])
        self.arrays.sync()
        self.save(replace(manifest, samples=sample_digests(samples)))

    @staticmethod
    @contextmanager
    def alone(folder: Path, *, clean: bool = True) -> Iterator[None]:
        """Be the only one who writes to a folder, and delete what killed writers left if it is to be clean.

        Raises:
            StoreBusy: a build is at work.
        """
        if not (folder / FILE_NAME).exists():
            raise StoreUnreadable(f"there is no store at {folder} (no {FILE_NAME})")
        busy = f"a build is writing to {folder}; wait until it ends"
        with exclusive_lock(folder / BUILD_LOCK, busy):
            if clean:
                remove_partials(folder)
            yield

    def record_ledger_head(self, head: str) -> None:
        """Note the ledger's state in the manifest: an older copy of the ledger is then found out."""
        if head != self.manifest.ledger_head:
            self.save(replace(self.manifest, ledger_head=head))

    def ledger_head(self) -> str | None:
        """Newest hash of the store's own ledger, or the one noted when the last build ended."""
        noted = self.manifest.ledger_head
        if self.manifest.ledger is not None or not (self.folder / LEDGER_FILE).is_file():
            return noted
        try:
            with closing(own_ledger(self.folder)) as ledger:
                return ledger.head()
        except StoreUnreadable:
            # Who only reads the answers does without the calls, for instance on a disk that cannot be written to.
            if noted is None:
                raise
            return noted

    # Rows and cells

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """What is kept of each call."""
        return self.manifest.identity.outputs

    def read(self, name: str, rows: int | None = None) -> np.ndarray:
        """The first `rows` rows of an array, or all of them."""
        split = self.arrays.specs[name].split
        return self.arrays.read(name, 0, self.manifest.rows[split] if rows is None else rows)

    def valid(self) -> np.ndarray:
        """Which (row, view) are whole: (n, V) bool."""
        # Anything but 1 is no flag that we wrote.
        return np.asarray(self.read(VALID).view(np.uint8) == 1)

    def is_whole(self, cell: int) -> bool:
        """Whether one cell is."""
        return bool(self.arrays.read_cells(VALID, cell, cell + 1).view(np.uint8)[0] == 1)

    def missing_cells(self, n: int | None = None) -> np.ndarray:
        """Cells of the first n rows, row * V + view, that are not whole; rows that the store lacks are missing."""
        known = self.valid()
        whole = np.zeros((self.manifest.n if n is None else n, known.shape[1]), dtype=np.bool_)
        whole[: len(known)] = known[: len(whole)]
        return np.flatnonzero(~whole)

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
        missing = self.missing_cells()
        return int(missing[0]) // self.manifest.identity.views if len(missing) else self.manifest.n

    def write_outputs(self, cells: Sequence[int], outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Write what the teacher said of some cells; not visible until `publish`.

        Args:
            cells: row * V + view, in increasing order.
            outputs: name -> (C, ...) array, for every kept output.

        Returns:
            Digests of the outputs, (C, O, 16) uint8.
        """
        stored = {
            output.name: np.ascontiguousarray(outputs[output.name], dtype=output.dtype) for output in self.outputs
        }
        digests, place = output_digests(self.outputs, stored), 0
        for first, count in runs_of(cells):
            for name, values in stored.items():
                self.arrays.write_cells(output_array(name), first, values[place : place + count])
            self.arrays.write_cells(DIGEST, first, digests[place : place + count])
            place += count
        return digests

    def publish(self, cells: Sequence[int]) -> None:
        """Make written cells visible; returns when they are durable."""
        self.arrays.sync()
        self._flag(cells, whole=True)

    def retract(self, cells: Sequence[int]) -> None:
        """Make cells invisible: their outputs are not what they should be."""
        self._flag(cells, whole=False)
        # Nor may they ever be adopted, by a call that is charged and not made.
        spec = self.arrays.specs[DIGEST]
        for first, count in runs_of(cells):
            self.arrays.write_cells(DIGEST, first, np.zeros((count, *spec.row_shape[1:]), spec.dtype))
        self.arrays.sync()

    def _flag(self, cells: Sequence[int], *, whole: bool) -> None:
        for first, count in runs_of(cells):
            self.arrays.write_cells(VALID, first, np.full(count, whole))
        self.arrays.sync()

    def read_cell(self, cell: int, outputs: Sequence[OutputSpec]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Some outputs of one cell, name -> (1, ...), and what they digest to: (O, 16) uint8."""
        values = {output.name: self.arrays.read_cells(output_array(output.name), cell, cell + 1) for output in outputs}
        return values, output_digests(outputs, values)[0]

    def rewrite(self, cells: Sequence[int]) -> None:
        """Write cells once more, so that `publish` makes them durable: whoever wrote them may not have lived to."""
        for cell in cells:
            self.write_outputs([cell], self.read_cell(cell, self.outputs)[0])

    def cell_digests(self, cell: int) -> np.ndarray | None:
        """Digests of a cell's outputs if all of them are what was written last, else None: (O, 16) uint8."""
        try:
            _, found = self.read_cell(cell, self.outputs)
            written = self.arrays.read_cells(DIGEST, cell, cell + 1)[0]
        except StoreUnreadable:
            return None
        return found if np.array_equal(found, written) else None

    def found_digests(self, output: OutputSpec) -> tuple[np.ndarray, np.ndarray]:
        """What one output of every cell digests to, (n, V, 16) uint8, and where it can be read at all, (n, V) bool."""
        rows, views = self.manifest.n, self.manifest.identity.views
        found = np.zeros((rows, views, DIGEST_BYTES), dtype=np.uint8)
        readable = np.zeros((rows, views), dtype=np.bool_)
        for first, last in _blocks(rows):
            try:
                values = self.arrays.read(output_array(output.name), first, last)
            except StoreUnreadable:
                continue
            flat = values.reshape(-1, *values.shape[2:])
            found[first:last] = output_digests((output,), {output.name: flat}).reshape(last - first, views, -1)
            readable[first:last] = True
        return found, readable

    def read_outputs(self, names: Sequence[str], rows: int) -> dict[str, np.ndarray]:
        """The first `rows` rows of some outputs, after checking that every one of them is whole.

        Raises:
            StoreIncomplete: fewer rows than that are there.
            StoreUnreadable: a row does not match its digest.
            UnknownName: an output is not in the store.
        """
        places = {output.name: place for place, output in enumerate(self.outputs)}
        for name in names:
            if name not in places:
                raise UnknownName("stored output", name, places)
        self.require_rows(rows)
        digests = self.read(DIGEST, rows)
        kept = {}
        for name in names:
            output, array = self.outputs[places[name]], output_array(name)
            spec = self.arrays.specs[array]
            values = np.empty((rows, *spec.row_shape), dtype=spec.dtype)
            for first, last in _blocks(rows):
                values[first:last] = self.arrays.read(array, first, last)
                flat = values[first:last].reshape(-1, *output.shape)
                found = output_digests((output,), {name: flat}).reshape(last - first, -1, DIGEST_BYTES)
                wrong = np.argwhere((found != digests[first:last, :, places[name]]).any(axis=2))
                if len(wrong):
                    raise StoreUnreadable(
                        f"{array} of row {first + int(wrong[0, 0])} of {self.folder} does not match its digest; see "
                        f"all damage with: {store_command('verify', self.folder)}"
                    )
            kept[name] = values
        return kept

    def require_rows(self, rows: int) -> None:
        """Refuse to go on with fewer whole rows than `rows`, and say how to finish."""
        n, whole = self.manifest.n, self.valid_prefix()
        if rows > n:
            raise InvalidInput(
                f"{rows} rows are asked for and {self.folder} has {n} images; ask for fewer, or grow it with: "
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
        features = [output for output in self.outputs if output.name != "logits"]
        settings = {
            "teacher": identity.teacher.name,
            "dataset": dataset,
            "n": n,
            "format": self.manifest.array_format,
            "features": ",".join(output.name for output in features) or "none",
            "feature-dtype": features[0].dtype if features else "float16",
            "views": identity.views,
            "view-policy": identity.view_policy,
            "seed": identity.seed,
        }
        if self.manifest.ledger is not None:
            settings["ledger"] = self.manifest.ledger
        return store_command("build", self.folder, **settings)

    def size_bytes(self) -> int:
        """Bytes on the disk, ledger included."""
        others = (file for file in self.folder.iterdir() if file.is_file() and file != self.arrays.path)
        return self.arrays.size_bytes() + sum(file.stat().st_size for file in others)

    def read_samples(self) -> dict[str, np.ndarray]:
        """Every sample array and parameter of the teacher, checked."""
        return {name: self.read_sample(name) for name in self.manifest.samples}

    def read_parameters(self) -> dict[str, np.ndarray]:
        """What is kept of the teacher itself, checked: head/weight (K, D), head/bias (K,), and for the batch norm that
        makes a kept pre-activation norm/LAYER/scale and norm/LAYER/shift (C,); all float32.
        """
        specs = self.manifest.identity.parameters
        return {spec.name: self.read_sample(parameter_array(spec.name))[0] for spec in specs}

    def save(self, manifest: Manifest | None = None) -> None:
        """Write the manifest, or another one in its place, durably."""
        self.manifest = self.manifest if manifest is None else manifest
        self.manifest.save(self.folder, self.file_name)


def array_specs(identity: Identity) -> tuple[ArraySpec, ...]:
    """Every array of a store with this identity."""
    samples = sample_arrays(identity.geometry.image_size, identity.views)
    parameters = parameter_arrays(identity.parameters)
    return (*samples, *parameters, *output_arrays(identity.outputs, identity.views))


def runs_of(cells: Sequence[int]) -> list[tuple[int, int]]:
    """Cells in increasing order as (first, count) runs of neighbours."""
    cells = [int(cell) for cell in cells]
    if not cells:
        return []
    cuts = [0, *(place + 1 for place, (cell, after) in enumerate(pairwise(cells)) if after != cell + 1), len(cells)]
    return [(cells[start], stop - start) for start, stop in pairwise(cuts)]


def own_ledger(folder: Path, *, create: bool = False, patience_seconds: float = 0.0) -> Ledger:
    """The ledger in a store's folder; raises `StoreUnreadable` for a link to somewhere else."""
    path = folder / LEDGER_FILE
    if path.is_symlink():
        raise StoreUnreadable(f"{path} is a link to another place; name that as the ledger of a new store instead")
    return Ledger(path, create=create, patience_seconds=patience_seconds)


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


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    for first in range(0, rows, _BLOCK_ROWS):
        yield first, min(first + _BLOCK_ROWS, rows)


def sample_digests(samples: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Array name -> SHA-256 of its values."""
    return {name: _digest_of(values) for name, values in samples.items()}


def _digest_of(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
