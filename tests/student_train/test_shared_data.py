"""Students that learn from the same are served by one reading, and only as long as it is the same."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from ground.errors import StoreIncomplete
from models.compute import Compute
from storage.store import Store
from student_train import shared_data
from student_train.methods import parse_method
from student_train.needs import Wanted
from student_train.protocol import ProtocolConfig
from student_train.run_folder import RunFolder
from student_train.shared_data import SharedData
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer

CPU = Compute(torch.device("cpu"), "fp32")
LOGITS = Wanted(student=(), teacher=("logits",), parameters=False)


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """How often arrays of images and of answers are read."""
    counted: Counter = Counter()
    for name in ("read_outputs", "read_sample", "read_parameters"):
        original = getattr(Store, name)

        def counting(self, *arguments, name=name, original=original):
            counted[name] += 1
            return original(self, *arguments)

        monkeypatch.setattr(Store, name, counting)
    return counted


def test_students_of_the_same_outputs_need_one_reading(built_store, tmp_path, reads):
    shared = SharedData()
    results = {}
    for method in ("kd", "dist", "ckd"):
        for load in ({"load": shared.load}, {}):
            reads.clear()
            config = TrainConfig(student="resnet8", protocol=ProtocolConfig(max_evals=1))
            folder = RunFolder(tmp_path / f"{method}{len(load)}")
            trainer = Trainer.open(config, built_store, 32, parse_method(method), CPU, folder, **load)
            results[method, len(load)] = trainer.run() | {"seconds": 0}
            assert reads["read_outputs"] == (not load or method == "kd")
            assert (reads["read_sample"] > 0) == (not load or method == "kd")
        assert results[method, 0] == results[method, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"n": 40},
        {"wanted": replace(LOGITS, teacher=("logits", "layer2"))},
        {"wanted": replace(LOGITS, parameters=True)},
        {"compute": Compute(torch.device("cpu"), "bf16")},
    ],
)
def test_whatever_is_read_differently_is_read_again(built_store, reads, change):
    shared, store = SharedData(), Store.open(built_store)
    asked = {"n": 32, "wanted": LOGITS, "compute": CPU}
    first = shared.load(store, **asked)
    assert shared.load(store, **asked).train is first.train
    reads.clear()
    other = shared.load(store, **(asked | change))
    assert reads["read_outputs"] == 1
    assert other.n == (asked | change)["n"]
    # Only the last is kept, so that no more memory is taken than by loading for each.
    shared.load(store, **asked)
    assert reads["read_outputs"] == 2


def test_two_are_kept_where_that_is_asked_for(built_store, reads):
    shared, store = SharedData(keep=2), Store.open(built_store)
    for n in (32, 40, 32, 48, 32):
        assert shared.load(store, n, LOGITS, CPU).n == n
    assert reads["read_outputs"] == 3
    shared.load(store, 40, LOGITS, CPU)
    assert reads["read_outputs"] == 4, "the one that was asked for longest ago went"


def test_a_store_that_has_become_another_is_read_again(built_store, tmp_path, reads):
    folder, shared = tmp_path / "store", SharedData()
    shutil.copytree(built_store, folder)
    shared.load(Store.open(folder), 32, LOGITS, CPU)
    store = Store.open(folder)
    store.save(replace(store.manifest, versions={"torch": "another"}))
    shared.load(Store.open(folder), 32, LOGITS, CPU)
    assert reads["read_outputs"] == 2


def test_what_the_ledger_and_the_store_say_now_is_asked_each_time(built_store, tmp_path, monkeypatch):
    folder, shared = tmp_path / "store", SharedData()
    shutil.copytree(built_store, folder)
    store = Store.open(folder)
    first = shared.load(store, 32, LOGITS, CPU)
    monkeypatch.setattr(shared_data, "newest_head", lambda store, witnessed: "later")
    again = shared.load(store, 32, LOGITS, CPU)
    assert (first.ledger_head, again.ledger_head) == (Store.open(built_store).manifest.ledger_head, "later")
    store.retract(np.array([3]))
    with pytest.raises(StoreIncomplete):
        shared.load(store, 32, LOGITS, CPU)
