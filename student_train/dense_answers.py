"""What a store keeps of answers over the classes, as a loss is given it: dense, for the rows of one batch.

By kind, in the place of a teacher's logits: logits and log-probabilities as they are, probabilities as their
logarithms, a top-k as the log-probabilities of all classes, what is missing shared evenly (of the rule `zero` as
weights), a sample as weights, a label as one-hot. What losses make of it: `student_train.reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ground.errors import StoreUnreadable
from storage.answers import NO_CLASS, AnswerForm, Kind, MissingMass
from student_train.losses.kinds import Answered, kind_of
from student_train.sparse_answers import LEAST, dense_weights, log_of, one_hot, spread_teacher

# Output name -> (B, ...), float32 or int64.
Said = Mapping[str, Tensor]
_IDS = "top_k.ids"


def _top_k(said: Said, classes: int) -> Tensor:
    return spread_teacher(said[_IDS], said["top_k.values"], classes)


_DENSE: Mapping[Answered, Callable[[Said, int], Tensor]] = {
    Kind.LOGITS: lambda said, _: said["logits"],
    Kind.LOG_PROBS: lambda said, _: said["log_probs"].clamp_min(LEAST),
    Kind.PROBABILITIES: lambda said, _: log_of(said["probabilities"]),
    MissingMass.SPREAD: _top_k,
    MissingMass.RENORMALISE: _top_k,  # of which only the named classes are read
    MissingMass.ZERO: lambda said, classes: dense_weights(said[_IDS], said["top_k.values"].exp(), classes),
    Kind.SAMPLED: lambda said, classes: dense_weights(said["sampled.ids"], said["sampled.weights"], classes),
    Kind.LABEL: lambda said, classes: one_hot(said["label"], classes),
}


def dense_answers(form: AnswerForm, said: Said, classes: int) -> Tensor:
    """Answers over all classes: (B, K), see the module.

    Args:
        said: the outputs of the form, (B, ...) each.
        classes: K.
    """
    return _DENSE[kind_of(form)](said, classes)


def output_of_ids(form: AnswerForm) -> str | None:
    """The output that says which classes answers of top-k name, see `Signals.ids`; None for other kinds."""
    return _IDS if form.kind is Kind.TOP_K else None


def empty_rows(answers: Mapping[str, Tensor]) -> Tensor:
    """Rows with an answer that has no content, a refusal that was paid for: (n,) booleans.

    With several views of an image, one such answer is enough.

    Args:
        answers: outputs of a form of answers as they are stored, (n, V, ...) each.
    """
    outputs = [values[..., None].flatten(2) for values in answers.values()]
    # Rows that begin so first: few do, and the rest of 21,841 classes is not looked at.
    found = torch.stack([_is_nothing(values[..., 0]) for values in outputs]).all(dim=0).any(dim=1)
    suspects = found.nonzero().squeeze(1)
    whole = [_is_nothing(values[suspects]).all(dim=2) for values in outputs]
    found[suspects] = torch.stack(whole).all(dim=0).any(dim=1)
    return found


def _is_nothing(values: Tensor) -> Tensor:
    return values.isnan() if values.is_floating_point() else values == NO_CLASS


def require_classes(answers: Mapping[str, Tensor], classes: int, source: object) -> None:
    """Refuse ids that are no classes.

    Args:
        answers: as in `empty_rows`, of rows with content.
        source: where they are from, for the message.

    Raises:
        StoreUnreadable: the message names the output.
    """
    for name, values in answers.items():
        if values.is_floating_point() or not values.numel():
            continue
        # Only a sample has slots that are not used: an id that was drawn twice is kept once.
        least = NO_CLASS if name == "sampled.ids" else 0
        if not least <= int(values.min()) <= int(values.max()) < classes:
            raise StoreUnreadable(f"{name} of {source} names classes beyond its {classes}; build the store again")
