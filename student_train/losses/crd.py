"""CRD: an image's embedding by one network is to be told from those of other classes' images by the other network.

Source: Tian et al. 2020, arXiv:1910.10699, eq. 18 and 19; constants as released.

Each network's latest embedding of every row is kept in a memory, and a batch is compared with whole memories: two
matrix products of B x n, where gathering the negatives would take B x negatives x embedding numbers.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ground.errors import InvalidInput
from student_train.binding import Binding
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kinds import CENTRED, Kinds
from student_train.losses.requirements import is_one_output
from student_train.losses.tensors import flat, raised, require_positive, unit
from student_train.needs import Needs
from student_train.signals import Signals

EPS = 1e-7


def crd(positive: Tensor, negative: Tensor, num_rows: int, counts: Tensor | None = None) -> Tensor:
    """-(log h of the true pair + sum over the negatives of log(1 - h)), batch mean; h = p / (p + N / n + 1e-7).

    N is the number of a sample's negatives, and N / n what noise alone would score. Scores p are given as logarithms:
    exp(1 / temperature) does not have to fit a float32.

    Source: Tian et al. 2020, arXiv:1910.10699, eq. 18 and 19; 1e-7 and 1 - h = (N / n) / (p + N / n + 1e-7) from the
    released code.

    Args:
        positive: (B,) log p, of each sample with its own row.
        negative: (B, M) log p, of each sample with rows of other classes.
        num_rows: n.
        counts: (B, M) numbers, how often each of these rows was drawn; None for once each.

    Raises:
        ValueError: the shapes do not fit.
    """
    if negative.dim() != 2 or negative.shape[1] < 1 or positive.shape != negative.shape[:1]:
        raise ValueError(
            f"positive scores are {tuple(positive.shape)}, negative ones {tuple(negative.shape)}; give (samples,) and "
            "(samples, rows)"
        )
    if counts is not None and counts.shape != negative.shape:
        raise ValueError(
            f"counts are {tuple(counts.shape)}, the negative scores {tuple(negative.shape)}; give one each"
        )
    positive, negative = raised(positive, negative)
    counts = torch.ones_like(negative) if counts is None else counts
    draws = counts.sum(dim=1).to(negative.dtype)
    noise = (draws / num_rows).log()
    level = (draws / num_rows + EPS).log()
    found = F.softplus(level - positive)
    refused = (counts * F.softplus(negative - level[:, None])).sum(dim=1) + draws * (level - noise)
    return (found + refused).mean()


def draw_negatives(
    first: npt.NDArray[np.int64],
    size: npt.NDArray[np.int64],
    num_rows: int,
    draws: int,
    generator: np.random.Generator,
) -> npt.NDArray[np.float32] | npt.NDArray[np.uint8]:
    """How often each row is drawn as a negative of each sample, (B, n), among rows sorted by class.

    Uniform over the rows outside a sample's class; without replacement where there are at least `draws` of them.

    Args:
        first, size: (B,) int64, the block of rows that are of the sample's class.
        num_rows: n, more than any size.
        draws: negatives of each sample.
    """
    repeats = bool((num_rows - size < draws).any())
    counts = np.zeros((len(first), num_rows), np.float32 if repeats else np.uint8)
    # One call a sample, most of it spent in numpy: it has no draw without replacement for a whole batch.
    for row, start, length in zip(counts, first.tolist(), size.tolist(), strict=True):
        others = num_rows - length
        if others < draws:
            drawn = np.bincount(generator.integers(others, size=draws), minlength=others)
        else:
            drawn = np.zeros(others, counts.dtype)
            drawn[generator.choice(others, draws, replace=False, shuffle=False)] = 1
        row[:start], row[start + length :] = drawn[:start], drawn[start:]
    return counts


def remembered(memory: Tensor, place: Tensor, embedded: Tensor, momentum: float) -> Tensor:
    """The memory with some rows moved towards their new embeddings, and brought to norm 1 again.

    A row that a batch holds several times moves once, towards the mean. What was given stays as it is: it may still
    be needed for a gradient.

    Args:
        memory: (n, D).
        place: (B,) int64, which rows.
        embedded: (B, D).
        momentum: share of the old row, from 0 to 1.
    """
    same = place[:, None] == place[None, :]
    mean = same.to(embedded.dtype) @ embedded / same.sum(dim=1, keepdim=True)
    moved = unit(momentum * memory[place] + (1 - momentum) * mean)
    # All occurrences write the same bits, so their order cannot matter: a GPU's product may round equal rows apart.
    return memory.index_copy(0, place, moved[same.int().argmax(dim=1)])


_MAX_EMBEDDING, _MAX_NEGATIVES = 1 << 14, 1 << 20


class CRD(DistillationLoss):
    """-log h(own row) - sum over negatives of log(1 - h), h = p/(p + N/n), p = exp(cos/T)/Z; both directions.

    Args:
        on: what is embedded; "logits" as in CKD's code, "pooled" as in CRD's own.
        embedding: length of the learned linear embeddings.
        negatives: rows of other classes that each sample is compared with.
        temperature: above 0.
        momentum: share of the old embedding in a memory's new one.
        normalise: divide scores by Z, their mean in the first batch times n, as released; the paper has Z = 1.

    Note:
        everything in logarithms; 1e-7 is added to p + N/n, as in the released code.

    Checked:
        steps against explicit gathering; negatives uniform and of other classes; no tensor larger than n x D or B x n.
    """

    name: ClassVar[str] = "crd"
    source: ClassVar[str] = "Tian et al. 2020, arXiv:1910.10699, eq. 18 and 19"
    recipe: ClassVar[Recipe] = Recipe(weight=0.8, ce=1.0, kd=1.0)
    kinds: ClassVar[Kinds] = CENTRED
    requires = (is_one_output("it embeds one output of each network; give on as a single one"),)
    # Embeddings are learned, and only their directions count.
    constrains_logits = False

    # Rows of both memories are sorted by class, so that a sample's negatives are all rows but one block.
    student_memory: Tensor
    teacher_memory: Tensor
    place: Tensor
    log_z: Tensor

    def __init__(
        self,
        on: str = "logits",
        embedding: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        require_positive(embedding=embedding, negatives=negatives, temperature=temperature)
        if embedding > _MAX_EMBEDDING or negatives > _MAX_NEGATIVES:
            raise ValueError(f"embedding can be at most {_MAX_EMBEDDING} and negatives {_MAX_NEGATIVES}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be from 0 to 1, got {momentum}")
        self.on, self.embedding, self.negatives = on, embedding, negatives
        self.temperature, self.momentum, self.normalise = temperature, momentum, normalise

    @property
    def needs(self) -> Needs:
        """One output, and which rows the samples are, and of which classes."""
        return Needs(outputs=self.on, labels=True, index=True)

    def build(self, binding: Binding) -> None:
        """Embeddings and memories."""
        if len(binding.labels.unique()) < 2:
            raise InvalidInput(
                f"crd: all {binding.num_rows} rows are of one class, and its negatives are rows of other classes; "
                "train on rows of several classes, or use another loss"
            )
        ((student, teacher),) = binding.shapes(self.pairs)
        self.student_embedding = nn.Linear(math.prod(student), self.embedding)
        self.teacher_embedding = nn.Linear(math.prod(teacher), self.embedding)
        for memory in ("student_memory", "teacher_memory"):
            self.register_buffer(memory, _initial_memory(binding.num_rows, self.embedding))
        # log Z of student's and teacher's scores; not yet known.
        self.register_buffer("log_z", torch.full((2,), math.nan))
        self._sort(binding.labels)

    def forward(self, signals: Signals) -> Tensor:
        """Single samples; in training, both memories learn of them afterwards."""
        ((student, teacher),) = self.outputs(signals)
        assert signals.index is not None
        student = unit(self.student_embedding(flat(student)))
        teacher = unit(self.teacher_embedding(flat(teacher)))
        counts = self._counts(signals, signals.index).to(student.device).float()
        place = self.place[signals.index]
        scores = (self._scores(student, self.teacher_memory, place), self._scores(teacher, self.student_memory, place))
        log_z = self._log_z(scores, counts)
        losses = [
            crd(positive - shift, negative - shift, len(self.place), counts)
            for (positive, negative), shift in zip(scores, log_z, strict=True)
        ]
        if self.training:
            self.log_z = log_z
            self.student_memory = remembered(self.student_memory, place, student.detach(), self.momentum)
            self.teacher_memory = remembered(self.teacher_memory, place, teacher.detach(), self.momentum)
        return losses[0] + losses[1]

    def _sort(self, labels: Tensor) -> None:
        """Where each row is in the memories, and which block its class takes there; nothing to resume from."""
        order = labels.argsort(stable=True)
        self.register_buffer("place", order.argsort(), persistent=False)
        sizes = torch.bincount(labels)
        self._first = (sizes.cumsum(0) - sizes)[labels].numpy()
        self._size = sizes[labels].numpy()

    def _counts(self, signals: Signals, index: Tensor) -> Tensor:
        rows, generator = index.cpu().numpy(), signals.moment.numpy_generator("crd")
        counts = draw_negatives(self._first[rows], self._size[rows], len(self.place), self.negatives, generator)
        return torch.from_numpy(counts)

    def _scores(self, embedded: Tensor, memory: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine / temperature with the sample's own row (B,) and with all rows (B, n)."""
        scaled = embedded / self.temperature
        return (scaled * memory[place]).sum(dim=1), scaled @ memory.T

    def _log_z(self, scores: tuple[tuple[Tensor, Tensor], ...], counts: Tensor) -> Tensor:
        """Of each side: n times the mean score of the first batch, true pairs included."""
        if not self.normalise:
            return torch.zeros_like(self.log_z)
        if not self.log_z.isnan().any():
            return self.log_z
        drawn = counts.log()
        total = [
            torch.cat([positive.detach(), (negative.detach() + drawn).flatten()]).logsumexp(dim=0)
            for positive, negative in scores
        ]
        return torch.stack(total) + math.log(len(self.place)) - math.log(len(counts) * (self.negatives + 1))


def _initial_memory(num_rows: int, embedding: int) -> Tensor:
    limit = 1 / math.sqrt(embedding / 3)
    return torch.rand(num_rows, embedding) * (2 * limit) - limit
