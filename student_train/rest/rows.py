"""Rows that a student has no answer for, as losses of the rest draw them: in memory, or from a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from student_train.block_stream import BlockStream, StreamedArray
from student_train.row_arrays import RowArray

IMAGES = "train/images"


class RestRows(Protocol):
    """Images that nobody was asked about."""

    @property
    def labels(self) -> Tensor:
        """(R,) int64 on the device; `UNLABELLED` where there is none."""

    @property
    def images(self) -> RowArray:
        """(R, H, W, 3) uint8."""

    @property
    def stream(self) -> BlockStream | None:
        """What images come from, block by block; None where all of them are in memory."""

    def only(self, index: Tensor) -> RestRows:
        """Some of them, (r,) int64 on the CPU and increasing, to be drawn on their own."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldRest:
    """Rows in memory: see `RestRows`."""

    images: RowArray
    labels: Tensor

    @property
    def stream(self) -> None:
        """None."""

    def only(self, index: Tensor) -> HeldRest:
        """See `RestRows.only`; images are not copied."""
        if len(index) == len(self.labels):
            return self
        return HeldRest(_Chosen(self.images, index), self.labels[index.to(self.labels.device)])


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """Some rows of an array, see `RowArray`."""

    whole: RowArray
    index: Tensor

    @property
    def device(self) -> torch.device:
        """Where rows are named; images are where the whole is."""
        return self.index.device

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """See `RowArray.__getitem__`."""
        return self.whole[self.index[rows].to(self.whole.device)]


@dataclass(frozen=True, slots=True, eq=False)
class StreamedRest:
    """Rows that come in blocks: see `RestRows`.

    Args:
        stream_of: rows of the rest, (r,) int64 -> a stream of their images.
        index: (R,) int64, which rows of the rest these are.
    """

    labels: Tensor
    stream_of: Callable[[Tensor], BlockStream]
    index: Tensor
    stream: BlockStream = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stream", self.stream_of(self.index))

    @property
    def images(self) -> RowArray:
        """(R, H, W, 3) uint8."""
        return StreamedArray(self.stream, IMAGES)

    def only(self, index: Tensor) -> StreamedRest:
        """See `RestRows.only`: a stream of their own, also where these are all."""
        return StreamedRest(self.labels[index.to(self.labels.device)], self.stream_of, self.index[index])
