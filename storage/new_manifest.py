"""The manifest of a store that is being made, or is given further rows."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version

import numpy as np

from storage.blocks import RowSource
from storage.formats import FORMATS
from storage.identity import Identity
from storage.manifest import Manifest
from storage.schema import UNLABELLED

_PACKAGES = ("teacher-cache", "torch", "torchvision", "numpy", "zarr", "h5py")


def new_manifest(
    identity: Identity,
    *,
    array_format: str,
    samples: Mapping[str, RowSource],
    rest: int = 0,
    ledger: str | None = None,
    sources: Mapping[str, str] | None = None,
) -> Manifest:
    """What a new store is, as `Store.create` says it; without the digests of its samples, which `lay_out` finds."""
    return Manifest(
        store_id=uuid.uuid4().hex,
        array_format=array_format,
        arrays=f"data{FORMATS[array_format].suffix}",
        identity=identity,
        n=len(samples["train/labels"]) - rest,
        rest=rest,
        num_val=len(samples["val/labels"]),
        num_test=len(samples["test/labels"]),
        samples={},
        ledger=ledger,
        versions=dict(_installed()),
        sources=sources or {},
    )


def counted(manifest: Manifest, samples: Mapping[str, RowSource]) -> Manifest:
    """A manifest that says how many images of the rest have a label."""
    if not manifest.rest:
        return replace(manifest, rest_labelled=None)
    labels = samples["train/labels"][manifest.n : manifest.num_images]
    return replace(manifest, rest_labelled=int(np.count_nonzero(labels != UNLABELLED)))


@cache
def _installed() -> dict[str, str]:
    """Versions of the packages that a store depends on, which are read from files."""
    return {package: version(package) for package in _PACKAGES}
