"""What a distillation loss is given: both networks' representations, the labels and the sample index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ground.seeding import generator_for, numpy_generator_for
from models import Representation


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where in the training a batch is; all randomness of losses comes from here, so a resumed run repeats it.

    Args:
        step: counted from 0.
        epoch: epochs done, a fraction within one.
    """

    seed: int = 0
    step: int = 0
    epoch: float = 0.0

    def generator(self, purpose: str) -> torch.Generator:
        """Random numbers of this step for one purpose, on the CPU."""
        return generator_for(self.seed, purpose, self.step)

    def numpy_generator(self, purpose: str) -> np.random.Generator:
        """The same of numpy."""
        return numpy_generator_for(self.seed, purpose, self.step)


@dataclass(frozen=True, slots=True)
class MixedLabels:
    """What labels of mixes are made of, beside the one of the larger part.

    Args:
        second: (n,) int64, the class of the smaller part; for what is no mix, its own.
        share: (n,) float32, of the larger part; 1 for what is no mix.
    """

    second: Tensor
    share: Tensor

    def of(self, rows: Tensor) -> MixedLabels:
        """Those of some rows."""
        return MixedLabels(self.second[rows], self.share[rows])


@dataclass(frozen=True, slots=True)
class Signals:
    """One batch as a loss sees it, of B samples or of G comparisons.

    Args:
        student: float32, with gradient.
        teacher: float32, from the store; None for methods that learn from labels alone. In the place of its logits is
            whatever it answered over the classes, see `student_train.dense_answers`.
        labels: (B,) int64 classes, or (G, K) float32 differences of one-hot labels once compared.
        index: (B,) int64 rows of the sample; None once compared, where an entry is no single row.
        views: how many views of each image follow one another: first all images in view 0, then all in view 1, ...
        ids: (B, k) int64 classes that answers of top-k name; None for other kinds, and once compared.
        mixed: the other label of samples that are mixes, whose teacher's answer is of the mix; `labels` are those of
            their larger parts. None where there are none, and once compared.
    """

    student: Representation
    teacher: Representation | None
    labels: Tensor
    index: Tensor | None
    moment: Moment = field(default_factory=Moment)
    views: int = 1
    ids: Tensor | None = None
    mixed: MixedLabels | None = None

    @property
    def label_targets(self) -> Tensor:
        """Labels as vectors, (B, K) one-hot or (G, K) compared; zeros for a row without a label, shares for a mix."""
        if self.labels.is_floating_point():
            return self.labels
        labels = self._one_hot(self.labels)
        if self.mixed is None:
            return labels
        share = self.mixed.share.to(labels.dtype).unsqueeze(1)
        return share * labels + (1 - share) * self._one_hot(self.mixed.second)

    def _one_hot(self, labels: Tensor) -> Tensor:
        # Not F.one_hot: every comparison makes these, also of rows without a label, which no loss then reads.
        logits = self.student.logits
        classes = torch.arange(logits.shape[1], device=labels.device)
        return (labels.unsqueeze(1) == classes).to(logits.dtype)

    def reordered(self, order: Tensor) -> Signals:
        """The student as it is, and the teacher, the labels, the index and the ids of other samples of the batch.

        Args:
            order: (B,) int64, for each sample whose they become.
        """
        return replace(
            self,
            teacher=None if self.teacher is None else self.teacher.map(lambda tensor: tensor[order]),
            labels=self.labels[order],
            index=None if self.index is None else self.index[order],
            ids=None if self.ids is None else self.ids[order],
            mixed=None if self.mixed is None else self.mixed.of(order),
        )

    def only(self, pairs: Sequence[tuple[str, str]]) -> Signals:
        """The same without the features that none of these (student's, teacher's) pairs names."""
        student = [ours for ours, _ in pairs if ours != "logits"]
        teacher = [theirs for _, theirs in pairs if theirs != "logits"]
        said = None if self.teacher is None else self.teacher.only(dict.fromkeys(teacher))
        return replace(self, student=self.student.only(dict.fromkeys(student)), teacher=said)

    def pair(self, student: str, teacher: str) -> tuple[Tensor, Tensor]:
        """An output of each network by name: "logits" or a layer."""
        assert self.teacher is not None
        return _output(self.student, student), _output(self.teacher, teacher)


def _output(said: Representation, name: str) -> Tensor:
    return said.logits if name == "logits" else said.features[name]
