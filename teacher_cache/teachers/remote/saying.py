"""From what a server says to what a store keeps: scores or a label, checked, over the data's classes, by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ground.errors import InvalidInput
from storage.answers import AnswerForm, Kind, MissingMass
from teacher_cache.class_map import ClassMap, is_one_to_one, mapped_logits

# Probabilities are rounded on their way.
_SUM_TOLERANCE = 0.02
# The least float32 that is kept with all its digits, for what a server rounds to 0; its logarithm is -87.3.
_LEAST = 1.1754944e-38


class Unfit(ValueError):
    """An answer that is not what was asked for; its text holds nothing that the server said but numbers."""


@dataclass(frozen=True, slots=True)
class Saying:
    """What a teacher says of an image, and how that is kept.

    Args:
        form: how it is kept.
        num_classes: K of the teacher itself.
        class_map: how its classes become those of the data; None where they are.
    """

    form: AnswerForm
    num_classes: int
    class_map: ClassMap | None = None

    def __post_init__(self) -> None:
        is_whole = self.class_map is None or (is_one_to_one(self.class_map) and len(self.class_map) == self.num_classes)
        if self.form.kind is Kind.TOP_K and not is_whole:
            raise InvalidInput(
                "a class map that adds or leaves out classes needs an answer about all of them, and this teacher names "
                "the best ones alone; give data of its own classes"
            )
        # None where it is only described.
        if self.num_classes and (self.form.k or 0) > self.num_classes:
            raise InvalidInput(f"its card says {self.form.k} of the best classes, and it has {self.num_classes}")

    @property
    def num_kept(self) -> int:
        """K of the data."""
        return self.num_classes if self.class_map is None else len(self.class_map)

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of one image's, see `Card.outputs`."""
        return {output.name: output.shape for output in self.form.outputs(self.num_kept)}

    def of_scores(self, scores: np.ndarray, kind: Kind, temperature: float = 1.0) -> dict[str, np.ndarray]:
        """Keep scores of all classes.

        Args:
            scores: (K,) of the teacher's classes.
            kind: logits, log_probs or probabilities.
            temperature: of the softmax that they are of.

        Raises:
            Unfit: they are too few, no finite numbers, or no probabilities.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.shape != (self.num_classes,):
            raise Unfit(f"{values.size} scores came for {self.num_classes} classes")
        if not np.isfinite(values).all():
            raise Unfit("scores came that are no finite numbers")
        if kind is Kind.PROBABILITIES:
            values = np.log(np.maximum(_probabilities(values, 1 - _SUM_TOLERANCE), _LEAST))
        values = values * temperature
        if self.class_map is not None:
            values = mapped_logits(torch.from_numpy(values[None]), self.class_map).numpy()[0]
        if kind is not Kind.LOGITS:
            values = values - np.logaddexp.reduce(values)
        if self.form.kind is Kind.PROBABILITIES:
            values = np.exp(values)
        return {self.form.names[0]: _float32(values)}

    def of_best(self, places: Sequence[int], scores: np.ndarray, kind: Kind) -> dict[str, np.ndarray]:
        """Keep scores of some classes, the best of which make a top-k.

        Args:
            places: of the teacher's classes, each once.
            scores: of those, log_probs or probabilities.

        Raises:
            Unfit: as `of_scores`.
        """
        values, count = np.asarray(scores, dtype=np.float64), self.form.k or 0
        if len(places) < count or values.shape != (len(places),):
            raise Unfit(f"{len(places)} classes came with {values.size} scores, and {count} are needed")
        if len(set(places)) < len(places):
            raise Unfit("a class came twice")
        if not np.isfinite(values).all():
            raise Unfit("scores came that are no finite numbers")
        with np.errstate(over="ignore"):
            shares = _probabilities(values if kind is Kind.PROBABILITIES else np.exp(values), 0.0)
        ids = np.asarray(places, dtype=np.int32)
        if self.class_map is not None:
            ids = np.asarray([self.class_map.index((int(place),)) for place in ids], dtype=np.int32)
        # Falling, and of equals the lower class first.
        order = np.lexsort((ids, -shares))[:count]
        best = np.log(np.maximum(shares[order], _LEAST))
        return dict(zip(self.form.names, (ids[order], _float32(best)), strict=True))

    def of_label(self, place: int) -> dict[str, np.ndarray]:
        """Keep a class; nothing where the data have none that it means, which is an answer without content.

        Raises:
            Unfit: it is no class of the teacher.
        """
        if not 0 <= place < self.num_classes:
            raise Unfit(f"a class came that is none of its {self.num_classes}")
        if self.class_map is None:
            return {self.form.names[0]: np.asarray(place, dtype=np.int32)}
        found = [own for own, group in enumerate(self.class_map) if place in group]
        return {self.form.names[0]: np.asarray(found[0], dtype=np.int32)} if found else {}


def best_form(count: int) -> AnswerForm:
    """Of the best classes alone; what they leave is spread over the others, of which nothing is known."""
    return AnswerForm(kind=Kind.TOP_K, k=count, missing=MissingMass.SPREAD)


def places_of(labels: Sequence[object], known: Mapping[str, int]) -> list[int]:
    """Which classes labels name: by name, or by position where they are numbers.

    Raises:
        Unfit: one of them names none.
    """
    places = []
    for label in labels:
        is_position = isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(known)
        place = label if is_position else known.get(label) if isinstance(label, str) else None
        if not isinstance(place, int):
            raise Unfit("a label came that is none of its classes")
        places.append(place)
    return places


def numbers_of(scores: object) -> np.ndarray:
    """(N,) float64; raises `Unfit` for what is no list of numbers."""
    if not isinstance(scores, list) or not all(
        isinstance(one, (int, float)) and not isinstance(one, bool) for one in scores
    ):
        raise Unfit("scores came that are no list of numbers")
    try:
        return np.asarray(scores, dtype=np.float64)
    except OverflowError:  # JSON's whole numbers have no end
        raise Unfit("scores came that are no finite numbers") from None


def _probabilities(values: np.ndarray, least: float) -> np.ndarray:
    total = float(values.sum())
    if values.min(initial=0.0) < 0 or not least <= total <= 1 + _SUM_TOLERANCE or not total:
        raise Unfit(f"numbers came that are no probabilities: they add up to {total:.4g}")
    return values


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        kept = values.astype(np.float32)
    if not np.isfinite(kept).all():
        raise Unfit("scores came that float32 does not hold")
    return kept
