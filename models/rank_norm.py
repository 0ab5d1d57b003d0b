"""Batch norm of a batch that lies on several ranks, each with a share of its rows, as one process would normalise it.

Mean and variance are those of all rows, and gradients flow through them to the rows of every rank. Unlike
`torch.nn.SyncBatchNorm` it works on the CPU too, and for whatever asks torch for batch norm, also another library's own
layers: within `BatchNormOverRanks` the call itself means this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from ground.ranks import Ranks


def batch_norm_over_ranks(
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    ranks: Ranks,
) -> Tensor:
    """`torch.nn.functional.batch_norm` in training, of the rows of all ranks.

    Running statistics move as they would in one process, and to the same numbers on every rank.

    Args:
        values: (b, C, ...), this rank's rows of the batch, perhaps none; every rank calls it with its own.
        weight, bias: (C,); their gradients are of this rank's rows alone, to be added to those of the others.
    """
    mean, squares, count = _moments(values.detach(), ranks)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_((squares / (count - 1).clamp(min=1)).to(running_var), momentum)
    normalised: Tensor = _Normalise.apply(values, weight, bias, mean, squares / count, count, eps, ranks)
    return normalised


def _moments(values: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and sum of squared deviations (C,) of the rows of all ranks, and how many values a channel has; float64."""
    channels, own = values.shape[1], values.numel() // values.shape[1]
    values = _raised(values)
    said = values.new_zeros(2, channels)
    if own:
        said[0] = values.mean(_others(values))
        said[1] = torch.linalg.vector_norm(values - _along(said[0], values), dim=_others(values)).square()
    # One message: how many they are goes with them, and stays on the device.
    found = ranks.gather(torch.cat([said.double().flatten(), said.new_full((1,), own, dtype=torch.float64)]))
    (means, deviations), counts = found[:, :-1].unflatten(1, (2, channels)).unbind(dim=1), found[:, -1:]
    count = counts.sum()
    mean = (counts * means).sum(dim=0) / count
    # From the parts to the whole (Chan et al. 1979), without a difference of large sums.
    return mean, (deviations + counts * (means - mean).square()).sum(dim=0), count


class _Normalise(torch.autograd.Function):
    """Normalisation by the moments of all ranks' rows, with the gradient through these moments."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
        ranks: Ranks,
    ) -> Tensor:
        """(b, C, ...), in the type of the values."""
        exact = torch.promote_types(values.dtype, torch.float32)
        mean, var = mean.to(exact), var.to(exact)
        ctx.save_for_backward(values, weight, mean, (var + eps).rsqrt(), count.to(exact))
        ctx.has_bias, ctx.ranks = bias is not None, ranks
        return F.batch_norm(values, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the values, the weight and the bias."""
        values, weight, mean, scale, count = ctx.saved_tensors
        grad, others = _raised(grad), _others(values)
        normalised = (_raised(values) - _along(mean, values)) * _along(scale, values)
        own = torch.stack([grad.sum(others), (grad * normalised).sum(others)])
        everybodys = own.clone()
        ctx.ranks.add(everybodys)
        of_mean, of_scale = everybodys / count
        given = (grad - _along(of_mean, values) - normalised * _along(of_scale, values)) * _along(
            scale if weight is None else scale * weight, values
        )
        of_weight = None if weight is None else own[1].to(weight.dtype)
        return given.to(values.dtype), of_weight, own[0].to(mean.dtype) if ctx.has_bias else None, *(None,) * 5


class BatchNormOverRanks(TorchFunctionMode):
    """Within it, batch norm in training is `batch_norm_over_ranks`; all else is as it is.

    Args:
        ranks: all of them make the same calls in the same order.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See the class; torch calls it in place of every function of its own."""
        read = _WAYS_TO_CALL.get(func)
        asked = None if read is None else read(*args, **(kwargs or {}))
        if asked is None:
            return func(*args, **(kwargs or {}))
        return batch_norm_over_ranks(**asked, ranks=self._ranks)


def _as_function(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> dict[str, Any] | None:
    """Arguments of `torch.nn.functional.batch_norm`; None where running statistics are used."""
    if not training:
        return None
    statistics = {"running_mean": running_mean, "running_var": running_var, "momentum": momentum, "eps": eps}
    return {"values": input, "weight": weight, "bias": bias, **statistics}


def _as_operator(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> dict[str, Any] | None:
    """The same of `torch.batch_norm`."""
    return _as_function(input, running_mean, running_var, weight, bias, training, momentum, eps)


# A dictionary, as torch asks for every call that a network makes.
_WAYS_TO_CALL: dict[Callable[..., Any], Callable[..., dict[str, Any] | None]] = {
    F.batch_norm: _as_function,
    torch.batch_norm: _as_operator,
}


def _raised(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _others(values: Tensor) -> list[int]:
    """Every dimension but that of the channels."""
    return [0, *range(2, values.dim())]


def _along(channels: Tensor, values: Tensor) -> Tensor:
    """(C,) as it is multiplied with (b, C, ...)."""
    return channels.view(-1, *(1,) * (values.dim() - 2))
