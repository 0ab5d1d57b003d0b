"""Features in bfloat16: as torch rounds them, in both array formats, through all that reads or writes them."""

from __future__ import annotations

import errno
import json
from contextlib import suppress

import h5py
import numpy as np
import pytest
import torch
import zarr

from ground.errors import DiskFull, InvalidInput
from models.compute import Compute
from storage.float_types import as_float32
from storage.store import Store
from student_train.data import StudentData
from student_train.needs import Wanted
from teacher_cache.build import build
from teacher_cache.config import ExtensionConfig
from teacher_cache.convert import convert
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build
from teacher_cache.repair import repair
from teacher_cache.widen import widen
from tests.conftest import run_command
from tests.teacher_cache.damage import build_store, change, config_of, problems, totals

IN_BFLOAT16 = {"n": 20, "features": "pooled", "feature_dtype": "bfloat16", "batch_size": 8}
ARRAY = "train/features/pooled"


def rounded(exact: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(exact).to(torch.bfloat16)


@pytest.fixture(scope="module")
def exact(tmp_path_factory, weights) -> np.ndarray:
    """What the teacher says, in float32."""
    folder = build_store(
        tmp_path_factory.mktemp("exact") / "store", weights, **IN_BFLOAT16 | {"feature_dtype": "float32"}
    )
    return Store.open(folder).read(ARRAY)


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_features_are_kept_as_torch_rounds_them_and_anybody_can_read_them(tmp_path, weights, exact, array_format):
    folder = build_store(tmp_path / "store", weights, array_format, **IN_BFLOAT16)
    if array_format == "zarr":
        bits = zarr.open_array(folder / "data.zarr" / ARRAY, mode="r")[:20]
    else:
        with h5py.File(folder / "data.h5") as file:
            bits = file[ARRAY][:20]
    # As docs/store-format.md says.
    numbers = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(numbers, rounded(exact).float().numpy())
    outputs = json.loads((folder / "manifest.json").read_text())["identity"]["outputs"]
    assert [output["dtype"] for output in outputs] == ["float32", "bfloat16"]
    assert problems(folder) == []
    data = StudentData.load(
        Store.open(folder), None, Wanted((), ("logits", "pooled"), False), Compute.choose("cpu", "fp32")
    )
    assert data.outputs["pooled"].dtype == torch.bfloat16
    assert torch.equal(data.outputs["pooled"], rounded(exact))
    said = data.teacher(torch.tensor([3, 1]), torch.tensor([0, 0]))
    assert torch.equal(said.features["pooled"], rounded(exact)[[3, 1], 0].float())


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_one_bit_that_changed_is_found_and_given_up_or_taken_from_a_copy(tmp_path, weights, array_format):
    folder = build_store(tmp_path / "store", weights, array_format, **IN_BFLOAT16)
    other = "hdf5" if array_format == "zarr" else "zarr"
    convert(folder, other, tmp_path / "copy")
    np.testing.assert_array_equal(Store.open(tmp_path / "copy").read(ARRAY), Store.open(folder).read(ARRAY))
    assert problems(tmp_path / "copy") == []
    arrays = Store.open(folder).arrays
    values = arrays.read(ARRAY, 4, 5)
    values[0, 0, 7] ^= 1
    arrays.write(ARRAY, 4, values)
    arrays.sync()
    assert [f"{ARRAY}: row 4 view 0 does not match its digest" in problem for problem in problems(folder)] == [True]
    assert repair(folder, copy=tmp_path / "copy", act=True).restored == [4]
    assert problems(folder) == []


def test_a_store_is_grown_extended_and_copied_from_in_its_own_type_without_saying_it(
    tmp_path, weights, exact, forwards
):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    folder = build_store(tmp_path / "store", weights, ledger=url, **IN_BFLOAT16 | {"n": 12})
    build_store(folder, weights, ledger=url, **IN_BFLOAT16 | {"feature_dtype": None})
    build_store(tmp_path / "other", weights, ledger=url, **IN_BFLOAT16)
    assert sum(forwards) == 20, "the other store has its answers from the first one"
    wanted = ExtensionConfig(store=folder, features="layer1", weights=weights, ledger=url, device="cpu")
    extend(*prepare_extension(wanted))
    assert [output.dtype for output in Store.open(folder).outputs] == ["float32", "bfloat16", "bfloat16"]
    np.testing.assert_array_equal(as_float32(Store.open(folder).read(ARRAY)), rounded(exact).float().numpy())
    for place in (folder, tmp_path / "other"):
        assert problems(place, url) == []
    with pytest.raises(InvalidInput, match="give the same --features, --feature-dtype"):
        prepare_build(config_of(tmp_path / "third", weights, ledger=url, **IN_BFLOAT16 | {"feature_dtype": "float32"}))


def test_a_widened_store_keeps_its_numbers_and_the_ledger_still_vouches_for_them(tmp_path, weights, exact, forwards):
    folder = build_store(tmp_path / "store", weights, **IN_BFLOAT16)
    words = ["--store", folder, "--out", tmp_path / "run", "--method", "kd", "--student", "resnet8"]
    trained = run_command("ckd-train", *words, "--max-evals", 1, "--device", "cpu")
    assert trained.returncode == 0, trained.stderr
    assert widen(folder).outputs == ["pooled"]
    np.testing.assert_array_equal(Store.open(folder).read(ARRAY), rounded(exact).float().numpy())
    assert problems(folder) == []
    traced = run_command("ckd-cache", "ledger", "trace", tmp_path / "run")
    assert traced.returncode == 0, traced.stdout + traced.stderr
    change(folder, ARRAY, 3)
    assert len(problems(folder)) == 1
    build_store(folder, weights, **IN_BFLOAT16 | {"n": 24, "feature_dtype": None})
    assert sum(forwards) == 24


def test_answers_in_hand_are_spooled_in_bfloat16_and_committed_by_the_next_build(
    tmp_path, weights, exact, forwards, monkeypatch
):
    folder, writes = tmp_path / "store", []
    write_outputs = Store.write_outputs

    def filling(self, cells, outputs):
        writes.append(len(cells))
        if len(writes) == 2:
            raise DiskFull(f"no room left: {errno.ENOSPC}")
        return write_outputs(self, cells, outputs)

    with monkeypatch.context() as patch, suppress(DiskFull):
        patch.setattr(Store, "write_outputs", filling)
        build_store(folder, weights, **IN_BFLOAT16)
    (spool,) = folder.glob("*.spool")
    assert b'"dtype": "bfloat16"' in spool.read_bytes()
    called = sum(forwards)
    report = build(*prepare_build(config_of(folder, weights, **IN_BFLOAT16)))
    assert report.lost_calls == 0
    assert report.adopted_calls == called - 8
    assert sum(forwards) == 20
    assert totals(folder) == (20, 0, 0)
    np.testing.assert_array_equal(as_float32(Store.open(folder).read(ARRAY)), rounded(exact).float().numpy())
    assert problems(folder) == []


def test_an_answer_in_hand_that_was_said_in_float32_is_rounded_when_it_is_settled(
    tmp_path, weights, exact, monkeypatch
):
    """One that came back while the build was being stopped was not converted yet."""
    folder = tmp_path / "store"

    def stopping(self, batch, said):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr("teacher_cache.answered.Assembly.storable", stopping)
        build_store(folder, weights, **IN_BFLOAT16)
    (spool,) = folder.glob("*.spool")
    assert b'"dtype": "bfloat16"' not in spool.read_bytes()
    build_store(folder, weights, **IN_BFLOAT16)
    assert totals(folder) == (20, 0, 0)
    np.testing.assert_array_equal(as_float32(Store.open(folder).read(ARRAY)), rounded(exact).float().numpy())
    assert problems(folder) == []


def test_a_number_that_float16_cannot_hold_fits(tmp_path, weights, monkeypatch):
    from teacher_cache.teachers import ZooTeacher

    call = ZooTeacher.call
    monkeypatch.setattr(
        ZooTeacher,
        "call",
        lambda self, views, outputs: {
            n: t * 1e30 if n == "pooled" else t for n, t in call(self, views, outputs).items()
        },
    )
    folder = build_store(tmp_path / "store", weights, **IN_BFLOAT16)
    assert as_float32(Store.open(folder).read(ARRAY)).max() > 1e25
    assert problems(folder) == []


def test_the_commands_take_it_and_refuse_what_is_no_type(tmp_path, weights):
    words = ["--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--n", 10, "--device", "cpu"]
    built = run_command(
        "ckd-cache",
        "build",
        *words,
        "--features",
        "pooled",
        "--feature-dtype",
        "bfloat16",
        "--store",
        tmp_path / "store",
    )
    assert built.returncode == 0, built.stderr
    again = run_command("ckd-cache", "build", "--store", tmp_path / "store", "--weights", weights, "--n", 10)
    assert "0 new teacher calls" in again.stdout
    extend_words = ["--store", tmp_path / "store", "--features", "layer1", "--weights", weights, "--yes"]
    refused = run_command("ckd-cache", "extend", *extend_words, "--feature-dtype", "float8")
    assert refused.returncode == 2
    assert "no feature dtype is called 'float8'; did you mean float32" in refused.stderr
