"""Mixed inputs are made of what their parts say, and their loss is the mixed loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from ground.errors import InvalidInput
from models import Representation
from student_train.bound_method import BoundMethod
from student_train.method_spec import LossSpec, MethodSpec
from student_train.methods import parse_method
from student_train.mixing import CutMix, Mixup
from student_train.signals import Signals


def images(count: int = 6, size: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mixing", [Mixup(), Mixup(images=3), Mixup(alpha=0.3), CutMix()])
@pytest.mark.parametrize("seed", range(5))
def test_shares_sum_to_one_and_the_first_part_is_the_image_itself(mixing, seed):
    mixed, parts = mixing.mix(images(), np.random.default_rng(seed))
    assert mixed.shape == images().shape
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert all(0 <= part.share <= 1 for part in parts)
    assert torch.equal(parts[0].order, torch.arange(6))
    assert all(sorted(part.order.tolist()) == list(range(6)) for part in parts)


@pytest.mark.parametrize("count", [2, 3])
def test_mixup_is_the_weighted_mean_of_its_images(count):
    inputs = images()
    mixed, parts = Mixup(images=count).mix(inputs, np.random.default_rng(1))
    for place in range(len(inputs)):
        wanted = sum(part.share * inputs[part.order[place]] for part in parts)
        torch.testing.assert_close(mixed[place], wanted)
    assert len(parts) == count


def test_mixup_shares_are_uniform_for_two_images():
    # Beta(1, 1): mean 1/2, variance 1/12; of 4,000 draws the mean is within 0.02 of it but for 1 in 10,000 seeds.
    generator = np.random.default_rng(0)
    shares = np.array([Mixup().mix(images(2, 2), generator)[1][0].share for _ in range(4000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / 12, abs=0.005)


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_one_box_whose_area_is_its_share(seed):
    inputs = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 8, 8).contiguous()
    mixed, (kept, pasted) = CutMix().mix(inputs, np.random.default_rng(seed))
    for place in range(6):
        other = float(pasted.order[place])
        foreign = (mixed[place, 0] == other) if other != place else None
        if foreign is None:
            assert (mixed[place] == place).all()
            continue
        assert ((mixed[place, 0] == place) | foreign).all()
        assert foreign.float().mean().item() == pytest.approx(pasted.share)
        if foreign.any():
            rows, columns = foreign.any(dim=1).sum(), foreign.any(dim=0).sum()
            assert rows * columns == foreign.sum(), "what is pasted is a rectangle"
    assert kept.share + pasted.share == pytest.approx(1)
    assert (inputs == torch.arange(6.0).view(6, 1, 1, 1)).all(), "the inputs are left alone"


@pytest.mark.parametrize("count", [2, 3])
def test_the_loss_of_a_mixture_is_the_cross_entropy_with_mixed_targets(count):
    rng = np.random.default_rng(2)
    student, teacher = rng.normal(size=(2, 6, 5)) * 3
    labels = rng.integers(0, 5, 6)
    _, parts = Mixup(images=count).mix(images(), rng)
    hard = sum(part.share * np.eye(5)[labels[part.order]] for part in parts)
    soft = sum(part.share * softmax(teacher[part.order], axis=1) for part in parts)
    wanted = -((hard + 0.7 * soft) * log_softmax(student, axis=1)).sum(axis=1).mean()
    given = Signals(
        Representation(torch.from_numpy(student), {}),
        Representation(torch.from_numpy(teacher), {}),
        torch.from_numpy(labels),
        torch.arange(6),
    )
    spec = parse_method("mixup:weight=0.7")
    method = BoundMethod(spec, [loss.make() for loss in spec.losses])
    assert method.losses(given, parts).total.item() == pytest.approx(wanted, rel=1e-6)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(InvalidInput, match="takes 2 to 64 images"):
        Mixup(images=1)
    for mixing in (Mixup, CutMix):
        with pytest.raises(InvalidInput, match="alpha"):
            mixing(alpha=0.0)
    compared = LossSpec("soft_ce", compared=True)
    with pytest.raises(InvalidInput, match="cannot mix them"):
        MethodSpec("both", (LossSpec("ce"), compared), mixing=Mixup())
