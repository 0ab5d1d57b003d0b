"""Images that a store keeps and nothing was asked about: no call, none of validation, the first to be asked next."""

from __future__ import annotations

import json
import shutil
import signal
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.errors import BudgetRefused, InvalidInput, StoreBusy, StoreUnreadable
from storage.ledger import Ledger
from storage.locks import FileLock
from storage.manifest import Manifest
from storage.schema import VALID
from storage.store import Store
from storage.store_folder import BUILD_LOCK, LEDGER_FILE
from teacher_cache import shown
from teacher_cache.build import build
from teacher_cache.config import ExtensionConfig
from teacher_cache.convert import convert
from teacher_cache.datasets import open_dataset
from teacher_cache.datasets.base import Split
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build, prepare_test_build
from teacher_cache.repair import repair
from teacher_cache.rest import Rest, rest_to_keep
from teacher_cache.sample import draw_sample, largest_sample
from teacher_cache.widen import widen
from tests.conftest import run_command
from tests.running import run_program
from tests.teacher_cache.crash_rest import config as small_config
from tests.teacher_cache.crash_rest import grow
from tests.teacher_cache.damage import arrays_of, change, problems, totals

FORMATS = ("zarr", "hdf5")
POOL = largest_sample(1437)


def built(store: Path, weights: Path, n: int, rest: Rest | None = None, array_format: str = "zarr", **changes):
    config = small_config(store, weights, array_format, n, 0)
    return build(*prepare_build(replace(config, rest=rest, **changes)))


def assert_same_arrays(one: Path, other: Path) -> None:
    ours, theirs = arrays_of(one), arrays_of(other)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], name)
    one_manifest, other_manifest = (Store.open(folder).manifest for folder in (one, other))
    assert one_manifest.samples == other_manifest.samples
    assert (one_manifest.n, one_manifest.rest) == (other_manifest.n, other_manifest.rest)


@pytest.fixture(scope="module")
def kept(made_once, weights) -> dict[str, Path]:
    """A store of 40 rows and 30 images besides, in each format; treat them as read-only."""

    def fill(folder: Path) -> None:
        for array_format in FORMATS:
            build(*prepare_build(small_config(folder / array_format, weights, array_format, 40, 30)))

    folder = made_once("stores-with-a-rest", fill)
    return {name: folder / name for name in FORMATS}


@pytest.fixture(params=FORMATS)
def store(request, kept, tmp_path) -> Path:
    """One of them, to change."""
    return Path(shutil.copytree(kept[request.param], tmp_path / "store"))


# What is kept


@settings(max_examples=10)
@given(
    st.lists(st.tuples(st.integers(2, 50), st.none() | st.builds(Rest, st.integers(0, 90))), min_size=1, max_size=3),
    st.sampled_from(FORMATS),
)
def test_a_store_that_grew_is_what_it_would_be_if_built_at_once(weights, tmp_path_factory, steps, array_format):
    folder = tmp_path_factory.mktemp("grown")
    n = images = 0
    for asked, rest in steps:
        n = max(n, asked)
        images = max(images, n + (0 if rest is None else rest.count or 0))
        report = built(folder / "grown", weights, asked, rest, array_format, budget=n)
        assert (report.rest, report.rows_valid) == (images - n, asked)
        assert totals(folder / "grown") == (n, 0, 0)
    built(folder / "at-once", weights, n, Rest(images - n), array_format)
    assert_same_arrays(folder / "grown", folder / "at-once")
    assert problems(folder / "grown") == []
    built(folder / "without", weights, n, None, array_format)
    for name, values in arrays_of(folder / "without").items():
        np.testing.assert_array_equal(arrays_of(folder / "grown")[name][: len(values)], values, name)


def test_growing_by_some_asks_about_the_first_of_the_rest_and_about_no_more(store, weights, forwards):
    before = Store.open(store).read("train/images")
    report = built(store, weights, 52, array_format=Store.open(store).manifest.array_format)
    assert (report.new_calls, sum(forwards), report.rest) == (12, 12, 18)
    after = Store.open(store)
    np.testing.assert_array_equal(after.read("train/images"), before)
    assert len(after.read(VALID)) == 52
    assert (after.manifest.n, after.manifest.rest, after.manifest.num_val) == (52, 18, 13)
    assert totals(store) == (52, 0, 0)


def test_all_of_the_rest_is_the_whole_pool_but_what_is_held_out(weights, tmp_path):
    built(tmp_path / "store", weights, 20, Rest.read("all"))
    store, digits = Store.open(tmp_path / "store"), open_dataset("digits")
    index = store.read_sample("train/source_index")
    assert store.manifest.rest == POOL - 20
    assert not set(index) & set(draw_sample(len(digits.train), POOL, seed=0).val)
    np.testing.assert_array_equal(store.read_sample("train/images"), digits.train.read(index))
    np.testing.assert_array_equal(store.read_sample("train/labels"), digits.train.labels[index])
    np.testing.assert_array_equal(store.read_sample("test/images"), digits.test.read(np.arange(len(digits.test))))
    assert len(index) == len(set(index))


@given(st.integers(20, 500), st.integers(0, 5), st.data())
def test_the_rest_follows_the_rows_and_holds_nothing_that_is_validation_at_any_n(pool, seed, data):
    is_labelled = data.draw(st.none() | st.just(np.arange(pool) % 3 > 0))
    can_be = pool if is_labelled is None else int(is_labelled.sum())
    largest = pool - can_be // 5
    n = data.draw(st.integers(2, largest))
    sample, everything = (draw_sample(pool, size, seed, is_labelled) for size in (n, largest))
    rest = sample.keeping(data.draw(st.integers(0, largest - n))).rest
    np.testing.assert_array_equal(rest, everything.train[n : n + len(rest)])
    assert not set(rest) & set(everything.val)


def test_budgets_count_the_rows_that_are_asked_about(weights, tmp_path):
    built(tmp_path / "store", weights, 20, Rest(500), budget=20)
    with pytest.raises(BudgetRefused):
        built(tmp_path / "store", weights, 21)
    assert Store.open(tmp_path / "store").manifest.rest == 500


def test_a_plan_counts_calls_of_rows_alone_and_bytes_of_all_images(weights, tmp_path):
    one, other = (prepare_build(small_config(tmp_path / "store", weights, "zarr", 64, rest)).plan for rest in (0, 640))
    assert (other.total_calls, other.needed_calls) == (one.total_calls, one.needed_calls) == (64, 64)
    assert other.array_bytes["train/images"] == 11 * one.array_bytes["train/images"]
    assert other.array_bytes["train/logits"] == one.array_bytes["train/logits"]


def test_the_ledger_says_how_many_images_nothing_was_asked_about(kept, stores):
    for folder, expected in ((kept["zarr"], 30), (stores["zarr"], None)):
        ledger = Ledger(folder / LEDGER_FILE)
        record = ledger.store_record(Store.open(folder).manifest.store_id)
        ledger.close()
        assert record is not None
        assert record.get("unasked") == expected


def test_manifests_without_a_rest_do_not_speak_of_it(kept, stores, weights, tmp_path):
    assert "rest" not in json.loads((stores["zarr"] / "manifest.json").read_text())
    assert json.loads((kept["zarr"] / "manifest.json").read_text())["rest"] == 30
    shutil.copytree(kept["zarr"], tmp_path / "store")
    built(tmp_path / "store", weights, 70)
    assert "rest" not in json.loads((tmp_path / "store" / "manifest.json").read_text())


def test_a_manifest_that_hides_its_rest_is_refused(store):
    replace(Manifest.load(store), rest=0).save(store)
    with pytest.raises(StoreUnreadable, match="the number of digits in samples.train/"):
        Manifest.load(store)


def test_a_manifest_that_counts_labels_wrongly_is_a_problem(store):
    manifest = Manifest.load(store)
    assert (manifest.rest, manifest.rest_labelled) == (30, 30)
    replace(manifest, rest_labelled=7).save(store)
    assert "counts 7 labels of images that were not asked about, and there are 30" in str(problems(store))
    replace(manifest, rest_labelled=31).save(store)
    with pytest.raises(StoreUnreadable, match="rest_labelled"):
        Manifest.load(store)


def test_a_store_from_before_labels_were_counted_is_whole_and_counted_when_it_is_asked(weights, tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr("storage.store.counted", lambda manifest, samples: manifest)
        built(tmp_path / "store", weights, 40, Rest(30))
    assert "rest_labelled" not in json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert not problems(tmp_path / "store")
    described = json.loads(run_command("ckd-cache", "info", "--store", tmp_path / "store", "--json").stdout)
    assert described["rest"] == {"rows": 30, "labelled": 30, "unlabelled": 0}
    # Who asks about some of them counts the others.
    built(tmp_path / "store", weights, 50)
    assert Manifest.load(tmp_path / "store").rest_labelled == 20
    assert not problems(tmp_path / "store")


# What images of a large rest take


@dataclass
class Endless(Split):
    """Images that are made when they are asked for, as many as one likes."""

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.broadcast_to((indices % 251).astype(np.uint8)[:, None, None, None], (len(indices), 32, 32, 3)).copy()

    def content_digest(self) -> bytes:
        return bytes(32)


def test_a_large_rest_is_never_in_memory(weights, tmp_path):
    digits = open_dataset("digits")
    large = replace(digits, train=Endless(np.arange(100_000) % 10))
    # Plain views take no drawing, which is most of the time and none of the memory.
    config = replace(small_config(tmp_path / "store", weights, "zarr", 16, 70_000), view_policy="plain")
    # The weights are of another data set than this one, which has its name.
    teacher = prepare_build(replace(config, rest=None), digits).teacher
    tracemalloc.start()
    build(*prepare_build(config, large, teacher))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    store = Store.open(tmp_path / "store")
    assert store.manifest.num_images * 32 * 32 * 3 > 214e6
    assert peak < 160e6
    assert problems(tmp_path / "store") == []


@pytest.mark.parametrize("held", [True, False])
def test_images_are_decoded_once_whether_they_are_asked_about_or_not(weights, tmp_path, monkeypatch, held):
    if not held:
        monkeypatch.setattr(shown, "MOST_HELD_BYTES", 0)
    built(tmp_path / "store", weights, 40, Rest(70))
    images = open_dataset("digits").train
    store = Store.open(tmp_path / "store")
    np.testing.assert_array_equal(store.read("train/images"), images.read(store.read("train/source_index")))
    assert problems(tmp_path / "store") == []


# Damage, copies, and other commands


@pytest.mark.parametrize("array", ["train/images", "train/labels", "train/source_index", "train/views"])
def test_damage_in_the_rest_is_found(store, array):
    assert problems(store) == []
    change(store, array, 65)
    (problem,) = problems(store)
    assert problem.startswith(f"{array}: ")
    assert "not what the build wrote" in problem


def test_a_growth_onto_a_damaged_rest_is_refused(store, weights):
    change(store, "train/images", 65)
    with pytest.raises(StoreUnreadable, match="train/images"):
        built(store, weights, 40, Rest(100), Store.open(store).manifest.array_format)


def test_conversions_take_the_rest_along(kept, tmp_path):
    for name, other in (("zarr", "hdf5"), ("hdf5", "zarr")):
        convert(kept[name], other, tmp_path / other)
        assert_same_arrays(kept[name], tmp_path / other)
        assert problems(tmp_path / other) == []


def test_a_store_with_a_rest_is_extended_and_widened_by_its_rows_alone(store, weights, tmp_path):
    array_format = Store.open(store).manifest.array_format
    config = ExtensionConfig(store=store, features="pooled", weights=weights, device="cpu", batch_size=1)
    assert extend(*prepare_extension(config)).new_calls == 40
    assert problems(store) == []
    built(store, weights, 60, array_format=array_format, features="pooled")
    built(tmp_path / "at-once", weights, 60, Rest(10), array_format, features="pooled")
    assert_same_arrays(store, tmp_path / "at-once")
    before = arrays_of(store)
    assert widen(store).cells == 60
    after = arrays_of(store)
    for name in before.keys() - {"train/digest", "train/features/pooled"}:
        np.testing.assert_array_equal(before[name], after[name], name)
    assert problems(store) == []


def test_an_extension_that_was_begun_before_the_rest_grew_is_finished_with_it(store, weights, monkeypatch):
    config = ExtensionConfig(store=store, features="pooled", weights=weights, device="cpu", batch_size=1)
    prepared = prepare_extension(config)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_outputs", stop)
        with pytest.raises(KeyboardInterrupt):
            extend(*prepared)
    built(store, weights, 50, Rest(60), Store.open(store).manifest.array_format)
    before = arrays_of(store)
    extend(*prepare_extension(config))
    after = arrays_of(store)
    for name in before.keys() - {"train/digest"}:
        np.testing.assert_array_equal(before[name], after[name], name)
    assert (Store.open(store).manifest.n, Store.open(store).manifest.rest) == (50, 60)
    assert problems(store) == []


def test_answers_are_repaired_where_images_that_were_not_asked_about_are_lost(kept, weights, tmp_path):
    store = Path(shutil.copytree(kept["zarr"], tmp_path / "store"))
    lost = "data.zarr/train/images/c.1.0.0.0"
    (store / lost).unlink()
    change(store, "train/logits", 3)
    report = repair(store, act=True)
    assert (report.made_again, report.dropped) == ([lost], [3])
    (left,) = report.left
    assert "bring train/images back from a copy" in left
    shutil.copy(kept["zarr"] / lost, store / lost)
    assert built(store, weights, 40).new_calls == 1
    assert problems(store) == []


@pytest.fixture(scope="module")
def at_once(made_once, weights) -> dict[str, Path]:
    """A store that was built with 60 rows and 40 images besides, in each format; treat them as read-only."""

    def fill(folder: Path) -> None:
        for array_format in FORMATS:
            build(*prepare_build(small_config(folder / array_format, weights, array_format, 60, 40)))

    folder = made_once("stores-with-a-larger-rest", fill)
    return {name: folder / name for name in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("step", ["grow", "write", "sync", "save", "record", "reserve", "publish"])
def test_a_growth_that_was_killed_goes_on(weights, at_once, tmp_path, kind, step):
    # No copy: processes that are killed share a witness, to which copies were forks.
    store = tmp_path / "store"
    build(*prepare_build(small_config(store, weights, kind, 40, 30)))
    killed = run_program("tests.teacher_cache.crash_rest", store, weights, kind, step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Store.open(store).manifest.rest in (30, 40)
    grow(store, weights, kind)
    assert_same_arrays(store, at_once[kind])
    assert problems(store) == []
    committed, reserved, lost = totals(store)
    assert (committed, reserved) == (60, 0)
    assert lost <= 20


# What is refused


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("-5", "--rest is '-5'; give a number of images, all, or none"),
        ("some", "--rest is 'some'"),
        ("1.5", "--rest is '1.5'"),
        ("5000", f"--rest 5000 is more than the {POOL - 20} images .* give --rest {POOL - 20} or less, or all"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_a_sentence(weights, tmp_path, text, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        built(tmp_path / "store", weights, 20, Rest.read(text))
    assert not (tmp_path / "store").exists()


def test_the_limit_is_that_of_the_rows_a_store_has_already(store, weights):
    with pytest.raises(InvalidInput, match=f"more than the {POOL - 40} images that are left beside --n 40"):
        built(store, weights, 20, Rest(POOL - 30), Store.open(store).manifest.array_format)


def test_what_is_kept_is_not_taken_away(kept):
    manifest, sample = Manifest.load(kept["zarr"]), draw_sample(1437, 40, 0)
    for asked in (None, Rest.read("none"), Rest(30)):
        assert rest_to_keep(asked, sample, manifest) == 30


def test_a_store_does_not_grow_under_a_build_that_is_at_work(store, weights):
    array_format = Store.open(store).manifest.array_format
    with FileLock(store / BUILD_LOCK) as lock:
        assert lock.try_shared()
        assert built(store, weights, 40, Rest(30), array_format).rest == 30
        with pytest.raises(StoreBusy, match="or ask for --n 40 or fewer, and leave out --rest"):
            built(store, weights, 40, Rest(31), array_format)
    assert built(store, weights, 40, Rest(31), array_format).rest == 31


def test_test_images_have_no_rest(weights, tmp_path):
    config = small_config(tmp_path / "store", weights, "zarr", 20, 30)
    assert build(*prepare_test_build(config)).rest == 0


# The commands


def test_the_commands_count_answered_labelled_and_unlabelled_rows_apart(weights, tmp_path):
    options = ("--weights", weights, "--device", "cpu", "--trust-teacher", "--store", tmp_path / "store")
    teacher = ("build", "--teacher", "resnet8", "--dataset", "digits", *options)
    estimate = json.loads(run_command("ckd-cache", *teacher, "--n", 20, "--rest", 30, "--dry-run", "--json").stdout)
    assert (estimate["needed_calls"], estimate["rest"]) == (20, 30)
    built_now = run_command("ckd-cache", *teacher, "--n", 20, "--rest", 30)
    assert "20 new teacher calls" in built_now.stdout
    assert "30 more images are kept, without a call" in built_now.stdout
    grown = json.loads(run_command("ckd-cache", *teacher, "--n", 24, "--json").stdout)
    assert (grown["new_calls"], grown["rest"]) == (4, 26)
    said = json.loads(run_command("ckd-cache", "info", "--store", tmp_path / "store", "--json").stdout)
    assert (said["n"], said["labelled"], said["unlabelled"]) == (24, 24, 0)
    assert said["rest"] == {"rows": 26, "labelled": 26, "unlabelled": 0}
    text = run_command("ckd-cache", "info", "--store", tmp_path / "store").stdout
    assert "26 more images that the teacher was not asked about, 26 with a label and 0 without" in text
    checked = run_command("ckd-cache", "verify", "--store", tmp_path / "store").stdout
    assert "24 rows and 26 images that were not asked about whole, 24 calls committed" in checked
    refused = run_command("ckd-cache", *teacher, "--n", 24, "--rest", "most")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("Error: --rest is 'most'; give a number of images")
