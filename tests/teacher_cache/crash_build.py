"""A build that kills itself: python -m tests.teacher_cache.crash_build STORE WEIGHTS FORMAT WHERE.

FORMAT is zarr or hdf5, with a form of answers after it where that is not logits ("zarr top:4"), or `extend` for an
extension of a store that is there. WHERE is the step of the second batch, or,
with "first " in front of it, of the first one, before which SIGKILL comes; the forwards that happened are counted in
the file STORE.forwards, outside the ledger.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from storage.answers import AnswerForm
from storage.ledger import Ledger
from storage.store import Store
from teacher_cache.build import build
from teacher_cache.config import BuildConfig, ExtensionConfig
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build
from teacher_cache.teachers import ZooTeacher

STEPS = {
    "reserve": (Ledger, "reserve"),
    "call": (ZooTeacher, "call"),
    "write": (Store, "write_outputs"),
    "publish": (Store, "publish"),
    "commit": (Ledger, "commit"),
}


def config(store: Path, weights: Path, array_format: str, n: int = 96) -> BuildConfig:
    array_format, _, keep = array_format.partition(" ")
    return BuildConfig(
        teacher="resnet8",
        weights=weights,
        dataset="digits",
        n=n,
        features="layer1",
        array_format=array_format,
        store=store,
        batch_size=32,
        device="cpu",
        keep=AnswerForm.read(keep) if keep else None,
        trust_teacher=True,  # it was never trained
    )


def count_forwards(path: Path) -> None:
    """Append a line for each teacher forward, durably, before it happens."""
    call = ZooTeacher.call

    def counted(self, views, outputs):
        with path.open("a") as file:
            file.write(f"{len(views)}\n")
            file.flush()
            os.fsync(file.fileno())
        return call(self, views, outputs)

    ZooTeacher.call = counted


def kill_before(owner: type, name: str, *, at_call: int) -> None:
    original, calls = getattr(owner, name), []

    def wrapped(*arguments, **options):
        calls.append(name)
        if len(calls) == at_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    count_forwards(folder.with_name(folder.name + ".forwards"))
    *first, name = sys.argv[4].split()
    owner, step = STEPS[name]
    kill_before(owner, step, at_call=1 if first else 2)
    if sys.argv[3] == "extend":
        wanted = ExtensionConfig(
            store=folder, features="pooled", weights=Path(sys.argv[2]), batch_size=32, device="cpu"
        )
        extend(*prepare_extension(wanted))
    else:
        build(*prepare_build(config(folder, Path(sys.argv[2]), sys.argv[3])))
