"""What the tests of stage one share."""

from __future__ import annotations

import pytest

from teacher_cache.teachers import ZooTeacher


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
