"""A store without logits: made, checked, grown, extended and learned from like any other, as far as features go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from models import create_model, read_weights, save_weights
from storage.rows import Rows
from storage.run_record import RunRecord
from storage.store import Store
from tests.running import run_command

COUNT = 7


@pytest.fixture(scope="module")
def other_classes(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    save_weights(create_model("resnet8", num_classes=COUNT, seed=0), path, {})
    return path


def build(folder: Path, weights: Path, *arguments: object, n: int = 24):
    return run_command(
        "ckd-cache", "build", "--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--store", folder,
        "--n", n, "--device", "cpu", *arguments,
    )  # fmt: skip


FEATURES = ("--features-only", "--features", "layer2,pooled")


@pytest.fixture(scope="module")
def featured(tmp_path_factory, other_classes) -> Path:
    folder = tmp_path_factory.mktemp("featured") / "store"
    built = build(folder, other_classes, *FEATURES)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture
def copied(featured, tmp_path) -> Path:
    return Path(shutil.copytree(featured, tmp_path / "copy"))


def test_other_classes_are_no_obstacle_to_features(featured):
    identity = Store.open(featured).manifest.identity
    assert [output.name for output in identity.outputs] == ["layer2", "pooled"]
    assert identity.teacher.num_classes == COUNT
    assert identity.parameters == ()
    assert run_command("ckd-cache", "verify", "--store", featured).returncode == 0
    assert run_command("ckd-cache", "repair", "--store", featured).returncode == 0


def test_what_it_lacks_is_said(featured):
    said = run_command("ckd-cache", "info", "--store", featured)
    assert said.returncode == 0, said.stderr
    assert "accuracy  no logits are kept to tell the teacher's\n" in said.stdout
    assert "classes   the teacher's are others, 7 of them\n" in said.stdout
    told = json.loads(run_command("ckd-cache", "info", "--store", featured, "--json").stdout)
    assert (told["keeps_logits"], told["teacher_accuracy"], told["rows_valid"]) == (False, None, 24)


def test_it_grows_without_being_told_again_and_pays_nothing_twice(copied, other_classes, forwards):
    again = build(copied, other_classes, *FEATURES)
    assert again.stdout.startswith("0 new teacher calls")
    grown = run_command(
        "ckd-cache", "build", "--store", copied, "--weights", other_classes, "--n", 40, "--device", "cpu"
    )
    assert grown.returncode == 0, grown.stderr
    assert sum(forwards) == 16
    refused = build(copied, other_classes, "--features", "pooled,layer2,layer1", "--features-only")
    assert refused.returncode == 2
    assert "outputs (store: layer2:float16,pooled:float16, asked: layer1:float16," in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--features-only",), "--features-only keeps no logits, so there is nothing to keep; give --features too"),
        ((*FEATURES, "--class-map", "names"), "there is nothing to map; leave out --class-map"),
        (("--features", "pooled"), "(7 there, 10 here); say which is which with --class-map FILE"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_call(tmp_path, other_classes, forwards, arguments, message):
    refused = build(tmp_path / "store", other_classes, *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (tmp_path / "store").exists()
    assert not forwards


LOSSES_OF_LOGITS = {
    "kd": ("--method", "kd"),
    "ckd": ("--method", "ckd"),
    "a sum": ("--loss", "ce", "--loss", "hint:layers=layer2", "--loss", "dist:weight=0.5"),
}


@pytest.mark.parametrize("case", LOSSES_OF_LOGITS)
def test_losses_of_logits_are_refused_before_training_with_methods_that_fit(featured, tmp_path, case):
    refused = run_command("ckd-train", "--store", featured, "--out", tmp_path / "run", *LOSSES_OF_LOGITS[case])
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "learns from the teacher's logits, and the store keeps features only; give a method of" in refused.stderr
    assert "as fitnets:kd=0, " in refused.stderr
    assert "extend" not in refused.stderr, "its classes are others, so there is nothing to add"
    assert not (tmp_path / "run").exists()


def test_every_method_that_is_named_instead_trains(featured, tmp_path):
    refused = run_command("ckd-train", "--store", featured, "--method", "kd", "--out", tmp_path / "run")
    named = refused.stderr.strip().rpartition(", as ")[2].split(", ")
    assert len(named) > 2
    for name in [*named, "vanilla"]:
        trained = run_command(
            "ckd-train", "--store", featured, "--method", name, "--student", "resnet8", "--max-evals", 1, "--out",
            tmp_path / name.replace(":", "-"),
        )  # fmt: skip
        assert trained.returncode == 0, (name, trained.stderr)
        record = RunRecord.load(tmp_path / name.replace(":", "-"), "")
        assert "logits" not in record.teacher_outputs
        assert record.teacher_calls == (0 if name == "vanilla" else 24)


def test_a_student_has_the_classes_of_the_data(featured, tmp_path):
    trained = run_command(
        "ckd-train", "--store", featured, "--method", "fitnets:kd=0", "--student", "resnet8", "--max-evals", 1, "--out",
        tmp_path / "run",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert read_weights(tmp_path / "run" / "student.safetensors").state_dict["fc.weight"].shape[0] == 10
    assert run_command("ckd-train", "verify", tmp_path / "run").returncode == 0


def test_a_loss_through_the_last_layer_is_refused_without_one(featured, tmp_path):
    refused = run_command(
        "ckd-train", "--store", featured, "--loss", "ce", "--loss", "simkd:on=pooled", "--out", tmp_path / "run"
    )
    assert refused.returncode == 2
    assert "simkd goes through the teacher's last layer, and the store keeps none that gives" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_features_are_added_to_it(copied, other_classes):
    before = Store.open(copied).read_outputs(["pooled"], Rows.first(24))
    extended = extend(copied, other_classes, "layer1")
    assert extended.returncode == 0, extended.stderr
    store = Store.open(copied)
    assert [output.name for output in store.outputs] == ["layer1", "layer2", "pooled"]
    np.testing.assert_array_equal(store.read_outputs(["pooled"], Rows.first(24))["pooled"], before["pooled"])
    assert run_command("ckd-cache", "verify", "--store", copied).returncode == 0


def extend(folder: Path, weights: Path, features: str):
    return run_command(
        "ckd-cache", "extend", "--store", folder, "--weights", weights, "--features", features, "--yes", "--device",
        "cpu",
    )  # fmt: skip


def test_logits_of_other_classes_are_not_added(copied, other_classes, forwards):
    refused = extend(copied, other_classes, "logits")
    assert refused.returncode == 2
    assert "(7 there, 10 here)" in refused.stderr
    assert not forwards


def test_logits_of_the_same_classes_are_added_later_for_their_calls(tmp_path, weights, forwards):
    assert build(tmp_path / "store", weights, *FEATURES).returncode == 0
    refused = run_command("ckd-train", "--store", tmp_path / "store", "--method", "kd", "--out", tmp_path / "run")
    assert "or add the logits with ckd-cache extend --features logits" in refused.stderr
    extended = extend(tmp_path / "store", weights, "logits,layer1")
    assert extended.returncode == 0, extended.stderr
    assert extend(tmp_path / "store", weights, "logits").stdout.endswith("keeps these features already\n")
    assert sum(forwards) == 48
    identity = Store.open(tmp_path / "store").manifest.identity
    assert [output.name for output in identity.outputs] == ["logits", "layer1", "layer2", "pooled"]
    assert [output.dtype for output in identity.outputs] == ["float32", "float16", "float16", "float16"]
    assert [spec.name for spec in identity.parameters] == ["head/weight", "head/bias"]
    straight = tmp_path / "straight"
    assert build(straight, weights, "--features", "layer1,layer2,pooled").returncode == 0
    ours, theirs = Store.open(tmp_path / "store"), Store.open(straight)
    np.testing.assert_array_equal(
        ours.read_outputs(["logits"], Rows.first(24))["logits"],
        theirs.read_outputs(["logits"], Rows.first(24))["logits"],
    )
    assert run_command("ckd-cache", "verify", "--store", tmp_path / "store").returncode == 0


def test_it_is_widened_and_converted_like_any_other(copied, tmp_path):
    widened = run_command("ckd-cache", "widen", "--store", copied)
    assert widened.returncode == 0, widened.stderr
    converted = run_command("ckd-cache", "convert", "--store", copied, "--out", tmp_path / "other", "--to", "hdf5")
    assert converted.returncode == 0, converted.stderr
    assert [output.dtype for output in Store.open(tmp_path / "other").outputs] == ["float32", "float32"]
    assert run_command("ckd-cache", "verify", "--store", tmp_path / "other").returncode == 0


def test_its_answers_are_copied_by_a_shared_ledger(tmp_path, other_classes, forwards):
    ledger = "--ledger", f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    assert build(tmp_path / "a", other_classes, *FEATURES, *ledger).returncode == 0
    second = build(tmp_path / "b", other_classes, "--features-only", "--features", "pooled", *ledger)
    assert second.returncode == 0, second.stderr
    assert sum(forwards) == 24


SUMS = {
    "standardised, which only logits are": ("--loss", "ce", "--loss", "hint:standardised=true"),
    "of all pairs": ("--loss", "ce", "--loss", "pkt:compared=true", "--comparison", "all"),
    "anchored": ("--loss", "ce", "--loss", "hint:compared=true", "--comparison", "sampled"),
}


@pytest.mark.parametrize("case", SUMS)
def test_what_is_done_to_logits_does_nothing_where_there_are_none(featured, tmp_path, case):
    trained = run_command(
        "ckd-train", "--store", featured, *SUMS[case], "--student", "resnet8", "--max-evals", 1, "--out",
        tmp_path / "run",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
