"""What tests of the rest share: a store of which some rows were asked about, and some of all have no label."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.compute import Compute
from storage.schema import UNLABELLED
from storage.store import Store
from student_train.methods import parse_method
from student_train.protocol import ProtocolConfig
from student_train.rest.spec import parse_rest
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.datasets import open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.rest import Rest

CPU = Compute(torch.device("cpu"), "fp32")
NUM_ASKED, NUM_REST = 40, 80


def trainer_of(
    store: Path, out: Path, method: str = "kd", rest: Sequence[str] = (), n: int | None = None, **settings: Any
) -> Trainer:
    """A short training of a small student."""
    protocol = ProtocolConfig(max_evals=settings.pop("max_evals", 2))
    config = TrainConfig(**{"student": "resnet8", "batch_size": 16, "protocol": protocol} | settings)
    spec = replace(parse_method(method), rest=parse_rest(rest))
    return Trainer.open(config, store, n, spec, CPU, RunFolder(out))


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="session")
def rest_store(made_once, weights) -> Path:
    """40 rows that were asked about, 80 more, half of which have no label; treat it as read-only."""
    return made_once("rest-store", _filling(weights))


def _filling(weights: Path) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        digits = open_dataset("digits")
        labels = digits.train.labels.copy()
        labels[::2] = UNLABELLED
        partly = replace(digits, train=replace(digits.train, labels=labels))
        config = BuildConfig(
            teacher="resnet8",
            weights=weights,
            store=folder,
            device="cpu",
            dataset="digits",
            n=NUM_ASKED,
            rest=Rest(NUM_REST),
            trust_teacher=True,
        )
        build(*prepare_build(config, partly))

    return fill


@pytest.fixture(scope="session")
def rest_labels(rest_store) -> np.ndarray:
    """(80,) of the rows beyond."""
    return Store.open(rest_store).read_sample("train/labels")[NUM_ASKED:]
