"""Arithmetic that several losses share: raised to float32, and with gradients that stay finite at the edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# What losses are given, for messages.
MAPS = "maps (samples, channels, height, width)"
VECTORS = "vectors (samples, features)"


def raised(*tensors: Tensor) -> tuple[Tensor, ...]:
    """At least float32: half precision is raised, float64 is kept."""
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors)


def channels_last(tensor: Tensor) -> Tensor:
    """Maps (B, C, H, W) in the layout that networks run in; anything else as it is.

    Arithmetic on two maps of different layouts takes several times as long as on two of one.
    """
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def same_shape(student: Tensor, teacher: Tensor, what: str, dimensions: int | None = None) -> tuple[Tensor, Tensor]:
    """Both raised, after checking that they fit.

    Args:
        what: what they are, for the message, as "logits".
        dimensions: how many each must have; None for any number.

    Raises:
        ValueError: the shapes differ, or are not of so many dimensions.
    """
    if student.shape != teacher.shape or (dimensions is not None and student.dim() != dimensions):
        wanted = "of one shape" if dimensions is None else f"of one shape in {dimensions} dimensions"
        raise ValueError(
            f"the student's {what} are {tuple(student.shape)}, the stored ones of the teacher {tuple(teacher.shape)}; "
            f"they must be {wanted}"
        )
    student, teacher = raised(student, teacher)
    return student, teacher


def same_logits(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K) of both; see `same_shape`."""
    return same_shape(student, teacher, "logits (samples, classes)", 2)


def same_batch(
    student: Tensor, teacher: Tensor, what: str, dimensions: int | None = None, *, channels: bool = False
) -> tuple[Tensor, Tensor]:
    """Both raised, after checking that they are of as many samples.

    Args:
        what: what they are, for the message, as "maps (samples, channels, height, width)".
        dimensions: how many each must have; None for at least two, not necessarily as many.
        channels: whether the second dimension must match too.

    Raises:
        ValueError: they do not fit.
    """
    leading = 2 if channels else 1
    fits = student.shape[:leading] == teacher.shape[:leading] and all(
        tensor.dim() >= 2 if dimensions is None else tensor.dim() == dimensions for tensor in (student, teacher)
    )
    if not fits:
        wanted = "number of samples and of channels" if channels else "number of samples"
        raise ValueError(
            f"the student's {what} are {tuple(student.shape)}, the stored ones of the teacher {tuple(teacher.shape)}; "
            f"the {wanted} must be the same in both, and the dimensions must be as named"
        )
    student, teacher = raised(student, teacher)
    return student, teacher


def maps_of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W) of one batch, see `same_batch`, brought to one size: `at_one_size`."""
    return at_one_size(*same_batch(student, teacher, MAPS, 4))


def log_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logarithms of softened probabilities (B, K) of both, from `same_logits`.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    student, teacher = same_logits(student, teacher)
    require_positive(temperature=temperature)
    return F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher / temperature, dim=1)


def sum_of_squares(tensor: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Over some dimensions, which are dropped, or all; the gradient is one product, in the tensor's own layout.

    Torch's own of `square().sum()` takes four passes over a map, and comes in the order of the dimensions.
    """
    dims = tuple(range(tensor.dim())) if dim is None else dim
    found: Tensor = _SumOfSquares.apply(tensor, dims)
    return found.squeeze(dims)


class _SumOfSquares(torch.autograd.Function):
    """`sum_of_squares`, dimensions kept."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dims: int | tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(tensor)
        return tensor.square().sum(dim=dims, keepdim=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (tensor,) = ctx.saved_tensors
        return tensor * (2 * gradient), None


def gram(vectors: Tensor) -> Tensor:
    """Inner products (B, N, N) of vectors (B, N, D); the gradient is one product, in the vectors' own layout."""
    found: Tensor = _Gram.apply(vectors)
    return found


class _Gram(torch.autograd.Function):
    """See `gram`."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        ctx.save_for_backward(vectors)
        return vectors @ vectors.mT

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Tensor:
        (vectors,) = ctx.saved_tensors
        both = outer + outer.mT
        found: Tensor = (vectors.mT @ both).mT if vectors.mT.is_contiguous() else both @ vectors
        return found


def with_gradient(value: Tensor, tensor: Tensor, gradient: Tensor) -> Tensor:
    """A scalar that was computed without autograd, with its gradient to the tensor that it was computed from.

    Args:
        gradient: of the tensor's shape; used up.
    """
    found: Tensor = _WithGradient.apply(value, tensor, gradient)
    return found


class _WithGradient(torch.autograd.Function):
    """See `with_gradient`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, _: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * outer, None


def mean_square(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of two tensors of one shape."""
    # Torch's gives gradients in the order of the dimensions whatever the layout: maps are shown in the order they lie.
    if one.dim() == 4:
        one, other = one.movedim(1, -1), other.movedim(1, -1)
    return F.mse_loss(one, other)


def require_positive(**values: float) -> None:
    """Raise `ValueError` for the first number that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def unit(tensor: Tensor, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """Divided by its L2 norm along `dim`; what is not longer than eps becomes zero, with gradient zero."""
    found: Tensor = _Unit.apply(tensor, dim, eps)
    return found


class _Unit(torch.autograd.Function):
    """See `unit`; its gradient is what of the outer one is across the unit vector, divided by the norm."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(tensor, dim=dim, keepdim=True)
        # Not "unless it is longer": what is not a number has to stay so, or a diverged student would go unnoticed.
        inverse = torch.where(norm <= eps, 0.0, 1 / norm)
        found = tensor * inverse
        ctx.save_for_backward(found, inverse)
        ctx.dim = dim
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        found, inverse = ctx.saved_tensors
        along = (outer * found).sum(dim=ctx.dim, keepdim=True)
        return torch.addcmul(outer, found, along, value=-1) * inverse, None, None


def root(tensor: Tensor, eps: float = 1e-24) -> Tensor:
    """Square root of what is at least 0; zero, with gradient zero, up to eps."""
    small = tensor <= eps
    return torch.where(small, 0.0, torch.where(small, 1.0, tensor).sqrt())


def flat(tensor: Tensor) -> Tensor:
    """(B, ...) as (B, D)."""
    return tensor.flatten(1)


def pooled_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) average-pooled to (B, C, *size)."""
    return maps if tuple(maps.shape[2:]) == size else F.adaptive_avg_pool2d(maps, size)


def pooled_like(maps: Tensor, other: Tensor) -> Tensor:
    """(B, C, H, W) average-pooled to the height and width of other maps, which are at most its own."""
    return pooled_to(maps, (other.shape[2], other.shape[3]))


def smaller_size(one: Tensor, other: Tensor) -> tuple[int, int]:
    """The smaller height and the smaller width of two maps (B, C, H, W)."""
    return min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])


def at_one_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W), the larger average-pooled to the smaller's height and width; channels may differ."""
    size = smaller_size(one, other)
    return pooled_to(one, size), pooled_to(other, size)
