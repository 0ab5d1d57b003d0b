"""Rows and digests that are made when they are first asked for, and then held: who needs few makes no others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np

from storage.blocks import RowSource
from storage.rows import Rows

# Of what is made at once, for who goes through rows in order: as many again each time, up to a limit.
_FIRST_ROWS = 64


class HeldRows:
    """The first rows of a source, each read from it once; they all fit into memory.

    Args:
        source: of them, and maybe of others after them.
        count: how many there are.
        row_shape, dtype: of a row.
    """

    def __init__(self, source: RowSource, count: int, row_shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.row_shape = row_shape
        self._source = source
        self._making = threading.Lock()
        # Takes no memory before rows are written.
        self._rows = np.empty((count, *row_shape), dtype)
        self._is_made = np.zeros(count, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        self._make(np.arange(first, last))
        return self._rows[first:last]

    def take(self, index: np.ndarray) -> np.ndarray:
        """The rows at (C,) places, in that order."""
        self._make(np.unique(index))
        taken: np.ndarray = self._rows[index]
        return taken

    def let_go(self) -> None:
        """Hold none; those that are asked for again are made again."""
        with self._making:
            self._rows = np.empty_like(self._rows)
            self._is_made[:] = False

    def _make(self, index: np.ndarray) -> None:
        with self._making:
            for first, count in Rows.of(index[~self._is_made[index]]).runs:
                self._rows[first : first + count] = self._source[first : first + count]
                self._is_made[first : first + count] = True


class InputDigests(Sequence[list[bytes]]):
    """Of each row, the digests of its V inputs.

    Args:
        count: of rows.
        digests_of: makes those of neighbouring rows.
        most_rows: that are made at once.
    """

    def __init__(self, count: int, digests_of: Callable[[slice], list[list[bytes]]], most_rows: int) -> None:
        self._digests_of, self._most = digests_of, most_rows
        self._known: list[list[bytes] | None] = [None] * count
        self._making = threading.Lock()
        self._end, self._ahead = -1, 0

    def __len__(self) -> int:
        return len(self._known)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (InputDigests, list)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[list[list[bytes]]], tuple[list[list[bytes]]]]:
        # To another process, which has no images, they go as they are.
        return list, (list(self),)

    def __iter__(self) -> Iterator[list[bytes]]:
        return (self[row] for row in range(len(self)))

    @overload
    def __getitem__(self, row: int) -> list[bytes]: ...

    @overload
    def __getitem__(self, row: slice) -> list[list[bytes]]: ...

    def __getitem__(self, row: int | slice) -> list[bytes] | list[list[bytes]]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        with self._making:
            found = self._known[row]
            return self._made(range(len(self))[row]) if found is None else found

    def _made(self, row: int) -> list[bytes]:
        # Who asks for row after row is met with more each time; who asks for one gets few others made.
        self._ahead = 2 * self._ahead if row == self._end else _FIRST_ROWS
        stop = min(row + max(1, min(self._ahead, self._most)), len(self))
        last = next((each for each in range(row, stop) if self._known[each] is not None), stop)
        found = self._digests_of(slice(row, last))
        self._known[row:last] = found
        self._end = last
        return found[0]
