"""What the Zarr library does for us: it makes the metadata of a store's arrays and changes it when they grow.

Reading needs none of it (`storage.zarr_arrays`), and the library takes a third of a second to load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import zarr
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from ground.durable import write_bytes
from storage.schema import ArraySpec, RowsOf


class DurableStore(LocalStore):
    """A local Zarr store whose files are on the disk when a write returns; Zarr renames them, but does not fsync."""

    async def set(self, key: str, value: Buffer) -> None:
        """Replace one file, atomically and durably."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(write_bytes, path, value.to_bytes())


def create_arrays(path: Path, specs: Sequence[ArraySpec], rows: RowsOf) -> None:
    """Make arrays, of so many rows each and without their chunks, in a group that is made if it is not there."""
    group = zarr.open_group(DurableStore(path), mode="a", zarr_format=3)
    for spec in specs:
        group.create_array(
            spec.name,
            shape=(rows(spec), *spec.row_shape),
            chunks=(spec.chunk_rows, *spec.row_shape),
            dtype=spec.dtype,
            compressors=None,
            filters=None,
            fill_value=0,
            # One flat folder an array: one folder to fsync.
            chunk_key_encoding={"name": "default", "separator": "."},
        )


def resize(path: Path, spec: ArraySpec, rows: int) -> None:
    """Give the array in the folder `path` so many rows; its chunks are left as they are."""
    zarr.open_array(DurableStore(path), mode="r+", zarr_format=3).resize((rows, *spec.row_shape))
