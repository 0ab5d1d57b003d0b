"""The arrays of a store: names, shapes and types, derived from what the store is about.

Rows are the first axis everywhere. The *sample* arrays are written when a store is created or grown; the
*output* arrays receive the teacher's answers, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

SPLITS = ("train", "val", "test")
LOGITS = "train/logits"
VALID = "train/valid"
DIGEST = "train/digest"
DIGEST_BYTES = 16
_FEATURES = "train/features/"
_MAX_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array: `name` is its path in the store, `row_shape` its shape without the row axis."""

    name: str
    row_shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def split(self) -> str:
        """train, val or test: whose row count the array has."""
        return self.name.split("/", 1)[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, uncompressed."""
        return prod(self.row_shape) * self.dtype.itemsize

    @property
    def cell_bytes(self) -> int:
        """Bytes of one cell, where the first axis of a row is its views."""
        return self.row_bytes // self.row_shape[0]

    @property
    def chunk_rows(self) -> int:
        """Rows per chunk: 64, or fewer for huge rows."""
        return int(min(64, max(1, _MAX_CHUNK_BYTES // max(1, self.row_bytes))))

    def stored_bytes(self, rows: int) -> int:
        """Bytes of an array of so many rows: both formats keep whole chunks, also the last one."""
        return -(-rows // self.chunk_rows) * self.chunk_rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output that is kept of each call: the shape is that of a single view."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def feature_array(name: str) -> str:
    """Path of the array that holds feature maps of the layer `name`."""
    return _FEATURES + name


def output_array(name: str) -> str:
    """Path of the array of one kept output, `logits` or a layer name."""
    return LOGITS if name == "logits" else feature_array(name)


def sample_arrays(image_size: int, views: int) -> tuple[ArraySpec, ...]:
    """Arrays that say what the images are; no teacher needed."""
    image, index = np.dtype(np.uint8), np.dtype(np.int64)
    arrays = []
    for split in SPLITS:
        arrays.append(ArraySpec(f"{split}/images", (image_size, image_size, 3), image))
        arrays.append(ArraySpec(f"{split}/labels", (), index))
        arrays.append(ArraySpec(f"{split}/source_index", (), index))
    arrays.append(ArraySpec("train/views", (views, 3), np.dtype(np.int16)))
    return tuple(arrays)


def output_arrays(outputs: tuple[OutputSpec, ...], views: int) -> tuple[ArraySpec, ...]:
    """Arrays that hold what the teacher said, then `digest` and `valid`, which vouch for it."""
    said = [ArraySpec(output_array(output.name), (views, *output.shape), np.dtype(output.dtype)) for output in outputs]
    return (
        *said,
        ArraySpec(DIGEST, (views, len(outputs), DIGEST_BYTES), np.dtype(np.uint8)),
        ArraySpec(VALID, (views,), np.dtype(np.bool_)),
    )
