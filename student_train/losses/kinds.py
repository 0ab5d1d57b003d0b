"""From which kinds of a teacher's answers a loss learns, and what it makes of each: declared by its class as `kinds`.

A kind is one of `Kind`, or for top-k the rule for what is missing. What is declared is of losses that read the
teacher's logits, by default or by their settings; those of layers learn from any store that keeps these.

The theory: log-probabilities are logits less one number for each row. A loss whose value does not change when a number
is added to a row gives the same value from either (`OF_ROWS`); any other is given rows of mean 0 on both sides, and
so has the value of centred logits (`OF_CENTRED_ROWS`). Differences between samples are always made of centred rows: the
numbers that are lost differ from sample to sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from storage.answers import AnswerForm, Kind, MissingMass
from student_train.reading import AsTheyAre, Centred, CertainLabel, LabelVector, Reading, Restricted, Spread, Weights

Answered = Kind | MissingMass


@dataclass(frozen=True, slots=True)
class Use:
    """What a loss makes of one kind of answers.

    Args:
        reading: what is done to both sides.
        meaning: the same in words, for the documentation.
        only: (setting, value) of the loss that it takes.
    """

    reading: Reading
    meaning: str
    only: tuple[str, Any] | None = None

    def fits(self, loss: object) -> bool:
        """Whether a loss has the setting."""
        return self.only is None or bool(getattr(loss, self.only[0]) == self.only[1])

    @property
    def condition(self) -> str:
        """As it is written in a spec; empty where there is none."""
        if self.only is None:
            return ""
        name, value = self.only
        shown = str(value).lower() if value is None or isinstance(value, bool) else f"{value:g}"
        return f"{name}={shown}"


@dataclass(frozen=True, slots=True)
class Kinds:
    """What a loss makes of answers that are no logits.

    Args:
        uses: by kind.
        refuses: why not, for other kinds, where the usual reason is not it.
    """

    uses: Mapping[Answered, Use] = field(default_factory=dict)
    refuses: Mapping[Answered, str] = field(default_factory=dict)

    def describe(self) -> dict[str, str]:
        """Kind -> what is made of it, in the order of `ORDER`; for top-k a kind for each rule."""
        said = {kind: self.uses[kind] for kind in ORDER if kind in self.uses}
        return {shown_kind(kind): _in_words(use) for kind, use in said.items()}


ORDER: tuple[Answered, ...] = (
    Kind.LOG_PROBS,
    Kind.PROBABILITIES,
    MissingMass.SPREAD,
    MissingMass.RENORMALISE,
    MissingMass.ZERO,
    Kind.SAMPLED,
    Kind.LABEL,
)
_LOGITS = Use(AsTheyAre(), "as they are")

_AS_LOGITS = Use(Centred(), "as logits")
_AS_CENTRED = Use(Centred(), "as centred logits")
_CELLS = Use(Spread(), "both sides in k + 1 cells")

# For sums of these.
AMONG_NAMED: dict[Answered, Use] = {MissingMass.RENORMALISE: Use(Restricted(), "both sides among the k classes")}
AS_CERTAIN: dict[Answered, Use] = {Kind.LABEL: Use(CertainLabel(), "as one-hot probabilities")}
AS_VECTOR: dict[Answered, Use] = {Kind.LABEL: Use(LabelVector(), "as a one-hot vector, like `match_labels`")}
OF_ROWS: dict[Answered, Use] = {
    Kind.LOG_PROBS: _AS_LOGITS,
    Kind.PROBABILITIES: _AS_LOGITS,
    MissingMass.SPREAD: _CELLS,
}
OF_CENTRED_ROWS: dict[Answered, Use] = {
    Kind.LOG_PROBS: _AS_CENTRED,
    Kind.PROBABILITIES: _AS_CENTRED,
    MissingMass.SPREAD: _CELLS,
}
LINEAR: dict[Answered, Use] = {
    MissingMass.ZERO: Use(Weights(), "the sum over the k classes alone", ("temperature", 1.0)),
    Kind.SAMPLED: Use(Weights(), "without bias", ("temperature", 1.0)),
}


def restricted_with(setting: str, value: Any) -> dict[Answered, Use]:
    """As `AMONG_NAMED`, where the loss has this setting."""
    return {kind: replace(use, only=(setting, value)) for kind, use in AMONG_NAMED.items()}


_NO_LOGIT = "it reads a logit of every class, and there is none"
# Why not, for sums of these too.
NO_LOGITS: dict[Answered, str] = dict.fromkeys((MissingMass.ZERO, Kind.SAMPLED, Kind.LABEL), _NO_LOGIT)
LABEL_OUTSIDE: dict[Answered, str] = {
    MissingMass.RENORMALISE: "it asks for the class of the label, which need not be among those that an answer names"
}

CENTRED = Kinds(OF_CENTRED_ROWS, NO_LOGITS)
# Of losses that read no answer over the classes, whatever their settings.
NONE = Kinds(refuses=dict.fromkeys(ORDER, "it is made for layers and not for answers over the classes"))

_WHY_NOT: Mapping[Answered, str] = {
    MissingMass.RENORMALISE: "it needs the same classes of every sample, and each answer names its own",
    MissingMass.ZERO: "it needs probabilities that sum to 1",
    Kind.SAMPLED: "it is not linear in the teacher's probabilities, so the noise of a sample would bias it",
    Kind.LABEL: "it learns from what the teacher says of the other classes, and a label says nothing of them",
}
_NOT_COMPARED = "differences between samples need the same classes, and finite numbers, in all of them"
_NOT_STANDARDISED = "rows of zeros with a few weights have no scale to standardise by"


def kinds_of(loss: Any) -> dict[str, str]:
    """Kind -> what a loss makes of it, logits first; nothing for one that reads no answer over the classes.

    Args:
        loss: a `DistillationLoss`, or its class.
    """
    said: dict[str, str] = loss.kinds.describe()
    return {str(Kind.LOGITS): _LOGITS.meaning} | said if said else {}


def kind_of(form: AnswerForm) -> Answered:
    """The kind that is declared for a form: of top-k, its rule."""
    return form.kind if form.missing is None else form.missing


def shown_kind(kind: Answered) -> str:
    """As documentation has it: `top_k:spread` for a rule."""
    return f"{Kind.TOP_K}:{kind}" if isinstance(kind, MissingMass) else str(kind)


def reading_of(loss: Any, form: AnswerForm) -> Reading:
    """How a loss reads answers of a form; it can, see `why_not`.

    Args:
        loss: a `DistillationLoss`.
    """
    use = _use_of(loss, form) if loss.needs.answers else _LOGITS
    assert use is not None, "refused by require_answers before training"
    return use.reading


def why_not(loss: Any, form: AnswerForm, *, compared: bool, standardised: bool) -> str | None:
    """Why a loss that reads the teacher's logits cannot learn from answers of a form; None where it can.

    Args:
        loss: a `DistillationLoss`.
        compared, standardised: whether it is applied to differences between samples, or to standardised logits.
    """
    kind, use = kind_of(form), _use_of(loss, form)
    if use is None:
        said: str = loss.kinds.refuses.get(kind) or _WHY_NOT.get(kind, "its class does not say how")
        return said
    if not use.fits(loss):
        return f"it can with {use.condition} only"
    if compared and not use.reading.comparable:
        return _NOT_COMPARED
    if standardised and not use.reading.standardisable:
        return _NOT_STANDARDISED
    return None


def _use_of(loss: Any, form: AnswerForm) -> Use | None:
    uses: Mapping[Answered, Use] = loss.kinds.uses
    return _LOGITS if form.kind is Kind.LOGITS else uses.get(kind_of(form))


def _in_words(use: Use) -> str:
    return f"{use.meaning}, with {use.condition}" if use.condition else use.meaning
