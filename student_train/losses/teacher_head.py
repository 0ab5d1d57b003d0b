"""The teacher's last layer, for losses that go through it (SimKD, SRRL, SDD, CAT-KD)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from student_train.binding import Binding
from student_train.losses.tensors import raised
from student_train.needs import LayerPair


def teacher_head(binding: Binding, loss: str, pairs: Sequence[LayerPair]) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,) of the teacher's last layer.

    Args:
        loss: whose, for the message.
        pairs: the first is the output that the layer is applied to.

    Raises:
        InvalidInput: the layer has other widths than that output and the classes.
    """
    weight, bias = raised(binding.parameters["head/weight"], binding.parameters["head/bias"])
    wanted = (binding.num_classes, binding.teacher[pairs[0][1]][0])
    if weight.shape != wanted:
        raise binding.misfit(
            loss,
            f"the stored last layer of the teacher is {' x '.join(map(str, weight.shape))} (classes x channels), these "
            f"outputs need {' x '.join(map(str, wanted))}; build the store again",
            pairs,
        )
    return weight, bias
