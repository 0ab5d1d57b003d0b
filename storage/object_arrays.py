"""A store's Zarr arrays in object storage: written once, chunk by chunk, and never changed.

The names and the bytes are those of a folder of Zarr arrays (`storage.zarr_arrays`). Each piece is a request that
waits, so several are under way at once. Answers of rows that nobody has answered yet are not there, the flags of
`train/valid` among them: these are written last, so where they are, all is.
"""

from __future__ import annotations

import errno
import json
import re
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np

from ground.documents import Malformed
from ground.errors import InvalidInput, StoreUnreadable, store_command
from ground.places import only_read
from ground.threads import in_threads
from storage.arrays import ArrayFile
from storage.objects import Objects
from storage.schema import CHUNK_ROWS, VALID, ArraySpec, RowsOf
from storage.stage import Stage
from storage.zarr_arrays import MAX_METADATA_BYTES, chunk_name, metadata_files, rows_described, zarr_files

_CHUNK = re.compile(r"c\.([0-9]{1,12})(\.0)*")
_IN_FLIGHT = 8


def describe(objects: Objects, name: str, specs: Sequence[ArraySpec], rows: RowsOf) -> None:
    """Write what arrays of so many rows are, below a name; their chunks follow.

    Raises:
        InvalidInput: other arrays are there.
    """
    for path, document in metadata_files(specs, rows):
        put(objects, f"{name}/{path}", json.dumps(document, indent=2).encode(), "give a new URL")


def put(objects: Objects, name: str, content: bytes, remedy: str) -> None:
    """Have an object hold exactly this; raises `InvalidInput` where it holds something else, which stays."""
    if not objects.create(name, content) and not objects.holds(name, content):
        raise InvalidInput(
            f"{objects.url / name} is there and holds something else, which is never written over; {remedy}"
        )


class ObjectArrays(ArrayFile):
    """The arrays below a name in object storage; their layout is checked when they are opened.

    Attributes:
        stage: rows that are being answered on this machine, which are read from and written to there.
    """

    in_flight = 16
    stage: Stage | None = None

    def __init__(self, objects: Objects, name: str, specs: Sequence[ArraySpec]) -> None:
        super().__init__(Path(name), specs)
        self._objects = objects
        self._rows = dict(zip(self.specs, in_threads(self._layout, specs, at_least=self.in_flight), strict=True))

    @classmethod
    def create(cls, path: Path, specs: Sequence[ArraySpec], rows: RowsOf) -> NoReturn:
        """See `describe`, which has no path."""
        raise AssertionError("arrays in object storage are described, not made")

    def add(self, specs: Sequence[ArraySpec], rows: RowsOf) -> NoReturn:
        """Refused, as whatever would change something."""
        self._refuse()

    def grow(self, rows: RowsOf) -> NoReturn:
        """Refused likewise."""
        self._refuse()

    def make_missing(self, rows: RowsOf) -> NoReturn:
        """Refused likewise."""
        self._refuse()

    def num_rows(self, name: str) -> int:
        """See `ArrayFile.num_rows`."""
        return self._rows[name]

    def missing_files(self, rows: RowsOf) -> list[Path]:
        """See `ArrayFile.missing_files`; what holds no row that was answered is not missed."""
        wanted = zarr_files(self.specs.values(), rows)
        short = [name for name, size in wanted if self._sizes.get(name, -1) < (size or 1)]
        return [self.path / name for name in short if not self.is_unanswered(name)]

    def is_unanswered(self, name: str) -> bool:
        """Whether a chunk, by its path below the arrays, is one of answers, and nobody has answered its rows."""
        array, _, chunk = name.rpartition("/")
        spec, number = self.specs.get(array), _CHUNK.fullmatch(chunk)
        if spec is None or number is None or not spec.is_answer:
            return False
        flags = int(number[1]) * spec.chunk_rows // CHUNK_ROWS
        return chunk_name(self.specs[VALID], flags) not in self._sizes

    def is_answered(self, number: int) -> bool:
        """Whether the chunk of `train/valid` of this number is there now."""
        return self._objects.has(f"{self.path.name}/{chunk_name(self.specs[VALID], number)}")

    def answered_chunks(self) -> set[int]:
        """Numbers of the chunks of `train/valid` that are there now."""
        below = f"{self.path.name}/{VALID}"
        names = (_CHUNK.fullmatch(name.rpartition("/")[2]) for name, _ in self._objects.sizes(below))
        return {int(name[1]) for name in names if name is not None}

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

    def put_stage(self, stage: Stage, remedy: str) -> None:
        """Write the chunks of a stage, all of whose rows are answered; those that are there have to be the same.

        Raises:
            InvalidInput: one of them is not; says the remedy.
            StorageFailed: the service does not take it.
        """
        *others, last = stage.chunks(self.specs)

        def write(chunk: tuple[str, Path, ArraySpec]) -> None:
            put(self._objects, f"{self.path.name}/{chunk[0]}", chunk[1].read_bytes(), remedy)

        deque(in_threads(write, others, at_least=_IN_FLIGHT), maxlen=0)
        write(last)

    def _place(self, name: str, chunk: int) -> tuple[Path, int]:
        spec = self.specs[name]
        if self.stage is not None and self.stage.holds(spec, chunk):
            return self.stage.file(spec, chunk), 0
        return self.path / chunk_name(spec, chunk), 0

    def _read_at(self, path: Path, content: memoryview, offset: int) -> int:
        if path.is_absolute():
            return super()._read_at(path, content, offset)
        try:
            return self._objects.read_into(path.as_posix(), content, offset)
        except Malformed as error:
            raise OSError(errno.EINVAL, str(error)) from error
        except FileNotFoundError:
            if path.parent != self.path / VALID:
                raise
            content[:] = bytes(len(content))
            return len(content)

    def _write(self, spec: ArraySpec, position: int, values: np.ndarray) -> None:
        content = np.ascontiguousarray(values, dtype=spec.dtype).reshape(-1).view(np.uint8).data
        pieces = list(self._pieces(spec, position, len(content)))
        if all(path.is_absolute() for path, _, _, _ in pieces):
            super()._write(spec, position, values)
            return
        size, end = spec.chunk_rows * spec.row_bytes, self.num_rows(spec.name) * spec.row_bytes
        if spec.is_answer or any(
            at or (count < size and position + first + count < end) for _, at, first, count in pieces
        ):
            self._refuse()

        def write(piece: tuple[Path, int, int, int]) -> None:
            path, _, first, count = piece
            chunk = bytes(content[first : first + count]).ljust(size, b"\0")
            put(self._objects, path.as_posix(), chunk, "give a new URL")

        deque(in_threads(write, pieces, at_least=_IN_FLIGHT), maxlen=0)

    def _refuse(self) -> NoReturn:
        raise only_read(self._objects.url)
