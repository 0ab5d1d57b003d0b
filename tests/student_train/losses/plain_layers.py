"""Layers written out in numpy and scipy, to check learned parts against."""

from __future__ import annotations

import numpy as np
from scipy.signal import convolve2d, correlate2d
from torch import nn

Array = np.ndarray


def array(tensor) -> Array:
    return tensor.detach().double().numpy()


def convolved(convolution: nn.Conv2d, maps: Array) -> Array:
    """Stride 1, size kept."""
    weight, (samples, _, *size) = array(convolution.weight), maps.shape
    made = np.zeros((samples, len(weight), *size))
    for b, o, i in np.ndindex(samples, len(weight), maps.shape[1]):
        made[b, o] += correlate2d(maps[b, i], weight[o, i], mode="same")
    return made if convolution.bias is None else made + array(convolution.bias)[:, None, None]


def transposed(convolution: nn.ConvTranspose2d, maps: Array) -> Array:
    """Stride 1, size kept: convolution in place of correlation, weights (inputs, outputs, 3, 3)."""
    weight, (samples, _, *size) = array(convolution.weight), maps.shape
    made = np.zeros((samples, weight.shape[1], *size))
    for b, o, i in np.ndindex(samples, weight.shape[1], len(weight)):
        made[b, o] += convolve2d(maps[b, i], weight[i, o], mode="same")
    return made + array(convolution.bias)[:, None, None]


def normalised(maps: Array) -> Array:
    """Batch norm as it starts, in training mode: scale one, shift zero."""
    mean = maps.mean(axis=(0, 2, 3), keepdims=True)
    variance = ((maps - mean) ** 2).mean(axis=(0, 2, 3), keepdims=True)
    return (maps - mean) / np.sqrt(variance + 1e-5)


def leaky(maps: Array) -> Array:
    return np.where(maps > 0, maps, 0.1 * maps)


def halved(maps: Array) -> Array:
    """The mean of every 2 x 2 square."""
    return (maps[..., ::2, ::2] + maps[..., 1::2, ::2] + maps[..., ::2, 1::2] + maps[..., 1::2, 1::2]) / 4
