"""Losses by the names that `--loss` takes; this table is the only place that lists them."""

from __future__ import annotations

from student_train.losses.base import DistillationLoss
from student_train.losses.cross_entropy import CrossEntropy
from student_train.losses.kd import KD
from student_train.losses.match import MatchLabels, MatchLogits

LOSSES: dict[str, type[DistillationLoss]] = {
    "ce": CrossEntropy,
    "kd": KD,
    "match_logits": MatchLogits,
    "match_labels": MatchLabels,
}

__all__ = ["KD", "LOSSES", "CrossEntropy", "DistillationLoss", "MatchLabels", "MatchLogits"]
