"""Maps of other sizes in the two networks: the larger is pooled, by cells written out, and nothing else changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from student_train.binding import Binding
from student_train.losses.hint import Hint
from student_train.losses.tensors import pooled_like
from student_train.registry import find_loss, loss_names
from tests.student_train.losses.checks import assert_is_a_loss, binding_for, signals_for
from tests.student_train.losses.plain_layers import array, convolved, normalised

# As a student at 96 or 32 pixels and a teacher at 224 have them: sides in no simple ratio.
SIDES = {"layer1": (24, 56), "layer2": (12, 28), "layer3": (4, 14)}
STUDENT_CHANNELS, TEACHER_CHANNELS = (3, 4, 5), (4, 6, 8)
# Those that relate channel i of one network to channel i of the other.
EQUAL_CHANNELS = {"fsp", "kdsvd"}
# Losses of a map that is pooled first, and of nothing else in it.
POOLED_FIRST = ("hint", "ab", "at", "nst", "vid", "ofd", "cwd", "mgd")


def pooled(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cell i of n over a side of N is the mean of floor(i N / n) up to ceil((i + 1) N / n), in float64."""

    def cells(side: int, count: int) -> list[slice]:
        return [slice(math.floor(i * side / count), math.ceil((i + 1) * side / count)) for i in range(count)]

    rows, columns = cells(maps.shape[2], height), cells(maps.shape[3], width)
    maps = maps.astype(np.float64)
    return np.stack([np.stack([maps[:, :, r, c].mean(axis=(2, 3)) for c in columns], -1) for r in rows], -2)


def binding(name: str) -> Binding:
    narrow = TEACHER_CHANNELS if name in EQUAL_CHANNELS else STUDENT_CHANNELS
    ours, theirs, norms = {}, {}, {}
    for (layer, (side, larger)), here, there in zip(SIDES.items(), narrow, TEACHER_CHANNELS, strict=True):
        for place in (layer, f"{layer}.pre"):
            ours[place], theirs[place] = (here, side, side), (there, larger, larger)
        norms |= {f"norm/{layer}/{kind}": torch.ones(there) for kind in ("scale", "shift")}
    pooled_vectors = {"pooled": (STUDENT_CHANNELS[-1],)}, {"pooled": (TEACHER_CHANNELS[-1],)}
    return binding_for(ours | pooled_vectors[0], theirs | pooled_vectors[1], parameters=norms)


def losses_of_maps() -> list[str]:
    """Every loss that compares maps, and changes nothing of what the student is."""
    names = []
    for name in loss_names():
        loss = find_loss(name)()
        words = loss.needs.outputs.replace(".pre", "").split("+")
        if any(word.startswith(("stages", "maps", "layer")) for word in words) and not loss.dresses:
            names.append(name)
    return names


@pytest.mark.parametrize("name", losses_of_maps())
def test_every_loss_of_maps_takes_a_teacher_at_another_size(name):
    assert_is_a_loss(find_loss(name)(), binding(name))


def test_the_losses_of_the_field_are_among_them():
    assert {"hint", "vid", "at", "nst", "sp", "ab", "ofd", "cwd", "mgd", "reviewkd", "semckd"} <= set(losses_of_maps())


@pytest.mark.parametrize("name", POOLED_FIRST)
def test_the_larger_map_is_pooled_and_nothing_else(name):
    facts = binding(name)
    loss = find_loss(name)()
    torch.manual_seed(0)
    loss.bind(facts)
    signals = signals_for(facts)
    as_it_is = loss(signals)
    for ours, theirs in loss.pairs:
        height, width = signals.student.features[ours].shape[2:]
        small = pooled(array(signals.teacher.features[theirs]), height, width)
        signals.teacher.features[theirs] = torch.from_numpy(small).float()
    torch.testing.assert_close(loss(signals), as_it_is, rtol=1e-4, atol=1e-6)


def test_a_hint_of_a_larger_map_is_the_mean_written_out():
    facts = binding_for({"layer2": (2, 5, 4)}, {"layer2": (3, 14, 14)})
    loss = Hint()
    loss.bind(facts)
    signals = signals_for(facts)
    regressed = normalised(convolved(loss.regressors[0][0], array(signals.student.features["layer2"])))
    target = pooled(array(signals.teacher.features["layer2"]), 5, 4)
    wanted = ((np.maximum(regressed, 0) - target) ** 2).mean()
    np.testing.assert_allclose(loss(signals).item(), wanted, rtol=1e-5)


@pytest.mark.parametrize(("large", "small"), [((14, 14), (5, 4)), ((28, 28), (12, 12)), ((7, 9), (7, 3))])
def test_pooling_is_the_mean_of_cells(large, small):
    maps = torch.randn(2, 3, *large, dtype=torch.float64)
    found = pooled_like(maps, torch.empty(1, 9, *small))
    np.testing.assert_allclose(found.numpy(), pooled(maps.numpy(), *small), rtol=1e-12, atol=1e-12)
