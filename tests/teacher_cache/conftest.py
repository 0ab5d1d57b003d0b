"""What the tests of stage one share."""

from __future__ import annotations

from pathlib import Path

import pytest

from teacher_cache.teachers import ZooTeacher
from tests.teacher_cache.builders import Builders


@pytest.fixture(scope="session")
def _all_builders():
    if not Path("/proc/self/stat").exists():
        pytest.skip("builders are watched through /proc")
    started = Builders()
    yield started
    started.close()


@pytest.fixture
def builders(_all_builders):
    yield _all_builders
    _all_builders.end()


@pytest.fixture
def forwards(monkeypatch) -> list[int]:
    """Images in each teacher forward, counted outside the ledger."""
    counted: list[int] = []
    call = ZooTeacher.call

    def counting(self, views, outputs):
        counted.append(len(views))
        return call(self, views, outputs)

    monkeypatch.setattr(ZooTeacher, "call", counting)
    return counted


@pytest.fixture
def loud(monkeypatch, forwards):
    """Makes the teacher say a value of one output of one image, the `place`-th of its first call of that size."""

    def make(value: float, name: str = "pooled", batch: int = 2, place: int = 3) -> None:
        call, calls = ZooTeacher.call, []

        def saying(self, views, outputs):
            said = call(self, views, outputs)
            calls.append(len(views))
            if len(calls) == batch:
                said = {**said, name: said[name].clone()}
                said[name][(place, *(0 for _ in said[name].shape[1:]))] = value
            return said

        monkeypatch.setattr(ZooTeacher, "call", saying)

    return make
