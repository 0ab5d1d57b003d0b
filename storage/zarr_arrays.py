"""Arrays as a Zarr v3 folder: a file a chunk, plain bytes.

The Zarr library makes and checks the metadata. A chunk file is the chunk's values in order, so rows are read and
written by position. Every chunk is made, at its full size, with the array: a missing one was lost, not skipped.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import BytesCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from storage.arrays import ArrayFile
from storage.durable import allocate, fsync_path, reporting_full_disk, write_bytes
from storage.errors import StoreUnreadable
from storage.schema import ArraySpec

_MAX_METADATA_BYTES = 1 << 20


class DurableStore(LocalStore):
    """A local Zarr store whose files are on the disk when a write returns; Zarr renames them, but does not fsync."""

    async def set(self, key: str, value: Buffer) -> None:
        """Replace one file, atomically and durably."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(write_bytes, path, value.to_bytes())


class ZarrArrays(ArrayFile):
    """A Zarr folder; arrays are checked when first used."""

    format = "zarr"
    suffix = ".zarr"

    def __init__(self, path: Path, specs: Sequence[ArraySpec]) -> None:
        super().__init__(path, specs)
        if path.is_symlink() or not (path / "zarr.json").is_file():
            raise StoreUnreadable(f"{path} is not a Zarr folder; bring it back from a copy, or build a new store")
        self._rows: dict[str, int] = {}

    @classmethod
    def create(cls, path: Path, specs: Sequence[ArraySpec], rows: Mapping[str, int]) -> None:
        """See `ArrayFile.create`."""
        shutil.rmtree(path, ignore_errors=True)
        with reporting_full_disk(path):
            group = zarr.create_group(DurableStore(path), zarr_format=3)
            for spec in specs:
                group.create_array(
                    spec.name,
                    shape=(rows[spec.split], *spec.row_shape),
                    chunks=(spec.chunk_rows, *spec.row_shape),
                    dtype=spec.dtype,
                    compressors=None,
                    filters=None,
                    fill_value=0,
                    # One flat folder an array: one folder to fsync.
                    chunk_key_encoding={"name": "default", "separator": "."},
                )
                _make_chunks(path, spec, rows[spec.split])
            for folder in {file.parent.parent for file in path.rglob("zarr.json")}:
                fsync_path(folder)

    def grow(self, rows: Mapping[str, int]) -> None:
        """See `ArrayFile.grow`."""
        with reporting_full_disk(self.path):
            for name, spec in self.specs.items():
                if self.num_rows(name) < rows[spec.split]:
                    # Chunks first: an array must not claim rows that have no room.
                    _make_chunks(self.path, spec, rows[spec.split])
                    array = self._open(name)
                    array.resize((rows[spec.split], *spec.row_shape))
                    self._rows[name] = rows[spec.split]

    def num_rows(self, name: str) -> int:
        """See `ArrayFile.num_rows`."""
        if name not in self._rows:
            self._rows[name] = self._open(name).shape[0]
        return self._rows[name]

    def missing_files(self, rows: Mapping[str, int]) -> list[Path]:
        """See `ArrayFile.missing_files`."""
        return [
            file
            for spec in self.specs.values()
            for chunk in range(-(-rows[spec.split] // spec.chunk_rows))
            if _is_short(file := _chunk_file(self.path, spec, chunk), spec)
        ]

    def make_missing(self, rows: Mapping[str, int]) -> None:
        """See `ArrayFile.make_missing`."""
        for spec in self.specs.values():
            _make_chunks(self.path, spec, rows[spec.split])

    def size_bytes(self) -> int:
        """See `ArrayFile.size_bytes`."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def _place(self, name: str, chunk: int) -> tuple[Path, int]:
        return _chunk_file(self.path, self.specs[name], chunk), 0

    def _open(self, name: str) -> zarr.Array[Any]:
        """An array, if it is here and laid out as rows are read."""
        folder, spec = self.path / name, self.specs[name]
        if any(part.is_symlink() for part in (folder, *folder.relative_to(self.path).parents)):
            raise self.unreadable(name, "it is a link to another place")
        try:
            if (folder / "zarr.json").stat().st_size > _MAX_METADATA_BYTES:
                raise ValueError("its metadata is too large")
            array = zarr.open_array(DurableStore(folder), mode="r+", zarr_format=3)
            metadata: Any = array.metadata
            found = (array.shape[1:], array.chunks, array.dtype)
            key = metadata.encode_chunk_key((3,) + (0,) * len(spec.row_shape))
            plain = all(isinstance(codec, BytesCodec) for codec in metadata.codecs)
            order = {getattr(codec.endian, "value", "little") for codec in metadata.codecs} if plain else set()
        except Exception as error:
            # A damaged zarr.json fails in too many ways to list; all of them mean the same to the user.
            raise self.unreadable(name, error) from error
        wanted = (spec.row_shape, (spec.chunk_rows, *spec.row_shape), spec.dtype)
        if found != wanted or key != _chunk_file(self.path, spec, 3).name or order != {"little"}:
            raise self.unreadable(name, f"it holds rows, chunks and types {found}, plain {wanted} are expected")
        return array


def _chunk_file(path: Path, spec: ArraySpec, chunk: int) -> Path:
    return path / spec.name / ".".join(("c", str(chunk), *("0" for _ in spec.row_shape)))


def _is_short(file: Path, spec: ArraySpec) -> bool:
    return not file.exists() or file.stat().st_size < spec.chunk_rows * spec.row_bytes


def _make_chunks(path: Path, spec: ArraySpec, rows: int) -> None:
    for chunk in range(-(-rows // spec.chunk_rows)):
        file = _chunk_file(path, spec, chunk)
        if _is_short(file, spec):
            allocate(file, spec.chunk_rows * spec.row_bytes)
    fsync_path(path / spec.name)
