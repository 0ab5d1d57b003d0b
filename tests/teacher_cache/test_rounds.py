"""Rounds: a store's order is the order of purchase, whatever rule chose it and whatever happens in between."""

from __future__ import annotations

import hashlib
import json
import signal
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.errors import BoughtOtherwise, BudgetRefused, IdentityMismatch, InvalidInput, StoreUnreadable
from ground.places import parse_place
from ground.views import sample_views, view_pixels
from storage.ledger import Ledger
from storage.ledger_tables import entries
from storage.made_images import Recipes, is_made
from storage.manifest import Manifest, Round
from storage.rows import Rows
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from teacher_cache.add_rest import ImageOptions, add_rest
from teacher_cache.build import build
from teacher_cache.buying import buy, rounds_to_buy
from teacher_cache.config import BuildConfig, CallConfig, ExtensionConfig
from teacher_cache.convert import convert
from teacher_cache.datasets import open_dataset
from teacher_cache.datasets.base import ArraySplit
from teacher_cache.datasets.made_split import MadeSplit
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build
from teacher_cache.publish import fetch, publish
from teacher_cache.repair import repair
from teacher_cache.rest import Rest
from teacher_cache.rounds import round_ends
from teacher_cache.sample import draw_sample, largest_sample
from teacher_cache.selection import SELECTORS, SelectorSpec
from teacher_cache.selection.balanced import Balanced
from teacher_cache.selection.contract import Selector
from tests.conftest import run_command
from tests.running import run_program
from tests.teacher_cache.builders import forwards, wait_until
from tests.teacher_cache.crash_rest import config as small_config
from tests.teacher_cache.crash_rest import grow
from tests.teacher_cache.damage import arrays_of, change, problems, totals
from tests.teacher_cache.shared_builder import Job
from tests.teacher_cache.test_rest import assert_same_arrays

BALANCED = SelectorSpec("balanced")


def bought(store: Path, weights: Path, n: int, rule: str | None = "balanced", size: int | None = None, **changes):
    """A report of the rounds that a store of n rows takes."""
    select = None if rule is None else SelectorSpec.read(rule)
    config = replace(small_config(store, weights, "zarr", n, 0), select=select, **{"rest": None, **changes})
    return buy(config, size, lambda prepared, report: build(*prepared, report=report))


def order_of(store: Path) -> np.ndarray:
    return Store.open(store).read_sample("train/source_index")


def rules_of(store: Path) -> list[tuple[str, int, int]]:
    return [(made.rule, made.first, made.end) for made in Store.open(store).manifest.rounds]


class Last(Selector):
    """The last of what is left, which depends on all that was bought before."""

    name = "last"
    source = "these tests"

    def choose(self, pool, count, rng):
        return pool.left[::-1][:count].copy()

    def looked_at(self):
        return {"end": "of the line"}


class Wrong(Selector):
    """Whatever a test has it choose."""

    name = "wrong"
    source = "these tests"
    chosen = np.empty(0, np.int64)

    def choose(self, pool, count, rng):
        return type(self).chosen


@pytest.fixture(autouse=True)
def _rules(monkeypatch):
    for rule in (Last, Wrong):
        monkeypatch.setitem(SELECTORS, rule.name, rule)


# The order


@settings(max_examples=8)
@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from(["random", "balanced", "last"])), min_size=1, max_size=4))
def test_rows_stay_in_the_order_in_which_they_were_bought(weights, tmp_path_factory, steps):
    """Against the definition: each rule is asked about what is left, in the order of the seed."""
    store = tmp_path_factory.mktemp("bought") / "store"
    digits = open_dataset("digits")
    line = draw_sample(len(digits.train), largest_sample(len(digits.train)), 0).train.tolist()
    order, n = [], 0
    for count, rule in [(2, "random"), *steps]:
        n += count
        left = [index for index in line if index not in order]
        if rule == "balanced":
            labels = digits.train.labels
            for _ in range(count):
                have = np.bincount(labels[np.array(order, dtype=int)], minlength=10)
                order.append(min((i for i in left if i not in order), key=lambda i: (have[labels[i]], labels[i])))
        else:
            order += left[:count] if rule == "random" else left[::-1][:count]
        bought(store, weights, n, rule)
        assert order_of(store).tolist() == order
    manifest, sample = Store.open(store).manifest, draw_sample(len(digits.train), n, 0)
    np.testing.assert_array_equal(Store.open(store).read_sample("val/source_index"), sample.val)
    np.testing.assert_array_equal(Store.open(store).read("train/images"), digits.train.read(np.array(order)))
    assert totals(store) == (n, 0, 0)
    assert problems(store) == []
    made = [manifest.round_of(row) for row in range(n)]
    expected = [rule for count, rule in [(2, "random"), *steps] for _ in range(count)]
    assert ["random" if chosen is None else chosen.rule for chosen in made] == expected


def test_random_leaves_a_store_as_it_was_without_rules(weights, tmp_path):
    bought(tmp_path / "rule", weights, 40, "random", 10)
    bought(tmp_path / "none", weights, 40, None)
    ours, theirs = arrays_of(tmp_path / "rule"), arrays_of(tmp_path / "none")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    for name in ("rule", "none"):
        assert "rounds" not in json.loads((tmp_path / name / "manifest.json").read_text())


def test_rounds_of_one_command_are_what_they_are_one_command_each(weights, tmp_path):
    report = bought(tmp_path / "one", weights, 50, "last", 20)
    assert (report.new_calls, report.n, report.rows_valid) == (50, 50, 50)
    assert rules_of(tmp_path / "one") == [("last", 0, 20), ("last", 20, 40), ("last", 40, 50)]
    for n in (20, 40, 50):
        bought(tmp_path / "each", weights, n, "last")
    np.testing.assert_array_equal(order_of(tmp_path / "one"), order_of(tmp_path / "each"))
    again = bought(tmp_path / "one", weights, 50, "last", 20)
    assert (again.new_calls, again.rows_valid) == (0, 50)


@given(st.integers(2, 300), st.integers(0, 300), st.none() | st.integers(1, 100))
def test_rounds_end_at_n_and_none_is_larger_than_asked(n, before, size):
    ends = round_ends(n, before, size)
    assert ends[-1] == n
    if before < n and size is not None:
        assert all(0 < end - start <= size for start, end in pairwise([before, *ends]))
        assert len(ends) == -(-(n - before) // size)


# The record


def test_every_round_is_an_entry_of_the_ledger_and_in_the_manifest(weights, tmp_path):
    store = tmp_path / "store"
    bought(store, weights, 10, "random")
    bought(store, weights, 30, "last", 10)
    rounds = Store.open(store).manifest.rounds
    assert rounds == (
        Round(rule="last", seed=0, first=10, end=20, looked_at={"end": "of the line"}),
        Round(rule="last", seed=0, first=20, end=30, looked_at={"end": "of the line"}),
    )
    with closing(Ledger(f"sqlite:///{store / LEDGER_FILE}")) as ledger, ledger.reading() as connection:
        said = [json.loads(text) for text in connection.execute(sa.select(entries.c.payload)).scalars()]
    entered = [content["round"] for content in said if "round" in content]
    assert [(content["first"], content["end"]) for content in entered] == [(10, 20), (20, 30)]
    assert entered[0]["looked_at"] == {"end": "of the line"}


@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        ([("balanced", 12, 20)], "rounds"),
        ([("balanced", 10, 19)], "end of rounds"),
        ([("balanced", 10, 21)], "end of rounds"),
        ([("balanced", 10, 15), ("last", 14, 20)], "rounds"),
        ([("balanced", 10, 10), ("last", 10, 20)], "rounds"),
    ],
)
def test_rounds_that_no_build_makes_are_no_manifest(weights, tmp_path, rounds, said):
    store = tmp_path / "store"
    bought(store, weights, 20, "balanced")
    made = tuple(Round(rule=rule, seed=0, first=first, end=end) for rule, first, end in rounds)
    manifest = Manifest.load(store)
    if (rounds[0][1], rounds[-1][2]) == (12, 20):
        made = (Round(rule="balanced", seed=0, first=0, end=11), *made)
    replace(manifest, rounds=made).save(store)
    with pytest.raises(StoreUnreadable, match=said):
        Manifest.load(store)


def test_a_rule_that_is_exchanged_in_the_manifest_is_found(weights, tmp_path):
    store = tmp_path / "store"
    bought(store, weights, 20, "balanced")
    manifest = Manifest.load(store)
    replace(manifest, rounds=(replace(manifest.rounds[0], rule="random"),)).save(store)
    assert any("manifest" in problem for problem in problems(store))


# What is refused


def test_a_store_that_another_rule_filled_is_refused_with_what_filled_it(weights, tmp_path):
    bought(tmp_path / "store", weights, 20, "random")
    with pytest.raises(InvalidInput, match="its row 19 was chosen by random, not by balanced; give a larger --n"):
        bought(tmp_path / "store", weights, 20, "balanced")
    bought(tmp_path / "store", weights, 30, "balanced")
    assert bought(tmp_path / "store", weights, 30, "balanced").new_calls == 0
    assert bought(tmp_path / "store", weights, 20, "random").new_calls == 0
    assert bought(tmp_path / "store", weights, 30, None).new_calls == 0


def test_a_store_is_of_the_same_rule_however_it_is_written(weights, tmp_path):
    bought(tmp_path / "store", weights, 20, "mix:balanced=0.50,kcenter=0.5,kcenter.encoder=pixels")
    assert rules_of(tmp_path / "store") == [("mix:balanced=0.5,kcenter=0.5", 0, 20)]
    manifest = Manifest.load(tmp_path / "store")
    earlier = replace(manifest.rounds[0], rule="mix:balanced=0.5,kcenter=0.5,kcenter.subset=none")
    replace(manifest, rounds=(earlier,)).save(tmp_path / "store")
    assert bought(tmp_path / "store", weights, 20, "mix:balanced=0.5,kcenter=0.5").new_calls == 0
    with pytest.raises(InvalidInput, match="not by mix:kcenter=0.5,balanced=0.5; give a larger --n"):
        bought(tmp_path / "store", weights, 20, "mix:kcenter=0.5,balanced=0.5")


def line_without(order: np.ndarray) -> np.ndarray:
    """What is left of the pool, in the order of the seed."""
    line = draw_sample(1437, largest_sample(1437), 0).train
    return line[~np.isin(line, order)]


def assert_keeps(store: Path, n: int, rest: int, *bought_in_order: np.ndarray) -> None:
    """The rows, and what is left of the pool after them in the order of the seed; nothing else, and all of it whole."""
    order, found, digits = order_of(store), Store.open(store), open_dataset("digits")
    assert (found.manifest.n, found.manifest.rest, found.manifest.rest_labelled) == (n, rest, rest or None)
    for rows in bought_in_order:
        np.testing.assert_array_equal(order[: len(rows)], rows)
    np.testing.assert_array_equal(order[n:], line_without(order[:n])[:rest])
    pool = MadeSplit(digits.train)
    np.testing.assert_array_equal(found.read_sample("train/images"), pool.read(order))
    np.testing.assert_array_equal(found.read_sample("train/labels"), pool.labels_of(order))
    views = sample_views(found.manifest.identity.geometry, "augmented", seed=0, source_index=order, num_views=1)
    np.testing.assert_array_equal(found.read_sample("train/views"), views)
    np.testing.assert_array_equal(found.read_sample("val/source_index"), draw_sample(1437, n, 0).val)
    assert problems(store) == []


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
@pytest.mark.parametrize("rest", [25, None])
def test_rules_go_on_buying_of_a_store_that_keeps_a_rest(weights, tmp_path, array_format, rest):
    store, config = tmp_path / "store", {"array_format": array_format, "budget": 90}
    report = bought(store, weights, 40, "balanced", 20, rest=Rest(rest), **config)
    kept = 1110 if rest is None else rest
    assert (report.rest, report.new_calls) == (kept, 40)
    assert_keeps(store, 40, kept)
    # Each rule buys what it would have bought without a rest, and this leaves the rest.
    bought(tmp_path / "without", weights, 40, "balanced", 20, array_format=array_format)
    answered = 40
    for n, rule in ((52, "balanced"), (60, "last"), (70, "random"), (80, "last")):
        before = order_of(store)[answered:]
        report = bought(store, weights, n, rule, **config)
        bought(tmp_path / "without", weights, n, rule, array_format=array_format)
        order = order_of(tmp_path / "without")
        kept -= int(np.isin(order[answered:n], before).sum())
        assert (report.new_calls, report.rest) == (n - answered, kept)
        assert_keeps(store, n, kept, order)
        assert totals(store) == (n, 0, 0)
        answered = n
    ours, theirs = arrays_of(store), arrays_of(tmp_path / "without")
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name][: len(values)], values, name)
    with pytest.raises(BudgetRefused):
        bought(store, weights, 91, "balanced", **config)
    # What is asked for anew is what is left then.
    assert bought(store, weights, 90, "last", rest=Rest(None), **config).rest == 1150 - 90
    assert_keeps(store, 90, 1150 - 90)


@pytest.fixture(params=["zarr", "hdf5"])
def bought_of(request, weights, tmp_path) -> Path:
    """A store whose newest rows were bought out of its rest, which was added to since: 60 rows and 50 images."""
    store = tmp_path / "store"
    bought(store, weights, 40, "random", rest=Rest(30), array_format=request.param, features="layer1")
    bought(store, weights, 60, "last", array_format=request.param, features="layer1")
    assert add_rest(CallConfig(store=store), Rest(50), ImageOptions()).added == 20
    assert_keeps(store, 60, 50)
    # The end of the line, which the store did not have; so none of what it keeps was bought, and all of it moved.
    assert Store.open(store).manifest.places == ((0, 40), (70, 20), (40, 30), (90, 20))
    return store


def test_a_store_without_a_rest_that_was_bought_of_does_not_speak_of_places(weights, tmp_path):
    bought(tmp_path / "store", weights, 20, "last", rest=Rest(30))
    bought(tmp_path / "store", weights, 30, "random")
    assert "places" not in json.loads((tmp_path / "store" / "manifest.json").read_text())


def test_copies_have_each_row_at_its_own_number(bought_of, weights, tmp_path):
    before = arrays_of(bought_of)
    other = "hdf5" if Store.open(bought_of).manifest.array_format == "zarr" else "zarr"
    convert(bought_of, other, tmp_path / "copy")
    config = ExtensionConfig(store=bought_of, features="pooled", weights=weights, device="cpu", batch_size=1)
    assert extend(*prepare_extension(config)).new_calls == 60
    for folder in (bought_of, tmp_path / "copy"):
        assert Store.open(folder).manifest.places == ()
        assert_keeps(folder, 60, 50)
        after = arrays_of(folder)
        for name in before.keys() - {"train/digest"}:
            np.testing.assert_array_equal(after[name], before[name], name)


def test_an_extension_goes_on_after_rows_were_bought_of_the_rest(bought_of, weights, monkeypatch):
    array_format = Store.open(bought_of).manifest.array_format
    config = ExtensionConfig(store=bought_of, features="pooled", weights=weights, device="cpu", batch_size=1)
    prepared = prepare_extension(config)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_outputs", stop)
        with pytest.raises(KeyboardInterrupt):
            extend(*prepared)
    bought(bought_of, weights, 70, "balanced", array_format=array_format, features="layer1")
    order = order_of(bought_of)
    extend(*prepare_extension(config))
    np.testing.assert_array_equal(order_of(bought_of), order)
    manifest = Store.open(bought_of).manifest
    assert_keeps(bought_of, 70, manifest.rest)
    assert manifest.rest < 50


@pytest.mark.parametrize("bought_of", ["zarr"], indirect=True)
def test_a_store_that_was_bought_of_is_published_as_it_is(bought_of, tmp_path):
    url = parse_place(f"file://{tmp_path}/published")
    publish(bought_of, url)
    published = Store.open(url)
    for name, values in arrays_of(bought_of).items():
        np.testing.assert_array_equal(published.read(name), values, name)
    assert fetch(url, tmp_path / "fetched").manifest.places == Store.open(bought_of).manifest.places


def test_room_is_asked_for_images_that_lie_twice_too(bought_of, weights):
    array_format = Store.open(bought_of).manifest.array_format
    for n, rule in ((70, "balanced"), (75, "random")):
        config = replace(small_config(bought_of, weights, array_format, n, 0), features="layer1", rest=None)
        plan = prepare_build(replace(config, select=SelectorSpec(rule))).plan
        bought(bought_of, weights, n, rule, array_format=array_format, features="layer1")
        store = Store.open(bought_of)
        needed = {name: spec.stored_bytes(store.manifest.array_rows(spec)) for name, spec in store.arrays.specs.items()}
        assert plan.array_bytes == needed


@pytest.mark.parametrize(("row", "name"), [(45, "train/images"), (100, "train/labels"), (20, "train/views")])
def test_damage_is_found_wherever_a_row_lies(bought_of, row, name):
    [place] = Store.open(bought_of).manifest.places_of(Store.open(bought_of).arrays.specs[name], np.array([row]))
    change(bought_of, name, int(place))
    assert any(f"{name}: " in problem and "not what the build wrote" in problem for problem in problems(bought_of))
    with pytest.raises(StoreUnreadable, match=name):
        Store.open(bought_of).read_sample(name, Rows.between(row, row + 1))


def test_answers_of_bought_rows_are_given_up_and_paid_again_by_their_own_images(bought_of, weights):
    array_format = Store.open(bought_of).manifest.array_format
    before = arrays_of(bought_of)
    change(bought_of, "train/logits", 45)
    assert repair(bought_of, act=True).dropped == [45]
    assert bought(bought_of, weights, 60, None, array_format=array_format, features="layer1").new_calls == 1
    after = arrays_of(bought_of)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert problems(bought_of) == []


@pytest.mark.parametrize("rule", ["views", "mixup", "cutmix"])
def test_rows_that_are_made_leave_nothing_of_the_rest(weights, tmp_path, rule):
    store = tmp_path / "store"
    bought(store, weights, 20, "balanced", rest=Rest(100))
    rest = order_of(store)[20:]
    report = bought(store, weights, 30, rule)
    assert report.rest == 100
    np.testing.assert_array_equal(order_of(store)[30:], rest)
    bought(store, weights, 50, f"mix:random=0.5,{rule}=0.5")
    assert is_made(order_of(store)).sum() == 20
    # Half of the newest are the first of the rest.
    np.testing.assert_array_equal(order_of(store)[50:], rest[10:])
    assert_keeps(store, 50, 90)


@pytest.fixture(scope="module")
def stepwise(made_once, weights) -> dict[str, Path]:
    """40 rows of the seed and 30 images besides, then 20 rows bought of these, in each format; read-only."""

    def fill(folder: Path) -> None:
        for array_format in ("zarr", "hdf5"):
            build(*prepare_build(small_config(folder / array_format, weights, array_format, 40, 30)))
            grow(folder / array_format, weights, f"{array_format} balanced")

    folder = made_once("stores-bought-of-a-rest", fill)
    return {name: folder / name for name in ("zarr", "hdf5")}


@pytest.mark.parametrize(
    ("kind", "step"),
    [*(("zarr", step) for step in ("grow", "write", "sync", "save", "record", "publish")), ("hdf5", "sync")],
)
def test_buying_of_a_rest_that_is_killed_goes_on_with_the_same_rows(weights, stepwise, tmp_path, kind, step):
    # No copy: processes that are killed share a witness, to which copies were forks.
    store = tmp_path / "store"
    build(*prepare_build(small_config(store, weights, kind, 40, 30)))
    before = order_of(store)
    killed = run_program("tests.teacher_cache.crash_rest", store, weights, f"{kind} balanced", step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # It is the old store or the new one, and all of it can be read.
    there, expected = Store.open(store), order_of(stepwise[kind])
    is_new = step in ("record", "publish")
    np.testing.assert_array_equal(order_of(store), expected if is_new else before)
    images = open_dataset("digits").train.read(expected if is_new else before)
    np.testing.assert_array_equal(there.read_sample("train/images"), images)
    grow(store, weights, f"{kind} balanced")
    assert_same_arrays(store, stepwise[kind])
    assert Store.open(store).manifest.places == Store.open(stepwise[kind]).manifest.places != ()
    assert_keeps(store, 60, 40)
    committed, reserved, lost = totals(store)
    assert (committed, reserved) == (60, 0)
    assert lost <= 20


def test_who_reads_by_the_manifest_from_before_a_purchase_goes_on_reading(bought_of, weights):
    before, reader = arrays_of(bought_of), Store.open(bought_of)
    bought(bought_of, weights, 80, "last", array_format=reader.manifest.array_format, features="layer1")
    for name in reader.manifest.samples:
        np.testing.assert_array_equal(reader.read_sample(name), before[name], name)


def test_a_rest_is_added_to_what_a_rule_chose(weights, tmp_path):
    store = tmp_path / "store"
    bought(store, weights, 20, "balanced")
    order = order_of(store)
    assert add_rest(CallConfig(store=store), Rest(30), ImageOptions()).added == 30
    np.testing.assert_array_equal(order_of(store)[:20], order)
    assert len(set(order_of(store).tolist())) == 50
    assert problems(store) == []


@pytest.mark.parametrize("chosen", [[], [0, 0], [0, 1437], [0.0, 1.0], "validation"])
def test_a_rule_that_chooses_what_it_may_not_is_refused_before_any_call(weights, tmp_path, monkeypatch, chosen):
    sample = draw_sample(1437, 2, 0)
    chosen = [int(sample.val[0]), int(sample.train[0])] if chosen == "validation" else chosen
    monkeypatch.setattr(Wrong, "chosen", np.array(chosen))
    with pytest.raises(InvalidInput, match="the rule wrong was asked for 2 images and chose others"):
        bought(tmp_path / "store", weights, 2, "wrong")
    assert not (tmp_path / "store" / LEDGER_FILE).exists()


def test_a_rule_by_labels_is_refused_where_there_are_none(weights, tmp_path):
    dataset = open_dataset("digits")
    labels = dataset.train.labels.copy()
    labels[::3] = -1
    unlabelled = replace(dataset, train=replace(dataset.train, labels=labels))
    config = replace(small_config(tmp_path / "store", weights, "zarr", 20, 0), select=BALANCED)
    with pytest.raises(InvalidInput, match="looks at labels, and .* images that may be bought have none"):
        prepare_build(config, unlabelled)


def test_a_store_whose_rows_are_not_of_its_pool_is_not_gone_on_from():
    line = draw_sample(100, 80, 0)
    for wrong in ([line.val[0]], [line.train[0], line.train[0]], [100]):
        with pytest.raises(IdentityMismatch, match="the store's rows are not images of this sample"):
            draw_sample(100, 10, 0, None, np.array(wrong))


# Several builders, and kills


def test_who_chose_other_rows_goes_on_from_those_that_are_there(weights, tmp_path):
    """Two builders choose at the same time; one of them is in the store first."""
    store = tmp_path / "store"
    bought(store, weights, 10, "random")
    config = replace(small_config(store, weights, "zarr", 30, 0), rest=None, batch_size=4)
    first, second = (prepare_build(replace(config, select=SelectorSpec(rule))) for rule in ("balanced", "last"))
    build(*first)
    order = order_of(store)
    with pytest.raises(BoughtOtherwise, match="another builder chose other images for .*, from row 10 on"):
        build(*second)
    np.testing.assert_array_equal(order_of(store), order)
    assert totals(store) == (30, 0, 0)


def test_a_rest_that_another_builder_added_meanwhile_is_not_taken_for_what_was_chosen(weights, tmp_path):
    store = tmp_path / "store"
    bought(store, weights, 10, "random")
    config = replace(small_config(store, weights, "zarr", 30, 0), rest=None, select=BALANCED)
    prepared = prepare_build(config)
    add_rest(CallConfig(store=store), Rest(100), ImageOptions())
    with pytest.raises(BoughtOtherwise):
        build(*prepared)
    manifest = Store.open(store).manifest
    assert (manifest.n, manifest.rest, manifest.rounds) == (10, 100, ())
    assert totals(store) == (10, 0, 0)


def test_a_rest_that_was_planned_before_others_bought_leaves_their_rounds_alone(weights, tmp_path):
    store = tmp_path / "store"
    bought(store, weights, 10, "balanced")
    prepared = prepare_build(replace(small_config(store, weights, "zarr", 10, 0), rest=Rest(100)))
    bought(store, weights, 30, "last")
    with pytest.raises(BoughtOtherwise):
        build(*prepared)
    assert rules_of(store) == [("balanced", 0, 10), ("last", 10, 30)]
    assert problems(store) == []


def test_buying_again_takes_the_rows_that_another_builder_chose(weights, tmp_path, monkeypatch):
    store, chosen = tmp_path / "store", Balanced.choose

    def overtaken(self, pool, count, rng):
        monkeypatch.setattr(Balanced, "choose", chosen)
        bought(store, weights, 30, "balanced")
        return pool.left[:count]

    monkeypatch.setattr(Balanced, "choose", overtaken)
    report = bought(store, weights, 30, "balanced")
    assert (report.new_calls, report.rows_valid) == (0, 30)
    assert rules_of(store) == [("balanced", 0, 30)]


@pytest.mark.parametrize(
    ("n", "changes", "error"),
    [(1300, {}, InvalidInput), (60, {"budget": 50}, BudgetRefused), (60, {"rest": Rest(5000)}, InvalidInput)],
)
def test_what_the_last_round_would_be_refused_for_is_refused_before_the_first(weights, tmp_path, n, changes, error):
    with pytest.raises(error):
        bought(tmp_path / "store", weights, n, "balanced", 20, **changes)
    assert not (tmp_path / "store" / LEDGER_FILE).exists()


def test_a_store_in_object_storage_is_not_begun_in_rounds(weights, tmp_path):
    store = parse_place(f"file://{tmp_path}/store")
    config = BuildConfig(teacher="resnet8", n=60, store=store, dataset="digits", ledger="postgresql://host/ledger")
    with pytest.raises(InvalidInput, match="--round would have it grow; leave out --round"):
        rounds_to_buy(config, 20)


def test_a_first_round_of_one_row_is_refused_by_its_own_name(weights, tmp_path):
    with pytest.raises(InvalidInput, match="--round 1 is too small to begin a store with"):
        bought(tmp_path / "store", weights, 4, "balanced", 1)


def test_another_seed_is_named_as_what_differs(weights, tmp_path):
    bought(tmp_path / "store", weights, 20, "balanced")
    with pytest.raises(IdentityMismatch, match="seed"):
        bought(tmp_path / "store", weights, 30, "balanced", seed=1)


def test_a_rule_that_cannot_be_recorded_is_refused_before_anything_is_written(weights, tmp_path):
    with pytest.raises(InvalidInput, match="cannot be recorded"):
        bought(tmp_path / "store", weights, 20, "kcenter:encoder=resnet8@/a\u00a0b/e.safetensors")
    assert not (tmp_path / "store").exists()


def test_what_a_rule_looked_at_is_recorded_by_a_digest_where_it_is_long(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(Last, "looked_at", lambda self: {"run": "+".join(["0" * 64] * 100)})
    bought(tmp_path / "store", weights, 10, "last")
    [made] = Store.open(tmp_path / "store").manifest.rounds
    assert made.looked_at == {"run": f"sha256 {hashlib.sha256('+'.join(['0' * 64] * 100).encode()).hexdigest()}"}


@pytest.fixture
def job(tmp_path, weights):
    def make(name: str, **changes) -> Job:
        shared = {"folder": str(tmp_path), "store": str(tmp_path / "store"), "weights": str(weights)}
        return Job(name=name, **shared, **{"n": 48, "select": "balanced", "round_size": 24, "batch_size": 4} | changes)

    return make


@pytest.mark.parametrize("step", ["begin", "charged", "call", "answer", "write", "commit"])
def test_a_round_that_is_killed_goes_on_with_the_same_rows_and_repeats_nothing(builders, job, tmp_path, weights, step):
    assert builders.start(job("killed", kill_at=step, stop_in=1 if step == "begin" else 3)).wait() == {}
    before = order_of(tmp_path / "store").tolist()
    outcome = builders.start(job("again")).wait()
    assert (outcome["exit_code"], outcome["rows_valid"]) == (0, 48)
    assert order_of(tmp_path / "store").tolist()[: len(before)] == before
    bought(tmp_path / "reference", weights, 48, "balanced", 24, features="layer1")
    np.testing.assert_array_equal(order_of(tmp_path / "store"), order_of(tmp_path / "reference"))
    committed, reserved, lost = totals(tmp_path / "store")
    assert (committed, reserved) == (48, 0)
    # The batch at the teacher, and the one that was being written.
    assert lost <= 8
    assert forwards(tmp_path) <= 48 + lost
    assert problems(tmp_path / "store") == []


def test_two_builders_of_one_round_buy_it_once(builders, job, tmp_path):
    started = [builders.start(job(name, slow_ms=5)) for name in ("one", "other")]
    outcomes = [builder.wait() for builder in started]
    assert [outcome["exit_code"] for outcome in outcomes] == [0, 0]
    assert totals(tmp_path / "store") == (48, 0, 0)
    assert forwards(tmp_path) == 48
    assert sum(outcome["new_calls"] for outcome in outcomes) == 48
    assert rules_of(tmp_path / "store") == [("balanced", 0, 24), ("balanced", 24, 48)]
    assert problems(tmp_path / "store") == []


def test_two_builders_buy_of_a_rest_once(builders, job, tmp_path, weights):
    store = tmp_path / "store"
    bought(store, weights, 12, "balanced", rest=Rest(200), features="layer1")
    outcomes = [builders.start(job(name, slow_ms=5, round_size=18)) for name in ("one", "other")]
    assert [builder.wait()["exit_code"] for builder in outcomes] == [0, 0]
    assert totals(store) == (48, 0, 0)
    assert forwards(tmp_path) == 36
    assert rules_of(store) == [("balanced", 0, 12), ("balanced", 12, 30), ("balanced", 30, 48)]
    bought(tmp_path / "reference", weights, 12, "balanced")
    bought(tmp_path / "reference", weights, 48, "balanced", 18)
    assert_keeps(store, 48, Store.open(store).manifest.rest, order_of(tmp_path / "reference"))


def test_a_builder_that_comes_into_a_round_under_way_helps_to_finish_it(builders, job, tmp_path):
    one = builders.start(job("one", stop_at="answer", stop_in=2, lease_seconds=60.0))
    one.wait_until_stopped()
    other = builders.start(job("other", lease_seconds=60.0))
    wait_until(lambda: forwards(tmp_path) >= 20, 30, "the other one does not help")
    one.signal(signal.SIGCONT)
    assert [builder.wait()["exit_code"] for builder in (one, other)] == [0, 0]
    assert totals(tmp_path / "store") == (48, 0, 0)
    assert forwards(tmp_path) == 48
    assert rules_of(tmp_path / "store") == [("balanced", 0, 24), ("balanced", 24, 48)]


# The commands


def test_commands_say_what_was_bought_by_which_rule(weights, tmp_path):
    store = tmp_path / "store"
    build_it = ["ckd-cache", "build", "--teacher", "resnet8", "--weights", weights, "--dataset", "digits"]
    build_it += ["--store", store, "--trust-teacher", "--device", "cpu"]
    run_command(*build_it, "--n", 20)
    planned = run_command(*build_it, "--n", 50, "--select", "balanced", "--dry-run").stdout
    assert "20 paid already, 30 to be made" in planned
    assert "rows 20 to 49 by balanced" in planned
    run_command(*build_it, "--n", 50, "--select", "balanced", "--round", 15)
    assert (
        "bought    rows 0 to 19 by random, 20 to 34 by balanced, 35 to 49 by balanced"
        in run_command("ckd-cache", "info", "--store", store).stdout
    )
    assert [
        made["rule"]
        for made in json.loads(run_command("ckd-cache", "info", "--store", store, "--json").stdout)["rounds"]
    ] == ["balanced", "balanced"]
    refused = run_command(*build_it, "--n", 50, "--select", "balancd")
    assert refused.returncode == 2
    assert "no rule is called 'balancd'; did you mean balanced" in refused.stderr


# Images that are made


@pytest.mark.parametrize("rule", ["views", "mixup", "cutmix"])
def test_made_rows_are_shown_to_the_teacher_as_they_are_kept_and_asked_once(weights, tmp_path, rule):
    store = tmp_path / "store"
    calls = bought(store, weights, 40, f"mix:random=0.5,{rule}=0.5").new_calls
    index, found = order_of(store), Store.open(store)
    np.testing.assert_array_equal(is_made(index), np.arange(40) >= 20)
    np.testing.assert_array_equal(index[:20], draw_sample(1437, 40, 0).train[:20])
    digits = open_dataset("digits")
    pool = MadeSplit(digits.train)
    np.testing.assert_array_equal(found.read("train/images"), pool.read(index))
    np.testing.assert_array_equal(found.read("train/labels"), pool.labels_of(index))
    # Another view of an image is drawn by its own number.
    views = sample_views(found.manifest.identity.geometry, "augmented", seed=0, source_index=index, num_views=1)
    np.testing.assert_array_equal(found.read("train/views"), views)
    assert len({str(view) for view in views[20:].tolist()}) > 5
    # Views that happen to show the same pixels are one call.
    shown = view_pixels(torch.from_numpy(pool.read(index)), torch.from_numpy(views[:, 0]), digits.rendering)
    assert calls == len({image.numpy().tobytes() for image in shown})
    assert bought(store, weights, 40, f"mix:random=0.5,{rule}=0.5").new_calls == 0
    assert bought(store, weights, 60, None).new_calls == 20
    np.testing.assert_array_equal(order_of(store)[:40], index)
    assert set(order_of(store)[40:].tolist()) == set(draw_sample(1437, 40, 0).train[20:40].tolist())
    assert (totals(store), problems(store)) == ((calls + 20, 0, 0), [])


def test_where_images_are_scarce_more_calls_are_spent_than_there_are_images(weights, tmp_path):
    digits = open_dataset("digits")
    few = replace(digits, train=ArraySplit(digits.train.images[:50], digits.train.labels[:50]))
    store, rule = tmp_path / "store", SelectorSpec.read("mix:random=0.25,mixup=0.75")
    config = replace(small_config(store, weights, "zarr", 120, 0), rest=None, select=rule)

    def run(config: BuildConfig) -> int:
        return build(*prepare_build(config, few)).new_calls

    assert run(config) == 120
    # A fifth of 50 images are for validation, and 30 of the other 40 are bought.
    assert len(Store.open(store).read("val/source_index")) == 10
    assert is_made(order_of(store)).sum() == 90
    assert run(replace(config, n=160, select=SelectorSpec.read("cutmix"))) == 40
    with pytest.raises(InvalidInput, match="25 images are to be bought, and 10 are left"):
        run(replace(config, n=210, select=SelectorSpec.read("mix:random=0.5,mixup=0.5")))
    assert (totals(store), problems(store)) == ((160, 0, 0), [])


def test_rounds_of_images_and_mixes_are_nested(weights, tmp_path):
    rule = "mix:random=0.5,mixup=0.5"
    bought(tmp_path / "store", weights, 60, rule, 20)
    assert rules_of(tmp_path / "store") == [(rule, 0, 20), (rule, 20, 40), (rule, 40, 60)]
    made = is_made(order_of(tmp_path / "store"))
    assert [int(made[first : first + 20].sum()) for first in (0, 20, 40)] == [10, 10, 10]
    for row in np.flatnonzero(made):
        sources = Recipes.of(order_of(tmp_path / "store")[row : row + 1]).sources
        assert set(sources.tolist()) <= set(order_of(tmp_path / "store")[:row].tolist())


def test_images_of_all_rounds_are_counted_before_the_first_call(weights, tmp_path):
    with pytest.raises(InvalidInput, match="more than the 1150 images that can be sampled"):
        bought(tmp_path / "store", weights, 2400, "mix:random=0.5,mixup=0.5", 400)
    assert not (tmp_path / "store").exists()


def test_the_command_spends_calls_on_shares(weights, tmp_path):
    done = run_command(
        "ckd-cache", "build", "--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--n", 20,
        "--store", tmp_path / "store", "--device", "cpu", "--trust-teacher", "--spend", "images=0.5,cutmix=0.5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rules_of(tmp_path / "store") == [("mix:random=0.5,cutmix=0.5", 0, 20)]
    refused = run_command(
        "ckd-cache", "build", "--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--n", 20,
        "--store", tmp_path / "other", "--device", "cpu", "--trust-teacher", "--spend", "mixup",
    )  # fmt: skip
    assert refused.returncode == 2
    assert "buy some first" in refused.stderr
    assert not (tmp_path / "other").exists()
