"""Flow of solution procedure (FSP): match how one map of a network turns into the next.

Source: Yim et al. 2017 (A Gift from Knowledge Distillation, CVPR), eq. 1 and 2.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from student_train.losses.base import Recipe
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_consecutive, have_equal_channels
from student_train.losses.tensors import at_one_size, raised, same_shape
from student_train.signals import Signals

Maps = tuple[Tensor, Tensor]


def fsp(student_pair: Maps, teacher_pair: Maps) -> Tensor:
    """Mean squared difference of the two networks' FSP matrices, over the batch and both channels.

    Source: Yim et al. 2017, eq. 1 and 2: the matrix (C1, C2) is the mean over positions of the product of two maps of
    one network. As in the CRD benchmark's code the larger map is average-pooled (the paper max-pools), and the squared
    differences are averaged (the paper sums them).

    Args:
        student_pair: (B, C1, H1, W1) and (B, C2, H2, W2).
        teacher_pair: (B, C1, H1', W1') and (B, C2, H2', W2'); sizes may differ from the student's.

    Raises:
        ValueError: a pair is not of maps of as many samples, or the channels of the two networks differ.
    """
    ours, theirs = _flow(*student_pair), _flow(*teacher_pair)
    return F.mse_loss(*same_shape(ours, theirs, "FSP matrices (samples, channels, channels)", 3))


def _flow(first: Tensor, second: Tensor) -> Tensor:
    if first.dim() != 4 or second.dim() != 4 or len(first) != len(second):
        raise ValueError(
            f"the maps of a pair are {tuple(first.shape)} and {tuple(second.shape)}; "
            "they must be (samples, channels, height, width) of as many samples"
        )
    first, second = (maps.flatten(2) for maps in at_one_size(*raised(first, second)))
    # Divided before the product, which stays smaller so.
    return first / first.shape[2] @ second.mT


class FSP(LayerwiseLoss):
    """Mean of (G_s - G_t)^2; G: mean over positions of the product of two consecutive maps; summed over those.

    The paper and the CRD benchmark train the student on it alone first and then on labels alone; here it is added.

    Args:
        layers: at least two maps, as in `Needs.outputs`, in order; student and teacher must have as many channels.

    Note:
        mean of squares and average pooling, as in the CRD benchmark's code; the paper sums and max-pools.

    Recipe:
        of the CRD benchmark's initial stage; the 50 in its run scripts multiplies nothing, as its code adds no FSP
        later.
    """

    name: ClassVar[str] = "fsp"
    source: ClassVar[str] = "Yim et al. 2017 (A Gift from Knowledge Distillation, CVPR), eq. 1 and 2"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (are_consecutive, have_equal_channels)

    def __init__(self, layers: str = "maps") -> None:
        super().__init__(layers)
        self.layers = layers

    def summands(self, signals: Signals) -> list[Tensor]:
        """One for each map and the next."""
        steps = pairwise(self.outputs(signals))
        return [fsp((ours, our_next), (theirs, their_next)) for (ours, theirs), (our_next, their_next) in steps]
