"""A teacher of 21,841 classes: what stage one takes of memory follows from a batch, and not from the rows."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from storage.answers import AnswerForm
from storage.identity import TeacherIdentity
from storage.ledger import Ledger
from storage.rows import Rows
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from storage.verify import store_problems
from teacher_cache.build import build
from teacher_cache.commands.info import describe
from teacher_cache.config import BuildConfig
from teacher_cache.convert import convert
from teacher_cache.datasets import open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.teachers import Answers, Card

CLASSES, BATCH = 21_841, 16
# Images, digests and calls, and what batches happen to overlap.
MORE_BYTES = 5 * BATCH * CLASSES * 4


class ManyClasses:
    """Answers with numbers that follow from the first pixels; arrays of NumPy, whose memory is traced."""

    def __init__(self) -> None:
        dataset = open_dataset("digits")
        self.card = Card(
            identity=TeacherIdentity(
                name="wide",
                fingerprint="ab" * 32,
                num_classes=CLASSES,
                normalisation=dataset.rendering.normalisation,
                precision="fp32",
                layers=(),
            ),
            rendering=dataset.rendering,
            outputs={"logits": (CLASSES,)},
            parameters={},
            device="nowhere",
        )

    def call(self, views: Tensor, outputs: Sequence[str]) -> Answers:
        seeds = views.long().sum(dim=(1, 2, 3)).tolist()
        rows = [np.random.default_rng(seed).standard_normal(CLASSES, dtype=np.float32) for seed in seeds]
        return {"logits": torch.from_numpy(np.stack(rows))}

    def seconds_per_call(self, outputs: Sequence[str], batch_size: int) -> float:
        return 0.0

    def close(self) -> None:
        pass


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def built(folder: Path, keep: str, n: int) -> None:
    dataset = open_dataset("digits")
    names = (*dataset.classes, *(f"class {place}" for place in range(len(dataset.classes), CLASSES)))
    dataset = replace(dataset, classes=names)
    config = BuildConfig(
        teacher="resnet8",
        store=folder,
        n=n,
        dataset="digits",
        keep=AnswerForm.read(keep),
        batch_size=BATCH,
        trust_teacher=True,
    )
    build(*prepare_build(config, dataset, ManyClasses()))


def problems(folder: Path) -> list[str]:
    ledger = Ledger(folder / LEDGER_FILE)
    found = [str(problem) for problem in store_problems(Store.open(folder), ledger)]
    ledger.close()
    return found


def peaks(folder: Path, keep: str, n: int) -> list[int]:
    """Of a build, a check, a description and a copy."""
    found = [
        peak_of(lambda: built(folder / "store", keep, n)),
        peak_of(lambda: problems(folder / "store")),
        peak_of(lambda: describe(Store.open(folder / "store"))),
        peak_of(lambda: convert(folder / "store", "hdf5", folder / "out")),
    ]
    assert problems(folder / "out") == []
    return found


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["logits", "top:16", "sampled:12"])
def test_memory_is_that_of_a_batch_whatever_n_is(tmp_path, keep):
    built(tmp_path / "warm", keep, 16)
    few, many = peaks(tmp_path / "few", keep, 128), peaks(tmp_path / "many", keep, 384)
    assert 256 * CLASSES * 4 > 3 * MORE_BYTES, "the rows that there are more of take more than is allowed"
    assert max(after - before for before, after in zip(few, many, strict=True)) < MORE_BYTES


def test_a_top_16_of_many_classes_is_small_and_right(tmp_path):
    built(tmp_path / "full", "logits", 32)
    built(tmp_path / "top", "top:16", 32)
    full, top = Store.open(tmp_path / "full"), Store.open(tmp_path / "top")
    logits = full.read_outputs(["logits"], Rows.first(32))["logits"][:, 0]
    ids = top.read_outputs(["top_k.ids"], Rows.first(32))["top_k.ids"][:, 0]
    np.testing.assert_array_equal(ids, np.argsort(-logits, axis=1, kind="stable")[:, :16])
    assert top.manifest.identity.answers[0].shape == (16,)
    form = AnswerForm.read("top:16")
    assert form.size_text(CLASSES, 1) == "top:16, 128 bytes a row, 683 times smaller than logits"
