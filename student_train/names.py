"""Names of the paper's methods, for who only lists them; `student_train.recipes` says what they are."""

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
