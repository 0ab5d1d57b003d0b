"""Typical: of each group of images of which none was bought, the one that lies most densely among the others."""

from __future__ import annotations

import heapq
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from teacher_cache.selection.encoders import PIXELS
from teacher_cache.selection.feature_rule import FeatureRule

# As released: images of a mini-batch of k-means, neighbours, and up to how many images a cluster is one of outliers.
BATCH, _NEIGHBOURS, _FEW = 5000, 20, 5
# Distances that are computed at once.
AT_ONCE = 1 << 24


class Typical(FeatureRule):
    """TypiClust: min(bought + count, clusters) clusters of k-means over features of length 1.

    Again and again the cluster with the fewest that were bought or chosen comes next, of those the largest; clusters of
    5 images or fewer come after all others. Of it the image of the highest typicality is taken, the inverse of the mean
    distance to its 20 nearest neighbours in the cluster.

    As released, but for the order of clusters after each has been asked once: there they take turns, whatever was
    bought of each; and typicality is of all images of a cluster, those included that were chosen.

    Args:
        clusters: the most of them.
        encoder, subset: see `FeatureRule`.
    """

    name: ClassVar[str] = "typical"
    source: ClassVar[str] = "Hacohen et al. 2022 (TypiClust), arXiv:2202.02794, section 3"

    def __init__(self, encoder: str = PIXELS, clusters: int = 500, subset: int | None = None) -> None:
        super().__init__(encoder, subset)
        if clusters < 1:
            raise ValueError(f"clusters must be at least 1, got {clusters}")
        self.clusters = clusters

    def pick(self, features: Tensor, num_left: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """See `FeatureRule.pick`."""
        for rows in features.split(BATCH):
            rows.div_(rows.norm(dim=1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny))
        num_clusters = min(len(features) - num_left + count, self.clusters, len(features))
        labels = _clustered(features, num_clusters, int(rng.integers(1 << 31)))
        return most_typical(features, labels, num_left, count)

    def bytes_beside(self, left: int, bought: int, count: int, width: int) -> int:
        """See `FeatureRule.bytes_beside`: labels, their order and weights, and distances of one of the two steps."""
        number, centres = left + bought, min(bought + count, self.clusters)
        clustering = 4 * centres * (6 * width + 2 * 3 * max(BATCH, centres))
        return 40 * number + max(clustering, 4 * 3 * AT_ONCE)


def most_typical(features: Tensor, labels: np.ndarray, num_left: int, count: int) -> np.ndarray:
    """Places of rows, (count,), by typicality in their clusters; see `Typical`.

    Args:
        features: (M, D) float32; of the first `num_left` some are chosen, the others were bought.
        labels: (M,), the cluster of each.
    """
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    members = np.split(order, np.cumsum(sizes)[:-1])
    have = np.bincount(labels[num_left:], minlength=len(sizes))
    waiting = [
        (bool(size <= _FEW), int(bought), -int(size), cluster)
        for cluster, (size, bought) in enumerate(zip(sizes, have, strict=True))
        if size > bought
    ]
    heapq.heapify(waiting)
    ranked: dict[int, list[int]] = {}
    chosen = np.empty(count, dtype=np.int64)
    for turn in range(count):
        is_small, bought, size, cluster = heapq.heappop(waiting)
        if cluster not in ranked:
            ranked[cluster] = _by_typicality(features, members[cluster], num_left)
        chosen[turn] = ranked[cluster].pop()
        if ranked[cluster]:
            heapq.heappush(waiting, (is_small, bought + 1, size, cluster))
    return chosen


def _by_typicality(features: Tensor, members: np.ndarray, num_left: int) -> list[int]:
    """Those members of a cluster that may be chosen, the most typical last; of equals, the first one last."""
    distances = _to_neighbours(features[torch.from_numpy(members)])
    free = members < num_left
    ranked: list[int] = members[free][np.argsort(distances[free], kind="stable")[::-1]].tolist()
    return ranked


def _to_neighbours(features: Tensor) -> np.ndarray:
    """(m,) mean distance of each row to its nearest others, of which there may be fewer than there should be."""
    number = len(features)
    neighbours = min(_NEIGHBOURS, number - 1)
    found = torch.zeros(number, dtype=torch.float64)
    if not neighbours:
        return found.numpy()
    rows = max(1, AT_ONCE // number)
    for start in range(0, number, rows):
        part = features[start : start + rows]
        distances = torch.cdist(part, features)
        own = torch.arange(len(part))
        distances[own, own + start] = torch.inf
        nearest = distances.topk(neighbours, dim=1, largest=False).values
        found[start : start + rows] = nearest.double().mean(dim=1)
    return found.numpy()


def _clustered(features: Tensor, num_clusters: int, seed: int) -> np.ndarray:
    """The cluster of each row by mini-batch k-means, (M,); the same seed gives the same."""
    # Loaded when it is used: it takes longer than a command may take to begin.
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    means = MiniBatchKMeans(num_clusters, batch_size=BATCH, n_init=1, random_state=seed)
    # Several threads add numbers up in any order.
    with threadpool_limits(limits=1):
        labels: np.ndarray = means.fit(features.numpy()).labels_.astype(np.int64)
    return labels
