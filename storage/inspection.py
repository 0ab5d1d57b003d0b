"""A store beside its ledger, cell by cell: what is there, what was written, and what the teacher returned.

`verify` puts it into words; `repair` acts on it. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ground.errors import StoreUnreadable
from ground.threads import in_threads
from storage.digest import input_digests, vouches
from storage.ledger import Ledger
from storage.ledger_records import RecordedCall
from storage.rows import Rows
from storage.schema import DIGEST, DIGEST_BYTES, IMAGES, VALID, VIEWS, OutputSpec
from storage.store import Store

MOST_ROWS = 1 << 12
_MOST_BYTES = 8 << 20


@dataclass(frozen=True)
class Inspection:
    """Per cell, and per output where the last axis but one is O: arrays of (n, V, ...) for n rows of the store.

    Args:
        first: the row that these begin with.
        valid: the flag that makes a cell visible.
        readable: each output can be read at all.
        found: what each output digests to now.
        written: what the digest array says it should.
        answered: what the ledger says the teacher returned; zeros where it knows no committed call that kept it.
        calls: for each cell, the committed calls on its input.
    """

    store: Store
    first: int
    valid: np.ndarray
    readable: np.ndarray
    found: np.ndarray
    written: np.ndarray
    answered: np.ndarray
    calls: list[list[RecordedCall]]

    @cached_property
    def is_answer(self) -> np.ndarray:
        """Outputs that are exactly what a committed call returned, whatever flags and digests say: (n, V, O) bool."""
        return np.asarray(self.readable & self.answered.any(axis=3) & (self.found == self.answered).all(axis=3))

    @cached_property
    def matches(self) -> np.ndarray:
        """Outputs that match the digest that was written with them: (n, V, O) bool."""
        return np.asarray(self.readable & (self.found == self.written).all(axis=3))

    @property
    def whole(self) -> np.ndarray:
        """Cells that are visible, match their digests, and are vouched for by the ledger: (n, V) bool."""
        return np.asarray(self.valid & (self.matches & self.is_answer).all(axis=2))


def inspect_in_blocks(
    store: Store, ledger: Ledger, before: Callable[[int, int], object] = lambda first, last: None
) -> Iterator[Inspection]:
    """Some rows after the other, so that memory does not grow with what a manifest says.

    Rows are read and digested in threads, a few blocks ahead of those that the ledger is asked about.

    Args:
        before: called in such a thread, with first and last + 1 of a block, before its images are read.

    Raises:
        StoreUnreadable: the images or views, which tie cells to calls, cannot be read.
    """

    def look(block: tuple[int, int]) -> _Seen:
        before(*block)
        return _look(store, *block)

    for seen in in_threads(look, row_blocks(store, store.manifest.n), at_least=store.arrays.in_flight):
        yield _compared(store, ledger, seen)


def inputs_of(store: Store) -> Iterator[list[bytes]]:
    """Digests of the inputs of each row, V a row; read some rows after the other, and not checked.

    Raises:
        StoreUnreadable: the images or views cannot be read.
    """
    for first, last in row_blocks(store, store.manifest.n):
        yield from _inputs(store, first, last)


def row_blocks(store: Store, n: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of so many of the first n rows that their images take little room."""
    return Rows.first(n).blocks(max(1, min(MOST_ROWS, _MOST_BYTES // store.arrays.specs[IMAGES].row_bytes)))


def _inputs(store: Store, first: int, last: int) -> list[list[bytes]]:
    images, views = (store.read_rows(name, first, last) for name in (IMAGES, VIEWS))
    try:
        return input_digests(images, views, store.manifest.identity.geometry)
    except (RuntimeError, IndexError) as error:  # views that lie outside their images
        raise store.arrays.unreadable(VIEWS, "it is not what the build wrote") from error


def inspect(store: Store, ledger: Ledger, first: int = 0, last: int | None = None) -> Inspection:
    """Read and digest rows first..last, or all.

    Raises:
        StoreUnreadable: the images or views, which tie cells to calls, cannot be read.
    """
    return _compared(store, ledger, _look(store, first, store.manifest.n if last is None else last))


class _Seen(NamedTuple):
    """What is in a store's rows, without its ledger; see `Inspection`."""

    first: int
    valid: np.ndarray
    written: np.ndarray
    inputs: list[bytes]
    found: np.ndarray
    readable: np.ndarray


def _look(store: Store, first: int, last: int) -> _Seen:
    valid = store.arrays.read_what_is_there(VALID, first, last).view(np.uint8) == 1
    written = store.arrays.read_what_is_there(DIGEST, first, last)
    inputs = [digest for row in _inputs(store, first, last) for digest in row]
    read = [store.found_digests(output, first, last) for output in store.outputs]
    found, readable = (np.stack(arrays, axis=2) for arrays in zip(*read, strict=True))
    return _Seen(first, valid, written, inputs, found, readable)


def _compared(store: Store, ledger: Ledger, seen: _Seen) -> Inspection:
    teacher = store.manifest.identity.teacher
    known = ledger.known_calls(teacher.fingerprint, teacher.precision, sorted(set(seen.inputs)))
    calls = [[call for call in known.get(digest, ()) if call.status == "committed"] for digest in seen.inputs]
    answered = np.zeros((len(calls), len(store.outputs), DIGEST_BYTES), dtype=np.uint8)
    flat, before = seen.found.reshape(answered.shape), seen.first * store.manifest.identity.views
    for cell, answers in enumerate(calls):
        for place, output in enumerate(store.outputs):
            digests = [digest for call in answers if (digest := call.digest_of(output.name))]
            if digests:
                here = flat[cell, place].tobytes()
                is_here = here in digests or is_answer_narrower(store, before + cell, output, here, digests)
                answered[cell, place] = np.frombuffer(here if is_here else digests[-1], np.uint8)
    return Inspection(
        store=store,
        first=seen.first,
        valid=seen.valid,
        readable=seen.readable,
        found=seen.found,
        written=seen.written,
        answered=answered.reshape(seen.found.shape),
        calls=calls,
    )


def is_answer_narrower(
    store: Store, cell: int, output: OutputSpec, here: bytes, digests: Sequence[bytes | None]
) -> bool:
    """Whether an output of a widened store, which digests to `here`, is what a call returned in a narrower type."""
    if output.dtype != "float32":
        return False
    try:
        values, found = store.read_cell(cell, (output,))
    except StoreUnreadable:
        return False
    return found[0].tobytes() == here and any(vouches(digest, output, values[output.name], here) for digest in digests)
