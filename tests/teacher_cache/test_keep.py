"""Stores whose answers are no logits: built, killed, grown, checked, put right and copied like any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ground.errors import IdentityMismatch, InvalidInput, TeacherDoubted
from storage.answers import AnswerForm, empty_answers
from storage.ledger import Ledger
from storage.rows import Rows
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from teacher_cache.answers import Conversion
from teacher_cache.build import build
from teacher_cache.config import BuildConfig, settings_of
from teacher_cache.prepare import prepare_build
from teacher_cache.sanity import require_sane
from tests.running import run_command
from tests.teacher_cache.crash_build import config
from tests.teacher_cache.damage import build_store, change, crashed_build, problems, totals

KEPT = ("log_probs", "probabilities", "top:4", "top:10:zero", "sampled:12", "label")


def kept_of(folder: Path) -> dict[str, np.ndarray]:
    store = Store.open(folder)
    return {output.name: store.read(store.array_of(output.name)) for output in store.manifest.identity.answers}


@pytest.fixture(scope="module")
def full(tmp_path_factory, weights) -> Path:
    """The same rows with logits."""
    return build_store(tmp_path_factory.mktemp("full") / "store", weights, features="none")


def expected_of(full: Path, form: AnswerForm) -> dict[str, np.ndarray]:
    """What follows from the logits of another store."""
    store = Store.open(full)
    logits = store.read_outputs(["logits"], Rows.first(store.manifest.n))["logits"][:, 0]
    digests = [digest for row in prepare_digests(store) for digest in row]
    made = Conversion(given=AnswerForm(), kept=form, seed=0).convert({"logits": torch.from_numpy(logits)}, digests)
    return {name: values.numpy()[:, None] for name, values in made.items()}


def prepare_digests(store: Store) -> list[list[bytes]]:
    from storage.digest import input_digests

    return input_digests(store.read("train/images"), store.read("train/views"), store.manifest.identity.geometry)


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
@pytest.mark.parametrize("text", KEPT)
def test_a_store_keeps_what_follows_from_the_logits(tmp_path, weights, full, text, array_format):
    form = AnswerForm.read(text)
    folder = build_store(tmp_path / "store", weights, array_format, keep=form, features="pooled", batch_size=19)
    store = Store.open(folder)
    assert store.manifest.identity.answer_form == form
    assert [output.name for output in store.outputs] == [*form.names, "pooled"]
    for name, values in expected_of(full, form).items():
        if text == "sampled:12" or values.dtype == np.int32:
            np.testing.assert_array_equal(kept_of(folder)[name], values)
        # How many images the teacher sees at once moves the last digits of its logits.
        np.testing.assert_allclose(kept_of(folder)[name], values, rtol=1e-5, atol=1e-6)
    assert [*store.read_parameters()] == ["head/weight", "head/bias"]
    assert problems(folder) == []
    assert totals(folder) == (70, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["top:4", "sampled:12", "label"])
def test_a_killed_build_ends_with_the_same_answers_as_one_that_was_not(tmp_path, weights, text):
    for step in ("call", "publish"):
        folder = tmp_path / step
        killed = crashed_build(folder, weights, f"zarr {text}", step)
        assert killed.returncode == -9, killed.stderr
        report = build(*prepare_build(config(folder, weights, f"zarr {text}")))
        assert report.rows_valid == 96
        assert problems(folder) == []
    whole = tmp_path / "whole"
    build(*prepare_build(config(whole, weights, f"zarr {text}")))
    for step in ("call", "publish"):
        for name, values in kept_of(whole).items():
            np.testing.assert_array_equal(kept_of(tmp_path / step)[name], values)


def test_it_grows_as_it_says_of_itself_and_in_no_other_way(tmp_path, weights, forwards):
    folder, form = tmp_path / "store", AnswerForm.read("top:4:zero")
    build_store(folder, weights, n=40, keep=form)
    assert settings_of(Store.open(folder).manifest)["keep"] == form
    grown = run_command("ckd-cache", "build", "--store", folder, "--weights", weights, "--n", 50, "--trust-teacher")
    assert grown.stdout.startswith("10 new teacher calls")
    assert Store.open(folder).manifest.identity.answer == form
    assert sum(forwards) == 50
    for text in ("logits", "top:4", "label"):
        again = ("ckd-cache", "build", "--store", folder, "--weights", weights, "--n", 60, "--keep", text)
        refused = run_command(*again, "--trust-teacher")
        assert refused.returncode == 2
        assert f"answer (store: top:4:zero, asked: {text})" in refused.stderr
    assert sum(forwards) == 50


def test_a_dry_run_and_info_say_what_a_row_takes(tmp_path, weights):
    folder = tmp_path / "store"
    arguments = ("--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--n", 70, "--keep", "top:3")
    said = run_command("ckd-cache", "build", *arguments, "--store", folder, "--views", 2, "--dry-run")
    assert "  answers as top:3, 48 bytes a row, 1.67 times smaller than logits\n" in said.stdout
    told = run_command("ckd-cache", "build", *arguments, "--store", folder, "--dry-run", "--json")
    estimate = json.loads(told.stdout)
    assert estimate["answer"] == {"kind": "top_k", "k": 3, "missing": "spread"}
    assert (estimate["answer_bytes"], estimate["logits_bytes"]) == (24, 40)
    assert estimate["array_bytes"]["train/top_k.ids"] == 128 * 3 * 4
    assert not folder.exists()
    built = run_command("ckd-cache", "build", *arguments, "--store", folder, "--trust-teacher")
    assert built.returncode == 0, built.stderr
    said = run_command("ckd-cache", "info", "--store", folder)
    assert "answers   top:3, 24 bytes a row, 1.67 times smaller than logits\n" in said.stdout
    described = json.loads(run_command("ckd-cache", "info", "--store", folder, "--json").stdout)
    assert described["answer"] == {"kind": "top_k", "k": 3, "missing": "spread"}
    assert (described["keeps_logits"], described["answers_empty"]) == (False, 0)
    labels = Store.open(folder).read("train/labels")
    right = (kept_of(folder)["top_k.ids"][:, 0, 0] == labels).mean()
    assert described["teacher_accuracy"] == pytest.approx(right)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keep", "top_k"), "'top_k' is no kind of answer; give logits, log_probs, probabilities, top:K"),
        (("--keep", "top:11"), "top:11 keeps more ids than the 10 classes that there are; give --keep top:10 or fewer"),
        (("--keep", "top:3:none"), "has the rule 'none' for the missing mass; give spread, zero, renormalise"),
        (("--keep", "label", "--features-only", "--features", "pooled"), "leave out --keep"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_any_call(tmp_path, weights, forwards, arguments, message):
    refused = run_command(
        "ckd-cache", "build", "--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--n", 70,
        "--store", tmp_path / "store", *arguments,
    )  # fmt: skip
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "store").exists()
    assert not forwards


@pytest.fixture(scope="module")
def top(tmp_path_factory, weights) -> Path:
    return build_store(
        tmp_path_factory.mktemp("top") / "store", weights, keep=AnswerForm.read("top:4"), features="pooled"
    )


@pytest.fixture
def copied(top, tmp_path) -> Path:
    return Path(shutil.copytree(top, tmp_path / "copy"))


def test_features_are_added_and_logits_are_refused(copied, weights, forwards):
    extend = ("ckd-cache", "extend", "--store", copied, "--weights", weights, "--yes", "--features")
    for features in ("logits", "layer1,logits"):
        refused = run_command(*extend, features)
        assert refused.returncode == 2
        assert (
            "keeps its teacher's answers as top:4, and a store keeps them in one way; build another" in refused.stderr
        )
    assert not forwards
    before = kept_of(copied)
    extended = run_command(*extend, "layer1")
    assert extended.returncode == 0, extended.stderr
    store = Store.open(copied)
    assert [output.name for output in store.outputs] == ["top_k.ids", "top_k.values", "layer1", "pooled"]
    for name, values in kept_of(copied).items():
        np.testing.assert_array_equal(values, before[name])
    assert problems(copied) == []


@pytest.mark.parametrize("name", ["train/top_k.ids", "train/top_k.values"])
def test_damage_is_named_and_put_right_from_a_copy(copied, top, name):
    change(copied, name, 7)
    found = problems(copied)
    assert len(found) == 1
    assert found[0].startswith(f"{name}: row 7 view 0 does not match its digest")
    repaired = run_command("ckd-cache", "repair", "--store", copied, "--from", top, "--yes")
    assert repaired.returncode == 0, repaired.stderr
    assert problems(copied) == []
    for kept, values in kept_of(top).items():
        np.testing.assert_array_equal(kept_of(copied)[kept], values)


def test_a_copy_in_the_other_format_has_the_same_answers(copied, tmp_path):
    out = tmp_path / "converted"
    converted = run_command("ckd-cache", "convert", "--store", copied, "--to", "hdf5", "--out", out)
    assert converted.returncode == 0, converted.stderr
    assert Store.open(out).manifest.identity == Store.open(copied).manifest.identity
    for name, values in kept_of(copied).items():
        np.testing.assert_array_equal(kept_of(out)[name], values)
    assert problems(out) == []


def shared(folder: Path, ledger: Path, weights: Path, text: str, **changes) -> BuildConfig:
    return BuildConfig(
        teacher="resnet8", weights=weights, store=folder, dataset="digits", n=24, device="cpu", trust_teacher=True,
        ledger=f"sqlite:///{ledger}", keep=AnswerForm.read(text), **changes,
    )  # fmt: skip


def test_answers_of_another_store_are_copied_where_they_are_kept_in_the_same_way(tmp_path, weights, forwards):
    ledger = tmp_path / "ledger.sqlite"
    build(*prepare_build(shared(tmp_path / "one", ledger, weights, "top:4")))
    report = build(*prepare_build(shared(tmp_path / "other", ledger, weights, "top:4:renormalise")))
    assert (report.new_calls, report.reused_calls) == (0, 24)
    for name, values in kept_of(tmp_path / "one").items():
        np.testing.assert_array_equal(kept_of(tmp_path / "other")[name], values)
    for text, what in (
        ("logits", "its answer is kept at .* as top_k.ids, top_k.values, and not as logits; give the --keep"),
        ("label", "its answer is kept at .* and not as label"),
        ("top:3", "what is at .* keeps something else of it; give the same --features, --feature-dtype, --keep"),
    ):
        with pytest.raises(InvalidInput, match=what):
            prepare_build(shared(tmp_path / text, ledger, weights, text))
    assert sum(forwards) == 24


def test_answers_in_hand_are_spooled_as_they_are_kept(tmp_path, weights, forwards, monkeypatch):
    folder, wanted = tmp_path / "store", config(tmp_path / "store", weights, "zarr top:4")

    def fail(self, *arguments):
        raise RuntimeError("the ledger is gone")

    with monkeypatch.context() as broken:
        broken.setattr(Ledger, "commit", fail)
        broken.setattr(Store, "publish", fail)
        with pytest.raises(RuntimeError):
            build(*prepare_build(wanted))
    assert len([*folder.glob("answers-*.spool")]) == 1
    before = sum(forwards)
    assert before > 0
    report = build(*prepare_build(wanted))
    assert (report.adopted_calls, report.lost_calls, sum(forwards)) == (before, 0, 96)
    assert problems(folder) == []


@pytest.mark.parametrize("text", ["logits", *KEPT])
def test_the_gate_judges_answers_of_any_kind_and_leaves_refusals_out(tmp_path, weights, text):
    """The stored labels take the place of a good teacher, a constant that of a bad one."""
    folder, form = tmp_path / "store", AnswerForm.read(text)
    build_store(folder, weights, n=70, keep=form, features="none")
    plan = prepare_build(replace(config_without_trust(folder, weights), keep=form)).plan
    store = Store.open(folder)
    assert len(plan.gate) == 64
    labels = store.read("train/labels")
    scores = np.full((70, 10), -5, np.float32)
    scores[np.arange(70), labels] = 5

    def say(rows: np.ndarray) -> None:
        convert = Conversion(given=AnswerForm(), kept=form, seed=0).convert
        said = convert({"logits": torch.from_numpy(rows)}, [bytes(16)] * len(rows))
        for name, values in said.items():
            store.arrays.write(store.array_of(name), 0, values.numpy()[:, None])

    say(scores)
    require_sane(plan, store)
    say(np.tile(scores[:1], (70, 1)))
    with pytest.raises(TeacherDoubted, match="first 64 answers look wrong"):
        require_sane(plan, store)
    nothing = empty_answers(form.outputs(10), 70)
    for name, values in nothing.items():
        store.arrays.write(store.array_of(name), 0, values[:, None])
    require_sane(plan, store)
    say(scores)
    refused = [cell for cell in plan.gate if cell % 3]
    for name, values in nothing.items():
        for cell in refused:
            store.arrays.write(store.array_of(name), cell, values[:1, None])
    require_sane(plan, store)


def test_what_is_no_class_is_not_judged(tmp_path, weights):
    """A store is anybody's: its ids need not be of classes."""
    folder, form = tmp_path / "store", AnswerForm.read("label")
    build_store(folder, weights, n=70, keep=form, features="none")
    plan = prepare_build(replace(config_without_trust(folder, weights), keep=form)).plan
    store = Store.open(folder)
    store.arrays.write("train/label", 0, np.full((70, 1), 1 << 30, np.int32))
    require_sane(plan, store)
    store.arrays.write("train/label", 0, np.full((70, 1), -(1 << 30), np.int32))
    require_sane(plan, store)


def config_without_trust(folder: Path, weights: Path) -> BuildConfig:
    return BuildConfig(
        teacher="resnet8", weights=weights, store=folder, n=70, dataset="digits", device="cpu", trust_teacher=False
    )


def test_refusals_are_whole_counted_and_of_no_accuracy(copied):
    store = Store.open(copied)
    nothing = empty_answers(store.outputs, 1)
    for cell in (3, 9):
        for name, values in nothing.items():
            store.arrays.write_cells(
                store.array_of(name), cell, values.astype(store.arrays.specs[store.array_of(name)].dtype)
            )
    described = json.loads(run_command("ckd-cache", "info", "--store", copied, "--json").stdout)
    assert (described["answers_empty"], described["rows_valid"]) == (2, 70)
    others = np.delete(np.arange(70), [3, 9])
    right = (kept_of(copied)["top_k.ids"][others, 0, 0] == store.read("train/labels")[others]).mean()
    assert described["teacher_accuracy"] == pytest.approx(right)
    assert "; 2 have no content" in run_command("ckd-cache", "info", "--store", copied).stdout


def test_another_teacher_is_another_store_whatever_is_kept(tmp_path, weights, top):
    with pytest.raises(IdentityMismatch, match="seed"):
        prepare_build(
            replace(config_without_trust(top, weights), keep=AnswerForm.read("top:4"), features="pooled", seed=1)
        )


def test_a_ledger_knows_the_outputs_by_their_own_names(top):
    ledger = Ledger(top / LEDGER_FILE)
    calls = ledger.calls_of_store(Store.open(top).manifest.store_id, "committed")
    ledger.close()
    assert {call.outputs for call in calls} == {("top_k.ids", "top_k.values", "pooled")}


def test_features_that_do_not_fit_are_widened_beside_answers_of_any_kind(tmp_path, weights, forwards, loud):
    folder, ids = tmp_path / "store", AnswerForm.read("top:4").outputs(10)
    loud(70001.0)
    done = run_command(
        "ckd-cache", "build", "--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--n", 50,
        "--features", "pooled", "--keep", "top:4", "--batch-size", 16, "--trust-teacher", "--store", folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{folder} keeps its features in float32 from now on, and no call is repeated" in done.stderr
    assert sum(forwards) == 50
    assert Store.open(folder).manifest.identity.answers == ids
    assert {output.dtype for output in Store.open(folder).manifest.identity.kept_layers} == {"float32"}
    assert problems(folder) == []


@pytest.mark.parametrize("text", ["top:4", "label"])
def test_what_is_no_number_stops_the_build_and_costs_no_other_answer(tmp_path, weights, forwards, loud, text):
    folder = tmp_path / "store"
    wanted = config(folder, weights, f"zarr {text}")
    loud(float("nan"), "logits")
    with pytest.raises(InvalidInput, match=r"row 35, view 0\) the teacher's \S+ holds nan, which is no number"):
        build(*prepare_build(wanted))
    assert sum(forwards) == 64
    with pytest.raises(InvalidInput, match="is no number.*: --n 35 or fewer"):
        prepare_build(wanted)
    assert sum(forwards) == 64
    report = build(*prepare_build(replace(wanted, n=35)))
    assert (report.new_calls, report.rows_valid) == (0, 35)
