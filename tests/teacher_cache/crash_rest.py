"""A growth that kills itself: python -m tests.teacher_cache.crash_rest STORE WEIGHTS FORMAT WHERE.

The store has 40 rows and 30 images besides. FORMAT is zarr or hdf5, with `extend` after it for one that adds 20 images,
and otherwise 20 more rows are asked about, and images added until there are 40; a word after it is the rule by which
they are bought. WHERE is the step before which SIGKILL comes.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from storage.arrays import ArrayFile
from storage.formats import FORMATS
from storage.ledger import Ledger
from storage.store import Store
from teacher_cache.add_rest import ImageOptions, add_rest
from teacher_cache.build import build
from teacher_cache.config import BuildConfig, CallConfig
from teacher_cache.prepare import prepare_build
from teacher_cache.rest import Rest
from teacher_cache.selection import SelectorSpec
from tests.teacher_cache.crash_build import kill_before

STEPS = {
    "write": (ArrayFile, "write"),
    "sync": (ArrayFile, "sync"),
    "save": (Store, "save"),
    "record": (Ledger, "record_store"),
    "reserve": (Ledger, "reserve"),
    "publish": (Store, "publish"),
}


def config(store: Path, weights: Path, array_format: str, n: int, rest: int) -> BuildConfig:
    return BuildConfig(
        teacher="resnet8",
        weights=weights,
        dataset="digits",
        n=n,
        rest=Rest(rest),
        array_format=array_format,
        store=store,
        device="cpu",
        batch_size=1,  # what the teacher says may differ in its last bits where batches do
        trust_teacher=True,  # it was never trained
    )


def grow(store: Path, weights: Path, kind: str) -> None:
    array_format, _, how = kind.partition(" ")
    if how == "extend":
        add_rest(CallConfig(store=store), Rest(50), ImageOptions())
    else:
        select = SelectorSpec(how) if how else None
        build(*prepare_build(replace(config(store, weights, array_format, 60, 40), select=select)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    owner, step = STEPS.get(sys.argv[4], (FORMATS[sys.argv[3].split()[0]].load(), sys.argv[4]))
    kill_before(owner, step, at_call=1)
    grow(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
