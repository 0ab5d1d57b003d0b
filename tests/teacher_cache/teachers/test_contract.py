"""What every teacher keeps to, whatever it is; a new kind is added to `TEACHERS`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ground.geometry import Normalisation, Rendering
from ground.layers import LOGITS, is_layer_name
from models.compute import Compute
from storage.schema import HEAD_BIAS, HEAD_WEIGHT
from teacher_cache.datasets import open_dataset
from teacher_cache.outputs import choose_outputs, kept_parameters, to_arrays
from teacher_cache.teachers import TeacherSource, untrained_teacher

CPU = Compute.choose("cpu", "fp32")
TEACHERS = {
    name: lambda name=name: untrained_teacher(TeacherSource(name=name), open_dataset("digits"), CPU)
    for name in ("resnet8", "ShuffleV1", "torchvision:mobilenet_v3_small", "timm:resnet18")
}


@pytest.fixture(params=TEACHERS)
def teacher(request):
    opened = TEACHERS[request.param]()
    yield opened
    opened.close()


def views_for(teacher, count: int) -> torch.Tensor:
    size = teacher.card.rendering.geometry.crop_size
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_card_says_what_can_be_asked_for(teacher):
    card = teacher.card
    assert next(iter(card.outputs)) == LOGITS
    assert tuple(card.outputs)[1:] == card.identity.layers
    assert all(map(is_layer_name, card.identity.layers))
    assert card.outputs[LOGITS] == (card.identity.num_classes,)
    assert card.rendering.normalisation == card.identity.normalisation
    assert len(card.identity.fingerprint) == 64


def test_answers_have_the_shapes_of_the_card_and_nothing_else(teacher):
    asked = (LOGITS, *teacher.card.identity.layers[::2])
    said = teacher.call(views_for(teacher, 3), asked)
    assert tuple(said) == asked
    assert {name: tuple(tensor.shape) for name, tensor in said.items()} == {
        name: (3, *teacher.card.outputs[name]) for name in asked
    }


def test_what_is_asked_for_beside_it_changes_no_answer(teacher):
    views = views_for(teacher, 2)
    alone = teacher.call(views, [LOGITS])[LOGITS]
    torch.testing.assert_close(teacher.call(views, teacher.card.outputs)[LOGITS], alone, rtol=0, atol=0)


def test_the_head_that_is_kept_makes_the_logits_from_the_pooled_vector(teacher):
    parameters = kept_parameters(teacher.card, choose_outputs(teacher.card, "pooled", "float32"))
    said = teacher.call(views_for(teacher, 4), [LOGITS, "pooled"])
    pooled = said["pooled"].double().numpy()
    expected = pooled @ parameters[HEAD_WEIGHT].T.astype(np.float64) + parameters[HEAD_BIAS]
    np.testing.assert_allclose(said[LOGITS].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_an_estimate_is_a_time_and_no_call(teacher, monkeypatch):
    monkeypatch.setattr(type(teacher), "call", lambda *_: pytest.fail("an estimate made a call"))
    estimated = teacher.seconds_per_call([LOGITS], batch_size=2)
    assert 0 < estimated < 60
    # To the last digit: it is measured once, whatever the number of stores that are planned by it.
    assert teacher.seconds_per_call((LOGITS,), batch_size=2) == estimated


def test_kept_arrays_have_the_stored_type(teacher):
    outputs = choose_outputs(teacher.card, "pooled", "float16")
    arrays = to_arrays(teacher.call(views_for(teacher, 2), [output.name for output in outputs]), outputs)
    assert {name: array.dtype.name for name, array in arrays.items()} == {LOGITS: "float32", "pooled": "float16"}


def test_another_rendering_is_another_teacher():
    digits = open_dataset("digits")
    other = Rendering(geometry=digits.geometry, normalisation=Normalisation(mean=(0.1, 0, 0), std=(1, 1, 1)))

    class Facts:
        name, classes, rendering = digits.name, digits.classes, other

    ours, theirs = (
        untrained_teacher(TeacherSource(name="resnet8"), facts, CPU).card.identity for facts in (digits, Facts)
    )
    assert ours.fingerprint != theirs.fingerprint
