"""A step of several ranks, which changes the weights as one process with the same batch would.

Each rank sends its share of the batch through the student, and all gather what it said. Every rank then computes the
loss of the whole batch, so a loss may relate any samples and needs to know nothing of ranks. Gradients are means over
the ranks: what reaches the student through a rank's own rows is multiplied by R where it leaves the loss, so that it is
summed, and what a loss has for parameters directly (its own, or the student's head) is the same on every rank, so that
it stays what it is. Batch norm in the student takes its statistics over all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ground.errors import InvalidInput
from ground.ranks import ALONE, Ranks, share
from ground.seeding import generator_for
from models import Network, Representation
from models.rank_norm import BatchNormOverRanks
from student_train.bound_method import Losses
from student_train.sampling import Batch
from student_train.stepper import Stepper
from student_train.student_state import StudentState


@dataclass(slots=True)
class RankedStepper(Stepper):
    """Steps a student of which every rank has the same copy.

    Args:
        ranks: this one and the others.
    """

    ranks: Ranks = ALONE

    def step(self, state: StudentState) -> Losses:
        """As `Stepper.step`; what the student itself draws, as for dropout, each rank draws anew."""
        torch.manual_seed(generator_for(self.config.seed, "rank", state.step, self.ranks.rank).initial_seed())
        return Stepper.step(self, state)

    def represent(self, student: Network, inputs: Tensor, batch: Batch, layers: Sequence[str]) -> Representation:
        """The representation of the whole batch, of which this rank computes its share."""
        shares = partition(batch.passes, self.ranks.count)
        own = shares[self.ranks.rank]
        rows = inputs[torch.tensor([*chain.from_iterable(own)], dtype=torch.int64, device=inputs.device)]
        # A pass of this rank is its share of that pass, so batch norm sees the same rows together.
        passes = tuple(slice(*ends) for ends in pairwise(accumulate(map(len, own), initial=0)))
        with BatchNormOverRanks(self.ranks):
            said = Stepper.represent(self, student, rows, replace(batch, passes=passes), layers)
        positions = [torch.tensor([*chain.from_iterable(part)], dtype=torch.int64) for part in shares]
        return said.map(lambda tensor: gathered(tensor, positions, self.ranks))

    def share_gradients(self, state: StudentState) -> None:
        """Make every rank's gradients their mean over the ranks."""
        gradients = [
            parameter.grad
            for group in state.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        # One message: the same parameters have gradients on every rank, for all compute the same loss.
        together = torch.cat([gradient.flatten() for gradient in gradients]) / self.ranks.count
        self.ranks.add(together)
        parts = together.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def partition(passes: Sequence[slice], count: int) -> list[list[range]]:
    """For each of R ranks the positions of its part of each pass; together each once, uneven where need be."""
    whole = [range(part.start, part.stop) for part in passes]
    return [[part[share(len(part), rank, count)] for part in whole] for rank in range(count)]


def gathered(own: Tensor, positions: Sequence[Tensor], ranks: Ranks) -> Tensor:
    """Rows of all ranks, (B, ...), through which a gradient reaches this rank's own, times R.

    Args:
        own: (b, ...), this rank's rows, perhaps none.
        positions: of every rank, (b,) int64: where its rows are among the B.
    """
    whole: Tensor = _Gathered.apply(own, positions, ranks)
    return whole


class _Gathered(torch.autograd.Function):
    """See `gathered`."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, positions: Sequence[Tensor], ranks: Ranks) -> Tensor:
        ctx.own, ctx.count = positions[ranks.rank].to(own.device), ranks.count
        # A message is as long as the longest share; what fills a shorter one is read by nobody.
        sent = own.new_zeros(max(map(len, positions)), *own.shape[1:])
        sent[: len(own)] = own
        found = ranks.gather(sent)
        whole = own.new_empty(sum(map(len, positions)), *own.shape[1:])
        for place, rows in zip(positions, found, strict=True):
            whole[place.to(own.device)] = rows[: len(place)]
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad[ctx.own] * ctx.count, None, None


def require_rows(batch_size: int, ranks: Ranks) -> None:
    """Raise `InvalidInput` where a batch has fewer rows than there are ranks."""
    if batch_size < ranks.count:
        raise InvalidInput(
            f"--batch-size {batch_size} is the batch of all {ranks.count} ranks, and some would have no row of it; "
            f"give at least {ranks.count}, or start fewer ranks"
        )
