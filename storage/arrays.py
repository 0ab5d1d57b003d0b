"""What the store asks of an array format; Zarr and HDF5 answer it with the same guarantees.

- `write` may be torn by a crash; once `sync` has returned, everything written before it is on the disk.
- A crash at any moment leaves a file that opens.
- Only plain numbers are read: no pickles, no object arrays, no compiled filters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from storage.errors import StoreUnreadable
from storage.schema import ArraySpec


class ArrayFile(ABC):
    """The arrays of one store, by name; the first axis of each is rows.

    Args:
        path: the file or folder.
        specs: the arrays that must be there; anything else in the file is ignored.
    """

    format: str
    file_name: str

    def __init__(self, path: Path, specs: Sequence[ArraySpec]) -> None:
        self.path = path
        self.specs: Mapping[str, ArraySpec] = {spec.name: spec for spec in specs}

    @classmethod
    @abstractmethod
    def create(cls, path: Path, specs: Sequence[ArraySpec], rows: Mapping[str, int]) -> None:
        """Make the arrays, `rows[split]` rows each, replacing what is at `path`; zero until written."""

    @abstractmethod
    def grow(self, rows: Mapping[str, int]) -> None:
        """Make every array at least `rows[split]` rows long; existing rows stay as they are."""

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of one array; raises `StoreUnreadable` if they are not there."""

    @abstractmethod
    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """Put `values` at rows start, start + 1, ... of one array."""

    @abstractmethod
    def sync(self) -> None:
        """Return when everything written so far is on the disk, folder entries too."""

    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes on the disk."""

    def unreadable(self, name: str, why: object) -> StoreUnreadable:
        """The error for an array that cannot be read."""
        return StoreUnreadable(
            f"array {name} in {self.path} cannot be read ({why}); check the store with: "
            f"ckd-cache verify --store {self.path.parent}"
        )

    def check_rows(self, name: str, available: int, stop: int) -> None:
        """Refuse rows that an array does not have."""
        if stop > available:
            raise self.unreadable(name, f"it has {available} rows, {stop} are needed")

    def check_array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Refuse an array of another type or row shape than the manifest implies."""
        spec = self.specs[name]
        if tuple(shape[1:]) != spec.row_shape or np.dtype(dtype) != spec.dtype:
            raise self.unreadable(
                name,
                f"it holds {dtype} rows of {tuple(shape[1:])}, expected {spec.dtype} of {spec.row_shape}",
            )
