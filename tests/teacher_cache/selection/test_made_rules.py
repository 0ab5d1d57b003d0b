"""Rules that make what calls are spent on: further views, and mixes of two images that were bought."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput, UnknownName
from storage.made_images import Kind, Recipes, box_side, is_made
from teacher_cache.datasets.made_split import MadeSplit
from teacher_cache.selection import SelectorSpec
from teacher_cache.selection.kcenter import KCenter
from teacher_cache.selection.made_rule import MadeRule
from teacher_cache.selection.mixes import BoughtMixup
from teacher_cache.selection.spend import spending_rule
from teacher_cache.selection.views import Views
from tests.teacher_cache.selection.pools import SIDE, pool_of


def choose(text: str, pool, count: int, seed: int = 0) -> np.ndarray:
    return SelectorSpec.read(text).make().choose(pool, count, np.random.default_rng(seed))


@pytest.mark.parametrize(("rule", "kind"), [("mixup", Kind.MIXUP), ("cutmix", Kind.CUTMIX)])
def test_mixes_are_of_two_images_that_were_bought_the_larger_part_first(rule, kind):
    pool = pool_of([0, 1, 2, 3] * 10, bought=8)
    chosen = choose(rule, pool, 50)
    made = Recipes.of(chosen)
    assert is_made(chosen).all()
    assert len(set(chosen.tolist())) == 50
    assert set(made.kind.tolist()) == {kind}
    assert set(made.sources.tolist()) <= set(pool.bought.tolist())
    assert (made.first != made.second).all()
    assert ((made.parts >= 128) & (made.parts <= 255)).all()


def test_shares_of_mixes_are_those_of_the_beta_distribution():
    pool = pool_of([0] * 40, bought=30)
    uniform, ends = (Recipes.of(choose(text, pool, 2000)).parts / 256 for text in ("mixup", "mixup:alpha=0.2"))
    # Of max(x, 1 - x): 3/4 for uniform x; for Beta(0.2, 0.2) E|x - 1/2| + 1/2, by integration.
    grid = (np.arange(200_000) + 0.5) / 200_000
    density = (grid * (1 - grid)) ** -0.8
    assert uniform.mean() == pytest.approx(0.75, abs=0.01)
    assert ends.mean() == pytest.approx(0.5 + np.average(abs(grid - 0.5), weights=density), abs=0.02)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(2, 9))
def test_no_image_gets_another_view_before_those_that_have_fewer(before, count, bought):
    pool = replace(pool_of([0] * 40, bought=bought))
    pool = replace(pool, identity=replace(pool.identity, view_policy="augmented"))
    first = choose("views", pool, before)
    then = choose("views", replace(pool, bought=np.concatenate([pool.bought, first])), count)
    both = np.concatenate([first, then])
    assert len(set(both.tolist())) == before + count
    made = Recipes.of(both)
    for image in pool.bought:
        numbers = made.second[made.first == image].tolist()
        assert numbers == [*range(1, len(numbers) + 1)]
    times = np.array([(made.first == image).sum() for image in pool.bought])
    assert times.max() - times.min() <= 1
    assert (np.diff(times) <= 0).all()


def test_nothing_that_was_bought_is_made_again():
    pool = pool_of([0] * 10, bought=2)
    first = choose("mixup", pool, 100)
    after = replace(pool, bought=np.concatenate([pool.bought, first]))
    assert not set(first.tolist()) & set(choose("mixup", after, 50, seed=1).tolist())
    with pytest.raises(InvalidInput, match="that were not made before"):
        choose("mixup", pool, 1000)


def test_a_view_that_was_passed_over_is_not_made_later_and_none_is_made_twice():
    pool = pool_of([0] * 10, bought=2)
    pool = replace(pool, identity=replace(pool.identity, view_policy="augmented"))
    image = int(pool.bought[1])
    third = Recipes(*(np.array([value], np.int64) for value in (Kind.AGAIN, image, 3, 0))).index
    made = Recipes.of(choose("views", replace(pool, bought=np.concatenate([pool.bought, third])), 6))
    assert sorted(made.second[made.first == image].tolist()) == [4]
    assert sorted(made.second[made.first == pool.bought[0]].tolist()) == [1, 2, 3, 4, 5][: len(made.first) - 1]


def test_a_cutmix_of_small_images_has_at_least_a_pixel_of_each():
    pool = pool_of([0, 1, 2, 3] * 10, bought=30)
    made = Recipes.of(choose("cutmix", pool, 2000))
    assert min(box_side(parts, SIDE) for parts in made.parts.tolist()) == 1


def test_more_candidates_than_memory_holds_are_refused_with_their_size(monkeypatch):
    monkeypatch.setattr("teacher_cache.selection.made_rule.free_main_memory", lambda: 10**9)
    rule = SelectorSpec.read("mixup:among=1000").make()
    rule.require(pool_of([0] * 10), 1000)
    with pytest.raises(InvalidInput, match="needs 3.2 GB of memory to make 1000 candidates for each of 10000 rows"):
        rule.require(pool_of([0] * 10), 10_000)


def test_a_rule_says_how_many_of_its_rows_are_images():
    for text, number in (("random", 20), ("mixup", 0), ("mix:random=0.25,views=0.25,mixup=0.5", 5)):
        assert SelectorSpec.read(text).make().num_images(20) == number


def test_another_rule_chooses_among_several_times_as_many():
    pool = pool_of([0, 1, 2, 3] * 10, bought=8)
    pool = replace(pool, images=MadeSplit(pool.images))
    chosen = choose("mixup:by=kcenter,among=5", pool, 6)
    rule = BoughtMixup()
    left = rule.candidates(pool, pool.bought, 30, np.random.default_rng(0))
    by_distance = KCenter().choose(replace(pool, left=left), 6, np.random.default_rng(0))
    assert chosen.tolist() == by_distance.tolist()
    made = SelectorSpec.read("mix:random=0.5,cutmix=0.5,cutmix.by=kcenter,cutmix.kcenter.subset=40").make()
    assert made.makes
    assert made.parts[1][0].by.subset == 40
    assert isinstance(made.parts[1][0], MadeRule)


def test_mixes_of_a_round_may_be_of_images_of_the_same_round():
    pool = pool_of([0, 1, 2, 3] * 10)
    chosen = choose("mix:random=0.5,mixup=0.5", pool, 20)
    assert chosen[:10].tolist() == pool.left[:10].tolist()
    assert set(Recipes.of(chosen[10:]).sources.tolist()) <= set(chosen[:10].tolist())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mixup:by=balanced", "balanced cannot choose among images that are made"),
        ("mixup:by=views", "views cannot choose among images that are made"),
        ("mixup:among=0", "among must be 1 to 1000"),
        ("cutmix:alpha=0", "alpha must be above 0"),
        ("mixup:kcenter.subset=5", "kcenter has a setting and chooses nothing"),
        ("views:by=nothing", "no rule is called 'nothing'"),
        ("mixup:beta=2", "no setting of rule mixup"),
    ],
)
def test_what_is_refused_when_it_is_read(text, said):
    with pytest.raises((InvalidInput, UnknownName), match=said):
        SelectorSpec.read(text)


def test_images_have_to_be_bought_first():
    with pytest.raises(InvalidInput, match="buy some first"):
        choose("mixup", pool_of([0] * 10, bought=1), 2)


def test_a_store_of_plain_views_has_no_further_ones():
    with pytest.raises(InvalidInput, match="all views of an image are the same"):
        Views().require(pool_of([0] * 10, bought=5), 2)


def test_more_images_than_are_left_are_refused_whatever_is_made_beside():
    rule = SelectorSpec.read("mix:random=0.5,mixup=0.5").make()
    with pytest.raises(InvalidInput, match="15 images are to be bought, and 10 are left"):
        rule.require(pool_of([0] * 10), 30)
    rule.require(pool_of([0] * 10), 20)


@pytest.mark.parametrize(
    ("rule", "spend", "found"),
    [
        ("random", "images", "random"),
        ("random", "mixup", "mixup"),
        ("random", "mixup=0.25,images=0.75", "mix:random=0.75,mixup=0.25"),
        ("kcenter:subset=9", "images=0.5,views=0.5", "mix:kcenter=0.5,views=0.5,kcenter.subset=9"),
        ("random", "views=0.5,cutmix=0.5", "mix:views=0.5,cutmix=0.5"),
        ("random", "mixup=1", "mixup"),
    ],
)
def test_what_calls_are_spent_on_becomes_a_rule(rule, spend, found):
    assert spending_rule(rule, spend) == found
    SelectorSpec.read(found)


@pytest.mark.parametrize(
    ("rule", "spend", "said"),
    [
        ("random", "sound", "no thing to spend calls on is called 'sound'"),
        ("mix:random=1", "mixup", "says already what calls are spent on"),
        ("random", "images=0.5,mixup", "cannot read 'mixup'"),
        ("random", "mixup=0.3", "shares must add up to 1"),
        ("random", "images=banana", "shares must add up to 1"),
        ("kcenter:subset=9", "mixup", "have it choose what is made, as --select mixup:by=kcenter"),
    ],
)
def test_what_calls_cannot_be_spent_on(rule, spend, said):
    with pytest.raises((InvalidInput, UnknownName), match=said):
        spending_rule(rule, spend)
