"""What a teacher's answer over the classes is: its kind, and the outputs in which a store keeps it.

Every kind but `label` says something of each class or of some; all values are float32 and log-probabilities are at
temperature 1. An answer without content, a refusal that was paid for, is NaN in every float and -1 in every id.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Of an answer."""

    LOGITS = "logits"
    LOG_PROBS = "log_probs"
    PROBABILITIES = "probabilities"
    TOP_K = "top_k"
    SAMPLED = "sampled"
    LABEL = "label"


class MissingMass(StrEnum):
    """What becomes of the probability that a top-k leaves out: see `docs/teachers.md`."""

    SPREAD = "spread"
    ZERO = "zero"
    RENORMALISE = "renormalise"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """How a store keeps a teacher's answers.

    Args:
        kind: `Kind`.
        k: ids that are kept of each answer, of `top_k` and `sampled`; None otherwise.
        missing: of `top_k`; None otherwise.
    """

    kind: Kind = Kind.LOGITS
    k: int | None = None
    missing: MissingMass | None = None
