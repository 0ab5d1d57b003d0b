"""The figures that the paper published, in our names, so that they can stand beside ours.

Source: Xu et al., Comparative Knowledge Distillation, WACV 2025, tables 1, 2 and 3 and figure 4, all on CIFAR-100. The
numbers are copied as printed, in `analysis/paper/*.csv`; an empty cell of table 1 is empty in the paper. Each table is
made once, and not to be changed.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import pandas as pd

from analysis.calls import NOT_REACHED, PASSED
from ground.errors import InvalidInput
from models import canonical_name

SOURCE = "Xu et al., Comparative Knowledge Distillation, WACV 2025"
DATASET = "cifar100"

_RKD_DIMENSIONS = re.compile(r"rkd_d(?::dims=(\d+))?")
_DEFAULT_DIMENSIONS = "10"


def method_key(label: str) -> str:
    """What a method is compared by: our names and the paper's, in any case, become one; others stay as they are.

    Our `rkd_d:dims=50` is the paper's RKD_50. Any other setting makes another method, which the paper does not have.
    """
    key = "".join(label.lower().split())
    dimensions = _RKD_DIMENSIONS.fullmatch(key)
    return f"rkd_{dimensions[1] or _DEFAULT_DIMENSIONS}" if dimensions else key


def network_key(name: str) -> str:
    """A network in our spelling: the paper's WRN-40-2 is wrn_40_2; an unknown name stays as it is."""
    try:
        return canonical_name(name)
    except InvalidInput:
        return name


@cache
def calls_to_target() -> pd.DataFrame:
    """Table 1, with the columns of `calls_table`; `label` is a `method_key`.

    The paper leaves a cell empty for two reasons. Where the same method has a number for a higher target, the target
    was passed at the smallest n; elsewhere it was not reached.
    """
    table = _read("table1_calls_to_target")
    targets, thousands = table["target_accuracy_percent"], table["teacher_calls_thousands"]
    highest = targets.where(thousands.notna()).groupby([table["teacher"], table["student"], table["label"]])
    passed = targets < highest.transform("max")
    return pd.DataFrame(
        {
            "teacher": table["teacher"],
            "student": table["student"],
            "dataset": DATASET,
            "target": targets / 100,
            "label": table["label"],
            "calls": (thousands * 1000).round(),
            "why_empty": passed.map({True: PASSED, False: NOT_REACHED}).where(thousands.isna(), ""),
            "asks_teacher": True,
        }
    )


@cache
def white_box() -> pd.DataFrame:
    """Table 2: teacher, student, label (a `method_key`), n, mean and std in [0, 1]."""
    table = _read("table2_white_box")
    shares = {"mean": "test_accuracy_percent_mean", "std": "test_accuracy_percent_std"}
    found = table[["teacher", "student", "label"]].assign(n=table["teacher_calls"])
    return found.assign(**{name: table[column] / 100 for name, column in shares.items()})


@cache
def logit_correlation() -> pd.DataFrame:
    """Table 3: teacher, student, label (a `method_key`), correlation_difference."""
    table = _read("table3_logit_correlation")
    return table[["teacher", "student", "label"]].assign(
        correlation_difference=table["mean_abs_correlation_difference"]
    )


@cache
def rkd_dimensions() -> pd.DataFrame:
    """Figure 4: student, label (a `method_key`), mean: the test accuracy in [0, 1], averaged over the calls."""
    table = _read("figure4_rkd_dimensions")
    return table[["student", "label"]].assign(mean=table["test_accuracy_percent_mean_over_calls"] / 100)


@cache
def _read(name: str) -> pd.DataFrame:
    """A table as it was copied."""
    with (files("analysis") / "paper" / f"{name}.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file)
    networks = {column: table[column].map(network_key) for column in ("teacher", "student") if column in table}
    methods = table["method" if "method" in table else "loss"]
    return table.assign(**networks, label=methods.map(method_key))
