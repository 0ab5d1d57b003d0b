"""Arrays as a Zarr v3 folder, uncompressed.

Zarr renames each chunk into place but does not fsync it, so a power cut could empty a chunk, even one whose other
rows were committed long before. `DurableStore` writes each file whole and fsynced before it takes the old one's
place. Empty chunks are written too, and a missing one is an error: it was lost, not skipped.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from storage.arrays import ArrayFile
from storage.durable import fsync_path, reporting_full_disk, write_bytes
from storage.errors import StoreUnreadable
from storage.schema import ArraySpec


class DurableStore(LocalStore):
    """A local Zarr store whose files are on the disk when a write returns."""

    async def set(self, key: str, value: Buffer) -> None:
        """Replace one file, atomically and durably."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(write_bytes, path, value.to_bytes())


class ZarrArrays(ArrayFile):
    """A `data.zarr` folder; arrays are opened when first used."""

    format = "zarr"
    file_name = "data.zarr"

    def __init__(self, path: Path, specs: Sequence[ArraySpec]) -> None:
        super().__init__(path, specs)
        if not (path / "zarr.json").is_file():
            raise StoreUnreadable(f"{path} is not a Zarr folder; build the store again in a new folder")
        self._open: dict[str, zarr.Array[Any]] = {}

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
            for folder in {file.parent.parent for file in path.rglob("zarr.json")}:
                fsync_path(folder)

    def grow(self, rows: Mapping[str, int]) -> None:
        """See `ArrayFile.grow`."""
        with reporting_full_disk(self.path):
            for name, spec in self.specs.items():
                array = self._array(name)
                if array.shape[0] < rows[spec.split]:
                    array.resize((rows[spec.split], *spec.row_shape))

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """See `ArrayFile.read`."""
        array = self._array(name)
        self.check_rows(name, array.shape[0], stop)
        spec = self.specs[name]
        for chunk in range(start // spec.chunk_rows, -(-stop // spec.chunk_rows)):
            key = array.metadata.encode_chunk_key((chunk,) + (0,) * len(spec.row_shape))
            if not (self.path / name / key).is_file():
                raise self.unreadable(name, f"chunk {key}, which holds row {chunk * spec.chunk_rows}, is missing")
        try:
            return np.asarray(array[start:stop])
        except (OSError, ValueError) as error:
            raise self.unreadable(name, error) from error

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """See `ArrayFile.write`."""
        with reporting_full_disk(self.path):
            self._array(name)[start : start + len(values)] = values

    def sync(self) -> None:
        """See `ArrayFile.sync`: every write was durable when it returned."""

    def size_bytes(self) -> int:
        """See `ArrayFile.size_bytes`."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._open:
            try:
                # An array keeps the setting that it was opened under.
                with zarr.config.set({"array.write_empty_chunks": True}):
                    array = zarr.open_array(DurableStore(self.path / name), mode="r+", zarr_format=3)
                codecs = array.metadata.codecs  # type: ignore[union-attr]
            except Exception as error:
                # A damaged zarr.json fails in too many ways to list; all of them mean the same to the user.
                raise self.unreadable(name, error) from error
            self.check_array(name, array.shape, array.dtype)
            if not all(isinstance(codec, BytesCodec) for codec in codecs):
                raise self.unreadable(name, f"it is encoded with {codecs}, only plain bytes are read")
            self._open[name] = array
        return self._open[name]
