"""Labels of a store's rows that are mixes of two others (`storage.made_images`)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ground.errors import StoreUnreadable
from models.compute import Compute
from storage.made_images import Recipes, first_shares, is_made
from storage.rows import Rows
from storage.schema import UNLABELLED
from storage.store import Store
from student_train.signals import MixedLabels


def read_mixed(store: Store, rows: Rows, compute: Compute, chosen: Tensor | None) -> MixedLabels | None:
    """The other labels of rows that are mixes, on the device; None where none of them is one.

    Args:
        chosen: places among the rows, of those that are learned from; None for all.

    Raises:
        StoreUnreadable: a mix is of an image that the store does not have.
    """
    if not store.manifest.rounds:
        return None  # nothing was made
    every = Rows.first(store.manifest.num_images)
    index, labels = store.read_sample("train/source_index", every), store.read_sample("train/labels", every)
    made = np.flatnonzero(is_made(index))
    recipes = Recipes.of(index[made])
    shares = first_shares(recipes, store.manifest.identity.geometry.image_size)
    second, share = labels.copy(), np.ones(len(labels), np.float32)
    is_mix = recipes.is_mix & (labels[made] != UNLABELLED)
    second[made[is_mix]] = _labels_at(store, index, labels, recipes.second[is_mix])
    share[made[is_mix]] = shares[is_mix]
    wanted = rows.index if chosen is None else rows.index[chosen.numpy()]
    if (share[wanted] == 1).all():
        return None
    return MixedLabels(
        compute.to_device(torch.from_numpy(second[wanted])), compute.to_device(torch.from_numpy(share[wanted]))
    )


def _labels_at(store: Store, index: np.ndarray, labels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Labels of images by their place in the split: they are rows themselves."""
    order = np.argsort(index, kind="stable")
    found = np.minimum(np.searchsorted(index[order], places), len(index) - 1)
    if not np.array_equal(index[order][found], places):
        raise StoreUnreadable(f"{store.place} has mixes of images that are not among its rows; build the store again")
    return labels[order][found]
