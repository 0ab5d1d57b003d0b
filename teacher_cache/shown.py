"""What the teacher is shown: the sampled images, the views of them, and all that a store keeps of both.

Images of a large sample are not held: they are decoded a few at a time, once to tell what every call is about, and once
into the store's arrays, from which the teacher is then shown them. A sample that takes little room is decoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from ground.geometry import Rendering, ViewGeometry
from ground.views import sample_views, view_pixels
from storage.blocks import RowSource
from storage.digest import input_digests
from storage.rows import Rows
from storage.schema import IMAGES, VIEWS, ArraySpec, image_array
from storage.store import Store
from teacher_cache.datasets import ImageDataset
from teacher_cache.datasets.base import Split
from teacher_cache.sample import NestedSample

# A sample of so many bytes of images is held: 87,000 of CIFAR, 1,700 of 224 pixels.
MOST_HELD_BYTES = 256 << 20
# Of larger ones, this much is decoded and digested at once.
DECODED_BYTES = 64 << 20
# Blocks of images that were read last; a batch goes on where the one before it ended.
_NUM_RECENT = 4


@dataclass(frozen=True, eq=False)
class Shown:
    """The images and views of the n rows that the teacher is asked about, in the order of the store.

    Args:
        images: (n, H, W, 3) uint8 base images; in memory, or read a few at a time, and then others may follow.
        views: (n, V, 3), or (n, V, 5) of boxes.
        source_index: (n,) int64, where in the training split each row comes from.
        rendering: how the teacher is shown them.
        arrays: the rows of every sample array of a store, by its name; also those of its rest.
    """

    images: RowSource
    views: np.ndarray
    source_index: np.ndarray
    rendering: Rendering
    arrays: Mapping[str, RowSource]

    def pixels(self, cells: Sequence[int]) -> Tensor:
        """What the teacher is shown for some cells, row * V + view: (C, 3, h, w) uint8; see `Teacher.call`."""
        rows, views = np.divmod(np.array(cells), self.views.shape[1])
        chosen = self.images[rows] if isinstance(self.images, np.ndarray) else self._recent.rows(rows)
        return view_pixels(torch.from_numpy(chosen), torch.from_numpy(self.views[rows, views]), self.rendering)

    def input_digests(self) -> list[list[bytes]]:
        """n lists of V: digests of the exact inputs of all calls."""
        digests, geometry = list[list[bytes]](), self.rendering.geometry
        step = max(1, DECODED_BYTES // _image_spec(self.rendering).row_bytes)
        for first in range(0, len(self.views), step):
            rows = slice(first, min(first + step, len(self.views)))
            digests += input_digests(self.images[rows], self.views[rows], geometry)
        return digests

    def kept_in(self, store: Store) -> Shown:
        """The same, with images that are not held read from a store that has them all, and checked."""
        return self if isinstance(self.images, np.ndarray) else replace(self, images=store.samples()[IMAGES])

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
    """Rows in memory, and others after them that are made when they are asked for."""

    held: np.ndarray
    others: RowSource

    def __len__(self) -> int:
        return len(self.held) + len(self.others)

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        n = len(self.held)
        if last <= n:
            return self.held[first:last]
        others = self.others[max(0, first - n) : last - n]
        return others if first >= n else np.concatenate([self.held[first:], others])


def _image_spec(rendering: Rendering) -> ArraySpec:
    return image_array("train", rendering.geometry.image_size)


def show(
    dataset: ImageDataset, sample: NestedSample, rendering: Rendering, *, policy: str, seed: int, num_views: int
) -> Shown:
    """The views that a policy gives of a sample of a data set; reads the images of the sample if they are held."""
    pool, test = dataset.train, dataset.test
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
    n = len(sample.train)
    images, views = arrays[IMAGES], arrays[VIEWS][:n]
    if n * _image_spec(rendering).row_bytes <= MOST_HELD_BYTES:
        images = pool.read(sample.train)
        arrays[IMAGES] = _Followed(images, _Decoded(pool, sample.rest))
    return Shown(images, views, sample.train, rendering, arrays)


def training_rows(
    dataset: ImageDataset, sample: NestedSample, geometry: ViewGeometry, *, policy: str, seed: int, num_views: int
) -> dict[str, RowSource]:
    """The arrays of all training images of a sample, its rest among them: made when they are asked for."""
    pool, index = dataset.train, sample.images

    def draw(chosen: np.ndarray) -> np.ndarray:
        return sample_views(geometry, policy, seed=seed, source_index=chosen, num_views=num_views)

    return {
        IMAGES: _Decoded(pool, index),
        "train/labels": pool.labels[index],
        "train/source_index": index,
        VIEWS: _Drawn(draw, index),
    }


def shown_in(store: Store) -> Shown:
    """What a store keeps of it; all is checked when it is read, the images when they are shown."""
    samples, asked = store.samples(), Rows.first(store.manifest.n)
    return Shown(
        images=samples[IMAGES],
        views=store.read_sample("train/views", asked),
        source_index=store.read_sample("train/source_index", asked),
        rendering=store.manifest.identity.teacher_rendering,
        arrays=samples,
    )
