"""Arrays as one HDF5 file that a crash cannot make unopenable.

The HDF5 library keeps metadata in memory while it writes, so a process killed in the middle can leave a file that no
longer opens. Here the library only lays the file out and closes it; rows are then read and written by position.
Growing a file, which changes its metadata, happens on a copy that replaces the file when it is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import h5py

from ground.durable import allocate, fsync_path, partial_of, remove_own, reporting_full_disk
from ground.errors import CKDError, StoreUnreadable, store_command
from storage import hdf5_mark
from storage.arrays import ArrayFile
from storage.foreign import some, what_it_is
from storage.schema import ArraySpec, RowsOf


class Hdf5Arrays(ArrayFile):
    """An HDF5 file."""

    def __init__(self, path: Path, specs: Sequence[ArraySpec]) -> None:
        super().__init__(path, specs)
        self._chunks: dict[str, list[int]] = {}
        self._rows: dict[str, int] = {}
        self._read_layout()

    @classmethod
    def create(cls, path: Path, specs: Sequence[ArraySpec], rows: RowsOf) -> None:
        """See `ArrayFile.create`."""
        # First, for its room is needed.
        remove_own(path)
        with _made_at(path) as partial, h5py.File(partial, "x", libver="v110") as file:
            for spec in specs:
                _create_dataset(file, spec, rows(spec))

    def add(self, specs: Sequence[ArraySpec], rows: RowsOf) -> None:
        """See `ArrayFile.add`."""
        if not specs:
            return
        try:
            with self._relaid() as file:
                for spec in specs:
                    if _is_linked(file, spec.name):
                        raise self.unreadable(spec.name, "it is a link to another place")
                    if spec.name in file:
                        del file[spec.name]
                    _create_dataset(file, spec, rows(spec))
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise self.unreadable(specs[0].name, f"there is something else in its place: {error}") from error
        self.specs = {**self.specs, **{spec.name: spec for spec in specs}}
        self._read_layout()

    def grow(self, rows: RowsOf) -> None:
        """See `ArrayFile.grow`."""
        if all(self._rows[name] >= rows(spec) for name, spec in self.specs.items()):
            return
        with self._relaid() as file:
            for name, spec in self.specs.items():
                file[name].resize(max(self._rows[name], rows(spec)), axis=0)
        self._read_layout()

    @contextmanager
    def _relaid(self) -> Iterator[h5py.File]:
        """A copy to change the metadata of, which replaces the file when the block ends well."""
        with _made_at(self.path) as partial:
            shutil.copyfile(self.path, partial)
            with h5py.File(partial, "r+", libver="v110") as file:
                yield file

    @classmethod
    def is_left_open(cls, path: Path) -> bool:
        """See `ArrayFile.is_left_open`."""
        if path.is_symlink() or not path.is_file() or not hdf5_mark.is_marked(path):
            return False
        hdf5_mark.require_unused(path)
        return True

    @classmethod
    def close_left_open(cls, path: Path) -> None:
        """See `ArrayFile.close_left_open`."""
        hdf5_mark.clear_mark(path)

    def num_rows(self, name: str) -> int:
        """See `ArrayFile.num_rows`."""
        return self._rows[name]

    def missing_files(self, rows: RowsOf) -> list[Path]:
        """See `ArrayFile.missing_files`: a file that is cut short does not open at all."""
        return []

    def make_missing(self, rows: RowsOf) -> None:
        """See `ArrayFile.make_missing`."""

    def unknown_files(self) -> list[Path]:
        """See `ArrayFile.unknown_files`: there is one file."""
        return []

    def size_bytes(self) -> int:
        """See `ArrayFile.size_bytes`."""
        return self.path.stat().st_size

    def _place(self, name: str, chunk: int) -> tuple[Path, int]:
        return self.path, self._chunks[name][chunk]

    def _read_layout(self) -> None:
        if self.path.is_symlink() or not self.path.is_file():
            raise StoreUnreadable(f"{self.path} is no file of its own; bring it back from a copy, or build a new store")
        try:
            with h5py.File(self.path, "r") as file:
                if self.specs and not any(name in file for name in self.specs):
                    raise self.foreign(some(file))
                for name, spec in self.specs.items():
                    self._rows[name], self._chunks[name] = self._dataset_layout(file, name, spec)
        except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
            raise self._not_opened(error) from error
        self._require_apart()

    def _require_apart(self) -> None:
        """Refuse chunks that share bytes, or lie beyond the file: it would hold more rows than it has room for."""
        pieces = sorted(
            (offset, offset + spec.chunk_rows * spec.row_bytes, name)
            for name, spec in self.specs.items()
            for offset in self._chunks[name]
        )
        size = self.path.stat().st_size
        for (_, end, name), (after, _, _) in pairwise([*pieces, (size, size, "")]):
            if end > after:
                raise self.unreadable(name, "its chunks are not apart from others, or the file ends before them")

    def _not_opened(self, error: Exception) -> CKDError:
        """Why the library does not open or understand the file."""
        if isinstance(error, BlockingIOError):
            return hdf5_mark.locked(self.path)
        if not hdf5_mark.is_hdf5(self.path):
            return StoreUnreadable(
                f"{self.path} is no HDF5 file, but {what_it_is(self.path)}; bring the store's own back from a copy, or "
                "build a new store"
            )
        if hdf5_mark.is_marked(self.path):
            hdf5_mark.require_unused(self.path)
            return StoreUnreadable(
                f"{self.path} is marked as open for writing by a program that ended without closing it, and nobody on "
                "this machine has it open; take the mark away, which costs no call, with: "
                f"{store_command('repair', self.path.parent)}"
            )
        return StoreUnreadable(
            f"{self.path} is not a whole HDF5 file ({error}); bring it back from a copy, or build a new store"
        )

    def _dataset_layout(self, file: h5py.File, name: str, spec: ArraySpec) -> tuple[int, list[int]]:
        if _is_linked(file, name) or name not in file:
            raise self.unreadable(name, "it is not there, or a link to another place")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
            raise self.unreadable(name, "it is not an array of this file")
        found = (dataset.shape[1:], dataset.chunks, dataset.dtype)
        wanted = (spec.row_shape, (spec.chunk_rows, *spec.row_shape), spec.dtype)
        if found != wanted or dataset.id.get_create_plist().get_nfilters():
            raise self.unreadable(name, f"it holds rows, chunks and types {found}, plain {wanted} are expected")
        offsets: dict[int, int] = {}
        dataset.id.chunk_iter(lambda chunk: offsets.__setitem__(chunk.chunk_offset[0], chunk.byte_offset))
        firsts = range(0, dataset.shape[0], spec.chunk_rows)
        if any(first not in offsets for first in firsts):
            raise self.unreadable(name, "chunks are missing")
        return dataset.shape[0], [offsets[first] for first in firsts]


@contextmanager
def _made_at(path: Path) -> Iterator[Path]:
    """Where to make a file that takes the place of `path`, its room taken, when the block ends well.

    The HDF5 library opens by name and follows links: it gets a name that nobody else knows.
    """
    partial = partial_of(path)
    with reporting_full_disk(path):
        try:
            yield partial
            allocate(partial, partial.stat().st_size)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        fsync_path(path.parent)


def _is_linked(file: h5py.File, name: str) -> bool:
    """Whether any part of a path, as far as it is there, leads to another place."""
    parts = name.split("/")
    for count in range(1, len(parts) + 1):
        link = file.get("/".join(parts[:count]), getlink=True)
        if link is None:
            return False
        if not isinstance(link, h5py.HardLink):
            return True
    return False


def _create_dataset(file: h5py.File, spec: ArraySpec, rows: int) -> None:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((spec.chunk_rows, *spec.row_shape))
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    space = h5py.h5s.create_simple((rows, *spec.row_shape), (h5py.h5s.UNLIMITED, *spec.row_shape))
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    kind = h5py.h5t.py_create(spec.dtype, logical=True)
    h5py.h5d.create(file.id, spec.name.encode(), kind, space, dcpl=layout, lcpl=links)
