"""Rows that are being answered for a store in object storage: their chunks as files of the local disk, until all of
them are whole and go there as objects.

A stage is a folder of the desk (`Store.desk`) for the rows of one number, `CHUNK_ROWS` of them, and of one session of
the ledger, whose calls the answers are; who works on it has the rows' cells locked there. Its room on the disk is taken
when it is made. Before answers are asked for it notes which, durably: of a stage that was left, what was not asked for
can still be, and what was asked for and is not there is lost.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ground.durable import allocate, fsync_path, open_own, reporting_full_disk
from storage.rows import Rows
from storage.schema import CHUNK_ROWS, VALID, ArraySpec
from storage.zarr_arrays import chunk_name

_FOLDER = re.compile(r"rows-([0-9]{1,12})-([0-9]{1,18})")
_ASKED = "asked"


@dataclass(frozen=True, slots=True)
class Stage:
    """The rows of one number.

    Args:
        number: they are rows CHUNK_ROWS * number and those after it.
        session: of the ledger.
        views: V, cells of a row.
    """

    folder: Path
    number: int
    session: int
    views: int

    @classmethod
    def make(cls, desk: Path, number: int, session: int, views: int, specs: Mapping[str, ArraySpec]) -> Stage:
        """A new one, of zeros; raises `DiskFull` where there is no room for it."""
        stage = cls(desk / f"rows-{number}-{session}", number, session, views)
        stage.remove()
        stage.folder.mkdir()
        try:
            for _, path, spec in stage.chunks(specs):
                allocate(path, spec.chunk_rows * spec.row_bytes)
            allocate(stage.folder / _ASKED, CHUNK_ROWS * views)
            fsync_path(stage.folder)
            fsync_path(desk)
        except BaseException:
            stage.remove()
            raise
        return stage

    @classmethod
    def find(cls, desk: Path, views: int) -> list[Stage]:
        """Every stage of a store, whoever works on it."""
        named = ((item, _FOLDER.fullmatch(item.name)) for item in sorted(desk.iterdir()))
        return [cls(item, int(name[1]), int(name[2]), views) for item, name in named if name is not None]

    @staticmethod
    def room_bytes(specs: Mapping[str, ArraySpec], views: int) -> int:
        """What one takes on the disk."""
        return CHUNK_ROWS * (views + sum(spec.row_bytes for spec in specs.values() if spec.is_answer))

    @property
    def first_cell(self) -> int:
        """Number of its first cell in the store."""
        return self.number * self.num_cells

    @property
    def num_cells(self) -> int:
        """Cells of a whole chunk of rows."""
        return CHUNK_ROWS * self.views

    def holds(self, spec: ArraySpec, chunk: int) -> bool:
        """Whether a chunk of an array is here."""
        return spec.is_answer and chunk * spec.chunk_rows // CHUNK_ROWS == self.number

    def file(self, spec: ArraySpec, chunk: int) -> Path:
        """Of a chunk that is here."""
        return self.folder / chunk_name(spec, chunk).replace("/", "~")

    def chunks(self, specs: Mapping[str, ArraySpec]) -> Iterator[tuple[str, Path, ArraySpec]]:
        """Name and file of each chunk; last the one that says that the others are whole."""
        for spec in sorted((spec for spec in specs.values() if spec.is_answer), key=lambda spec: spec.name == VALID):
            count = CHUNK_ROWS // spec.chunk_rows
            for chunk in range(self.number * count, (self.number + 1) * count):
                yield chunk_name(spec, chunk), self.file(spec, chunk), spec

    def note_asked(self, cells: Sequence[int]) -> None:
        """Note that the teacher is about to be asked for some cells; durable once this returns."""
        with reporting_full_disk(self.folder):
            descriptor = open_own(self.folder / _ASKED, os.O_WRONLY)
            try:
                for cell in cells:
                    os.pwrite(descriptor, b"\1", cell - self.first_cell)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def asked(self) -> set[int]:
        """Cells that the teacher may have been asked for; all of them where that cannot be read."""
        try:
            noted = np.frombuffer((self.folder / _ASKED).read_bytes(), np.uint8)
        except OSError:
            noted = np.empty(0, np.uint8)
        whole = np.ones(self.num_cells, np.uint8)
        whole[: len(noted)] = noted[: self.num_cells]
        return set((self.first_cell + np.flatnonzero(whole)).tolist())

    def rows(self, n: int) -> Rows:
        """Its rows, of a store of n."""
        return rows_of(self.number, n)

    def remove(self) -> None:
        """Delete it: nothing in it is needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)


def rows_of(number: int, n: int) -> Rows:
    """The rows of a number, of a store of n."""
    return Rows.between(number * CHUNK_ROWS, min((number + 1) * CHUNK_ROWS, n))
