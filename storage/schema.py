"""The arrays of a store: names, shapes and types, derived from what the store is about.

Rows are the first axis everywhere. The *sample* arrays are written when a store is created or grown, those of the
teacher's *parameters* with them; the *output* arrays receive the teacher's answers, row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from math import prod

import numpy as np

from ground.documents import Positive
from storage.float_types import StoredType, stored_type

SPLITS = ("train", "val", "test")
# A split of its own, with one row: what is the teacher's and not any image's.
TEACHER = "teacher"
HEAD_WEIGHT, HEAD_BIAS = "head/weight", "head/bias"
IMAGES = "train/images"
VIEWS = "train/views"
VALID = "train/valid"
DIGEST = "train/digest"
DIGEST_BYTES = 16
_FEATURES = "train/features/"
_MAX_CHUNK_BYTES = 8 << 20
# Of a chunk of small rows; where chunks are aligned, all chunks of a store end together every so many rows.
CHUNK_ROWS = 64
_BLOCK_BYTES = 256 << 10
SOURCE_INDEX = "train/source_index"
_TRAIN_SAMPLES = (IMAGES, "train/labels", SOURCE_INDEX, VIEWS)


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array: `name` is its path in the store, `row_shape` its shape without the row axis, `dtype` NumPy's.

    Args:
        aligned: whether its chunks have a power of two of rows.
    """

    name: str
    row_shape: tuple[int, ...]
    dtype: np.dtype
    aligned: bool = False

    @property
    def split(self) -> str:
        """train, val, test or teacher: whose rows the array has."""
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
        """Rows per chunk: 64, or fewer for huge rows; 1 where there is no second one."""
        if self.split == TEACHER:
            return 1
        rows = int(min(CHUNK_ROWS, max(1, _MAX_CHUNK_BYTES // max(1, self.row_bytes))))
        return 1 << (rows.bit_length() - 1) if self.aligned else rows

    @property
    def is_answer(self) -> bool:
        """Whether it is written as the teacher answers; the others are there before."""
        return self.split == "train" and self.name not in _TRAIN_SAMPLES

    @property
    def is_training_sample(self) -> bool:
        """Whether it is of the training images, answered or not."""
        return self.name in _TRAIN_SAMPLES

    @property
    def block_rows(self) -> int:
        """Rows of a sample array that have one digest: the whole chunks that fit into 256 KiB, and at least one.

        So who reads a chunk of images hashes no more than that, and labels do not have a digest for every 512 bytes.
        """
        return self.chunk_rows * max(1, _BLOCK_BYTES // max(1, self.chunk_rows * self.row_bytes))

    def stored_bytes(self, rows: int) -> int:
        """Bytes of an array of so many rows: both formats keep whole chunks, also the last one."""
        return -(-rows // self.chunk_rows) * self.chunk_rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output that is kept of each call, where the shape is that of a single view; or a parameter of the teacher."""

    name: str
    shape: tuple[Positive, ...]
    dtype: StoredType


def feature_array(name: str) -> str:
    """Path of the array that holds feature maps of the layer `name`."""
    return _FEATURES + name


# The label of a training row that has none.
UNLABELLED = -1


def output_array(name: str, answers: Container[str] = ("logits",)) -> str:
    """Path of the array of one kept output: of an answer over the classes, or of a layer.

    Args:
        answers: names of the outputs that a store keeps its answers in; those of other kinds may be layers there.
    """
    return f"train/{name}" if name in answers else feature_array(name)


def parameter_array(name: str) -> str:
    """Path of the array that holds a parameter of the teacher."""
    return f"{TEACHER}/{name}"


def norm_parameters(layer: str) -> tuple[str, str]:
    """Names of scale and shift of the batch norm that makes a layer's pre-activation."""
    return f"norm/{layer}/scale", f"norm/{layer}/shift"


# How many rows an array has.
RowsOf = Callable[[ArraySpec], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """How many rows a store has.

    Args:
        n: training images that the teacher is asked about.
        rest: further ones of the same pool, after those, that it is not asked about: they have no answers.
    """

    n: int
    rest: int = 0
    num_val: int
    num_test: int

    def of(self, spec: ArraySpec) -> int:
        """Rows of an array."""
        if spec.is_answer:
            return self.n
        return {"train": self.n + self.rest, "val": self.num_val, "test": self.num_test, TEACHER: 1}[spec.split]


def image_array(split: str, image_size: int) -> ArraySpec:
    """The base images of a split."""
    return ArraySpec(f"{split}/images", (image_size, image_size, 3), np.dtype(np.uint8))


def sample_arrays(image_size: int, views: int, view_numbers: int) -> tuple[ArraySpec, ...]:
    """Arrays that say what the images are, and by how many numbers each view of them; no teacher needed."""
    index, arrays = np.dtype(np.int64), []
    for split in SPLITS:
        arrays.append(image_array(split, image_size))
        arrays.append(ArraySpec(f"{split}/labels", (), index))
        arrays.append(ArraySpec(f"{split}/source_index", (), index))
    arrays.append(ArraySpec(VIEWS, (views, view_numbers), np.dtype(np.int16)))
    return tuple(arrays)


def parameter_arrays(parameters: tuple[OutputSpec, ...]) -> tuple[ArraySpec, ...]:
    """Arrays that hold the teacher's parameters, one row each."""
    return tuple(ArraySpec(parameter_array(spec.name), spec.shape, stored_type(spec.dtype)) for spec in parameters)


def output_arrays(
    outputs: tuple[OutputSpec, ...], views: int, answers: Container[str] = ("logits",)
) -> tuple[ArraySpec, ...]:
    """Arrays that hold what the teacher said, then `digest` and `valid`, which vouch for it; see `output_array`."""
    said = [
        ArraySpec(output_array(output.name, answers), (views, *output.shape), stored_type(output.dtype))
        for output in outputs
    ]
    return (
        *said,
        ArraySpec(DIGEST, (views, len(outputs), DIGEST_BYTES), np.dtype(np.uint8)),
        ArraySpec(VALID, (views,), np.dtype(np.bool_)),
    )
