"""A build makes exactly the calls it must, records each, and survives being killed."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from ground.errors import (
    BudgetRefused,
    DiskFull,
    IdentityMismatch,
    InvalidInput,
    StoreBusy,
    StoreUnreadable,
    UnknownName,
)
from ground.views import apply_views
from models import create_model, load_weights, save_weights
from models.compute import Compute
from models.staged import StagedNetwork
from storage.ledger import Ledger
from storage.locks import FileLock
from storage.rows import Rows
from storage.schema import output_array
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from storage.verify import store_problems
from teacher_cache.build import build, lay_out, store_arrays
from teacher_cache.config import BuildConfig
from teacher_cache.datasets import open_dataset
from teacher_cache.outputs import choose_outputs
from teacher_cache.prepare import prepare_build
from teacher_cache.rest import Rest
from teacher_cache.teachers import TeacherSource, ZooTeacher, untrained_teacher
from tests.teacher_cache.crash_build import STEPS, config
from tests.teacher_cache.damage import config_of, crashed_build


def problems(folder) -> list[str]:
    ledger = Ledger(folder / LEDGER_FILE)
    found = [str(problem) for problem in store_problems(Store.open(folder), ledger)]
    ledger.close()
    return found


def summary(folder):
    ledger = Ledger(folder / LEDGER_FILE)
    totals = ledger.summary()
    ledger.close()
    return totals


def arrays_of(folder) -> dict[str, np.ndarray]:
    store = Store.open(folder)
    return {name: store.read(name) for name in store.arrays.specs}


def test_stored_outputs_are_the_teachers_own_on_the_stored_views(store_of_each_format, weights):
    store = Store.open(store_of_each_format)
    identity = store.manifest.identity
    network = create_model("resnet8", num_classes=10).eval()
    load_weights(network, weights)
    images, views = (torch.from_numpy(store.read(f"train/{name}")) for name in ("images", "views"))
    with torch.inference_mode():
        pixels = apply_views(images, views[:, 0], identity.geometry)
        said = network.represent(identity.teacher.normalisation.apply(pixels))
    np.testing.assert_allclose(store.read("train/logits")[:, 0], said.logits, rtol=1e-4, atol=1e-5)
    for name, tensor in said.features.items():
        stored = store.read(output_array(name))
        assert stored.dtype == np.float16
        np.testing.assert_allclose(stored[:, 0], tensor, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_extras_are_kept_where_asked_and_the_parameters_of_the_teacher_with_them(tmp_path, weights, array_format):
    asked = config_of(tmp_path / "s", weights, array_format, n=20, features="last,layer1.pre,layer3.pre,pooled")
    build(*prepare_build(asked))
    store = Store.open(tmp_path / "s")
    identity = store.manifest.identity
    network = create_model("resnet8", num_classes=10).eval()
    load_weights(network, weights)
    assert identity.teacher.layers == (*network.feature_names, *network.extra_names)
    assert [*identity.features] == ["pooled", "layer1.pre", "layer3.pre", "last"], "the order of the teacher's layers"
    images, views = (torch.from_numpy(store.read(f"train/{name}")) for name in ("images", "views"))
    with torch.inference_mode():
        pixels = identity.teacher.normalisation.apply(apply_views(images, views[:, 0], identity.geometry))
        said = network.represent(pixels, network.extra_names)
    for name in identity.features:
        np.testing.assert_allclose(store.read(output_array(name))[:, 0], said.features[name], rtol=2e-3, atol=2e-3)
    expected = {"head/weight": network.fc.weight, "head/bias": network.fc.bias}
    for layer in ("layer1", "layer3"):
        norm = network.stage_norms[layer]
        expected |= {f"norm/{layer}/scale": norm.weight, f"norm/{layer}/shift": norm.bias}
    found = store.read_parameters()
    assert [*found] == [*expected]
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.detach())
    np.testing.assert_allclose(
        store.read_outputs(["pooled"], Rows.first(20))["pooled"][:, 0] @ found["head/weight"].T + found["head/bias"],
        store.read("train/logits")[:, 0],
        rtol=2e-2,
        atol=2e-2,
    )


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_a_store_that_is_laid_out_has_all_but_answers_and_a_build_goes_on_from_it(
    tmp_path, weights, array_format, monkeypatch
):
    asked, plain = (replace(config(tmp_path / name, weights, array_format, n=40), rest=Rest(20)) for name in "sp")
    with monkeypatch.context() as patched:
        patched.setattr(ZooTeacher, "call", None)
        lay_out(*prepare_build(asked))
        lay_out(*prepare_build(asked))
    assert summary(tmp_path / "s").spent == 0
    store = Store.open(tmp_path / "s")
    assert (store.manifest.n, store.manifest.rest) == (40, 20)
    assert not store.read("train/valid").any()
    build(*prepare_build(plain))
    assert build(*prepare_build(asked)).new_calls == 40
    assert not problems(tmp_path / "s")
    found, wanted = arrays_of(tmp_path / "s"), arrays_of(tmp_path / "p")
    assert [*found] == [*wanted]
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_store_that_is_laid_out_is_held_to_its_budget_from_the_beginning(tmp_path, weights):
    asked = config_of(tmp_path / "s", weights, n=40)
    lay_out(*prepare_build(asked), budget=16)
    assert (summary(tmp_path / "s").spent, summary(tmp_path / "s").budget) == (0, 16)
    assert not [problem for problem in problems(tmp_path / "s") if "train/valid" not in problem]
    with pytest.raises(BudgetRefused, match="16 of the budget of 16 remain"):
        prepare_build(asked)
    build(*prepare_build(replace(asked, n=16)))
    # What is spent already is not below what may be.
    lay_out(*prepare_build(replace(asked, budget=60, n=60)), budget=8)
    assert (summary(tmp_path / "s").spent, summary(tmp_path / "s").budget) == (16, 16)


def test_only_the_extras_that_are_kept_are_asked_of_the_network(tmp_path, weights, monkeypatch):
    asked, represent = [], StagedNetwork.represent

    def listening(self, images, extras=()):
        asked.append(list(extras))
        return represent(self, images, extras)

    prepared = prepare_build(config_of(tmp_path / "s", weights, n=20, features="all,layer2.pre"))
    monkeypatch.setattr(StagedNetwork, "represent", listening)
    build(*prepared)
    assert asked == [["layer2.pre"]]


@pytest.mark.parametrize(
    ("features", "kept"),
    [
        ("none", []),
        ("all", ["stem", "layer1", "layer2", "layer3", "pooled"]),
        ("pooled,stem,stem", ["stem", "pooled"]),
        ("last,layer1.pre,all", ["stem", "layer1", "layer2", "layer3", "pooled", "layer1.pre", "last"]),
        ("layer2.pre,layer1", ["layer1", "layer2.pre"]),
    ],
)
def test_features_are_names_and_groups_in_the_order_of_the_layers(features, kept):
    card = untrained_teacher(TeacherSource(name="resnet8"), open_dataset("digits"), Compute.choose("cpu", "fp32")).card
    logits, *outputs = choose_outputs(card, features, "float16")
    assert (logits.name, logits.dtype) == ("logits", "float32")
    assert [output.name for output in outputs] == kept


def test_a_network_without_stage_norms_keeps_the_head_alone(tmp_path):
    path = tmp_path / "shuffle.safetensors"
    save_weights(create_model("ShuffleV1", num_classes=10, seed=0), path, {})
    settings = {"dataset": "digits", "n": 4, "features": "layer1.pre", "device": "cpu"}
    build(*prepare_build(BuildConfig(teacher="ShuffleV1", weights=path, store=tmp_path / "s", **settings)))
    assert [*Store.open(tmp_path / "s").read_parameters()] == ["head/weight", "head/bias"]


def test_both_formats_keep_the_same(tmp_path, weights):
    for array_format in ("zarr", "hdf5"):
        build(*prepare_build(config(tmp_path / array_format, weights, array_format, n=40)))
    one, other = arrays_of(tmp_path / "zarr"), arrays_of(tmp_path / "hdf5")
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_the_same_build_again_costs_nothing_and_a_larger_one_the_difference(tmp_path, weights, forwards, array_format):
    folder = tmp_path / "store"
    assert build(*prepare_build(config(folder, weights, array_format, n=40))).new_calls == 40
    assert sum(forwards) == 40
    prepared = prepare_build(config(folder, weights, array_format, n=40))
    assert (prepared.plan.needed_calls, prepared.plan.paid_calls) == (0, 40)
    assert build(*prepared).new_calls == 0
    before = arrays_of(folder)
    assert build(*prepare_build(config(folder, weights, array_format, n=57))).new_calls == 17
    assert sum(forwards) == 57
    for name, values in arrays_of(folder).items():
        np.testing.assert_array_equal(values[: len(before[name])], before[name], err_msg=name)
    assert summary(folder).committed == 57
    # Asking for less finds it paid, and takes nothing away.
    report = build(*prepare_build(config(folder, weights, array_format, n=10)))
    assert (report.new_calls, report.rows_valid) == (0, 10)
    assert Store.open(folder).valid_prefix() == 57
    assert problems(folder) == []


def test_a_smaller_n_never_pays_for_rows_beyond_it(tmp_path, weights, forwards):
    """A store that was planned for more and interrupted is not filled by a build that asks for less."""
    folder = tmp_path / "store"
    build(*prepare_build(config(folder, weights, "zarr", n=40)))
    store = Store.open(folder)
    plan, teacher, shown = prepare_build(config(folder, weights, "zarr", n=96))
    store.grow(store_arrays(plan, teacher.card, shown))
    del forwards[:]
    assert build(*prepare_build(config(folder, weights, "zarr", n=45))).new_calls == 5
    assert sum(forwards) == 5
    assert Store.open(folder).valid_prefix() == 45


def test_the_ledger_cannot_be_changed_or_dropped_behind_a_store(tmp_path, weights, forwards):
    shared = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    base = {"teacher": "resnet8", "weights": weights, "dataset": "digits", "device": "cpu"}
    build(*prepare_build(BuildConfig(n=20, store=tmp_path / "one", ledger=shared, budget=30, **base)))
    with pytest.raises(
        IdentityMismatch, match="are recorded in sqlite:///.*shared.sqlite, not in its own; give --ledger sqlite"
    ):
        prepare_build(BuildConfig(n=40, store=tmp_path / "one", **base))
    with pytest.raises(BudgetRefused, match="30"):
        prepare_build(BuildConfig(n=40, store=tmp_path / "one", ledger=shared, **base))
    with pytest.raises(IdentityMismatch, match="are recorded in sqlite:///.*shared.sqlite, not in"):
        prepare_build(BuildConfig(n=40, store=tmp_path / "one", ledger=str(tmp_path / "other.sqlite"), **base))
    build(*prepare_build(BuildConfig(n=20, store=tmp_path / "two", **base)))
    (tmp_path / "two" / LEDGER_FILE).unlink()
    with pytest.raises(StoreUnreadable, match="there is no ledger at"):
        prepare_build(BuildConfig(n=40, store=tmp_path / "two", **base))
    Ledger(tmp_path / "two" / LEDGER_FILE, create=True).close()
    with pytest.raises(StoreUnreadable, match="is not the one that .* was built with: it begins with entry"):
        prepare_build(BuildConfig(n=40, store=tmp_path / "two", **base))
    assert sum(forwards) == 40


def test_a_dry_run_after_a_crash_counts_what_was_lost(tmp_path, weights):
    folder = tmp_path / "store"
    crashed_build(folder, weights, "zarr", "call")
    prepared = prepare_build(config(folder, weights, "zarr"))
    assert prepared.plan.needed_calls == build(*prepared).new_calls


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"normalisation": '{"mean": [0, 0, 0], "std": [0, 0, 0]}'}, "which cannot be"),
        ({"normalisation": '{"mean": [0, 0], "std": [1, 1]}'}, "which cannot be"),
        ({"normalisation": "{bad"}, "normalisation .*which cannot be"),
        ({"classes": "7"}, "classes '7', which cannot be"),
        ({"classes": '["a", "b"]'}, r"whose classes are not those of digits \(2 there, 10 here\)"),
    ],
)
def test_odd_notes_in_a_teachers_file_are_refused_before_any_call(tmp_path, forwards, metadata, message):
    path = tmp_path / "odd.safetensors"
    save_weights(create_model("resnet8", num_classes=10, seed=0), path, metadata)
    with pytest.raises(InvalidInput, match=message):
        prepare_build(BuildConfig(teacher="resnet8", weights=path, dataset="digits", n=10, store=tmp_path / "s"))
    assert forwards == []


def test_a_build_does_not_grow_a_store_that_others_write_to(tmp_path, weights):
    folder = tmp_path / "store"
    build(*prepare_build(config(folder, weights, "zarr", n=40)))
    prepared = prepare_build(config(folder, weights, "zarr"))
    with FileLock(folder / "build.lock") as other:
        assert other.try_shared()
        with pytest.raises(
            StoreBusy, match="a build of 40 rows is writing to .*; wait until it ends, or ask for --n 40"
        ):
            build(*prepared)
        assert build(*prepare_build(config(folder, weights, "zarr", n=30))).new_calls == 0
    assert build(*prepared).new_calls == 56
    assert build(*prepared).new_calls == 0, "a plan made before another build finds its rows"


def test_planning_and_dry_runs_call_nothing_and_write_nothing(tmp_path, weights, forwards):
    prepared = prepare_build(config(tmp_path / "store", weights, "zarr"))
    assert prepared.plan.needed_calls == 96
    assert forwards == []
    assert not (tmp_path / "store").exists()


def test_several_views_are_several_calls_and_equal_inputs_one(tmp_path, weights, forwards):
    # 25 different views of each image: of 12 drawn, some of the 20 images get one twice.
    asked = BuildConfig(
        teacher="resnet8",
        weights=weights,
        dataset="digits",
        n=20,
        views=12,
        store=tmp_path / "store",
        device="cpu",
    )
    prepared = prepare_build(asked)
    distinct = {digest for row in prepared.plan.input_digests for digest in row}
    assert len(distinct) < 240, "the test needs a view that is drawn twice"
    report = build(*prepared)
    assert sum(forwards) == report.new_calls == len(distinct)
    assert report.reused_calls == 240 - len(distinct)
    store = Store.open(asked.store)
    assert store.valid().shape == (20, 12)
    logits, digests = store.read("train/logits"), prepared.plan.input_digests
    for row in range(20):
        for one in range(12):
            for other in range(12):
                if digests[row][one] == digests[row][other]:
                    np.testing.assert_array_equal(logits[row, one], logits[row, other])
    assert problems(asked.store) == []


def test_another_store_on_the_same_ledger_copies_instead_of_calling(tmp_path, weights, forwards):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    shared = {"teacher": "resnet8", "weights": weights, "dataset": "digits", "ledger": url, "device": "cpu"}
    build(*prepare_build(BuildConfig(n=30, store=tmp_path / "one", **shared)))
    prepared = prepare_build(BuildConfig(n=45, store=tmp_path / "two", array_format="hdf5", **shared))
    assert prepared.plan.needed_calls == 15
    report = build(*prepared)
    assert (report.new_calls, report.reused_calls) == (15, 30)
    assert sum(forwards) == 45
    one, two = arrays_of(tmp_path / "one"), arrays_of(tmp_path / "two")
    np.testing.assert_array_equal(two["train/logits"][:30], one["train/logits"])
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(InvalidInput, match="is paid for and kept in a store at .*one that cannot be read"):
        prepare_build(BuildConfig(n=45, store=tmp_path / "three", **shared))
    assert sum(forwards) == 45


def test_a_budget_is_refused_before_the_first_call_and_before_anything_is_written(tmp_path, weights, forwards):
    asked = BuildConfig(
        teacher="resnet8",
        weights=weights,
        dataset="digits",
        n=40,
        budget=39,
        store=tmp_path / "store",
        device="cpu",
    )
    with pytest.raises(BudgetRefused, match="asked for 40 calls of resnet8, 0 are already paid and 39 of the budget"):
        prepare_build(asked)
    assert forwards == []
    assert not asked.store.exists()


def test_the_recorded_budget_holds_for_later_builds(tmp_path, weights, forwards):
    base = {
        "teacher": "resnet8",
        "weights": weights,
        "dataset": "digits",
        "store": tmp_path / "s",
        "device": "cpu",
    }
    build(*prepare_build(BuildConfig(n=40, budget=50, **base)))
    with pytest.raises(BudgetRefused, match="asked for 20 calls .*, 40 are already paid and 10 of the budget of 50"):
        prepare_build(BuildConfig(n=60, **base))
    assert build(*prepare_build(BuildConfig(n=60, budget=60, **base))).new_calls == 20
    assert sum(forwards) == 60


@pytest.mark.slow
@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
@pytest.mark.parametrize("step", STEPS)
def test_a_killed_build_resumes_without_paying_twice_or_counting_too_little(tmp_path, weights, array_format, step):
    folder = tmp_path / "store"
    child = crashed_build(folder, weights, array_format, step)
    assert child.returncode == -signal.SIGKILL, child.stderr
    made = sum(int(line) for line in (folder.parent / "store.forwards").read_text().split())
    after_kill = summary(folder)
    assert after_kill.spent >= made
    assert after_kill.committed <= made
    report = build(*prepare_build(config(folder, weights, array_format)))
    totals = summary(folder)
    assert (totals.committed, totals.reserved) == (96, 0)
    assert totals.spent == 96 + totals.lost
    assert totals.spent >= made + report.new_calls
    # With the rows on the disk and only the commit missing, nothing is lost and nothing called again.
    if step == "commit":
        assert report.adopted_calls > 0
    assert problems(folder) == []
    reference = tmp_path / "reference"
    build(*prepare_build(config(reference, weights, array_format)))
    for name, values in arrays_of(reference).items():
        np.testing.assert_array_equal(arrays_of(folder)[name], values, err_msg=name)


def test_a_store_of_something_else_is_refused_by_field(tmp_path, weights, forwards):
    base = {"teacher": "resnet8", "weights": weights, "dataset": "digits", "n": 20, "store": tmp_path / "s"}
    build(*prepare_build(BuildConfig(**base)))
    del forwards[:]
    for change, field in [
        ({"seed": 1}, r"seed \(store: 0, asked: 1\)"),
        ({"features": "all"}, r"outputs \(store: logits:float32"),
        ({"view_policy": "plain"}, "view_policy"),
        ({"views": 2}, "views"),
    ]:
        with pytest.raises(IdentityMismatch, match=field):
            prepare_build(BuildConfig(**base | change))
    with pytest.raises(InvalidInput, match="is a zarr store, not hdf5"):
        prepare_build(BuildConfig(**base, array_format="hdf5"))
    assert forwards == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"array_format": "zar"}, "no format is called 'zar'; did you mean zarr"),
        ({"feature_dtype": "float8"}, "did you mean float32, float16"),
        ({"view_policy": "plane"}, "did you mean plain"),
    ],
)
def test_unknown_choices_are_answered_with_the_nearest(tmp_path, weights, change, message):
    with pytest.raises(UnknownName, match=message):
        BuildConfig(teacher="resnet8", n=10, store=tmp_path, **change)


def test_unknown_layers_are_answered_with_the_nearest(tmp_path, weights):
    asked = BuildConfig(
        teacher="resnet8",
        weights=weights,
        dataset="digits",
        n=10,
        store=tmp_path / "s",
        features="stem,layr2",
    )
    with pytest.raises(UnknownName, match="no layer of resnet8 is called 'layr2'; did you mean layer2"):
        prepare_build(asked)


def test_a_disk_without_room_is_found_before_any_call(tmp_path, weights, forwards, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(DiskFull, match=r"the store needs \d+ MB and the disk of .* has 1 MB free"):
        prepare_build(config(tmp_path / "store", weights, "zarr"))
    assert forwards == []


def test_values_that_do_not_fit_the_stored_type_stop_the_build(tmp_path, forwards):
    network = create_model("resnet8", num_classes=10, seed=0)
    with torch.no_grad():
        network.bn1.bias.fill_(1e6)
    path = tmp_path / "loud.safetensors"
    save_weights(network, path, {})
    asked = BuildConfig(
        teacher="resnet8",
        weights=path,
        dataset="digits",
        n=10,
        store=tmp_path / "s",
        features="stem",
        device="cpu",
    )
    with pytest.raises(InvalidInput, match="10 answers that are paid for .* stem holds 1e.06, which float16 cannot"):
        build(*prepare_build(asked))
