"""Labels of a store's rows that are mixes of two others (`storage.made_images`)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ground.errors import StoreUnreadable
from models.compute import Compute
from storage.made_images import Recipes, first_shares, first_unsound, is_made
from storage.rows import Rows
from storage.schema import UNLABELLED
from storage.store import Store
from student_train.signals import MixedLabels


def read_mixed(store: Store, rows: Rows, compute: Compute, chosen: Tensor | None) -> MixedLabels | None:
    """The other labels of rows that are mixes, on the device; None where none of them is one.

    Args:
        chosen: places among the rows, of those that are learned from; None for all.

    Raises:
        StoreUnreadable: a row is made of an image that is no earlier row, or by no recipe that there is.
    """
    if not store.manifest.rounds:
        return None  # nothing was made
    every = Rows.first(store.manifest.num_images)
    index, labels = store.read_sample("train/source_index", every), store.read_sample("train/labels", every)
    unsound = first_unsound(index)
    if unsound is not None:
        raise StoreUnreadable(
            f"row {unsound} of {store.place} is made of images that are not rows before it, or in no way there is; "
            "build the store again"
        )
    made = np.flatnonzero(is_made(index))
    recipes = Recipes.of(index[made])
    shares = first_shares(recipes, store.manifest.identity.geometry.image_size)
    second, share = labels.copy(), np.ones(len(labels), np.float32)
    is_mix = recipes.is_mix & (labels[made] != UNLABELLED)
    second[made[is_mix]] = _labels_at(index, labels, recipes.second[is_mix])
    share[made[is_mix]] = shares[is_mix]
    wanted = rows.index if chosen is None else rows.index[chosen.numpy()]
    if (share[wanted] == 1).all():
        return None
    return MixedLabels(
        compute.to_device(torch.from_numpy(second[wanted])), compute.to_device(torch.from_numpy(share[wanted]))
    )


def _labels_at(index: np.ndarray, labels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Labels of images by their place in the split: they are rows themselves."""
    order = np.argsort(index, kind="stable")
    found: np.ndarray = labels[order][np.searchsorted(index[order], places)]
    return found
