"""A few blocks of a store in memory, as a stream goes through them; the next ones are read while training goes on.

Every block is checked against its digests each time that it is read. What is wrong with it is raised by the step that
needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from student_train.read_ahead import ReadAhead
from student_train.row_arrays import as_tensor
from student_train.stream_order import BlockOrder, Visits

# Blocks beyond the window that are read before they are needed.
AHEAD = 4


class BlockReader(Protocol):
    """What a stream is made of."""

    def empty(self, rows: int) -> dict[str, np.ndarray]:
        """Array name -> room for so many rows."""

    def block(self, number: int) -> Mapping[str, np.ndarray]:
        """Array name -> rows of one block, checked; called in threads."""

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Rows of one array from the disk, checked: for what does not go with the stream."""


class BlockStream:
    """A buffer of blocks.

    Args:
        reader: reads them.
        order: in which order they come.
        block_rows: rows of a block, at most.

    Attributes:
        num_slots: blocks that there is room for, those that are being read included; 0 before anything is held.
        num_read: blocks that were read, or begun to be.
    """

    def __init__(self, reader: BlockReader, order: BlockOrder, block_rows: int) -> None:
        self.order, self.block_rows = order, block_rows
        self.num_slots = self.num_read = 0
        self._reader = reader
        self._arrays: dict[str, np.ndarray] = {}
        # Where in the arrays each block begins; -1 where it is not there.
        self._begins = torch.full((order.num_blocks,), -1)
        self._reading: ReadAhead[tuple[int, int], None] | None = None
        # Visits from the first on to those that are ready are in memory; what is being read comes after.
        self._seed = self._first = self._ready = 0

    def hold(self, visits: Visits) -> None:
        """Have the blocks of these visits in memory, and none of earlier ones; reading goes on beyond them.

        Raises:
            CKDError: one of them is damaged, or cannot be read.
        """
        try:
            reading = self._reading_on_to(visits)
            for visit in range(self._first, visits.first):
                self._forget(visit)
            self._first = visits.first
            while (visit := self._ready + len(reading)) < self._first + self.num_slots:
                reading.begin((self.order.block(self._seed, visit), self._begin_of(visit)))
                self.num_read += 1
            while self._ready < visits.stop:
                reading.take()
                self._begins[self.order.block(self._seed, self._ready)] = self._begin_of(self._ready)
                self._ready += 1
        except BaseException:
            self.close()
            raise

    def rows(self, name: str, rows: Tensor, views: Tensor | None = None) -> Tensor:
        """Rows of an array, or one view of each: from memory where all of them are there, and else from the disk."""
        blocks = self.order.block_of[rows]
        begins = self._begins[blocks]
        if (begins < 0).any():
            values, places = self._reader.rows(name, rows), torch.arange(len(rows))
        else:
            values, places = as_tensor(self._arrays[name]), begins + rows - self.order.starts[blocks]
        return values[places] if views is None else values[places, views]

    def close(self) -> None:
        """Stop reading and let go of all memory; `hold` begins anew."""
        if self._reading is not None:
            self._reading.close()
        self._reading, self._arrays = None, {}
        self._begins.fill_(-1)

    def _reading_on_to(self, visits: Visits) -> ReadAhead[tuple[int, int], None]:
        """What reads on from what is in memory, or from these visits if that leads nowhere."""
        leads_there = visits.seed == self._seed and self._first <= visits.first <= self._ready
        if self._reading is None or not leads_there or len(visits) >= self.num_slots:
            self.close()
            # Batches of many blocks may need more than a window.
            self.num_slots = max(self.num_slots, self.order.window + AHEAD, len(visits) + AHEAD)
            self._arrays = self._reader.empty(self.num_slots * self.block_rows)
            self._reading = ReadAhead(self._read)
            self._seed, self._first, self._ready = visits.seed, visits.first, visits.first
        return self._reading

    def _read(self, place: tuple[int, int]) -> None:
        block, begin = place
        for name, values in self._reader.block(block).items():
            # Not by torch, whose copies would start threads of their own.
            self._arrays[name][begin : begin + len(values)] = values

    def _begin_of(self, visit: int) -> int:
        return visit % self.num_slots * self.block_rows

    def _forget(self, visit: int) -> None:
        block = self.order.block(self._seed, visit)
        # A later visit may have brought it again, to another place.
        if self._begins[block] == self._begin_of(visit):
            self._begins[block] = -1


class StreamedArray:
    """One array of a stream, see `RowArray`."""

    def __init__(self, stream: BlockStream, name: str) -> None:
        self._stream, self._name = stream, name

    @property
    def device(self) -> torch.device:
        """Main memory."""
        return torch.device("cpu")

    def __getitem__(self, index: Tensor | tuple[Tensor, Tensor], /) -> Tensor:
        """See `RowArray.__getitem__`."""
        if isinstance(index, Tensor):
            return self._stream.rows(self._name, index)
        return self._stream.rows(self._name, *index)
