"""Arrays of a store by rows, as training indexes them: tensors, or what has only some of their rows in memory."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from storage.float_types import type_of


class RowArray(Protocol):
    """One array of the sample: a tensor is one."""

    @property
    def device(self) -> torch.device:
        """Where it is indexed, and where what comes out is."""

    def __getitem__(self, index: Any, /) -> Tensor:
        """Rows (B,), or rows and views of an output, (B,) each: a tensor of its own."""


def as_tensor(values: np.ndarray) -> Tensor:
    """Values as they are stored, in their type and where they are."""
    if type_of(values) == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


# Copied while their place in memory is written anew.
_ROWS_AT_ONCE = 64


def laid_channels_last(rows: Tensor) -> Tensor:
    """Maps (n, V, C, H, W) with the channels of a position side by side in memory, as networks make them; others as
    they are.

    Args:
        rows: contiguous, and used up: what comes out is in their place.
    """
    if rows.dim() != 5:
        return rows
    images, views, channels, height, width = rows.shape
    laid = rows.view(images, views, height, width, channels)
    for old, new in zip(rows.split(_ROWS_AT_ONCE), laid.split(_ROWS_AT_ONCE), strict=True):
        new.copy_(old.movedim(2, 4).clone(memory_format=torch.contiguous_format))
    return laid.movedim(4, 2)
