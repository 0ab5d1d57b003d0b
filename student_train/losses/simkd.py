"""SimKD: learn the teacher's last map, and answer through its last layer.

Source: Chen et al. 2022, arXiv:2203.14001, section 3.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ground.errors import UnknownName
from models import Network
from models.reused_head import ReusedHead
from student_train.binding import Binding
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.teacher_head import teacher_head
from student_train.losses.tensors import at_one_size, same_shape
from student_train.needs import Needs
from student_train.signals import Signals


def simkd(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error over all elements; the larger of two maps is average-pooled to the smaller.

    Source: Chen et al. 2022, arXiv:2203.14001, section 3.

    Args:
        student: (B, C, H, W) or (B, C), already projected to the teacher's channels.
        teacher: (B, C, H', W') or (B, C).

    Raises:
        ValueError: the channels differ, or one is a map and the other is not.
    """
    if student.dim() == teacher.dim() == 4:
        student, teacher = at_one_size(student, teacher)
    return F.mse_loss(*same_shape(student, teacher, "projected features"))


class SimKD(DistillationLoss):
    """Mean of (p(s) - t)^2 on the map that is pooled; the student keeps the projector p and the teacher's last layer.

    Args:
        on: "last", the map, or "pooled", its mean.
        factor: the teacher's channels divided by those inside the projector.

    Note:
        do not add it to `sdd` or `catkd`, whose student head it removes.

    Recipe:
        no other loss: nothing behind the projector learns.

    Checked:
        students of six families saved and made again.
    """

    name: ClassVar[str] = "simkd"
    source: ClassVar[str] = "Chen et al. 2022, arXiv:2203.14001, section 3"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=0.0)
    kinds: ClassVar[Kinds] = NONE
    pulls_to_teacher: ClassVar[bool] = True
    dresses: ClassVar[bool] = True
    # Through the teacher's last layer.
    constrains_logits = True

    def __init__(self, on: str = "last", factor: int = 2) -> None:
        super().__init__()
        if on not in ("last", "pooled"):
            raise UnknownName("output for simkd", on, ("last", "pooled"))
        if factor < 1:
            raise ValueError(f"factor must be at least 1, got {factor}")
        self.on, self.factor = on, factor
        # Plain attributes: the student keeps them, in `dress`.
        self._head: tuple[Tensor, Tensor] | None = None
        self._size: tuple[int, int] = (1, 1)

    @property
    def needs(self) -> Needs:
        """The output that is projected, and the layer behind it."""
        return Needs(outputs=self.on, head=True)

    def build(self, binding: Binding) -> None:
        """Remember the layer, and the size at which maps meet."""
        ((student, teacher),) = binding.shapes(self.pairs)
        wanted = 3 if self.on == "last" else 1
        if len(student) != wanted or len(teacher) != wanted:
            raise binding.misfit("simkd", f"both must be the networks' own {self.on}", self.pairs)
        self._head = teacher_head(binding, "simkd", self.pairs)
        if self.on == "last":
            self._size = min(student[1], teacher[1]), min(student[2], teacher[2])

    def dress(self, student: Network) -> Network:
        """The student's body, a projector, the teacher's last layer."""
        assert self._head is not None, "bind comes before dress"
        weight, bias = self._head
        return ReusedHead(student, weight, bias, self._size, width=max(weight.shape[1] // self.factor, 1))

    def forward(self, signals: Signals) -> Tensor:
        """Single samples or comparisons, of the dressed student."""
        ((student, teacher),) = self.outputs(signals)
        return simkd(student, teacher)
