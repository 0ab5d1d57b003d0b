"""A store's Zarr arrays in object storage: read, and never changed.

The names and the bytes are those of the folder that was published (`storage.zarr_arrays`). Each piece is a request that
waits, so several are under way at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np

from ground.documents import Malformed
from ground.errors import StoreUnreadable, store_command
from ground.places import only_read
from ground.threads import in_threads
from storage.arrays import ArrayFile
from storage.objects import Objects
from storage.schema import ArraySpec
from storage.zarr_arrays import MAX_METADATA_BYTES, chunk_name, rows_described, zarr_files


class ObjectArrays(ArrayFile):
    """The arrays below a name in object storage; their layout is checked when they are opened."""

    in_flight = 16

    def __init__(self, objects: Objects, name: str, specs: Sequence[ArraySpec]) -> None:
        super().__init__(Path(name), specs)
        self._objects = objects
        self._rows = dict(zip(self.specs, in_threads(self._layout, specs, at_least=self.in_flight), strict=True))

    @classmethod
    def create(cls, path: Path, specs: Sequence[ArraySpec], rows: Mapping[str, int]) -> NoReturn:
        """See `ArrayFile.create`; what is published is a copy."""
        raise AssertionError("arrays in object storage are published, not made")

    def add(self, specs: Sequence[ArraySpec], rows: Mapping[str, int]) -> NoReturn:
        """Refused, as whatever would change something."""
        self._refuse()

    def grow(self, rows: Mapping[str, int]) -> NoReturn:
        """Refused likewise."""
        self._refuse()

    def make_missing(self, rows: Mapping[str, int]) -> NoReturn:
        """Refused likewise."""
        self._refuse()

    def num_rows(self, name: str) -> int:
        """See `ArrayFile.num_rows`."""
        return self._rows[name]

    def missing_files(self, rows: Mapping[str, int]) -> list[Path]:
        """See `ArrayFile.missing_files`."""
        wanted = zarr_files(self.specs.values(), lambda spec: rows[spec.split])
        return [self.path / name for name, size in wanted if self._sizes.get(name, -1) < (size or 1)]

    def unknown_files(self) -> list[Path]:
        """See `ArrayFile.unknown_files`."""
        ours = {name for name, _ in zarr_files(self.specs.values(), lambda spec: self.num_rows(spec.name))}
        return [self.path / name for name in sorted(self._sizes.keys() - ours)]

    def size_bytes(self) -> int:
        """Bytes in object storage."""
        return sum(self._sizes.values())

    def unreadable(self, name: str, why: object) -> StoreUnreadable:
        """See `ArrayFile.unreadable`."""
        return StoreUnreadable(
            f"array {name} in {self._objects.url / self.path.name} cannot be read ({why}); check the store with: "
            f"{store_command('verify', self._objects.url)}"
        )

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Bytes of each object below the arrays, by its path there."""
        below = f"{self.path.name}/"
        return {name.removeprefix(below): size for name, size in self._objects.sizes() if name.startswith(below)}

    def _layout(self, spec: ArraySpec) -> int:
        """Rows of an array, if it is here and laid out as rows are read."""
        try:
            metadata = self._objects.read(f"{self.path.name}/{spec.name}/zarr.json", MAX_METADATA_BYTES)
            return rows_described(metadata, spec)
        except FileNotFoundError as error:
            raise self.unreadable(spec.name, "its zarr.json is missing") from error
        except Malformed as error:
            raise self.unreadable(spec.name, error) from error

    def _place(self, name: str, chunk: int) -> tuple[Path, int]:
        return self.path / chunk_name(self.specs[name], chunk), 0

    def _read_at(self, path: Path, content: memoryview, offset: int) -> int:
        return self._objects.read_into(path.as_posix(), content, offset)

    def _write(self, spec: ArraySpec, position: int, values: np.ndarray) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise only_read(self._objects.url)
