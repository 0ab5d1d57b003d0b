"""A store in another format, and a store that keeps more: the same identity and history, and no call too many."""

from __future__ import annotations

import shutil
import signal

import numpy as np
import pytest

from ground.errors import (
    BudgetRefused,
    IdentityMismatch,
    InvalidInput,
    StoreBusy,
    StoreIncomplete,
    StoreUnreadable,
    UnknownName,
)
from ground.views import apply_views
from models import create_model, load_weights, save_weights
from storage.rows import Rows
from storage.schema import output_array
from storage.store import Store
from teacher_cache.build import build
from teacher_cache.config import ExtensionConfig
from teacher_cache.convert import convert
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build
from teacher_cache.teachers import ZooTeacher
from tests.teacher_cache.crash_build import config as crash_config
from tests.teacher_cache.damage import arrays_of, build_store, change, config_of, crashed_build, problems, totals


@pytest.mark.parametrize(("array_format", "other"), [("zarr", "hdf5"), ("hdf5", "zarr"), ("zarr", "zarr")])
def test_a_converted_store_holds_the_same_and_goes_on_from_there(tmp_path, weights, forwards, array_format, other):
    folder = build_store(tmp_path / "store", weights, array_format, n=40)
    report = convert(folder, other, tmp_path / "out")
    assert report.cells == 40
    before, after = arrays_of(folder), arrays_of(tmp_path / "out")
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)
    one, two = Store.open(folder).manifest, Store.open(tmp_path / "out").manifest
    assert one.identity == two.identity
    assert two.history == ({"store_id": one.store_id, "made_by": "convert"},)
    assert problems(tmp_path / "out") == []
    assert problems(folder) == []
    del forwards[:]
    assert build(*prepare_build(config_of(tmp_path / "out", weights, other, n=50))).new_calls == 10
    assert sum(forwards) == 10
    assert problems(tmp_path / "out") == []


def test_converting_refuses_what_is_damaged_unsettled_or_in_the_way(tmp_path, weights):
    folder = build_store(tmp_path / "store", weights, n=40)
    with pytest.raises(UnknownName, match="did you mean hdf5"):
        convert(folder, "hdf6", tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("x")
    with pytest.raises(InvalidInput, match="exists; give a new folder as --out"):
        convert(folder, "hdf5", tmp_path / "taken")
    change(folder, "train/logits", 3)
    with pytest.raises(StoreUnreadable, match="train/digest"):
        convert(folder, "hdf5", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    crashed = tmp_path / "crashed"
    crashed_build(crashed, weights, "zarr", "write")
    with pytest.raises(StoreIncomplete, match="calls of .* are not settled"):
        convert(crashed, "hdf5", tmp_path / "out")


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_an_extension_adds_maps_and_leaves_what_was_there(tmp_path, weights, forwards, array_format):
    folder = build_store(tmp_path / "store", weights, array_format, features="layer3", views=2, n=30)
    before, calls = arrays_of(folder), sum(forwards)
    prepared = prepare_extension(ExtensionConfig(store=folder, features="layer1,pooled", weights=weights, device="cpu"))
    assert prepared.plan.needed_calls == calls
    report = extend(*prepared)
    assert report.new_calls == calls
    assert sum(forwards) == 2 * calls
    assert totals(folder) == (2 * calls, 0, 0)
    assert problems(folder) == []
    store = Store.open(folder)
    assert [output.name for output in store.outputs] == ["logits", "layer1", "layer3", "pooled"]
    after = arrays_of(folder)
    for name in before.keys() - {"train/digest"}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    network = create_model("resnet8", num_classes=10).eval()
    load_weights(network, weights)
    import torch

    images, views = (torch.from_numpy(after[f"train/{name}"]) for name in ("images", "views"))
    identity = store.manifest.identity
    with torch.inference_mode():
        said = network.represent(
            identity.teacher.normalisation.apply(apply_views(images, views[:, 1], identity.geometry))
        )
    np.testing.assert_allclose(after[output_array("layer1")][:, 1], said.features["layer1"], rtol=2e-3, atol=2e-3)
    assert sorted(path.name for path in folder.glob("data*")) == ["data-1" + store.arrays.path.suffix]
    # It is now the store that a build with all these features would have made.
    asked = config_of(folder, weights, array_format, features="layer1,layer3,pooled", views=2, n=30)
    assert build(*prepare_build(asked)).new_calls == 0
    more = config_of(folder, weights, array_format, features="layer1,layer3,pooled", views=2, n=33)
    assert build(*prepare_build(more)).new_calls > 0
    assert problems(folder) == []


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_an_extension_by_a_preactivation_adds_its_norm(tmp_path, weights, array_format):
    folder = build_store(tmp_path / "store", weights, array_format, features="pooled", n=30)
    head = Store.open(folder).read_parameters()
    assert [*head] == ["head/weight", "head/bias"]
    base = {"store": folder, "weights": weights, "device": "cpu"}
    extend(*prepare_extension(ExtensionConfig(features="layer2.pre,last", **base)))
    store = Store.open(folder)
    assert [*store.manifest.identity.features] == ["pooled", "layer2.pre", "last"]
    found = store.read_parameters()
    assert [*found] == ["head/weight", "head/bias", "norm/layer2/scale", "norm/layer2/shift"]
    for name, values in head.items():
        np.testing.assert_array_equal(found[name], values)
    network = create_model("resnet8", num_classes=10)
    load_weights(network, weights)
    np.testing.assert_array_equal(found["norm/layer2/scale"], network.stage_norms["layer2"].weight.detach())
    assert problems(folder) == []
    with pytest.raises(InvalidInput, match="nothing to be extended by: it keeps last, layer2.pre, pooled already"):
        prepare_extension(ExtensionConfig(features="layer2.pre", **base))
    # It is the store that a build would have made, and what is made of it has the same.
    asked = config_of(folder, weights, array_format, features="pooled,last,layer2.pre", n=40)
    assert build(*prepare_build(asked)).new_calls == 10
    assert problems(folder) == []
    convert(folder, "hdf5" if array_format == "zarr" else "zarr", tmp_path / "copy")
    for name, values in Store.open(tmp_path / "copy").read_parameters().items():
        np.testing.assert_array_equal(values, found[name])


def test_an_extension_costs_what_it_says_and_refuses_what_it_must(tmp_path, weights, forwards):
    folder = build_store(tmp_path / "store", weights, features="layer1", n=30, budget=50)
    base = {"store": folder, "weights": weights, "device": "cpu"}
    del forwards[:]
    with pytest.raises(BudgetRefused, match="asked for 30 calls .*, 30 are already paid and 20 of the budget of 50"):
        prepare_extension(ExtensionConfig(features="pooled", **base))
    with pytest.raises(InvalidInput, match="has nothing to be extended by: it keeps layer1 already"):
        prepare_extension(ExtensionConfig(features="layer1", **base))
    with pytest.raises(UnknownName, match="did you mean layer"):
        prepare_extension(ExtensionConfig(features="layr2", **base))
    other = tmp_path / "other.safetensors"
    save_weights(create_model("resnet8", num_classes=10, seed=1), other, {})
    with pytest.raises(IdentityMismatch, match="teacher.fingerprint"):
        prepare_extension(ExtensionConfig(features="pooled", **base | {"weights": other}))
    assert forwards == []
    assert extend(*prepare_extension(ExtensionConfig(features="pooled", budget=60, **base))).new_calls == 30
    assert problems(folder) == []


def test_an_incomplete_store_is_finished_before_it_is_extended(tmp_path, weights):
    folder = tmp_path / "store"
    crashed_build(folder, weights, "zarr", "call")
    with pytest.raises(StoreIncomplete, match="finish it with: ckd-cache build"):
        prepare_extension(ExtensionConfig(store=folder, features="pooled", weights=weights, device="cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("step", ["reserve", "write", "commit"])
def test_a_killed_extension_leaves_the_old_store_and_goes_on(tmp_path, weights, step):
    folder = build_store(tmp_path / "store", weights, n=96, features="layer1")
    child = crashed_build(folder, weights, "extend", step)
    assert child.returncode == -signal.SIGKILL, child.stderr
    made = sum(int(line) for line in (tmp_path / "store.forwards").read_text().split())
    old = Store.open(folder)
    assert [output.name for output in old.outputs] == ["logits", "layer1"]
    assert old.read_outputs(["layer1"], Rows.first(96))["layer1"].shape[0] == 96
    with pytest.raises(IdentityMismatch, match="an extension of .* to pooled was interrupted"):
        prepare_extension(ExtensionConfig(store=folder, features="layer2", weights=weights, device="cpu"))
    report = extend(*prepare_extension(ExtensionConfig(store=folder, features="pooled", weights=weights, device="cpu")))
    committed, reserved, lost = totals(folder)
    assert (committed, reserved) == (192, 0)
    assert committed + lost >= 96 + made + report.new_calls
    assert report.adopted_calls > 0 if step == "commit" else True
    assert problems(folder) == []


def test_calls_that_an_unfinished_extension_left_are_reported_until_it_is_finished(tmp_path, weights, monkeypatch):
    folder = build_store(tmp_path / "store", weights, n=30, features="layer1")
    asked = ExtensionConfig(store=folder, features="pooled", weights=weights, device="cpu")

    def broken(self, views, outputs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(ZooTeacher, "call", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            extend(*prepare_extension(asked))
    found = problems(folder)
    assert len(found) == 30
    assert found[0] == (
        "row 0 view 0 call 31 is not settled: its extension is at work, or was interrupted; run the extension again to "
        "settle it"
    )
    assert extend(*prepare_extension(asked)).lost_calls == 30
    assert problems(folder) == []


def test_other_stores_on_the_ledger_copy_from_an_extended_one(tmp_path, weights, forwards):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    folder = build_store(tmp_path / "store", weights, features="layer1", n=30, ledger=url)
    extend(
        *prepare_extension(ExtensionConfig(store=folder, features="pooled", weights=weights, ledger=url, device="cpu"))
    )
    convert(folder, "hdf5", tmp_path / "copy", url)
    del forwards[:]
    assert (
        build(
            *prepare_build(config_of(tmp_path / "all", weights, features="layer1,pooled", n=30, ledger=url))
        ).reused_calls
        == 30
    )
    fewer = build(*prepare_build(config_of(tmp_path / "fewer", weights, features="none", n=30, ledger=url)))
    assert (fewer.new_calls, fewer.reused_calls) == (0, 30), "a store that kept more serves one that keeps less"
    with pytest.raises(InvalidInput, match="layer2 was not kept of it; .* ckd-cache extend"):
        prepare_build(config_of(tmp_path / "more", weights, features="layer1,layer2", n=30, ledger=url))
    assert forwards == []
    for name in ("store", "copy", "all", "fewer"):
        assert problems(tmp_path / name, url) == [], name


@pytest.mark.parametrize("how", ["moved", "converted"])
def test_a_store_that_is_no_longer_where_it_was_built_can_be_extended(tmp_path, weights, how):
    folder = build_store(tmp_path / "store", weights, features="none", n=30)
    if how == "moved":
        folder = folder.rename(tmp_path / "elsewhere")
    else:
        convert(folder, "hdf5", tmp_path / "elsewhere")
        shutil.rmtree(folder)
        folder = tmp_path / "elsewhere"
    report = extend(*prepare_extension(ExtensionConfig(store=folder, features="pooled", weights=weights, device="cpu")))
    assert report.new_calls == 30
    assert totals(folder) == (60, 0, 0)
    assert problems(folder) == []


def test_an_extension_settles_what_a_build_left_first(tmp_path, weights):
    folder = tmp_path / "store"
    crashed_build(folder, weights, "zarr", "commit")
    asked = crash_config(folder, weights, "zarr", n=32)
    assert build(*prepare_build(asked)).rows_valid == 32
    Store.open(folder)
    build(*prepare_build(crash_config(folder, weights, "zarr")))
    report = extend(*prepare_extension(ExtensionConfig(store=folder, features="pooled", weights=weights, device="cpu")))
    assert report.new_calls == 96
    assert problems(folder) == []


def test_an_extension_that_was_planned_for_another_store_is_not_made(tmp_path, weights, forwards):
    folder = build_store(tmp_path / "store", weights, features="none", n=30)
    base = {"store": folder, "weights": weights, "device": "cpu"}
    early = prepare_extension(ExtensionConfig(features="pooled", **base))
    build(*prepare_build(config_of(folder, weights, features="none", n=40)))
    del forwards[:]
    with pytest.raises(StoreBusy, match="was grown or extended after this extension was planned"):
        extend(*early)
    early = prepare_extension(ExtensionConfig(features="pooled", **base))
    extend(*prepare_extension(ExtensionConfig(features="layer1", **base)))
    with pytest.raises(StoreBusy, match="was grown or extended"):
        extend(*early)
    assert sum(forwards) == 40
    assert [output.name for output in Store.open(folder).outputs] == ["logits", "layer1"]
    assert problems(folder) == []


def test_what_cannot_be_copied_is_found_before_a_call_is_paid(tmp_path, weights, forwards):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    one = build_store(tmp_path / "one", weights, features="none", n=20, ledger=url)
    change(one, "train/logits", 9)
    del forwards[:]
    for _ in range(2):
        with pytest.raises(StoreUnreadable, match="row 9 of .*one is not what call 10 of the ledger returned"):
            build(*prepare_build(config_of(tmp_path / "two", weights, features="none", n=30, ledger=url)))
    assert forwards == []
