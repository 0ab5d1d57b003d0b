"""A student that answers through its teacher's last layer: its own body, a learned projector, the frozen layer.

Source: Chen et al. 2022 (SimKD), arXiv:2203.14001, section 3; layers of the projector as released.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ground.errors import CheckpointMismatch, InvalidInput
from ground.layers import LAST, POOLED
from ground.user_code import UserCode
from models.names import NETWORKS, canonical_name
from models.network import Network, require_extras
from models.registry import create_model
from models.representation import Representation
from models.staged import conv1x1, conv3x3

_NARROWED, _HEAD, _GRID = "projector.0.weight", "classifier.weight", "grid"


class ReusedHead(Network):
    """`body`, then a projector to the width of the teacher's last layer, then that layer, which never learns.

    `last` is the projected map and `pooled` its mean, so they compare with the teacher's; the stages are the body's.
    The shapes in the state dict say everything but which network the body is: see `rebuild`.

    Args:
        body: the student, which gives up its own last layer.
        weight, bias: of the teacher's last layer, (K, D) and (K,).
        size: height and width that a larger map is pooled to before it is projected; 1 x 1 projects the pooled vector.
        width: channels inside the projector.
    """

    grid: Tensor

    def __init__(self, body: Network, weight: Tensor, bias: Tensor, size: Sequence[int], width: int) -> None:
        super().__init__()
        self.num_classes = len(weight)
        channels = _take_head_off(body)
        self.body = body
        height, length = size
        # On a single position, all of a 3x3 kernel but its centre would see padding only.
        middle = conv1x1 if height == length == 1 else conv3x3
        self.projector = nn.Sequential(
            *_normed(conv1x1(channels, width)),
            *_normed(middle(width, width)),
            *_normed(conv1x1(width, weight.shape[1])),
        )
        self.classifier = nn.Linear(weight.shape[1], len(weight))
        self.classifier.weight.data.copy_(weight)
        self.classifier.bias.data.copy_(bias)
        self.classifier.requires_grad_(False)
        # Only its shape is used: that is how a checkpoint tells the size, and refuses a network of another one.
        self.register_buffer("grid", torch.zeros(height, length, dtype=torch.uint8))

    @property
    def head(self) -> nn.Linear:
        """The teacher's last layer; it takes no gradient."""
        return self.classifier

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The body's."""
        return self.body.feature_names

    @property
    def extra_names(self) -> tuple[str, ...]:
        """The body's."""
        return self.body.extra_names

    @property
    def stage_norms(self) -> Mapping[str, nn.BatchNorm2d]:
        """The body's."""
        return self.body.stage_norms

    def represent(self, images: Tensor, extras: Collection[str] = ()) -> Representation:
        """See `Network.represent`; `last` is projected, and `pooled` its mean."""
        require_extras(self, extras)
        features = dict(self.body.represent(images, {*extras, LAST}).features)
        last = self.projector(self._pooled_to_grid(features[LAST]))
        pooled = F.adaptive_avg_pool2d(last, 1).flatten(1)
        features |= {LAST: last, POOLED: pooled}
        if LAST not in extras:
            del features[LAST]
        return Representation(logits=self.head(pooled), features=features)

    def _pooled_to_grid(self, maps: Tensor) -> Tensor:
        """Maps of at most the projector's size."""
        height, length = maps.shape[2:]
        size = min(height, self.grid.shape[0]), min(length, self.grid.shape[1])
        return maps if size == (height, length) else F.adaptive_avg_pool2d(maps, size)


def rebuild(
    student: str, state: Mapping[str, Tensor], image_size: int = 32, *, code: UserCode = UserCode.REFUSED
) -> ReusedHead:
    """The network that a state dict is of, with its weights.

    Args:
        student: name of the body, in any spelling.
        state: as `ReusedHead.state_dict` gives it.
        image_size: H and W of its input.
        code: what is done with a body that is code from outside this program.

    Raises:
        CheckpointMismatch: it is of another kind of network, or the body is not this one.
        UnknownName: no network has this name.
    """
    missing = [key for key in (_NARROWED, _HEAD, _GRID) if key not in state]
    if missing:
        raise CheckpointMismatch(
            f"the weights hold no {', '.join(missing)}, so they are not of a student with its teacher's last layer; "
            f"load them as a plain {student}"
        )
    weight, size, width = state[_HEAD], state[_GRID].shape, len(state[_NARROWED])

    def made() -> ReusedHead:
        body = create_model(student, num_classes=len(weight), image_size=image_size, code=code)
        return ReusedHead(body, weight, weight.new_zeros(len(weight)), size, width)

    try:
        # First without memory: shapes without a single value in them may say any number of classes.
        if canonical_name(student) in NETWORKS:
            with torch.device("meta"):
                made().load_state_dict(dict(state), assign=True)
        elif not weight.numel():
            # Networks of other libraries are made to be looked through, and take memory.
            raise RuntimeError(f"its last layer is {tuple(weight.shape)}")
        # Every initial value is overwritten, so none may cost the caller random numbers.
        with torch.random.fork_rng(devices=[]):
            network = made()
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        raise CheckpointMismatch(
            f"the weights are not of {student} with its teacher's last layer; give the student they were trained "
            f"for: {error}"
        ) from None
    return network


def _normed(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)


def _take_head_off(body: Network) -> int:
    """Put nothing in the place of its last layer, which would neither learn nor be used; returns that one's inputs."""
    head = body.head
    if head is None or LAST not in body.extra_names or POOLED not in body.feature_names:
        raise InvalidInput(
            "the teacher's last layer can only take the place of a student's own after its pooled last map, and this "
            "student has none; choose another student or loss"
        )
    name = next(name for name, module in body.named_modules() if module is head)
    parent, _, leaf = name.rpartition(".")
    setattr(body.get_submodule(parent), leaf, nn.Identity())
    return head.in_features
