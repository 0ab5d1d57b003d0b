"""What the teacher is shown: the sampled images, the views of them, and all that a store keeps of both.

Images are decoded when they are asked for, a few at a time; what a store has already is read from there. Of a large
sample they are not held: they are decoded once to tell what every call is about, and once into the store's arrays, from
which the teacher is then shown them. A sample that takes little room is decoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from ground.geometry import Rendering, ViewGeometry, numbers_of_view
from ground.views import sample_views, view_pixels
from storage.blocks import RowSource
from storage.digest import input_digests
from storage.rows import Rows
from storage.schema import IMAGES, SOURCE_INDEX, VIEWS, ArraySpec, image_array
from storage.store import Store
from teacher_cache.datasets import ImageDataset
from teacher_cache.datasets.base import Split
from teacher_cache.datasets.made_split import MadeSplit
from teacher_cache.on_demand import HeldRows, InputDigests
from teacher_cache.sample import NestedSample

# A sample of so many bytes of images is held: 87,000 of CIFAR, 1,700 of 224 pixels.
MOST_HELD_BYTES = 256 << 20
# Of larger ones, this much is decoded and digested at once.
DECODED_BYTES = 16 << 20
# Blocks of images that were read last; a batch goes on where the one before it ended.
_NUM_RECENT = 4


@dataclass(frozen=True, eq=False)
class Shown:
    """The images and views of the n rows that the teacher is asked about, in the order of the store.

    Args:
        images: (n, H, W, 3) uint8 base images; held, or read a few at a time, and then others may follow.
        views: (n, V, 3), or (n, V, 5) of boxes.
        source_index: (n,) int64, where in the training split each row comes from.
        rendering: how the teacher is shown them.
        arrays: the rows of every sample array of a store, by its name; also those of its rest.
    """

    images: RowSource
    views: HeldRows
    source_index: np.ndarray
    rendering: Rendering
    arrays: Mapping[str, RowSource]

    def pixels(self, cells: Sequence[int]) -> Tensor:
        """What the teacher is shown for some cells, row * V + view: (C, 3, h, w) uint8; see `Teacher.call`."""
        rows, views = np.divmod(np.array(cells), self.views.row_shape[0])
        images = self.images.take(rows) if isinstance(self.images, HeldRows) else self._recent.rows(rows)
        chosen = self.views.take(rows)[np.arange(len(rows)), views]
        return view_pixels(torch.from_numpy(images), torch.from_numpy(chosen), self.rendering)

    def input_digests(self) -> InputDigests:
        """n lists of V: digests of the exact inputs of all calls."""
        geometry = self.rendering.geometry
        step = max(1, DECODED_BYTES // _image_spec(self.rendering).row_bytes)
        return InputDigests(
            len(self.views), lambda rows: input_digests(self.images[rows], self.views[rows], geometry), step
        )

    def let_go(self) -> None:
        """Hold no images; those that are asked for again are decoded again. Digests stay known."""
        if isinstance(self.images, HeldRows):
            self.images.let_go()

    def kept_in(self, store: Store) -> Shown:
        """The same, with images that are not held read from a store that has them all, and checked."""
        return self if isinstance(self.images, HeldRows) else replace(self, images=store.samples()[IMAGES])

    @cached_property
    def _recent(self) -> _RecentRows:
        return _RecentRows(self.images, _image_spec(self.rendering).block_rows)


class _RecentRows:
    """Rows of a source in any order, read in blocks of which the last few are held."""

    def __init__(self, source: RowSource, block_rows: int) -> None:
        self._block_rows = block_rows
        self._block = lru_cache(_NUM_RECENT)(lambda block: source[block * block_rows : (block + 1) * block_rows])

    def rows(self, index: np.ndarray) -> np.ndarray:
        """The rows at (C,) places, in that order."""
        size = self._block_rows
        return np.stack([self._block(row // size)[row % size] for row in index.tolist()])


@dataclass(frozen=True, slots=True, eq=False)
class _Decoded:
    """Images of a split, by their index in it, decoded when they are asked for."""

    split: Split
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.split.read(self.index[rows])


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """Views of images, drawn when they are asked for: each from its image's index alone."""

    draw: Callable[[np.ndarray], np.ndarray]
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.draw(self.index[rows])


@dataclass(frozen=True, slots=True, eq=False)
class _Followed:
    """Rows of one source, and after them those of another."""

    first: RowSource
    others: RowSource

    def __len__(self) -> int:
        return len(self.first) + len(self.others)

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        n = len(self.first)
        if stop <= n:
            return self.first[start:stop]
        others = self.others[max(0, start - n) : stop - n]
        return others if start >= n else np.concatenate([self.first[start:n], others])


@dataclass(frozen=True, slots=True, eq=False)
class _First:
    """The first rows of a source."""

    source: RowSource
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(self.count)
        return self.source[first:last]


@dataclass(frozen=True, slots=True, eq=False)
class _After:
    """The rows of a source from one on."""

    source: RowSource
    start: int

    def __len__(self) -> int:
        return len(self.source) - self.start

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        return self.source[self.start + first : self.start + last]


def _image_spec(rendering: Rendering) -> ArraySpec:
    return image_array("train", rendering.geometry.image_size)


def show(
    dataset: ImageDataset,
    sample: NestedSample,
    rendering: Rendering,
    *,
    policy: str,
    seed: int,
    num_views: int,
    store: Store | None = None,
) -> Shown:
    """The views that a policy gives of a sample of a data set; nothing is decoded yet.

    Args:
        store: of that data set; those of its images that are the first of the sample are then read from it.
    """
    pool, test = MadeSplit(dataset.train), dataset.test
    test_index = np.arange(len(test), dtype=np.int64)
    arrays: dict[str, RowSource] = {
        **training_rows(dataset, sample, rendering.geometry, policy=policy, seed=seed, num_views=num_views),
        "val/images": _Decoded(pool, sample.val),
        "val/labels": pool.labels[sample.val],
        "val/source_index": sample.val,
        "test/images": _Decoded(test, test_index),
        "test/labels": test.labels,
        "test/source_index": test_index,
    }
    n, spec = len(sample.train), _image_spec(rendering)
    images = arrays[IMAGES]
    if store is not None:
        stored = _First(store.samples()[IMAGES], _num_alike(store, sample))
        images = arrays[IMAGES] = _Followed(stored, _Decoded(pool, sample.images[len(stored) :]))
    if n * spec.row_bytes <= MOST_HELD_BYTES:
        images = HeldRows(images, n, spec.row_shape, spec.dtype)
        arrays[IMAGES] = _Followed(images, _Decoded(pool, sample.rest))
    drawn = arrays[VIEWS]
    views = HeldRows(drawn, n, (num_views, numbers_of_view(policy)), np.dtype(np.int16))
    arrays[VIEWS] = _Followed(views, _After(drawn, n))
    return Shown(images, views, sample.train, rendering, arrays)


def _num_alike(store: Store, sample: NestedSample) -> int:
    """How many of a store's training images are the first of a sample, in order."""
    there, images = store.read_sample(SOURCE_INDEX), sample.images
    both = min(len(there), len(images))
    others = np.flatnonzero(there[:both] != images[:both])
    return int(others[0]) if len(others) else both


def training_rows(
    dataset: ImageDataset, sample: NestedSample, geometry: ViewGeometry, *, policy: str, seed: int, num_views: int
) -> dict[str, RowSource]:
    """The arrays of all training images of a sample, its rest among them: made when they are asked for."""
    pool, index = MadeSplit(dataset.train), sample.images

    def draw(chosen: np.ndarray) -> np.ndarray:
        return sample_views(geometry, policy, seed=seed, source_index=chosen, num_views=num_views)

    return {
        IMAGES: _Decoded(pool, index),
        "train/labels": pool.labels_of(index),
        SOURCE_INDEX: index,
        VIEWS: _Drawn(draw, index),
    }


def shown_in(store: Store) -> Shown:
    """What a store keeps of it; all is checked when it is read, the images when they are shown."""
    samples, asked = store.samples(), Rows.first(store.manifest.n)
    views = store.read_sample(VIEWS, asked)
    return Shown(
        images=samples[IMAGES],
        views=HeldRows(views, len(views), views.shape[1:], views.dtype),
        source_index=store.read_sample(SOURCE_INDEX, asked),
        rendering=store.manifest.identity.teacher_rendering,
        arrays=samples,
    )
