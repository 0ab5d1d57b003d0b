"""Shared arithmetic: finite at the edges, and nothing that is not a number is hidden."""

from __future__ import annotations

import pytest
import torch

from student_train.losses.tensors import (
    channels_last,
    gram,
    mean_square,
    raised,
    require_positive,
    root,
    same_shape,
    sum_of_squares,
    unit,
    with_gradient,
)
from tests.student_train.losses.checks import assert_finite, assert_gradient_is_right, drawn


def test_unit_rows_have_length_one_and_zero_rows_stay_zero():
    rows = drawn(0, 3, 4)
    rows[1] = 0
    torch.testing.assert_close(unit(rows)[[0, 2]].norm(dim=1), torch.ones(2, dtype=torch.float64))
    assert (unit(rows)[1] == 0).all()
    assert_finite(lambda values: unit(values).sum(), rows)
    assert_gradient_is_right(lambda values: unit(values).square().cumsum(0).sum(), drawn(1, 3, 4))


def test_root_is_the_square_root_with_gradient_zero_at_zero():
    values = torch.tensor([0.0, 4.0, 9.0], requires_grad=True)
    root(values).sum().backward()
    torch.testing.assert_close(root(values), torch.tensor([0.0, 2.0, 3.0]))
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 0.25, 1 / 6]))


@pytest.mark.parametrize("function", [unit, root])
def test_what_is_not_a_number_stays_so(function):
    values = torch.ones(2, 3)
    values[0, 1] = torch.nan
    assert function(values)[0].isnan().any()


def test_mean_square_has_its_gradient_in_the_layout_of_the_maps():
    ours = channels_last(drawn(0, 2, 3, 4, 5)).requires_grad_()
    theirs = channels_last(drawn(1, 2, 3, 4, 5))
    loss = mean_square(ours, theirs)
    torch.testing.assert_close(loss, (ours - theirs).square().mean())
    (gradient,) = torch.autograd.grad(loss, ours)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gradient, (2 * (ours - theirs) / ours.numel()).detach())


@pytest.mark.parametrize("dim", [None, 1, (0, 2)])
def test_sums_of_squares_drop_their_dimensions(dim):
    values = drawn(0, 2, 3, 4)
    wanted = values.square().sum() if dim is None else values.square().sum(dim=dim)
    torch.testing.assert_close(sum_of_squares(values, dim), wanted)
    assert_gradient_is_right(lambda tensor: sum_of_squares(tensor, dim).cumsum(0).sum(), values)


def test_inner_products_have_their_gradient_in_the_layout_of_the_vectors():
    weights = drawn(1, 2, 3, 3)
    for vectors in (drawn(0, 2, 3, 4), drawn(0, 2, 4, 3).mT):
        torch.testing.assert_close(gram(vectors), vectors @ vectors.mT)
        assert_gradient_is_right(lambda tensor: (gram(tensor) * weights).sum(), vectors)
        leaf = vectors.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((gram(leaf) * weights).sum(), leaf)
        assert gradient.stride() == vectors.stride()


def test_a_gradient_that_is_known_is_handed_on():
    tensor = torch.ones(3, requires_grad=True)
    (2 * with_gradient(torch.tensor(5.0), tensor, torch.arange(3.0))).backward()
    assert tensor.grad.tolist() == [0, 2, 4]


def test_half_precision_is_raised_and_float64_is_kept():
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    found = [tensor.dtype for tensor in raised(*(torch.zeros(1, dtype=kind) for kind in kinds))]
    assert found == [torch.float32, torch.float32, torch.float32, torch.float64]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"maps are \(2, 3\).* \(2, 4\); they must be of one shape$"):
        same_shape(torch.zeros(2, 3), torch.zeros(2, 4), "maps")
    with pytest.raises(ValueError, match="of one shape in 4 dimensions"):
        same_shape(torch.zeros(2, 3), torch.zeros(2, 3), "maps", 4)
    with pytest.raises(ValueError, match="warmth must be above 0, got nan"):
        require_positive(temperature=1.0, warmth=float("nan"))
