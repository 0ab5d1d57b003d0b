"""What students are shown is drawn anew in each step, from (seed, step) alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from ground.errors import InvalidInput
from ground.geometry import BOX_AREA, Normalisation, Rendering, ViewGeometry
from ground.views import apply_views, draw_views, resize, view_pixels
from models.compute import Compute
from storage.store import Store
from student_train.data import StudentData
from student_train.methods import parse_method
from student_train.needs import Wanted
from student_train.run_folder import RunFolder
from student_train.sampling import Batch
from student_train.student_views import DRAWINGS, require_drawn, show
from student_train.train_config import STUDENT_VIEWS, TrainConfig
from student_train.trainer import Trainer
from student_train.trivial_augment import trivial_augment

CPU = Compute(torch.device("cpu"), "fp32")
GEOMETRY = ViewGeometry(image_size=40, crop_size=32, padding=2)
# Inputs are then pixels on [0, 1].
AS_IT_IS = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
RENDERINGS = [
    Rendering(geometry=GEOMETRY, normalisation=AS_IT_IS, input_size=size, interpolation=interpolation)
    for size, interpolation in ((None, "bilinear"), (24, "bicubic"))
]
IMAGES = torch.randint(0, 256, (48, 40, 40, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_view_that_can_be_asked_for_is_drawn_or_replayed():
    assert {*DRAWINGS, "auto", "teacher"} == set(STUDENT_VIEWS)


@pytest.mark.parametrize("kind", DRAWINGS)
@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("rendering", RENDERINGS, ids=["32", "24"])
def test_inputs_are_pixels_of_the_networks_size_and_come_from_the_generator_alone(kind, boxes, rendering):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, again, other = (show(IMAGES, kind, rendering, seeded(seed), boxes=boxes) for seed in (0, 0, 1))
    assert one.shape == (48, 3, rendering.size, rendering.size)
    assert one.dtype == torch.float32
    assert 0 <= one.min() < one.max() <= 1
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_fresh_views_are_crops_of_the_drawn_places():
    rendering = RENDERINGS[0]
    expected = apply_views(IMAGES, draw_views(GEOMETRY, 48, seeded()), GEOMETRY)
    assert torch.equal(show(IMAGES, "fresh", rendering, seeded(), boxes=False), expected.float() / 255)


@pytest.mark.parametrize("rendering", RENDERINGS, ids=["32", "24"])
def test_resized_views_are_the_boxes_that_torchvision_cuts_and_resizes(rendering):
    views = draw_views(GEOMETRY, 48, seeded(), boxes=True)
    areas = views[:, 3].float() * views[:, 4].float() / 40**2
    assert BOX_AREA[0] * 0.9 < areas.min() < areas.max() <= 1
    found = show(IMAGES, "resized", rendering, seeded(), boxes=False)
    assert torch.equal(found, show(IMAGES, "fresh", rendering, seeded(), boxes=True))
    size, mode = [rendering.size] * 2, InterpolationMode(rendering.interpolation)
    for image, shown, (top, left, flip, height, width) in zip(IMAGES, found, views.tolist(), strict=True):
        box = vision.crop(image.permute(2, 0, 1), top, left, height, width)
        # Mirrored first, as rounding depends on the side that resizing begins at.
        expected = vision.resize(vision.horizontal_flip(box) if flip else box, size, mode, antialias=True)
        assert torch.equal(shown, expected.float() / 255)


def test_trivial_views_are_fresh_ones_augmented_at_the_networks_size():
    plain, small = RENDERINGS
    generator = seeded()
    pixels = view_pixels(IMAGES, draw_views(GEOMETRY, 48, generator), plain)
    found = show(IMAGES, "trivial", plain, seeded(), boxes=False)
    assert torch.equal(found, trivial_augment(pixels, generator).float() / 255)
    generator = seeded()
    views = draw_views(GEOMETRY, 48, generator)
    resized = resize(apply_views(IMAGES, views, GEOMETRY), 24, "bicubic")
    found = show(IMAGES, "trivial", small, seeded(), boxes=False)
    assert torch.equal(found, trivial_augment(resized, generator).float() / 255)


@pytest.mark.parametrize("kind", ["resized", "trivial"])
def test_a_step_of_a_student_is_shown_what_its_seed_and_number_say(built_store, kind):
    store = Store.open(built_store)
    shown = replace(store.manifest.identity.teacher_rendering, input_size=24, normalisation=AS_IT_IS)
    data = StudentData.load(store, 48, Wanted(student=(), teacher=("logits",), parameters=False), CPU, shown)
    batch = Batch(torch.arange(8), (slice(0, 8),))

    def at(seed: int, step: int) -> torch.Tensor:
        return data.inputs(batch, step, seed=seed, student_view=kind)[0]

    assert at(0, 5).shape == (8, 3, 24, 24)
    assert torch.equal(at(0, 5), at(0, 5))
    assert not torch.equal(at(0, 5), at(0, 6))
    assert not torch.equal(at(0, 5), at(1, 5))


@pytest.mark.parametrize("kind", ["resized", "trivial"])
def test_views_that_would_not_be_drawn_are_refused_before_anything_is_loaded(built_store, tmp_path, kind):
    def load(*_: object) -> StudentData:
        raise AssertionError("nothing is to be loaded")

    config = TrainConfig(student="resnet8", student_view=kind)
    said = f"mlkd shows the student every stored view of an image, so that no {kind} one would be drawn; leave the"
    with pytest.raises(InvalidInput, match=said):
        Trainer.open(config, built_store, 48, parse_method("mlkd"), CPU, RunFolder(tmp_path / "run"), load=load)
    require_drawn("fresh", parse_method("mlkd"), 2)
    require_drawn(kind, parse_method("kd"), 2)
