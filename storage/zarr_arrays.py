"""Arrays as a Zarr v3 folder: a file a chunk, plain bytes.

The Zarr library makes the metadata (`storage.zarr_library`, loaded when arrays are made or grown). A chunk file is the
chunk's values in order, so rows are read and written by position. Every chunk is made, at its full size, with the
array: a missing one was lost, not skipped.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from ground.documents import Malformed
from ground.durable import allocate, fsync_path, not_own, remove_own, reporting_full_disk
from ground.errors import StoreUnreadable
from storage.arrays import ArrayFile
from storage.foreign import some, what_it_is
from storage.schema import ArraySpec, RowsOf

MAX_METADATA_BYTES = 1 << 20
_NUM_THREADS = 8
_METADATA = "zarr.json"
_GROUP = {"attributes": {}, "zarr_format": 3, "node_type": "group"}


class ZarrArrays(ArrayFile):
    """A Zarr folder; arrays are checked when first used."""

    def __init__(self, path: Path, specs: Sequence[ArraySpec]) -> None:
        super().__init__(path, specs)
        if path.is_symlink() or (path / _METADATA).is_symlink() or not (path / _METADATA).is_file():
            raise StoreUnreadable(
                f"{path} is not a Zarr folder, but {what_it_is(path)}; bring it back from a copy, or build a new store"
            )
        if specs and not any(os.path.lexists(path / spec.name) for spec in specs):
            raise self.foreign(some(item.name for item in sorted(path.iterdir()) if item.name != _METADATA))
        self._rows: dict[str, int] = {}

    @classmethod
    def create(cls, path: Path, specs: Sequence[ArraySpec], rows: RowsOf) -> None:
        """See `ArrayFile.create`."""
        remove_own(path)
        with reporting_full_disk(path):
            path.mkdir()
            _make_arrays(path, specs, rows)

    def add(self, specs: Sequence[ArraySpec], rows: RowsOf) -> None:
        """See `ArrayFile.add`."""
        with reporting_full_disk(self.path):
            for spec in specs:
                parts = self._parts(spec.name)
                if any(part.is_symlink() for part in parts):
                    raise self.unreadable(spec.name, "it is a link to another place")
                remove_own(self.path / spec.name)
                for metadata in (part / _METADATA for part in parts[1:-1]):
                    # The library reads those of the folders above, and waits for a pipe.
                    if os.path.lexists(metadata) and not stat.S_ISREG(metadata.lstat().st_mode):
                        raise not_own(metadata)
            _make_arrays(self.path, specs, rows)
        self.specs = {**self.specs, **{spec.name: spec for spec in specs}}

    def grow(self, rows: RowsOf) -> None:
        """See `ArrayFile.grow`."""
        from storage import zarr_library  # as in `_make_arrays`

        with reporting_full_disk(self.path):
            for name, spec in self.specs.items():
                if self.num_rows(name) < rows(spec):
                    # Chunks first: an array must not claim rows that have no room.
                    _make_chunks(self.path, spec, rows(spec))
                    zarr_library.resize(self.path / name, spec, rows(spec))
                    self._rows[name] = rows(spec)

    def num_rows(self, name: str) -> int:
        """See `ArrayFile.num_rows`."""
        if name not in self._rows:
            self._rows[name] = self._layout(name)
        return self._rows[name]

    def missing_files(self, rows: RowsOf) -> list[Path]:
        """See `ArrayFile.missing_files`."""
        return [
            file
            for spec in self.specs.values()
            for chunk in range(-(-rows(spec) // spec.chunk_rows))
            if _is_short(file := _chunk_file(self.path, spec, chunk), spec)
        ]

    def make_missing(self, rows: RowsOf) -> None:
        """See `ArrayFile.make_missing`."""
        for spec in self.specs.values():
            _make_chunks(self.path, spec, rows(spec))

    def size_bytes(self) -> int:
        """See `ArrayFile.size_bytes`."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def unknown_files(self) -> list[Path]:
        """See `ArrayFile.unknown_files`."""
        folders = {self.path / name: len(spec.row_shape) for name, spec in self.specs.items()}
        groups = {part for folder in folders for part in folder.parents if part.is_relative_to(self.path)}
        unknown, waiting = [], [self.path]
        while waiting:
            with os.scandir(folder := waiting.pop()) as entries:
                for entry in entries:
                    place = folder / entry.name
                    if entry.is_dir(follow_symlinks=False) and place in folders.keys() | groups:
                        waiting.append(place)
                    elif not (entry.is_file(follow_symlinks=False) and _is_ours(entry.name, folders.get(folder))):
                        unknown.append(place)
        return sorted(unknown)

    def _place(self, name: str, chunk: int) -> tuple[Path, int]:
        return _chunk_file(self.path, self.specs[name], chunk), 0

    def _parts(self, name: str) -> list[Path]:
        """Folder of an array, those above it within ours, and last its metadata."""
        folders = [self.path]
        for part in PurePosixPath(name).parts:
            folders.append(folders[-1] / part)
        return [*reversed(folders), folders[-1] / _METADATA]

    def _layout(self, name: str) -> int:
        """Rows of an array, if it is here and laid out as rows are read.

        The metadata is compared with the one layout that is written, and not interpreted: a stranger's may hold
        anything.
        """
        spec, parts = self.specs[name], self._parts(name)
        if any(part.is_symlink() for part in parts):
            raise self.unreadable(name, "it is a link to another place")
        if not parts[-1].is_file() or parts[-1].stat().st_size > MAX_METADATA_BYTES:
            raise self.unreadable(name, "its zarr.json is missing, or no file of metadata")
        try:
            return rows_described(parts[-1].read_bytes(), spec)
        except (OSError, Malformed) as error:
            raise self.unreadable(name, error) from error


def rows_described(metadata: bytes, spec: ArraySpec) -> int:
    """Rows of an array by its `zarr.json`; raises `Malformed` if it is not laid out as we read rows."""
    try:
        found = json.loads(metadata)
        rows = found["shape"][0]
        same = {**_OPTIONAL_METADATA, **found} == {**_OPTIONAL_METADATA, **_metadata(spec, rows)}
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise Malformed(f"its zarr.json is damaged: {error!r}") from error
    if type(rows) is not int or not same:
        raise Malformed(f"it is not laid out in plain chunks of {spec.dtype} rows of {spec.row_shape}")
    return rows


def zarr_files(specs: Iterable[ArraySpec], rows: RowsOf) -> Iterator[tuple[str, int | None]]:
    """Every file of arrays of so many rows, by its path below theirs, with its bytes; None for one of metadata."""
    folders = {str(folder) for spec in specs for folder in PurePosixPath(spec.name).parents}
    yield from ((_METADATA if folder == "." else f"{folder}/{_METADATA}", None) for folder in sorted(folders))
    for spec in specs:
        yield f"{spec.name}/{_METADATA}", None
        for chunk in range(-(-rows(spec) // spec.chunk_rows)):
            yield chunk_name(spec, chunk), spec.chunk_rows * spec.row_bytes


def metadata_files(specs: Iterable[ArraySpec], rows: RowsOf) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every document of metadata of such arrays, by its path below theirs."""
    by_name = {f"{spec.name}/{_METADATA}": spec for spec in specs}
    for name, size in zarr_files(by_name.values(), lambda spec: 0):
        assert size is None, "arrays without rows have no chunks"
        spec = by_name.get(name)
        yield name, _GROUP if spec is None else _filled_metadata(spec, rows(spec))


def _filled_metadata(spec: ArraySpec, rows: int) -> dict[str, Any]:
    """With what the library may write besides, and needs."""
    return {**_metadata(spec, rows), **_OPTIONAL_METADATA, "fill_value": spec.dtype.type(0).item()}


def chunk_name(spec: ArraySpec, chunk: int) -> str:
    """Path of a chunk's file below the arrays."""
    return f"{spec.name}/{'.'.join(('c', str(chunk), *('0' for _ in spec.row_shape)))}"


# What the library may write besides, or leave out.
_OPTIONAL_METADATA = {"fill_value": 0, "attributes": {}, "storage_transformers": []}


def _metadata(spec: ArraySpec, rows: int) -> dict[str, Any]:
    """What a Zarr v3 array's metadata must say."""
    endian = {"configuration": {"endian": "little"}} if spec.dtype.itemsize > 1 else {}
    chunk_shape = [spec.chunk_rows, *spec.row_shape]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *spec.row_shape],
        "data_type": spec.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": [{"name": "bytes", **endian}],
    }


def _chunk_file(path: Path, spec: ArraySpec, chunk: int) -> Path:
    return path / chunk_name(spec, chunk)


def _is_ours(name: str, axes: int | None) -> bool:
    """Whether a file of this name belongs into a group or, given the axes of its rows, into the folder of an array."""
    if axes is not None and re.fullmatch(rf"c\.\d+(\.0){{{axes}}}", name):
        return True
    return name == _METADATA or re.fullmatch(r"\..*\.partial", name) is not None


def _is_short(file: Path, spec: ArraySpec) -> bool:
    return not os.path.lexists(file) or file.lstat().st_size < spec.chunk_rows * spec.row_bytes


def _make_arrays(path: Path, specs: Sequence[ArraySpec], rows: RowsOf) -> None:
    # Only laying out needs the library, which takes a third of a second to load.
    from storage import zarr_library

    zarr_library.create_arrays(path, specs, rows)
    for spec in specs:
        _make_chunks(path, spec, rows(spec))
    for folder in {file.parent.parent for file in path.rglob("zarr.json")}:
        fsync_path(folder)


def _make_chunks(path: Path, spec: ArraySpec, rows: int) -> None:
    chunks = (_chunk_file(path, spec, chunk) for chunk in range(-(-rows // spec.chunk_rows)))
    # Many small files, each of which waits for the disk.
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        short = [file for file in chunks if _is_short(file, spec)]
        list(pool.map(lambda file: allocate(file, spec.chunk_rows * spec.row_bytes), short))
    fsync_path(path / spec.name)
