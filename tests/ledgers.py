"""What tests record in ledgers: sessions that no builder had."""

from __future__ import annotations

from typing import Any

from storage.ledger_records import Session

TEACHER = "ab" * 32


def make_session(**changes: Any) -> Session:
    fields: dict[str, Any] = {
        "teacher": TEACHER,
        "teacher_name": "wrn_40_2",
        "store": "5" * 32,
        "location": "/nowhere",
        "purpose": "train",
        "device": "cpu",
        "precision": "fp32",
        "outputs": ("logits",),
        "host": "here",
    }
    return Session(**fields | changes)
