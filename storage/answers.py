"""What a teacher's answer over the classes is: its kind, and the outputs in which a store keeps it.

Every kind but `label` says something of each class or of some; all values are float32 and log-probabilities are at
temperature 1. An answer without content, a refusal that was paid for, is NaN in every float and -1 in every id.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

import numpy as np
from msgspec import Meta

from ground.errors import InvalidInput
from ground.layers import LOGITS
from storage.float_types import INTEGER_TYPE, is_integer, stored_type
from storage.schema import OutputSpec

MOST_KEPT = 1 << 16
# An id that is none: of a slot that is not used, of an answer without content.
NO_CLASS = -1


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


class _Part(NamedTuple):
    """One output of a kind; how long it is: as many as there are classes, or as are kept, or a single value."""

    name: str
    dtype: str
    length: Literal["classes", "kept", "one"]


# First what `top1` reads: values of all classes, or ids that begin with the class that is answered.
_PARTS: dict[Kind, tuple[_Part, ...]] = {
    Kind.LOGITS: (_Part(LOGITS, "float32", "classes"),),
    Kind.LOG_PROBS: (_Part("log_probs", "float32", "classes"),),
    Kind.PROBABILITIES: (_Part("probabilities", "float32", "classes"),),
    Kind.TOP_K: (_Part("top_k.ids", "int32", "kept"), _Part("top_k.values", "float32", "kept")),
    Kind.SAMPLED: (_Part("sampled.ids", "int32", "kept"), _Part("sampled.weights", "float32", "kept")),
    Kind.LABEL: (_Part("label", "int32", "one"),),
}
_WITH_K = (Kind.TOP_K, Kind.SAMPLED)
_TEXT = re.compile(r"([a-z_]+)(?::([0-9]{1,9}))?(?::([a-z]+))?")
_KIND_OF_TEXT = {("top" if kind is Kind.TOP_K else kind.value): kind for kind in Kind}
_TEXT_OF_KIND = {kind: text for text, kind in _KIND_OF_TEXT.items()}

_Kept = Annotated[int, Meta(ge=1, le=MOST_KEPT, description=f"a number of ids from 1 to {MOST_KEPT}")]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """How a store keeps a teacher's answers.

    Args:
        kind: `Kind`.
        k: ids that are kept of each answer, of `top_k` and `sampled`; None otherwise.
        missing: of `top_k`; None otherwise.

    Raises:
        ValueError: what a kind has is left out, or given to another one.
    """

    kind: Kind = Kind.LOGITS
    k: _Kept | None = None
    missing: MissingMass | None = None

    def __post_init__(self) -> None:
        if (self.k is not None) != (self.kind in _WITH_K):
            raise ValueError(f"an answer of kind {self.kind.value} keeps {self.k} ids")
        if self.k is not None and not 1 <= self.k <= MOST_KEPT:
            raise ValueError(f"an answer keeps {self.k} ids, not 1 to {MOST_KEPT}")
        if (self.missing is not None) != (self.kind is Kind.TOP_K):
            rule = "no rule" if self.missing is None else f"the rule {self.missing.value}"
            raise ValueError(f"an answer of kind {self.kind.value} has {rule} for the missing mass")

    @classmethod
    def read(cls, text: str) -> AnswerForm:
        """What a text of the command line says: `logits`, `log_probs`, `probabilities`, `top:K`, `top:K:RULE`,
        `sampled:K` or `label`.

        Raises:
            InvalidInput: it says none of these.
        """
        found = _TEXT.fullmatch(text)
        kind = _KIND_OF_TEXT.get(found[1]) if found else None
        if found is None or kind is None:
            raise InvalidInput(f"{text!a} is no kind of answer; give {_WAYS}")
        if (found[2] is not None) != (kind in _WITH_K) or (found[3] is not None and kind is not Kind.TOP_K):
            raise InvalidInput(f"{text!a} is not how {found[1]} is said; give {_WAYS}")
        k = None if found[2] is None else int(found[2])
        if k is not None and not 1 <= k <= MOST_KEPT:
            raise InvalidInput(f"{text!a} keeps {k} ids of each answer; give 1 to {MOST_KEPT}")
        rule = found[3] or (MissingMass.SPREAD.value if kind is Kind.TOP_K else None)
        if rule is not None and rule not in list(MissingMass):
            raise InvalidInput(f"{text!a} has the rule {rule!a} for the missing mass; give {', '.join(MissingMass)}")
        return cls(kind=kind, k=k, missing=None if rule is None else MissingMass(rule))

    @property
    def text(self) -> str:
        """What `read` reads as this form, in short: the usual rule is not said."""
        rule = None if self.missing is MissingMass.SPREAD else self.missing
        return ":".join(str(part) for part in (_TEXT_OF_KIND[self.kind], self.k, rule) if part is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs that it is kept in."""
        return tuple(part.name for part in _PARTS[self.kind])

    def outputs(self, num_classes: int) -> tuple[OutputSpec, ...]:
        """The outputs that it is kept in, of one view."""
        lengths = {"classes": (num_classes,), "kept": (self.k or 0,), "one": ()}
        return tuple(OutputSpec(part.name, lengths[part.length], part.dtype) for part in _PARTS[self.kind])

    def size_bytes(self, num_classes: int) -> int:
        """Bytes of one answer, as it lies in a store."""
        outputs = self.outputs(num_classes)
        return sum(math.prod(output.shape) * stored_type(output.dtype).itemsize for output in outputs)

    def size_text(self, num_classes: int, views: int) -> str:
        """What a row of them takes, for people, beside what logits would."""
        own, full = (form.size_bytes(num_classes) for form in (self, AnswerForm()))
        word = "smaller" if own < full else "larger"
        times = "" if own == full else f", {max(own, full) / min(own, full):.3g} times {word} than logits"
        return f"{self.text}, {views * own} bytes a row{times}"

    def require_fits(self, num_classes: int) -> None:
        """Raise `ValueError` where it keeps more of the largest than there are; draws may be any number."""
        if self.kind is Kind.TOP_K and (self.k or 0) > num_classes:
            raise ValueError(f"{self.text} keeps more ids than the {num_classes} classes that there are")


# Names that are an answer's in some form; in a store of another one, a layer may be called so.
ANSWER_NAMES = frozenset(part.name for parts in _PARTS.values() for part in parts)
_RULES = ", ".join(MissingMass)
_WAYS = f"logits, log_probs, probabilities, top:K, top:K:RULE (of {_RULES}), sampled:K or label"


def top1(form: AnswerForm, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The class that each answer names first, the most probable or the most drawn one: (C,) int64, -1 for none.

    Args:
        values: (C, ...) of each of the form's outputs.
    """
    said = values[form.names[0]]
    if is_integer(said.dtype):
        return said.reshape(len(said), -1)[:, 0].astype(np.int64)
    # The first of equals, which is the lower one.
    return np.where(np.isnan(said).any(axis=1), NO_CLASS, said.argmax(axis=1))


def is_empty(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which answers are without content, as a refusal that was paid for: (C,) bool.

    Args:
        values: (C, ...) of each of a form's outputs, and of no layers.
    """
    parts = [
        (array == NO_CLASS if is_integer(array.dtype) else np.isnan(array)).reshape(len(array), -1).all(axis=1)
        for array in values.values()
    ]
    return np.asarray(np.stack(parts).all(axis=0))


def empty_answers(outputs: Sequence[OutputSpec], count: int) -> dict[str, np.ndarray]:
    """What a store keeps of so many answers without content: name -> (count, ...); layers too are NaN everywhere."""
    return {
        output.name: np.full(
            (count, *output.shape), NO_CLASS if output.dtype == INTEGER_TYPE else np.nan, _numbers_of(output.dtype)
        )
        for output in outputs
    }


def _numbers_of(dtype: str) -> np.dtype:
    # What lies in uint16 is made of float32 when it is written.
    return np.dtype("float32") if dtype == "bfloat16" else np.dtype(dtype)
