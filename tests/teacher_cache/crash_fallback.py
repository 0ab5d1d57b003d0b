"""A build that kills itself around a widening: python -m tests.teacher_cache.crash_fallback STORE WEIGHTS WHERE.

An answer of its second batch does not fit float16. WHERE is `before` or `after` the widening that it goes on with, or
`within` it, before the wider arrays take the old ones' place. The forwards that happened are counted in the file
STORE.forwards, outside the ledger.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from storage.store import Store
from teacher_cache import fallback
from teacher_cache.teachers import ZooTeacher
from tests.running import command_called
from tests.teacher_cache.crash_build import count_forwards

WORDS = ["--teacher", "resnet8", "--dataset", "digits", "--n", "50", "--features", "pooled", "--batch-size", "16"]


def make_loud() -> None:
    """The fourth answer of the second batch does not fit float16."""
    call, calls = ZooTeacher.call, []

    def saying(self, views, outputs):
        said = call(self, views, outputs)
        calls.append(len(views))
        if len(calls) == 2:
            said["pooled"] = said["pooled"].clone()
            said["pooled"][3, 0] = 70001.0
        return said

    ZooTeacher.call = saying


def kill_around_widening(where: str) -> None:
    widen, save = fallback.widen, Store.save

    def die(*_, **__) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(*arguments, **options):
        if where == "before":
            die()
        if where == "within":
            Store.save = die
        widen(*arguments, **options)
        die()

    fallback.widen = dying
    assert Store.save is save, "the build itself saves manifests"


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, weights, place = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    count_forwards(folder.with_name(folder.name + ".forwards"))
    make_loud()
    kill_around_widening(place)
    command_called("ckd-cache")(["build", *WORDS, "--weights", weights, "--device", "cpu", "--store", str(folder)])
