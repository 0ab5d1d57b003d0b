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
