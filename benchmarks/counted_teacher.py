"""The zoo's teachers, with each forward counted before it happens, outside any ledger."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from teacher_cache.teachers import Answers, ZooTeacher

_VARIABLE = "COUNTED_FORWARDS"


def count_forwards() -> None:
    """Count from now on, in this process and those it forks, into a file.

    Each image passes through the teacher alone, so that its answers do not depend on what else was in the batch.
    """
    descriptor, name = tempfile.mkstemp(prefix="forwards-")
    os.close(descriptor)
    os.environ[_VARIABLE] = name
    call = ZooTeacher.call

    def counted(self: ZooTeacher, views: Tensor, outputs: Sequence[str]) -> Answers:
        with open(name, "ab", buffering=0) as file:
            file.write(b"%d\n" % len(views))
        said = [call(self, view[None], outputs) for view in views]
        return {name: torch.cat([one[name] for one in said]) for name in outputs}

    ZooTeacher.call = counted  # type: ignore[method-assign]


def forwards() -> int:
    """Images that passed through a teacher since the counting began."""
    return sum(int(line) for line in Path(os.environ[_VARIABLE]).read_text().split())
