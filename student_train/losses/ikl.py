"""Improved KL (IKL): KL taken apart into a weighted squared difference and soft cross-entropy, both of them at work.

Source: Cui et al., NeurIPS 2024, arXiv:2305.13948.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from student_train.binding import Binding
from student_train.losses.base import DistillationLoss, Recipe, TeacherRows
from student_train.losses.kd import kd
from student_train.losses.kinds import OF_ROWS, Kinds, restricted_with
from student_train.losses.targets import require_epochs, target_mask, warmed_up
from student_train.losses.tensors import raised, require_positive, same_logits
from student_train.needs import Needs
from student_train.signals import Moment, Signals

_ROWS_AT_ONCE = 1024
# The class means are K x K, and three times that while they are added up: 2 GB here.
_MOST_CLASSES_OF_MEANS = 8192


def pairwise_difference(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """1/4 of the sum over pairs of classes of w_j * w_k * ((t_j - t_k) - (s_j - s_k))^2, batch mean (wMSE).

    With d = t - s and W the sum of w, the double sum is twice W times the sum of w_j * (d_j - mean of d under w)^2:
    nothing of K x K is made.

    Source: Cui et al., NeurIPS 2024, arXiv:2305.13948, eq. 5 and 8.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        weights: (B, K), at least 0.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = same_logits(student, teacher)
    if weights.shape != student.shape:
        raise ValueError(f"weights are {tuple(weights.shape)}, the logits {tuple(student.shape)}; they must be alike")
    (weights,) = raised(weights)
    difference = teacher - student
    total = weights.sum(dim=1, keepdim=True)
    mean = (weights * difference).sum(dim=1, keepdim=True) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return (total * weights * (difference - mean).square()).sum(dim=1).mean() / 2


def dkl(student: Tensor, teacher: Tensor) -> Tensor:
    """A loss with the gradients of KL(teacher || student), towards both, that comes in two parts: nats, batch mean.

    wMSE moves the teacher alone and the divergence the student alone: with a fixed teacher half of it does nothing.

    Source: Cui et al., NeurIPS 2024, arXiv:2305.13948, theorem 1, eq. 5.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = same_logits(student, teacher)
    weights = F.softmax(teacher, dim=1).detach()
    return pairwise_difference(student.detach(), teacher, weights) + kd(student, teacher.detach(), temperature=1.0)


def ikl(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """alpha * KL(teacher || student) at a temperature + beta * `pairwise_difference`: batch mean.

    As in the released code, alpha weighs the soft part and beta the pairs (the paper has them the other way round),
    the pairs are of unsoftened logits, and nothing is multiplied by temperature**2. Departure: KL in place of the
    cross-entropy with soft labels, of equal gradient, so that it is zero for equal logits.

    Source: Cui et al., NeurIPS 2024, arXiv:2305.13948, eq. 10.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        weights: (B, K), of the classes of a pair: mean probabilities of the sample's class, or its own.
        alpha, beta: weights of the two.
        temperature: above 0.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    divergence = kd(student, teacher, temperature) / temperature**2
    return alpha * divergence + beta * pairwise_difference(student, teacher, weights)


def class_mean_probs(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sums of softened probabilities over the samples of each class (K, K), and their numbers (K,); float64."""
    members = target_mask(labels, logits).double()
    # As a product: sums by index are not repeatable on a GPU.
    return members.T @ F.softmax(logits.double() / temperature, dim=1), members.sum(dim=0)


class IKL(DistillationLoss):
    """alpha * KL(p_t || p_s) + beta/4 * sum over j, k of w_j * w_k * ((t_j - t_k) - (s_j - s_k))^2, batch mean.

    Args:
        alpha: weight of KL. The released CIFAR-100 runs have 1 to 4, mostly 1.
        beta: weight of the pairs of classes. The released CIFAR-100 runs have 4, 8 or 12.
        temperature: of KL, above 0.
        global_weights: w is the teacher's mean probabilities over the stored rows of the sample's class (GI), for at
            most 8,192 classes, as their table is of classes x classes; false, as in the released CIFAR-100 runs, for
            the teacher's probabilities of the sample itself.
        weight_temperature: of w, above 0. 100, nearly equal weights, is the released function's default and not set
            otherwise by its CIFAR-100 runs; those on ImageNet have 1.
        warmup: epochs over which the weight grows linearly, in steps of an epoch; the released recipe has 20, 0 is
            none.

    Note:
        KL in place of soft cross-entropy (same gradient); class means come once, from all stored rows, before training.

    Checked:
        the decoupled form has the gradients of KL on both sides; the pair sum against a double loop.
    """

    name: ClassVar[str] = "ikl"
    source: ClassVar[str] = "Cui et al., NeurIPS 2024, arXiv:2305.13948, eq. 10 and released IKL-KD"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = Kinds(OF_ROWS | restricted_with("global_weights", False))
    pulls_to_teacher: ClassVar[bool] = True

    class_probs: Tensor

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        global_weights: bool = False,
        weight_temperature: float = 100.0,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        require_epochs(warmup)
        require_positive(temperature=temperature, weight_temperature=weight_temperature)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.global_weights, self.weight_temperature, self.warmup = global_weights, weight_temperature, warmup

    @property
    def needs(self) -> Needs:
        """Logits; with global weights the class of each sample."""
        return Needs(outputs="logits", labels=self.global_weights)

    def build(self, binding: Binding) -> None:
        """Room for the class means, equal weights until they are known."""
        self._row_labels = binding.labels
        classes = binding.num_classes if self.global_weights else 0
        if classes > _MOST_CLASSES_OF_MEANS:
            raise binding.misfit(
                "ikl",
                f"the mean probabilities of {classes} classes are a table of classes x classes, and "
                f"{_MOST_CLASSES_OF_MEANS} is the most; leave global_weights out",
                self.pairs,
            )
        self.register_buffer("class_probs", torch.full((classes, classes), 1 / max(classes, 1)))

    def prepare(self, teacher: TeacherRows, moment: Moment) -> None:
        """The class means over all rows, once; the released code takes those of the epoch before."""
        if not self.global_weights:
            return
        classes = len(self.class_probs)
        sums, counts = (
            self.class_probs.new_zeros(classes, classes).double(),
            self.class_probs.new_zeros(classes).double(),
        )
        for rows in torch.arange(len(self._row_labels)).split(_ROWS_AT_ONCE):
            logits = teacher(rows).logits
            more, seen = class_mean_probs(logits, self._row_labels[rows].to(logits.device), self.weight_temperature)
            sums, counts = sums + more.to(sums.device), counts + seen.to(sums.device)
        known = counts > 0
        self.class_probs[known] = (sums[known] / counts[known, None]).to(self.class_probs.dtype)

    def forward(self, signals: Signals) -> Tensor:
        """Single samples; with each sample's own weights, differences too."""
        student, teacher = self.logits(signals)
        if self.global_weights:
            weights = self.class_probs[signals.labels]
        else:
            weights = F.softmax(teacher / self.weight_temperature, dim=1)
        loss = ikl(student, teacher, weights, self.alpha, self.beta, self.temperature)
        return warmed_up(signals.moment, self.warmup) * loss
