"""One answer of several teachers: who counts how much for it, and the mean by these weights.

What is averaged is logits, or what stands for them, so that the result serves every loss at every temperature. A mean
of logits is the geometric mean of the distributions, one of the two means that Hinton et al. 2015 (arXiv:1503.02531,
Sec. 1) give for an ensemble, and is so at every temperature at once. For a loss that is a squared distance of logits,
as those of `ckd`, it has the gradient of the mean of the losses to each teacher. You et al. 2017 (KDD, Learning from
Multiple Teacher Networks) average probabilities instead, softened by the temperature of the loss, which answers that
are kept for any loss do not know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from storage.answers import Kind
from storage.schema import UNLABELLED
from student_train.names import COMBINATIONS
from student_train.sparse_answers import LEAST, log_of


class Way(ABC):
    """Weights of several teachers.

    Attributes:
        needs_labels: whether every answer has to be of an image with a label.
    """

    needs_labels: ClassVar[bool] = False

    @abstractmethod
    def weights(self, log_probs: Tensor, labels: Tensor, answered: Tensor) -> Tensor:
        """What each teacher counts for, by answer.

        Args:
            log_probs: (T, B, K) float64, at temperature 1; those of teachers that did not answer are any.
            labels: (B,) int64, `UNLABELLED` for none.
            answered: (T, B) booleans, at least one of each column.

        Returns:
            (T, B) float64, 0 for teachers that did not answer; columns sum to 1.
        """


class Mean(Way):
    """All teachers alike."""

    def weights(self, log_probs: Tensor, labels: Tensor, answered: Tensor) -> Tensor:
        """One over the number of those that answered."""
        return answered.double() / answered.sum(dim=0)


class Best(Way):
    """The teacher that gives the label the largest probability; without a label, the one that is surest of a class.

    Of equals the one that was named first.
    """

    def weights(self, log_probs: Tensor, labels: Tensor, answered: Tensor) -> Tensor:
        """1 for that one, 0 for the others."""
        of_label = _of_labels(log_probs, labels.clamp_min(0))
        sure = torch.where(labels == UNLABELLED, log_probs.amax(dim=2), of_label)
        # NumPy promises the first of equals.
        best = np.argmax(sure.masked_fill(~answered, -torch.inf).numpy(), axis=0)
        return torch.nn.functional.one_hot(torch.from_numpy(best), len(log_probs)).T.double()


class Weighted(Way):
    """Confidence-aware: the smaller a teacher's cross-entropy with the label, the more it counts.

    Source: Zhang et al., ICASSP 2022, Confidence-Aware Multi-Teacher Knowledge Distillation (CA-MKD), arXiv:2201.00007,
    Eq. 3 and 4: w_t = (1 - exp(H_t) / sum_u exp(H_u)) / (T - 1). There the weights are those of losses, here of logits.
    """

    needs_labels = True

    def weights(self, log_probs: Tensor, labels: Tensor, answered: Tensor) -> Tensor:
        """By Eq. 4, over those that answered; 1 for one that did so alone, of which the paper says nothing."""
        entropy = -_of_labels(log_probs, labels)
        shares = entropy.masked_fill(~answered, -torch.inf).softmax(dim=0)
        others = answered.sum(dim=0) - 1
        return torch.where(others > 0, (1 - shares) / others.clamp_min(1), 1.0) * answered


def _of_labels(log_probs: Tensor, labels: Tensor) -> Tensor:
    return log_probs.gather(2, labels.expand(len(log_probs), -1)[..., None]).squeeze(2)


WAYS: Mapping[str, Way] = dict(zip(COMBINATIONS, (Mean(), Best(), Weighted()), strict=True))

# Kind of answers -> what stands for logits, and the kind's own form of what comes out. Of others there is no mean.
_SCALES: Mapping[Kind, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    Kind.LOGITS: (lambda values: values, lambda logits: logits),
    Kind.LOG_PROBS: (lambda values: values.clamp_min(LEAST), lambda logits: logits.log_softmax(dim=-1)),
    Kind.PROBABILITIES: (log_of, lambda logits: logits.softmax(dim=-1)),
}
COMBINABLE = tuple(_SCALES)


def combined(way: Way, kind: Kind, said: Tensor, labels: Tensor) -> Tensor:
    """One answer of several.

    Args:
        kind: one of `COMBINABLE`.
        said: (T, B, K), NaN everywhere where a teacher did not answer.
        labels: (B,) int64, `UNLABELLED` for none.

    Returns:
        (B, K) float32 of the same kind: the mean by the weights, or as it is where a single teacher counts; NaN where
        none answered.
    """
    answered = ~said.isnan().all(dim=2)
    asked = answered.any(dim=0)
    result = torch.full(said.shape[1:], torch.nan)
    said, answered, labels = said[:, asked], answered[:, asked], labels[asked]
    to_logits, from_logits = _SCALES[kind]
    logits = to_logits(said.double().masked_fill(~answered[..., None], 0.0))
    weights = way.weights(logits.log_softmax(dim=2), labels, answered)
    mean = from_logits((weights[..., None] * logits).sum(dim=0)).float()
    most, first = weights.max(dim=0)
    alone = said[first, torch.arange(said.shape[1])].float()
    result[asked] = torch.where((most == 1)[:, None], alone, mean)
    return result
