"""What the store asks of an array format; Zarr and HDF5 answer it with the same guarantees.

A format's library lays the arrays out once: uncompressed chunks of whole rows, their room on the disk taken. Values
are then read and written by position, as in any flat file, so that

- only the bytes of the rows in hand are touched, and a crash cannot harm any others;
- metadata does not change during a build, and a killed one leaves arrays that open;
- a disk that fills is found when the store is made, before anything is paid for;
- nothing but plain numbers is ever read: no pickles, no object arrays, no compiled filters.

A row holds one or several *cells*, its views; cell c of an array is view c % V of row c // V.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np

from ground.durable import open_own, reporting_full_disk
from ground.errors import StoreUnreadable, store_command
from ground.threads import in_threads
from storage.schema import ArraySpec, RowsOf

_Piece = TypeVar("_Piece")

_NUM_THREADS = 8
# Files that were written to and not synced yet stay open: a process may have few, and a store has many.
_MOST_OPEN = 64


class ArrayFile(ABC):
    """The arrays of one store, by name; the first axis of each is rows.

    Args:
        path: the file or folder.
        specs: the arrays that must be there; anything else in the file is ignored.

    Attributes:
        in_flight: how many pieces are worth reading side by side; 1 where reading does not wait for anybody.
    """

    in_flight = 1

    def __init__(self, path: Path, specs: Sequence[ArraySpec]) -> None:
        self.path = path
        self.specs: Mapping[str, ArraySpec] = {spec.name: spec for spec in specs}
        self._unsynced: dict[Path, int] = {}

    @classmethod
    @abstractmethod
    def create(cls, path: Path, specs: Sequence[ArraySpec], rows: RowsOf) -> None:
        """Make the arrays, of so many rows each, replacing what is at `path`; zero until written.

        Raises:
            DiskFull: they do not all fit.
            InvalidInput: a link or a pipe is at `path`.
        """

    @abstractmethod
    def add(self, specs: Sequence[ArraySpec], rows: RowsOf) -> None:
        """Make further arrays beside those that are there, zero until written.

        What an attempt that did not end left under their names is replaced; who does not know of them is not disturbed.

        Raises:
            DiskFull: they do not all fit; the others stay as they are.
        """

    @abstractmethod
    def grow(self, rows: RowsOf) -> None:
        """Make every array at least so long; existing rows stay as they are."""

    @abstractmethod
    def num_rows(self, name: str) -> int:
        """Rows an array has; raises `StoreUnreadable` if it is not there, or not laid out as expected."""

    @abstractmethod
    def missing_files(self, rows: RowsOf) -> list[Path]:
        """Files of these arrays that were deleted or cut short, and can be made again, without what was in them."""

    @abstractmethod
    def make_missing(self, rows: RowsOf) -> None:
        """Make such files again: zeros where values are gone."""

    @abstractmethod
    def unknown_files(self) -> list[Path]:
        """Files and links among those of the arrays that belong to none; they are neither read nor written."""

    @abstractmethod
    def _place(self, name: str, chunk: int) -> tuple[Path, int]:
        """File of a chunk, and where in it the chunk begins."""

    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes on the disk."""

    @classmethod
    def is_left_open(cls, path: Path) -> bool:
        """Whether the file is marked as open by a program that did not close it, and does not open for that.

        Raises:
            StoreBusy: somebody has it open.
        """
        return False

    @classmethod
    def close_left_open(cls, path: Path) -> None:
        """Take that mark away; raises `StoreBusy` if somebody has the file open."""
        raise AssertionError(f"{cls.__name__} marks no files")

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of one array; raises `StoreUnreadable` if they are not there."""
        spec = self.specs[name]
        return self._read(spec, start * spec.row_bytes, (max(0, stop - start), *spec.row_shape))

    def read_cells(self, name: str, start: int, stop: int) -> np.ndarray:
        """Cells start..stop of an array whose rows have views."""
        spec = self.specs[name]
        return self._read(spec, start * spec.cell_bytes, (max(0, stop - start), *spec.row_shape[1:]))

    def read_what_is_there(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of an array, with zeros in place of those that cannot be read."""
        spec = self.specs[name]
        try:
            values = np.zeros((stop - start, *spec.row_shape), dtype=spec.dtype)
        except MemoryError as error:
            raise self.unreadable(name, "it does not fit into memory") from error
        for first in range(start, stop, spec.chunk_rows):
            last = min(first + spec.chunk_rows, stop)
            with suppress(StoreUnreadable):
                values[first - start : last - start] = self.read(name, first, last)
        return values

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """Put `values` at rows start, start + 1, ... of one array; on the disk after `sync`."""
        spec = self.specs[name]
        self._write(spec, start * spec.row_bytes, values)

    def write_cells(self, name: str, start: int, values: np.ndarray) -> None:
        """Put `values` at cells start, start + 1, ... of an array whose rows have views."""
        spec = self.specs[name]
        self._write(spec, start * spec.cell_bytes, values)

    def sync(self) -> None:
        """Return when everything written so far is on the disk."""
        descriptors, self._unsynced = list(self._unsynced.values()), {}
        try:
            with reporting_full_disk(self.path), ThreadPoolExecutor(_NUM_THREADS) as pool:
                # Side by side, where there are many files: each waits for the disk.
                list(pool.map(os.fsync, descriptors) if len(descriptors) > _NUM_THREADS else map(os.fsync, descriptors))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def unreadable(self, name: str, why: object) -> StoreUnreadable:
        """The error for an array that cannot be read."""
        return StoreUnreadable(
            f"array {name} in {self.path} cannot be read ({why}); check the store with: "
            f"{store_command('verify', self.path.parent)}"
        )

    def foreign(self, names: str) -> StoreUnreadable:
        """The error for a file or folder of the right format that holds none of our arrays.

        Args:
            names: what it holds.
        """
        return StoreUnreadable(
            f"{self.path} is of another program: it holds {names or 'nothing'}, and none of the store's arrays; move "
            "it away, and bring the store's own back from a copy"
        )

    def _read(self, spec: ArraySpec, position: int, shape: tuple[int, ...]) -> np.ndarray:
        available = self.num_rows(spec.name)
        size = prod(shape) * spec.dtype.itemsize
        if position + size > available * spec.row_bytes:
            needed = -(-(position + size) // spec.row_bytes)
            raise self.unreadable(spec.name, f"it has {available} rows, {needed} are needed")
        try:
            values = np.empty(shape, dtype=spec.dtype)
        except MemoryError as error:
            raise self.unreadable(spec.name, f"{size / 1e9:.0f} GB do not fit into memory") from error
        content = values.reshape(-1).view(np.uint8).data if values.size else memoryview(b"")

        def read(piece: tuple[Path, int, int, int]) -> None:
            path, offset, first, count = piece
            try:
                found = self._read_at(path, content[first : first + count], offset)
            except OSError as error:
                row = (position + first) // spec.row_bytes
                raise self.unreadable(spec.name, f"{path.name}, which holds row {row}: {error.strerror}") from error
            if found != count:
                row = (position + first + found) // spec.row_bytes
                raise self.unreadable(spec.name, f"{path.name} ends before row {row}")

        self.for_each(read, self._pieces(spec, position, values.nbytes))
        return values

    def for_each(self, work: Callable[[_Piece], None], pieces: Iterable[_Piece]) -> None:
        """Do work that reads for each of some pieces: side by side where reading waits for a network."""
        spread = map if self.in_flight == 1 else partial(in_threads, at_least=self.in_flight)
        deque(spread(work, pieces), maxlen=0)

    def _read_at(self, path: Path, content: memoryview, offset: int) -> int:
        """Fill `content` from a file, from a byte on, as far as it goes; raises `OSError` where there is none."""
        return _read_at(path, content, offset)

    def _write(self, spec: ArraySpec, position: int, values: np.ndarray) -> None:
        content = np.ascontiguousarray(values, dtype=spec.dtype).reshape(-1).view(np.uint8).data
        with reporting_full_disk(self.path):
            for path, offset, first, count in self._pieces(spec, position, len(content)):
                if path not in self._unsynced:
                    if len(self._unsynced) >= _MOST_OPEN:
                        self.sync()
                    self._unsynced[path] = open_own(path, os.O_WRONLY)
                _write_at(self._unsynced[path], content[first : first + count], offset)

    def _pieces(self, spec: ArraySpec, position: int, size: int) -> Iterator[tuple[Path, int, int, int]]:
        """Cut bytes of an array at chunk borders: (file, offset in it, first byte of the piece, bytes)."""
        chunk_bytes, first = spec.chunk_rows * spec.row_bytes, 0
        while first < size:
            chunk, within = divmod(position + first, chunk_bytes)
            count = min(chunk_bytes - within, size - first)
            path, offset = self._place(spec.name, chunk)
            yield path, offset + within, first, count
            first += count


# A link is not followed, and a pipe in place of a file must not make us wait.
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def _read_at(path: Path, content: memoryview, offset: int) -> int:
    """Fill `content` from a file, as far as it goes; nothing but a file of its own."""
    descriptor, found = os.open(path, _READ_FLAGS), 0
    try:
        while found < len(content):
            size = os.preadv(descriptor, [content[found:]], offset + found)
            if size == 0:
                break
            found += size
    finally:
        os.close(descriptor)
    return found


def _write_at(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
