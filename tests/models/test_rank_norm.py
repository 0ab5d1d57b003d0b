"""Batch norm of shares is batch norm of the whole: values, gradients and running statistics."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ground.ranks import ALONE, Ranks, share
from models.rank_norm import BatchNormOverRanks, batch_norm_over_ranks
from tests.rank_threads import in_ranks


def values_of(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gone_through(norm: nn.Module, values: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Twice through batch norm, and back."""
    values = values.clone().requires_grad_()
    found = norm(norm(values).tanh())
    (found * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in norm.named_parameters()}
    return {"values": found.detach(), "gradient": values.grad, **gradients, **dict(norm.named_buffers())}


@settings(max_examples=20)
@given(
    rows=st.integers(2, 7),
    count=st.integers(1, 4),
    positions=st.sampled_from([(), (1, 1), (3, 2), (5,)]),
    affine=st.booleans(),
    tracked=st.booleans(),
)
def test_shares_are_normalised_as_the_whole(rows, count, positions, affine, tracked):
    shape = (rows, 3, *positions)
    kind = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[len(positions)]
    values, weights = 5 + values_of(shape, 0), values_of(shape, 1)

    def norm() -> nn.Module:
        made = kind(3, affine=affine, track_running_stats=tracked, momentum=0.3).double()
        if affine:
            nn.init.uniform_(made.weight, 0.5, 1.5)
        return made

    one = norm()
    whole = gone_through(one, values, weights)

    def work(ranks: Ranks) -> dict[str, Tensor]:
        own, rows_of = norm(), share(rows, ranks.rank, ranks.count)
        own.load_state_dict(norm_state)
        with BatchNormOverRanks(ranks):
            return gone_through(own, values[rows_of], weights[rows_of])

    norm_state = {name: tensor.clone() for name, tensor in norm().state_dict().items()}
    if affine:
        norm_state |= {name: parameter.detach() for name, parameter in one.named_parameters()}
    parts = in_ranks(count, work)
    for name in ("values", "gradient"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])
    for name, _ in one.named_parameters():
        torch.testing.assert_close(sum(part[name] for part in parts), whole[name])
    for part in parts:
        for name, buffer in one.named_buffers():
            torch.testing.assert_close(part[name], buffer)


def test_a_large_mean_costs_no_precision():
    values = (1e4 + values_of((64, 2), 0)).float()
    wanted = F.batch_norm(values.double(), None, None, training=True)
    found = in_ranks(2, lambda ranks: batch_norm_over_ranks(values[share(64, ranks.rank, 2)], None, None, ranks=ranks))
    torch.testing.assert_close(torch.cat(found).double(), wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_values_are_normalised_in_float32_and_stay_narrow(dtype):
    norm, values = nn.BatchNorm2d(3), values_of((4, 3, 2, 2), 0, dtype).requires_grad_()
    expected = norm(values.detach().clone())
    with BatchNormOverRanks(ALONE):
        found = norm(values)
    found.float().square().sum().backward()
    assert found.dtype == values.grad.dtype == dtype
    assert norm.weight.grad.dtype == torch.float32
    torch.testing.assert_close(found.detach(), expected)


def test_only_batch_norm_in_training_is_another_within():
    norm, values = nn.BatchNorm2d(3).eval(), values_of((4, 3, 2, 2), 0, torch.float32)
    plain = norm(values)

    class Refusing(Ranks):
        def gather(self, tensor: Tensor) -> Tensor:
            raise AssertionError("evaluation asks nobody")

    with BatchNormOverRanks(Refusing()):
        assert torch.equal(norm(values), plain)
        assert torch.equal(F.layer_norm(values, [2, 2]), F.layer_norm(values, [2, 2]))
        with pytest.raises(AssertionError, match="asks nobody"):
            torch.batch_norm(values, None, None, None, None, True, 0.1, 1e-5, False)
