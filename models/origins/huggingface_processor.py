"""How a processor of transformers shows a network images, as this program says it.

Processors say it in many ways, and some do more than they say. So what is read from one is held to what it does: a few
images of odd shapes are prepared both ways, and every byte has to be the same. Pillow's resizing is meant, which
processors have beside torchvision's; of the few that have torchvision's alone, which rounds otherwise or not at all,
one byte in 255 more or less is let pass, and said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ground.errors import InvalidInput
from ground.fitting import as_square, for_margin
from ground.geometry import Normalisation, ViewGeometry
from models.origins.contract import Preprocessing

# Width and height; resized, sides differ by odd and by even numbers of pixels.
_PROBES = ((601, 404), (211, 320), (96, 97), (320, 213))
# Of a byte.
_SAME, _ROUNDED = 0.02, 1.02
_AGREEING = 1e-4
# LeViT's, whatever its configuration says.
_USUAL_CROP = 224 / 256


def preprocessing_from(processor: Any, name: str) -> Preprocessing:
    """What a processor does.

    Args:
        name: ORIGIN:NAME, for messages.

    Raises:
        InvalidInput: it does what cannot be said here.
    """
    said = processor.to_dict()
    try:
        normalisation = _normalisation(processor, said)
        for found in _candidates(said, normalisation):
            apart = _furthest(processor, found)
            if apart < _SAME:
                return found
            if apart < _ROUNDED and getattr(processor, "backend", None) == "torchvision":
                remark = (
                    f"{name} is shown images by a {type(processor).__name__}, which resizes them with torchvision; "
                    f"here Pillow does, and pixels differ by up to {apart:.1f} of 255"
                )
                return replace(found, remark=remark)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        # It is another library's, and is given images that it may not take.
        raise InvalidInput(f"{_refusal(processor, name)} ({error})") from error
    raise InvalidInput(_refusal(processor, name))


def _refusal(processor: Any, name: str) -> str:
    kind = type(processor).__name__.removesuffix("Pil")
    return (
        f"{name} is shown images by a {kind} in a way that cannot be said here: resized by the shorter side or to a "
        "square, its centre cropped, normalised; give another network"
    )


def _candidates(said: Any, normalisation: Normalisation) -> Iterator[Preprocessing]:
    """What its settings may mean, likeliest first."""
    size, crop = said.get("size") or {}, said.get("crop_size") or {}
    side: Any = size.get("shortest_edge") or size.get("height")
    share = said.get("crop_pct") or _USUAL_CROP
    filters = {each.value: each.name.lower() for each in Image.Resampling}
    resample = said.get("resample")
    interpolation = filters[int(Image.Resampling.BILINEAR if resample is None else resample)]
    inputs: Any = dict.fromkeys([crop.get("height") if said.get("do_center_crop") else side, side])
    for resize_size in dict.fromkeys([side, int(side / share)]):
        for input_size in inputs:
            for squashed in (False, True):
                if input_size <= resize_size:
                    shape = for_margin("squashed" if squashed else "centre-low", resize_size - input_size)
                    yield Preprocessing(resize_size, input_size, interpolation, normalisation, shape)


def _normalisation(processor: Any, said: Any) -> Normalisation:
    """What black and white become; in the numbers that the processor says, where they are those."""
    black, white = (_shown(processor, np.full((64, 64, 3), value, np.uint8)).mean(axis=(0, 1)) for value in (0, 255))
    std = 1 / (white.astype(np.float64) - black)
    mean = -black * std
    declared = [said.get("image_mean"), said.get("image_std")]
    if said.get("do_normalize") and np.allclose([mean, std], declared, rtol=_AGREEING, atol=_AGREEING):
        means, stds = (tuple(map(float, numbers)) for numbers in declared)
    else:
        # Six digits, which are the same on every machine.
        means, stds = (tuple(float(f"{value:.6g}") + 0.0 for value in numbers) for numbers in (mean, std))
    return Normalisation(mean=means, std=stds)  # type: ignore[arg-type]


def _shown(processor: Any, pixels: np.ndarray) -> np.ndarray:
    """What a processor makes of an image: (H, W, 3) float32."""
    made = processor(images=[Image.fromarray(pixels)], return_tensors="np")["pixel_values"][0]
    return np.asarray(made, np.float32).transpose(1, 2, 0)


def _furthest(processor: Any, found: Preprocessing) -> float:
    """The largest difference on any probe; of one that is too large, the first."""
    largest = 0.0
    for probe in _probes():
        largest = max(largest, _apart(processor, found, probe))
        if largest >= _ROUNDED:
            break
    return largest


def _apart(processor: Any, found: Preprocessing, probe: np.ndarray) -> float:
    """The largest difference in bytes; infinite where not even the shape is the same."""
    assert found.normalisation is not None, "a processor's is read with the rest"
    theirs = _shown(processor, probe)
    if theirs.shape != (found.input_size, found.input_size, 3):
        return math.inf
    base = as_square(Image.fromarray(probe), found.resize_size, found.shape, found.interpolation)
    geometry = ViewGeometry(image_size=found.resize_size, crop_size=found.input_size, padding=0)
    top, left, _ = geometry.plain_view
    view = np.array(base)[top : top + found.input_size, left : left + found.input_size]
    ours = found.normalisation.apply(torch.from_numpy(view).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    scale = 255 * np.asarray(found.normalisation.std, np.float32)
    return float((np.abs(ours - theirs) * scale).max())


def _probes() -> Iterator[np.ndarray]:
    """Coloured images without two pixels alike: (H, W, 3) uint8."""
    generator = np.random.default_rng(0)
    for width, height in _PROBES:
        coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        yield np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
