"""Arrays as one HDF5 file that a crash cannot make unopenable.

The HDF5 library keeps metadata in memory while it writes, so a process killed in the middle can leave a file that
no longer opens. Here the library only lays the file out: chunks are allocated when the arrays are made, the file
is closed, and rows are then written into those chunks by position, as into any flat file. Metadata never changes
during a build; growing a file, which does change it, happens on a copy that replaces the file when it is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from storage.arrays import ArrayFile
from storage.durable import fsync_path, reporting_full_disk
from storage.errors import StoreUnreadable
from storage.schema import ArraySpec


class Hdf5Arrays(ArrayFile):
    """A `data.h5` file."""

    format = "hdf5"
    file_name = "data.h5"

    def __init__(self, path: Path, specs: Sequence[ArraySpec]) -> None:
        super().__init__(path, specs)
        self._chunks: dict[str, list[int]] = {}
        self._rows: dict[str, int] = {}
        self._descriptor: int | None = None
        self._read_layout()

    def __del__(self) -> None:
        self._close()

    @classmethod
    def create(cls, path: Path, specs: Sequence[ArraySpec], rows: Mapping[str, int]) -> None:
        """See `ArrayFile.create`."""
        with reporting_full_disk(path):
            with h5py.File(path, "w", libver="v110") as file:
                for spec in specs:
                    _create_dataset(file, spec, rows[spec.split])
            fsync_path(path)
            fsync_path(path.parent)

    def grow(self, rows: Mapping[str, int]) -> None:
        """See `ArrayFile.grow`."""
        if all(self._rows[name] >= rows[spec.split] for name, spec in self.specs.items()):
            return
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        with reporting_full_disk(self.path):
            try:
                shutil.copyfile(self.path, partial)
                with h5py.File(partial, "r+", libver="v110") as file:
                    for name, spec in self.specs.items():
                        file[name].resize(max(self._rows[name], rows[spec.split]), axis=0)
                fsync_path(partial)
                os.replace(partial, self.path)
            finally:
                partial.unlink(missing_ok=True)
            fsync_path(self.path.parent)
        self._close()
        self._read_layout()

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """See `ArrayFile.read`."""
        spec = self.specs[name]
        self.check_rows(name, self._rows[name], stop)
        values = np.empty((max(0, stop - start), *spec.row_shape), dtype=spec.dtype)
        flat = values.reshape(len(values), -1).view(np.uint8) if values.size else values
        for row, count, offset in self._runs(name, start, stop):
            size = count * spec.row_bytes
            content = os.pread(self._file(), size, offset)
            if len(content) != size:
                raise self.unreadable(name, f"rows {row} to {row + count - 1} lie past the end of the file")
            flat[row - start : row - start + count] = np.frombuffer(content, np.uint8).reshape(count, -1)
        return values

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """See `ArrayFile.write`."""
        spec = self.specs[name]
        content = np.ascontiguousarray(values, dtype=spec.dtype).data.cast("B")
        with reporting_full_disk(self.path):
            for row, count, offset in self._runs(name, start, start + len(values)):
                first = (row - start) * spec.row_bytes
                _write_fully(self._file(), content[first : first + count * spec.row_bytes], offset)

    def sync(self) -> None:
        """See `ArrayFile.sync`."""
        with reporting_full_disk(self.path):
            os.fsync(self._file())

    def size_bytes(self) -> int:
        """See `ArrayFile.size_bytes`."""
        return self.path.stat().st_size

    def _runs(self, name: str, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Cut rows start..stop at chunk borders: (first row, rows, position in the file)."""
        spec, runs, row = self.specs[name], [], start
        while row < stop:
            chunk, within = divmod(row, spec.chunk_rows)
            count = min(spec.chunk_rows - within, stop - row)
            runs.append((row, count, self._chunks[name][chunk] + within * spec.row_bytes))
            row += count
        return runs

    def _read_layout(self) -> None:
        try:
            with h5py.File(self.path, "r") as file:
                for name, spec in self.specs.items():
                    self._rows[name], self._chunks[name] = self._dataset_layout(file, name, spec)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise StoreUnreadable(
                f"{self.path} is not a whole HDF5 file ({error}); build the store again in a new folder"
            ) from error

    def _dataset_layout(self, file: h5py.File, name: str, spec: ArraySpec) -> tuple[int, list[int]]:
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
            raise self.unreadable(name, "it is not an array of this file")
        self.check_array(name, dataset.shape, dataset.dtype)
        if dataset.chunks != (spec.chunk_rows, *spec.row_shape) or dataset.id.get_create_plist().get_nfilters():
            raise self.unreadable(name, "it is not laid out in plain chunks of whole rows")
        offsets: dict[int, int] = {}
        dataset.id.chunk_iter(lambda chunk: offsets.__setitem__(chunk.chunk_offset[0], chunk.byte_offset))
        firsts = range(0, dataset.shape[0], spec.chunk_rows)
        if any(first not in offsets for first in firsts):
            raise self.unreadable(name, "chunks are missing")
        return dataset.shape[0], [offsets[first] for first in firsts]

    def _file(self) -> int:
        if self._descriptor is None:
            writable = os.access(self.path, os.W_OK)
            self._descriptor = os.open(self.path, os.O_RDWR if writable else os.O_RDONLY)
        return self._descriptor

    def _close(self) -> None:
        descriptor, self._descriptor = getattr(self, "_descriptor", None), None
        if descriptor is not None:
            os.close(descriptor)


def _create_dataset(file: h5py.File, spec: ArraySpec, rows: int) -> None:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((spec.chunk_rows, *spec.row_shape))
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    space = h5py.h5s.create_simple((rows, *spec.row_shape), (h5py.h5s.UNLIMITED, *spec.row_shape))
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    kind = h5py.h5t.py_create(spec.dtype, logical=True)
    h5py.h5d.create(file.id, spec.name.encode(), kind, space, dcpl=layout, lcpl=links)


def _write_fully(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
