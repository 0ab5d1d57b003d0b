"""Channel-wise distillation (CWD): where in the image each channel is active.

Source: Shu et al. 2021, Channel-wise Knowledge Distillation for Dense Prediction, ICCV, arXiv:2011.13256.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from student_train.binding import Binding
from student_train.losses.base import Recipe
from student_train.losses.connectors import to_channels
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_maps
from student_train.losses.tensors import MAPS, at_one_size, require_positive, same_shape
from student_train.signals import Signals


def cwd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """KL(teacher || student) of each channel's softmax over positions, times temperature squared; mean over channels.

    Source: Shu et al. 2021, arXiv:2011.13256, section 3.2; as in the released code, the mean is over samples too.

    Args:
        student: (B, C, H, W), already of the teacher's shape.
        teacher: (B, C, H, W).
        temperature: above 0.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    student, teacher = same_shape(student, teacher, MAPS, 4)
    require_positive(temperature=temperature)
    student_log_probs = F.log_softmax(student.flatten(2) / temperature, dim=2)
    teacher_log_probs = F.log_softmax(teacher.flatten(2) / temperature, dim=2)
    divergence = F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True).sum(dim=2)
    return temperature**2 * divergence.mean()


class CWD(LayerwiseLoss):
    """T^2 * KL(softmax(t/T) || softmax(s/T)), softmax over the positions of a channel; mean over samples and channels.

    Args:
        layers: which maps, as in `Needs.outputs`; layer3 is the last stage of the CIFAR ResNets and wide ResNets.
            Where channels differ, the student's pass a learned 1x1 convolution; the larger map is pooled.
        temperature: above 0; the paper's is 4.

    Note:
        maps of one position are refused: the loss would be 0.

    Recipe:
        the paper's weight for feature maps, in segmentation; 3 for maps of logits. It has no classification.
    """

    name: ClassVar[str] = "cwd"
    source: ClassVar[str] = "Shu et al. 2021 (CWD), arXiv:2011.13256, section 3.2"
    recipe: ClassVar[Recipe] = Recipe(weight=50.0, ce=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (are_maps,)

    def __init__(self, layers: str = "layer3", temperature: float = 4.0) -> None:
        super().__init__(layers)
        require_positive(temperature=temperature)
        self.layers, self.temperature = layers, temperature
        self.connectors = nn.ModuleList()

    def build(self, binding: Binding) -> None:
        """A 1x1 convolution for each pair of maps whose channels differ."""
        for pair, (student, teacher) in zip(self.pairs, binding.shapes(self.pairs), strict=True):
            if all(min(sides) == 1 for sides in zip(student[1:], teacher[1:], strict=True)):
                reason = "a single position has nothing to compare with; choose larger maps"
                raise binding.misfit("cwd", reason, [pair])
            self.connectors.append(to_channels(student, teacher))

    def summands(self, signals: Signals) -> Iterator[Tensor]:
        """One for each pair of maps."""
        for connector, pair in zip(self.connectors, self.outputs(signals), strict=True):
            student, teacher = at_one_size(*pair)
            yield cwd(connector(student), teacher, self.temperature)
