"""Validation images that are cut once give the inputs that cutting them in every evaluation gives."""

from __future__ import annotations

import pytest
import torch

from ground.geometry import Normalisation, Rendering, ViewGeometry
from ground.views import evaluation_batches
from models.compute import Compute
from storage.store import Store
from student_train.data import LabelledImages, StudentData
from student_train.needs import Wanted
from student_train.request import Request
from student_train.shown_images import ShownImages

OWN = Normalisation(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
RENDERINGS = {
    "squares as they are stored": (ViewGeometry(image_size=20, crop_size=20, padding=4), None),
    "the centre": (ViewGeometry(image_size=20, crop_size=13, padding=0), None),
    "padded": (ViewGeometry(image_size=20, crop_size=24, padding=4), None),
    "resized": (ViewGeometry(image_size=20, crop_size=18, padding=0), 7),
}


@pytest.mark.parametrize("case", RENDERINGS)
def test_the_inputs_are_the_same_bit_for_bit_in_the_same_layout(case):
    geometry, size = RENDERINGS[case]
    rendering = Rendering(geometry=geometry, normalisation=OWN, input_size=size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (600, 20, 20, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(600)
    shown = ShownImages.of(images, labels, rendering)
    expected = list(evaluation_batches(images, labels, rendering))
    for _ in range(2):  # nothing that is kept is normalised in place
        for ours, theirs in zip(shown.batches(rendering), expected, strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert ours[0].stride() == theirs[0].stride()
            assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(("input_size", "kept"), [(None, True), (8, True), (64, False)])
def test_they_are_kept_where_they_take_no_more_than_what_is_stored_and_counted(built_store, input_size, kept):
    store = Store.open(built_store)
    teachers = store.manifest.identity.teacher_rendering
    shown = Rendering(geometry=teachers.geometry, normalisation=OWN, input_size=input_size)
    nothing = Wanted(student=(), teacher=(), parameters=False)
    compute = Compute(torch.device("cpu"), "fp32")
    data = StudentData.load(store, 40, nothing, compute, shown)
    assert isinstance(data.val, ShownImages if kept else LabelledImages)
    arrays = [data.train.images, data.views]
    stored = sum(array[:1].nbytes * 40 for array in arrays)
    stored += sum(store.read(f"{split}/images").nbytes for split in ("val", "test"))
    needed = Request.checked(store, 40, nothing, shown).needed_bytes
    assert needed == stored + (data.val.pixels.nbytes if kept else 0)
