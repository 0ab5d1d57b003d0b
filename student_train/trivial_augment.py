"""TrivialAugment: one operation of a fixed list, of one random strength, on each image.

Source: Müller and Hutter 2021, arXiv:2103.10158, the "wide" space; to the bit what torchvision's `TrivialAugmentWide`
does, but images of a batch that drew the same operation go through it together, each at its own strength.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import functional as vision
from torchvision.transforms.v2 import functional as vision_of_batches

_NUM_STRENGTHS = 31

# (b, 3, h, w) uint8 and (b,) float64 strengths, on the CPU -> (b, 3, h, w) uint8.
Change = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """What may be done to an image.

    Args:
        strengths: (31,) float64.
        is_signed: half of them are taken with the other sign.
    """

    name: str
    change: Change
    strengths: Tensor
    is_signed: bool = False


def trivial_augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, h, w) uint8, each changed by what it draws."""
    which, strengths = draw(len(pixels), generator)
    return augment(pixels, which, strengths)


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each image an operation, (B,) int64 among `OPERATIONS`, and its strength with its sign, (B,) float64."""
    which = torch.randint(len(OPERATIONS), (count,), generator=generator)
    drawn = torch.randint(_NUM_STRENGTHS, (count,), generator=generator)
    negative = torch.randint(2, (count,), generator=generator).bool()
    strengths = torch.stack([operation.strengths for operation in OPERATIONS])[which, drawn]
    signed = torch.tensor([operation.is_signed for operation in OPERATIONS])[which]
    return which, torch.where(signed & negative, -strengths, strengths)


def augment(pixels: Tensor, which: Tensor, strengths: Tensor) -> Tensor:
    """Images (B, 3, h, w) uint8 after their operations, see `draw`."""
    changed = pixels.clone()
    for number, operation in enumerate(OPERATIONS):
        places = (which == number).nonzero().squeeze(1)
        if len(places):
            there = places.to(pixels.device)
            changed[there] = operation.change(pixels[there], strengths[places])
    return changed


def _unchanged(pixels: Tensor, _: Tensor) -> Tensor:
    return pixels


def _brightness(pixels: Tensor, strengths: Tensor) -> Tensor:
    return _blended(pixels, torch.zeros_like(pixels), strengths)


def _colour(pixels: Tensor, strengths: Tensor) -> Tensor:
    return _blended(pixels, vision.rgb_to_grayscale(pixels), strengths)


def _contrast(pixels: Tensor, strengths: Tensor) -> Tensor:
    mean = vision.rgb_to_grayscale(pixels).float().mean(dim=(-3, -2, -1), keepdim=True)
    return _blended(pixels, mean, strengths)


def _sharpness(pixels: Tensor, strengths: Tensor) -> Tensor:
    return _blended(pixels, vision.adjust_sharpness(pixels, 0.0), strengths)


def _blended(pixels: Tensor, others: Tensor, strengths: Tensor) -> Tensor:
    """Away from the others, or towards them where a strength is negative."""
    ratios = 1 + strengths
    ours, theirs = (_of_each(part.float(), pixels) for part in (ratios, 1 - ratios))
    return (ours * pixels + theirs * others).clamp(0, 255).to(torch.uint8)


def _posterise(pixels: Tensor, bits: Tensor) -> Tensor:
    return pixels & _of_each((256 - 2 ** (8 - bits)).to(torch.uint8), pixels)


def _solarise(pixels: Tensor, thresholds: Tensor) -> Tensor:
    return torch.where(pixels >= _of_each(thresholds.float(), pixels), 255 - pixels, pixels)


def _autocontrast(pixels: Tensor, _: Tensor) -> Tensor:
    found: Tensor = vision.autocontrast(pixels)
    return found


def _equalise(pixels: Tensor, _: Tensor) -> Tensor:
    found: Tensor = vision_of_batches.equalize(pixels)
    return found


def _of_each(values: Tensor, pixels: Tensor) -> Tensor:
    return values.to(pixels.device).view(-1, 1, 1, 1)


def _shear_x(pixels: Tensor, strengths: Tensor) -> Tensor:
    # About the upper left corner, as the others of a shear.
    return _moved(pixels, x=(1.0, strengths, strengths * pixels.shape[2] / 2))


def _shear_y(pixels: Tensor, strengths: Tensor) -> Tensor:
    return _moved(pixels, y=(strengths, 1.0, strengths * pixels.shape[3] / 2))


def _translate_x(pixels: Tensor, strengths: Tensor) -> Tensor:
    return _moved(pixels, x=(1.0, 0.0, -strengths.trunc()))


def _translate_y(pixels: Tensor, strengths: Tensor) -> Tensor:
    return _moved(pixels, y=(0.0, 1.0, -strengths.trunc()))


def _rotate(pixels: Tensor, degrees: Tensor) -> Tensor:
    angles = -degrees.deg2rad()
    return _moved(pixels, x=(angles.cos(), angles.sin(), 0.0), y=(-angles.sin(), angles.cos(), 0.0))


def _moved(
    pixels: Tensor,
    x: tuple[Tensor | float, Tensor | float, Tensor | float] = (1.0, 0.0, 0.0),
    y: tuple[Tensor | float, Tensor | float, Tensor | float] = (0.0, 1.0, 0.0),
) -> Tensor:
    """Every pixel is the nearest one to a place elsewhere in its image, black outside of it.

    Args:
        x, y: factors of a pixel's column and row, and what is added, in pixels from the centre: each for all images, or
            (b,) float64.
    """
    count, _, height, width = pixels.shape
    lines = [torch.stack([torch.as_tensor(part).double().expand(count) for part in line], dim=1) for line in (x, y)]
    factors = torch.stack(lines, dim=2).float().to(pixels.device)  # (b, 3, 2)
    columns, rows = (torch.arange(side, device=pixels.device) + 0.5 - side / 2 for side in (width, height))
    ones = torch.ones(height, width, device=pixels.device)
    places = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width), ones], dim=2)
    # Scaled before it is applied, as torchvision does: places between two pixels are rounded alike.
    scaled = factors / factors.new_tensor([width / 2, height / 2])
    grid = (places.view(1, -1, 3) @ scaled).view(count, height, width, 2)
    return F.grid_sample(pixels.float(), grid, mode="nearest", align_corners=False).to(torch.uint8)


def _up_to(most: float) -> Tensor:
    return torch.linspace(0.0, most, _NUM_STRENGTHS).double()


_NONE = torch.zeros(_NUM_STRENGTHS, dtype=torch.float64)
# In torchvision's order and with its names.
OPERATIONS = (
    Operation("Identity", _unchanged, _NONE),
    Operation("ShearX", _shear_x, _up_to(0.99), is_signed=True),
    Operation("ShearY", _shear_y, _up_to(0.99), is_signed=True),
    Operation("TranslateX", _translate_x, _up_to(32.0), is_signed=True),
    Operation("TranslateY", _translate_y, _up_to(32.0), is_signed=True),
    Operation("Rotate", _rotate, _up_to(135.0), is_signed=True),
    Operation("Brightness", _brightness, _up_to(0.99), is_signed=True),
    Operation("Color", _colour, _up_to(0.99), is_signed=True),
    Operation("Contrast", _contrast, _up_to(0.99), is_signed=True),
    Operation("Sharpness", _sharpness, _up_to(0.99), is_signed=True),
    Operation("Posterize", _posterise, 8 - (torch.arange(_NUM_STRENGTHS).double() / 5).round()),
    Operation("Solarize", _solarise, torch.linspace(255.0, 0.0, _NUM_STRENGTHS).double()),
    Operation("AutoContrast", _autocontrast, _NONE),
    Operation("Equalize", _equalise, _NONE),
)
