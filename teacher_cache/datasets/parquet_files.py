"""Data sets of Hugging Face on disk, as Parquet: `train-00000-of-00001.parquet`, ..., `test-...` or `validation-...`.

The image column holds the bytes of files, alone or beside a path, which is not opened. Labels are numbers, which the
schema may name, or names; null and -1 are images without a label. Labels are read at once; images a row group at a
time, when they are wanted, and few groups are kept.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ground.errors import DatasetMissing, InvalidInput
from ground.terminal import plain
from teacher_cache.datasets.base import ImageDataset
from teacher_cache.datasets.photographs import Entry, Listing, as_dataset, place_of
from teacher_cache.datasets.request import Request
from teacher_cache.datasets.shard_names import shards_in, split_of

FILES = "a folder of Parquet files has train-*.parquet, and test-*.parquet or validation-*.parquet"
_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img"), ("label", "labels")
# Threads that read neighbours may be at the end of one group and at the beginning of the next.
_GROUPS_KEPT = 4
# Decoded, a row group takes as much as this and more.
MOST_GROUP_BYTES = 1 << 32


class _Columns(NamedTuple):
    """Which columns are meant, and the names of labels that are numbers.

    Args:
        names: empty where the schema has none.
    """

    image: str
    label: str | None
    names: tuple[str, ...]


@dataclass(slots=True)
class _Files:
    """Images by name, FILE/ROW, read a row group at a time."""

    root: Path
    image: str
    starts: dict[str, list[int]] = field(default_factory=dict)
    _kept: OrderedDict[tuple[str, int], Any] = field(default_factory=OrderedDict)
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def fetch(self, name: str) -> bytes:
        """The bytes of an image."""
        file, _, number = name.rpartition("/")
        row = int(number)
        group = bisect_right(self.starts[file], row) - 1
        value = self._group(file, group)[row - self.starts[file][group]].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if not data:
            raise OSError(0, "its row has no bytes of an image")
        return bytes(data)

    def _group(self, file: str, group: int) -> Any:
        """The image column of a row group."""
        with self._reading:
            if (file, group) not in self._kept:
                self._kept[file, group] = read_group(self.root / file, group, self.image)
                while len(self._kept) > _GROUPS_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end((file, group))
            return self._kept[file, group]


def open_parquet(request: Request) -> ImageDataset:
    """Open the images in a folder of Parquet files, and say in the log what was listed.

    Raises:
        DatasetMissing: there are no such files, or none of one split.
        InvalidInput: a file cannot be read, columns or labels are not what they should be, or pyarrow is missing.
    """
    _require_pyarrow()
    root = place_of(request)
    names = shards_in(root, ".parquet")
    if not names:
        raise DatasetMissing(f"{root} has no .parquet files; {FILES}; save_to_disk writes others, to_parquet these")
    columns = {name: _columns(root / name) for name in names}
    first = columns[names[0]]
    for name, found in columns.items():
        if found != first:
            raise InvalidInput(
                f"{root / name} has other columns or class names than {names[0]}; name a folder of one set"
            )
    files = _Files(root, first.image)
    listing = Listing(
        name=f"parquet:{root.name}",
        place=root,
        entries=[entry for name in names for entry in _entries(files, name, first)],
        fetch=files.fetch,
        remedy="write the file again without",
        hint=FILES,
        classes=first.names or None,
    )
    return as_dataset(listing, request)


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InvalidInput("Parquet files need pyarrow; pip install 'teacher-cache[parquet]'") from error


def _columns(path: Path) -> _Columns:
    """What a file's schema says; raises `InvalidInput` where that is not one image column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(f"cannot read {path}: {plain(str(error))}; fetch or write it again") from error
    features = _features(schema.metadata or {}, path)
    image = _only(
        path, "image", _IMAGE_COLUMNS, [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    )
    labels = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    named = [name for name in labels if name in schema.names] or [
        name for name in _LABEL_COLUMNS if name in schema.names
    ]
    label = _only(path, "label", _LABEL_COLUMNS, named) if named else None
    return _Columns(image, label, _class_names(features.get(label or "", {}), path))


def _features(metadata: dict[bytes, bytes], path: Path) -> dict[str, dict[str, Any]]:
    """Column -> what `datasets` says of it; empty where it says nothing."""
    try:
        document = json.loads(metadata.get(b"huggingface", b"{}"))
        features = document.get("info", {}).get("features", {})
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"what {path} says of its columns under huggingface is damaged; write it again") from error


def _class_names(feature: dict[str, Any], path: Path) -> tuple[str, ...]:
    names = feature.get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) != len(names):
        raise InvalidInput(f"the class names in {path} are not a list of names, each once; write it again")
    return tuple(names)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _only(path: Path, what: str, usual: tuple[str, ...], found: list[str]) -> str:
    """The column that is called as usual, or the only one."""
    for name in usual:
        if name in found:
            return name
    if len(found) != 1:
        said = f"{len(found)} ({', '.join(map(plain, found))})" if found else "none"
        raise InvalidInput(
            f"{path} should have one {what} column and has {said}; call the one that is meant {usual[0]}"
        )
    return found[0]


def _entries(files: _Files, name: str, columns: _Columns) -> Iterator[Entry]:
    """The rows of a file; notes where its row groups begin."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(files.root / name) as file:
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            labels = [None] * sum(counts)
            if columns.label is not None:
                labels = file.read([columns.label]).column(columns.label).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(f"cannot read {files.root / name}: {plain(str(error))}; fetch or write it again") from error
    files.starts[name] = [sum(counts[:group]) for group in range(len(counts))]
    for row, label in enumerate(labels):
        yield Entry(f"{name}/{row}", _label(label, columns, f"row {row} of {files.root / name}"), split_of(name))


def _label(value: object, columns: _Columns, row: str) -> str | None:
    if value is None or value == -1 or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise InvalidInput(f"the label in {row} is neither a number nor a name; write the file again")
    if not columns.names or isinstance(value, str):
        return str(value)
    if not 0 <= value < len(columns.names):
        raise InvalidInput(f"the label in {row} is {value}, and there are {len(columns.names)} class names")
    return columns.names[value]


def read_group(path: Path, group: int, column: str) -> Any:
    """A column of a row group; raises `OSError`, which the name of the image is said with."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            size = file.metadata.row_group(group).total_byte_size
            if size > MOST_GROUP_BYTES:
                raise OSError(0, f"its row group takes {size} bytes, above the most of {MOST_GROUP_BYTES}")
            return file.read_row_group(group, columns=[column]).column(column).combine_chunks()
    except pa.ArrowException as error:
        raise OSError(0, str(error)) from error
