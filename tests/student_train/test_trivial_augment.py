"""A batch is augmented as torchvision augments its images one by one."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import TrivialAugmentWide

from student_train.trivial_augment import OPERATIONS, augment, draw, trivial_augment


def images(count: int, size: int) -> torch.Tensor:
    """Smooth, dark and bright ones, one of a single colour, and noise: (count, 3, size, size) uint8."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * torch.rand(count, 1, 1, 1, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    pixels = (255 * smooth).to(torch.uint8)
    pixels[0], pixels[1] = 77, torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
    return pixels.contiguous(memory_format=torch.channels_last)


def test_the_operations_and_their_strengths_are_torchvisions():
    space = TrivialAugmentWide()._augmentation_space(31)
    assert [operation.name for operation in OPERATIONS] == list(space)
    for operation in OPERATIONS:
        strengths, is_signed = space[operation.name]
        assert torch.equal(operation.strengths, strengths.double().expand(31)), operation.name
        assert operation.is_signed == is_signed


class Told(TrivialAugmentWide):
    """torchvision's own, of one operation at one strength."""

    def __init__(self, name: str, strength: float) -> None:
        super().__init__()
        self.name, self.strength = name, strength

    def _augmentation_space(self, num_bins: int) -> dict[str, tuple[torch.Tensor, bool]]:
        return {self.name: (torch.tensor([self.strength]), False)}


@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=[operation.name for operation in OPERATIONS])
@pytest.mark.parametrize("size", [32, 45])
def test_every_operation_at_every_strength_gives_torchvisions_pixels(number, size):
    operation = OPERATIONS[number]
    strengths = torch.cat([operation.strengths, -operation.strengths] if operation.is_signed else [operation.strengths])
    pixels = images(len(strengths), size)
    found = augment(pixels, torch.full((len(strengths),), number), strengths)
    expected = torch.stack(
        [Told(operation.name, strength)(image) for image, strength in zip(pixels, strengths.tolist(), strict=True)]
    )
    assert found.dtype == torch.uint8
    assert torch.equal(found, expected)


def test_images_of_a_batch_are_changed_each_by_what_it_drew():
    pixels = images(64, 32)
    which, strengths = draw(64, torch.Generator().manual_seed(0))
    found = trivial_augment(pixels, torch.Generator().manual_seed(0))
    for place in range(64):
        alone = Told(OPERATIONS[which[place]].name, strengths[place].item())(pixels[place])
        assert torch.equal(found[place], alone), OPERATIONS[which[place]].name
    assert torch.equal(pixels, images(64, 32)), "what is shown is left as it was"


def test_operations_strengths_and_signs_are_drawn_evenly():
    which, strengths = draw(56_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(which, minlength=len(OPERATIONS))
    assert (counts - 4_000).abs().max() < 5 * 4_000**0.5
    for number, operation in enumerate(OPERATIONS):
        drawn = strengths[which == number]
        assert set(drawn.abs().tolist()) == set(operation.strengths.tolist())
        share = (drawn < 0).double().mean().item()
        # A thirty-first of the strengths is zero, which has no sign.
        assert share == pytest.approx(15 / 31 if operation.is_signed else 0.0, abs=0.04), operation.name


def test_no_other_random_number_is_touched():
    before = torch.get_rng_state()
    trivial_augment(images(16, 32), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
