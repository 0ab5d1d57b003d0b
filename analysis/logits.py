"""What a network's logits over the same images say: how alike two networks' classes are, and how flat its spectrum is.

Table 3 and figure 5 of the paper (Xu et al., WACV 2025). All computed in float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from msgspec import Meta, Struct, structs

from analysis.curves import CURVE, num_samples
from analysis.results import chosen
from ground.documents import Amount, read_record
from ground.errors import InvalidInput

LOGITS_FILE = "logits.json"
TEACHER = "teacher"
_ADVICE = "delete it and run the grid again"

_Spectrum = Annotated[tuple[Amount, ...], Meta(min_length=1, description="a list of numbers")]


class Description(Struct, frozen=True, kw_only=True):
    """What `logits.json` of a run holds; see `singular_values` and `correlation_difference`."""

    images: Annotated[int, Meta(ge=2, le=1 << 53, description="a whole number of at least 2")]
    correlation_difference: Annotated[float, Meta(ge=0, le=2, description="a number between 0 and 2")]
    singular_values: _Spectrum
    teacher_singular_values: _Spectrum

    @classmethod
    def load(cls, folder: Path) -> Description:
        """That of a run's folder; raises `InvalidInput` where there is none, or it is damaged."""
        return read_record(folder / LOGITS_FILE, cls, _ADVICE)


def singular_values(logits: np.ndarray) -> np.ndarray:
    """Singular values of the logits with the mean over the images taken from every class, largest first.

    Args:
        logits: (images, K).

    Returns:
        (min(images, K),) float64.

    Raises:
        InvalidInput: they are no finite matrix of at least two images and two classes.
    """
    values = _checked(logits, "the logits")
    return np.asarray(np.linalg.svd(values - values.mean(axis=0), compute_uv=False))


def relative(values: np.ndarray) -> np.ndarray:
    """Singular values as shares of the largest, so that networks of different scale compare; zeros if all are 0."""
    largest = max(values.max(initial=0.0), 0.0) or 1.0
    return np.asarray(values / largest, dtype=np.float64)


def class_correlations(logits: np.ndarray) -> np.ndarray:
    """Pearson correlations between the classes' logits over the images: (K, K).

    A class whose logit is the same for every image has correlation 0 with every other: it goes along with none.
    """
    values = _checked(logits, "the logits")
    # Asked of the values themselves: rounding in the mean leaves a constant column with a deviation just above 0.
    constant = np.ptp(values, axis=0) == 0
    # Scaled before squaring, so that no column is lost in under- or overflow.
    centred = values - values.mean(axis=0)
    centred /= np.where(constant, 1.0, np.abs(centred).max(axis=0))
    centred[:, constant] = 0.0
    lengths = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(constant, 1.0, lengths)
    correlations = np.asarray(np.clip(unit.T @ unit, -1.0, 1.0))
    np.fill_diagonal(correlations, 1.0)
    return correlations


def correlation_difference(student: np.ndarray, teacher: np.ndarray) -> float:
    """Mean absolute difference of the two networks' `class_correlations`, over distinct pairs of classes.

    Args:
        student, teacher: (images, K) logits of the same images.

    Returns:
        In [0, 2]; 0 for a student whose classes go together exactly as the teacher's.
    """
    ours, theirs = _checked(student, "the student's logits"), _checked(teacher, "the teacher's logits")
    if ours.shape != theirs.shape:
        raise InvalidInput(
            f"the student's logits are {ours.shape}, the teacher's {theirs.shape}; give both of the same images"
        )
    distinct = np.triu_indices(ours.shape[1], k=1)
    return float(np.abs(class_correlations(ours)[distinct] - class_correlations(theirs)[distinct]).mean())


def describe_logits(student: np.ndarray, teacher: np.ndarray) -> dict[str, Any]:
    """What `logits.json` of a run holds; arguments as for `correlation_difference`."""
    return {
        "images": len(student),
        "correlation_difference": correlation_difference(student, teacher),
        "singular_values": singular_values(student).tolist(),
        "teacher_singular_values": singular_values(teacher).tolist(),
    }


def described(folder: Path, results: pd.DataFrame) -> pd.DataFrame:
    """A row a chosen run with a `logits.json`: run, teacher, student, dataset, label, n, sample_seed, seed and what
    that file holds.

    Raises:
        InvalidInput: such a file is damaged.
    """
    columns = ["run", *CURVE, "n", "sample_seed", "seed"]
    rows = []
    for run in chosen(results)[columns].to_dict("records"):
        if (folder / run["run"] / LOGITS_FILE).exists():
            rows.append({**run, **structs.asdict(Description.load(folder / run["run"]))})
    return pd.DataFrame(rows, columns=[*columns, *Description.__struct_fields__])


def flatness(descriptions: pd.DataFrame) -> pd.DataFrame:
    """Figure 5: by pair, method and n the singular values as shares of the largest, averaged over samples
    and seeds.

    Args:
        descriptions: what `described` returns.

    Returns:
        Columns teacher, student, dataset, label, n, rank (from 1), value, seeds and samples; the teacher's own are
        labelled "teacher".
    """
    keys = [*CURVE, "n"]
    rows = []
    for run in descriptions.to_dict("records"):
        for label, name in ((run["label"], "singular_values"), (TEACHER, "teacher_singular_values")):
            place = {**{key: run[key] for key in keys}, "label": label}
            shares = relative(np.array(run[name])).tolist()
            place |= {name: run[name] for name in ("sample_seed", "seed")}
            rows += [{**place, "rank": rank, "value": value} for rank, value in enumerate(shares, 1)]
    long = pd.DataFrame(rows, columns=[*keys, "rank", "sample_seed", "seed", "value"])
    groups = long.groupby([*keys, "rank"], sort=False)
    means = groups.agg(value=("value", "mean"), seeds=("seed", "nunique"), samples=("sample_seed", num_samples))
    return means.reset_index().astype({"samples": "int64"})


def _checked(logits: np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise InvalidInput(f"{what} are {values.shape}; at least two images and two classes are needed")
    if not np.isfinite(values).all():
        raise InvalidInput(f"{what} are not all finite; train that network again with a lower learning rate")
    return values
