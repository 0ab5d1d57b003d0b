"""Correlation congruence (CC): match how samples of a batch relate in an embedding.

Source: Peng et al. 2019, arXiv:1904.01802, section 3. The paper relates all pairs through a kernel; the CRD
benchmark's numbers come from another form, which relates neighbours in the batch.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student_train.binding import Binding
from student_train.losses.base import Recipe
from student_train.losses.kinds import CENTRED, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.tensors import flat, require_positive, same_batch, same_shape, unit
from student_train.signals import Signals

_EMBEDDINGS = "embeddings (samples, features)"
_GAMMA, _ORDER = 0.4, 2


def correlation_congruence(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over features of |d_i| * |d_(i+1)|, d = s - t, mean over the N - 1 neighbours; depends on the batch's order.

    Source: the CRD benchmark's code for Peng et al. 2019, arXiv:1904.01802; for the paper's own form see
    `kernel_correlation_congruence`. Zero for a single sample.

    Args:
        student: (N, D).
        teacher: (N, D).

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = same_shape(student, teacher, _EMBEDDINGS, 2)
    gaps = (student - teacher).abs()
    return (gaps[:-1] * gaps[1:]).sum() / max(len(gaps) - 1, 1)


def kernel_correlation_congruence(
    student: Tensor, teacher: Tensor, gamma: float = _GAMMA, order: int = _ORDER
) -> Tensor:
    """Mean squared difference of two (N, N) kernel matrices, of a Gaussian on unit vectors expanded to some order.

    Source: Peng et al. 2019, arXiv:1904.01802, section 3: with |x| = |y| = 1, exp(-gamma |x - y|^2) is the sum over
    p of exp(-2 gamma) (2 gamma)^p / p! (x.y)^p.

    Args:
        student: (N, D).
        teacher: (N, D'); D' may differ.
        gamma: above 0; the paper's is 0.4.
        order: the highest p; the paper's is 2.

    Raises:
        ValueError: the numbers of samples differ, they are not vectors, gamma is not positive, or order is below 1.
    """
    student, teacher = same_batch(student, teacher, _EMBEDDINGS, 2)
    require_positive(gamma=gamma, order=order)
    return F.mse_loss(_gaussian(student, gamma, order), _gaussian(teacher, gamma, order))


def _gaussian(vectors: Tensor, gamma: float, order: int) -> Tensor:
    directions = unit(vectors)
    cosines = directions @ directions.mT
    coefficients = [math.exp(-2 * gamma) * (2 * gamma) ** power / math.factorial(power) for power in range(order + 1)]
    kernel = torch.full_like(cosines, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        kernel = kernel * cosines + coefficient
    return kernel


class CC(LayerwiseLoss):
    """Mean over i of sum |d_i| * |d_(i+1)|, d = e_s(s) - e_t(t); e_s and e_t are learned linear embeddings.

    Both embeddings learn from this loss, as in the CRD benchmark's code.

    Args:
        on: which representation, as in `Needs.outputs`; maps are flattened.
        dims: features of an embedding.
        kernel: the paper's form instead, mean of (k(s_i, s_j) - k(t_i, t_j))^2 over all pairs of embedded samples.
        gamma, order: of that kernel.

    Recipe:
        with KD, as in the CKD paper; the CRD benchmark has kd=0.

    Checked:
        both forms.
    """

    name: ClassVar[str] = "cc"
    source: ClassVar[str] = "Peng et al. 2019, arXiv:1904.01802, section 3; default form: the CRD benchmark's"
    recipe: ClassVar[Recipe] = Recipe(weight=0.02, ce=1.0, kd=1.0)
    kinds: ClassVar[Kinds] = CENTRED
    # The embeddings' biases absorb a vector that is added to every sample.
    constrains_logits = False

    def __init__(
        self, on: str = "pooled", dims: int = 128, kernel: bool = False, gamma: float = _GAMMA, order: int = _ORDER
    ) -> None:
        super().__init__(on)
        require_positive(dims=dims, gamma=gamma, order=order)
        if not kernel and (gamma, order) != (_GAMMA, _ORDER):
            raise ValueError("gamma and order belong to kernel=true; add it or leave them out")
        self.on, self.dims, self.kernel, self.gamma, self.order = on, dims, kernel, gamma, order
        self.embeddings = nn.ModuleList()

    def build(self, binding: Binding) -> None:
        """Two embeddings for each pair of outputs: the student's, then the teacher's."""
        for shapes in binding.shapes(self.pairs):
            self.embeddings.extend(nn.Linear(math.prod(shape), self.dims) for shape in shapes)

    def summands(self, signals: Signals) -> list[Tensor]:
        """One for each pair of embedded representations."""
        outputs = [tensor for pair in self.outputs(signals) for tensor in pair]
        embedded = [embed(flat(tensor)) for embed, tensor in zip(self.embeddings, outputs, strict=True)]
        pairs = zip(embedded[::2], embedded[1::2], strict=True)
        return [self._congruence(student, teacher) for student, teacher in pairs]

    def _congruence(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.kernel:
            return kernel_correlation_congruence(student, teacher, self.gamma, self.order)
        return correlation_congruence(student, teacher)
