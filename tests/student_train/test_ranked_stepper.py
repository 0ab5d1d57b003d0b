"""Several ranks change a student as one process with the same batches does: losses, gradients, batch norm, memories."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ground.errors import InvalidInput
from ground.ranks import Ranks
from student_train.names import NAMED_METHODS
from student_train.ranked_stepper import gathered, partition, require_rows
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build
from tests.rank_threads import ThreadRanks, in_ranks
from tests.running import run_program

BASELINES = ("kd", "rkd", "dist", "crd:negatives=16", "ckd:pairs=all", "vid")
WITH_SETTINGS = {"fitnets+crd": "fitnets+crd:negatives=16", "vid+crd": "vid+crd:negatives=16", "rkd_d": "rkd_d:dims=5"}
WITH_REST = "kd + ce:ratio=0.5 + pseudo:confidence=0.1 + mean_teacher"
METHODS = (*BASELINES, *(WITH_SETTINGS.get(name, name) for name in NAMED_METHODS), WITH_REST)


# Processes, and not threads: those share the generator that begins a student.
def steps_by(count: int, store: Path, folder: Path, methods: Sequence[str]) -> list[dict]:
    """Of one process, and of each of several that talk by gloo; they are taken once for a folder."""
    if not (folder / "one.pt").exists():
        done = run_program("tests.student_train.ranked_steps", count, store, folder, *methods)
        assert done.returncode == 0, done.stderr
    names = ["one", *(f"rank{rank}" for rank in range(count))]
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in names]


@pytest.fixture(scope="module")
def steps(made_once, built_store):
    folder = made_once("ranked-steps", lambda folder: steps_by(2, built_store, folder, METHODS))
    return steps_by(2, built_store, folder, METHODS)


def assert_alike(found: dict, expected: dict) -> None:
    """Of every method: losses, gradients and state."""
    assert all(cost["total"].dtype == torch.float64 for steps in expected.values() for cost in steps["losses"])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def largest_difference(found: object, expected: object) -> float:
    """Of any number in two documents of tensors."""
    if isinstance(expected, Tensor):
        apart = found.nan_to_num().double() - expected.nan_to_num().double()
        return apart.abs().max().item() if apart.numel() else 0.0
    keys = expected if isinstance(expected, dict) else range(len(expected))
    return max((largest_difference(found[key], expected[key]) for key in keys), default=0.0)


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_step_as_one_process(steps, method):
    one, *ranks = (named[method] for named in steps)
    assert len(one["losses"]) == len(one["gradients"]) == 4
    assert all(any(gradient.abs().max() > 1e-3 for gradient in found.values()) for found in one["gradients"])
    for found in ranks:
        assert_alike({method: found}, {method: one})
    furthest = max(largest_difference(found, one) for found in ranks)
    print(f"\n{method}: losses, gradients and state are within {furthest:.1e} of one process's", end="")
    for name, tensor in ranks[0]["state"].items():
        assert torch.equal(tensor.nan_to_num(), ranks[1]["state"][name].nan_to_num()), name


def test_a_rank_without_a_row_of_the_last_batch_changes_nothing(built_store, tmp_path):
    one, *ranks = steps_by(3, built_store, tmp_path, ["vanilla", "ckd", "fitnets+crd:negatives=16"])
    assert len(ranks) == 3
    for found in ranks:
        assert_alike(found, one)


@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=4), count=st.integers(1, 9))
def test_every_position_of_every_pass_is_one_ranks(lengths, count):
    ends = [0, *(sum(lengths[: place + 1]) for place in range(len(lengths)))]
    passes = [slice(*part) for part in pairwise(ends)]
    shares = partition(passes, count)
    assert len(shares) == count
    for place, part in enumerate(passes):
        assert [*chain.from_iterable(own[place] for own in shares)] == [*range(part.start, part.stop)]


def test_rows_are_gathered_in_their_places_and_each_gradient_goes_to_its_own():
    whole, weights = torch.arange(15.0).view(5, 3), torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])
    positions = [torch.tensor([3, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([1, 4, 2])]

    def work(ranks: Ranks) -> Tensor:
        own = whole[positions[ranks.rank]].requires_grad_()
        found = gathered(own, positions, ranks)
        assert torch.equal(found, whole)
        (found * weights[:, None]).sum().backward()
        return own.grad

    for own, place in zip(in_ranks(3, work), positions, strict=True):
        # Times three: it is a mean over ranks that follows.
        assert torch.equal(own, 3 * weights[place][:, None].expand(-1, 3))


def test_fewer_rows_than_ranks_are_refused():
    ranks = ThreadRanks.__new__(ThreadRanks)
    ranks.count = 5
    require_rows(5, ranks)
    with pytest.raises(InvalidInput, match="--batch-size 4 is the batch of all 5 ranks, and some would have no row"):
        require_rows(4, ranks)


@pytest.fixture(scope="module")
def head_store(made_once, weights):
    """What losses need that look at the student in another way: through its head, or after giving it another."""

    def fill(folder):
        config = BuildConfig(
            teacher="resnet8",
            weights=weights,
            dataset="digits",
            n=16,
            features="all,last",
            store=folder / "store",
            device="cpu",
            trust_teacher=True,
        )
        build(*prepare_build(config))

    return made_once("head-store", fill) / "store"


def test_what_a_loss_does_to_the_head_itself_counts_once(head_store, tmp_path):
    one, *ranks = steps_by(2, head_store, tmp_path, ["sdd", "catkd", "srrl", "simkd"])
    assert len(ranks) == 2
    for found in ranks:
        assert_alike(found, one)
