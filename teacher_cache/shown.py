"""What the teacher is shown: the sampled images, the views of them, and all that a store keeps of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ground.geometry import Rendering
from ground.views import sample_views, view_pixels
from storage.digest import input_digests
from storage.store import Store
from teacher_cache.datasets import ImageDataset
from teacher_cache.sample import NestedSample

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """The images and views of n rows, in the order of the store.

    Args:
        images: (n, H, W, 3) uint8 base images.
        views: (n, V, 3), or (n, V, 5) of boxes.
        source_index: (n,) int64, where in the training split each row comes from.
        rendering: how the teacher is shown them.
        arrays: reads every sample array of a store, whole.
    """

    images: np.ndarray
    views: np.ndarray
    source_index: np.ndarray
    rendering: Rendering
    arrays: Callable[[], Arrays]

    def pixels(self, cells: Sequence[int]) -> Tensor:
        """What the teacher is shown for some cells, row * V + view: (C, 3, h, w) uint8; see `Teacher.call`."""
        rows, views = np.divmod(np.array(cells), self.views.shape[1])
        images, chosen = (torch.from_numpy(array) for array in (self.images[rows], self.views[rows, views]))
        return view_pixels(images, chosen, self.rendering)

    def input_digests(self) -> list[list[bytes]]:
        """n lists of V: digests of the exact inputs of all calls."""
        return input_digests(self.images, self.views, self.rendering.geometry)


def show(
    dataset: ImageDataset, sample: NestedSample, rendering: Rendering, *, policy: str, seed: int, num_views: int
) -> Shown:
    """The views that a policy gives of a sample of a data set; reads the images of the sample."""
    images = dataset.train.read(sample.train)
    views = sample_views(rendering.geometry, policy, seed=seed, source_index=sample.train, num_views=num_views)

    def arrays() -> Arrays:
        pool, test = dataset.train, dataset.test
        test_index = np.arange(len(test), dtype=np.int64)
        return {
            "train/images": images,
            "train/labels": pool.labels[sample.train],
            "train/source_index": sample.train,
            "train/views": views,
            "val/images": pool.read(sample.val),
            "val/labels": pool.labels[sample.val],
            "val/source_index": sample.val,
            "test/images": test.read(test_index),
            "test/labels": test.labels,
            "test/source_index": test_index,
        }

    return Shown(images, views, sample.train, rendering, arrays)


def shown_in(store: Store) -> Shown:
    """What a store keeps of it; reads and checks every sample array and parameter."""
    samples = store.read_samples()
    return Shown(
        images=samples["train/images"],
        views=samples["train/views"],
        source_index=samples["train/source_index"],
        rendering=store.manifest.identity.teacher_rendering,
        arrays=lambda: samples,
    )
