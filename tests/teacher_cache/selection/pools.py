"""Pools of small images, for rules to choose from."""

from __future__ import annotations

import numpy as np
import torch

from ground.geometry import Normalisation, ViewGeometry
from models.compute import Compute
from storage.identity import DatasetIdentity, Identity, TeacherIdentity
from teacher_cache.datasets.base import ArraySplit
from teacher_cache.selection import Pool

SIDE = 8


def pool_of(
    labels: np.ndarray | list[int], *, bought: int = 0, num_classes: int = 4, images: np.ndarray | None = None
) -> Pool:
    """All images may be bought, but the first ones that are; in an order that is not theirs."""
    labels = np.asarray(labels, np.int64)
    order = np.random.default_rng(5).permutation(len(labels)).astype(np.int64)
    if images is None:
        images = np.random.default_rng(6).integers(0, 256, (len(labels), SIDE, SIDE, 3), dtype=np.uint8)
    teacher = TeacherIdentity(
        name="resnet8",
        fingerprint="0" * 64,
        num_classes=num_classes,
        normalisation=Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        precision="fp32",
        layers=(),
    )
    identity = Identity(
        teacher=teacher,
        dataset=DatasetIdentity(name="drawn", digest="1" * 64, classes=tuple(f"c{c}" for c in range(num_classes))),
        geometry=ViewGeometry(image_size=SIDE, crop_size=SIDE, padding=0),
        seed=0,
        views=1,
        view_policy="plain",
        outputs=(),
        parameters=(),
    )
    return Pool(
        images=ArraySplit(images, labels),
        left=order[bought:],
        bought=order[:bought],
        identity=identity,
        compute=Compute(torch.device("cpu"), "fp32"),
    )
