"""Names of what is defined elsewhere, for who only lists them: the methods by `student_train.recipes`."""

from __future__ import annotations

PAPER_METHODS = (
    "vanilla",
    "mixup",
    "mixup3",
    "cutmix",
    "ckd",
    "ckd_paper",
    "rkd_d",
    "fitnets",
    "fitnets+crd",
    "vid+crd",
    "fitnets+ckd",
    "vid+ckd",
    "cc+ckd",
)
# With those that are put together here.
NAMED_METHODS = (*PAPER_METHODS, "kd+ckd")
# How the answers of several teachers become one: `student_train.combining` says what each does.
COMBINATIONS = ("mean", "best", "weighted")
