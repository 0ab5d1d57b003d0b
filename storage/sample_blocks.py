"""The sample arrays of a store in blocks, each of which has a digest in the manifest that it is read against."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ground.errors import StoreUnreadable
from ground.threads import in_threads
from storage.arrays import ArrayFile
from storage.blocks import BlockHasher
from storage.manifest import Manifest

# Read at once to be checked.
_CHECKED_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class SampleBlocks:
    """Blocks of the sample arrays of a store.

    Args:
        arrays, manifest: the store's.
        whole: arrays of older formats, whose one digest is of all their rows, that were looked at; added to.
    """

    arrays: ArrayFile
    manifest: Manifest
    whole: set[str]

    def all(self, name: str) -> range:
        """All blocks of an array."""
        return self.starting(name, 0, self.manifest.array_rows(self.arrays.specs[name]))

    def starting(self, name: str, first: int, last: int) -> range:
        """Blocks of an array that begin at places first..last."""
        size = self.manifest.block_rows(self.arrays.specs[name])
        return range(-(-first // size), -(-last // size))

    def read_at(self, name: str, places: np.ndarray) -> np.ndarray:
        """What lies at (m,) places of an array, each once, in that order, after checking the blocks that they are in.

        Raises:
            StoreUnreadable: they are not what was written, or do not fit into memory.
        """
        spec = self.arrays.specs[name]
        try:
            kept = np.empty((len(places), *spec.row_shape), spec.dtype)
        except MemoryError as error:
            raise self.arrays.unreadable(name, "it does not fit into memory") from error
        order = np.argsort(places, kind="stable") if self.manifest.places else None
        index = places if order is None else places[order]

        def read(block: int) -> None:
            for first, values in self.pieces(name, block):
                begin, end = np.searchsorted(index, (first, first + len(values)))
                kept[slice(begin, end) if order is None else order[begin:end]] = values[index[begin:end] - first]

        self.arrays.for_each(read, np.unique(index // self.manifest.block_rows(spec)).tolist())
        return kept

    def pieces(self, name: str, block: int) -> Iterator[tuple[int, np.ndarray]]:
        """The rows of a block of an array in pieces, (first, values), which are checked once all are handed out.

        Raises:
            StoreUnreadable: they are not what was written.
        """
        spec, manifest = self.arrays.specs[name], self.manifest
        total, size = manifest.array_rows(spec), manifest.block_rows(spec)
        first, last = block * size, min((block + 1) * size, total)
        hasher = None if name in self.whole else hashlib.sha256()
        step = spec.chunk_rows * max(1, _CHECKED_BYTES // max(1, spec.chunk_rows * spec.row_bytes))
        for start in range(first, last, step):
            values = self.arrays.read(name, start, min(start + step, last))
            if hasher is not None:
                hasher.update(values.data)
            yield start, values
        if hasher is not None and hasher.hexdigest() != manifest.block_digest(name, block):
            where = "" if last - first == total else f", in rows {first} to {last - 1}"
            raise self.arrays.unreadable(name, f"it is not what the build wrote{where}")
        if manifest.older is not None:
            self.whole.add(name)

    def problem(self, name: str, block: int) -> StoreUnreadable | None:
        """What is wrong with one block of an array; nothing of it is kept."""
        try:
            deque(self.pieces(name, block), maxlen=0)
        except StoreUnreadable as error:
            return error
        return None

    def problems(self, name: str, rows: int | None = None) -> Iterator[StoreUnreadable]:
        """Of all blocks of an array, or of those that its first rows are in, what is wrong."""
        blocks: Sequence[int] = self.all(name)
        if rows is not None:
            spec = self.arrays.specs[name]
            size, places = self.manifest.block_rows(spec), self.manifest.places_of(spec, np.arange(rows))
            blocks = np.unique(places // size).tolist()
        yield from filter(None, in_threads(partial(self.problem, name), blocks, at_least=self.arrays.in_flight))

    def digests(self, name: str) -> str:
        """Of each block of an array, as this format has them; raises `StoreUnreadable` if it was changed."""
        if self.manifest.older is None:
            return self.manifest.samples[name]
        spec = self.arrays.specs[name]
        hasher = BlockHasher(spec.block_rows * spec.row_bytes)
        if self.manifest.rows_of(spec):
            for _, values in self.pieces(name, 0):
                hasher.update(values)
        return hasher.hexdigests()
