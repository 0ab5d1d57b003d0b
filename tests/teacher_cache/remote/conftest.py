"""What tests of teachers that are elsewhere share: images, configurations, and a look at the ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.stand_ins.scripted_teacher import ScriptedTeacher
from storage.ledger import Ledger
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from storage.verify import store_problems
from teacher_cache.build import build
from teacher_cache.build_report import BuildReport
from teacher_cache.config import BuildConfig
from teacher_cache.datasets import ImageDataset, open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.remote.policy import AskingConfig, BreakerPolicy, RetryPolicy

# As in earnest, and hundreds of times faster.
FAST = AskingConfig(
    in_flight=4,
    deadline_seconds=5.0,
    retry=RetryPolicy(base_seconds=0.002, cap_seconds=0.02),
    breaker=BreakerPolicy(pause_seconds=0.05),
)


def asked(store: Path, n: int = 40, asking: AskingConfig = FAST, **settings: Any) -> BuildConfig:
    """A build of digits by a scripted teacher."""
    usual = {"batch_size": 8, "device": "cpu", "trust_teacher": True, "view_policy": "plain"}
    return BuildConfig(
        store=store, teacher="openai:scripted", dataset="digits", n=n, asking=asking, **{**usual, **settings}
    )


def asking(**settings: Any) -> AskingConfig:
    """`FAST`, but for some settings."""
    return replace(FAST, **settings)


@dataclass(frozen=True)
class Runs:
    """Makes teachers for the digits, and builds with them."""

    digits: ImageDataset

    def teacher(self, **settings: Any) -> ScriptedTeacher:
        return ScriptedTeacher.of(self.digits, **settings)

    def build(self, store: Path, teacher: ScriptedTeacher, **settings: Any) -> BuildReport:
        return build(*prepare_build(asked(store, **settings), self.digits, teacher))


@pytest.fixture(scope="session")
def runs() -> Runs:
    return Runs(open_dataset("digits"))


def in_ledger(store: Path, look: Callable[[Ledger], Any], url: str | None = None) -> Any:
    """Something of a store's ledger."""
    ledger = Ledger(store / LEDGER_FILE if url is None else url)
    try:
        return look(ledger)
    finally:
        ledger.close()


def summary(store: Path, url: str | None = None) -> Any:
    return in_ledger(store, lambda ledger: ledger.summary(), url)


def problems(store: Path) -> list[str]:
    return in_ledger(store, lambda ledger: [str(problem) for problem in store_problems(Store.open(store), ledger)])
