"""Stores of several teachers: which are of one sample, what a student learns from them, and what its run says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from benchmarks.stand_ins.kept_as import keep_as
from ground.errors import IdentityMismatch, InvalidInput, StoreIncomplete
from models.compute import Compute
from storage.answers import AnswerForm, empty_answers
from storage.rows import Rows
from storage.run_record import RunRecord
from storage.schema import UNLABELLED
from storage.store import Store
from student_train.methods import parse_method
from student_train.protocol import ProtocolConfig
from student_train.run_folder import RunFolder
from student_train.several_teachers import SeveralTeachers
from student_train.streamed_data import load_data
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build
from teacher_cache.rest import Rest
from teacher_cache.selection import SelectorSpec
from tests.conftest import build_stores, stores_in
from tests.teacher_cache.damage import config_of

CPU = Compute(torch.device("cpu"), "fp32")
N, SECOND = 48, 40


# Of one sample with what is built here from all digits.
@pytest.fixture(scope="session")
def stores(made_once, weights) -> dict[str, Path]:
    return stores_in(made_once("stores", lambda folder: build_stores(folder, weights)))


@pytest.fixture(scope="session")
def built_store(stores) -> Path:
    return stores["zarr"]


def trainer_of(teachers: SeveralTeachers, out: Path, method: str = "kd", **settings) -> Trainer:
    config = TrainConfig(student="resnet8", batch_size=16, protocol=ProtocolConfig(max_evals=1), **settings)
    load = partial(load_data, teachers=teachers)
    return Trainer.open(config, teachers.pool.place, teachers.n, parse_method(method), CPU, RunFolder(out), load=load)


def logits_of(place: Path, rows: int) -> np.ndarray:
    return Store.open(place).read_outputs(["logits"], Rows.first(rows))["logits"]


def changed(source: Path, out: Path, samples=None, **identity) -> Path:
    """A store of the same answers, that says something else of what they are of."""
    store = Store.open(source)
    kept = {name: store.read_sample(name) for name in store.manifest.samples} | (samples or {})
    made = Store.create(out, replace(store.manifest.identity, **identity), array_format="zarr", samples=kept)
    said = store.read_outputs([output.name for output in store.outputs], Rows.first(store.manifest.n))
    cells = range(store.manifest.n * store.manifest.identity.views)
    made.write_outputs(cells, {name: values.reshape(-1, *values.shape[2:]) for name, values in said.items()})
    made.publish(cells)
    return out


@pytest.mark.parametrize("way", ["mean", "best", "weighted"])
def test_a_student_learns_from_both_where_both_answered_and_else_from_one(built_store, second_store, tmp_path, way):
    teachers = SeveralTeachers.open([second_store, built_store], way, N)
    data = trainer_of(teachers, tmp_path / "run").data
    first, second = logits_of(built_store, N), logits_of(second_store, SECOND)
    labels = Store.open(built_store).read_sample("train/labels", Rows.first(SECOND))
    both = np.stack([second, first[:SECOND]]).astype(np.float64)
    given = softmax(both, axis=-1)[:, np.arange(SECOND), 0, labels]
    shares = (1 / given) / (1 / given).sum(axis=0)  # exp(-log p) is 1 / p
    best = given.argmax(axis=0)
    weights = {"mean": np.full_like(given, 0.5), "best": np.stack([best == 0, best == 1]), "weighted": 1 - shares}[way]
    expected = (weights[:, :, None, None] * both).sum(axis=0)
    found = data.outputs["logits"].numpy()
    np.testing.assert_allclose(found[:SECOND], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[SECOND:], first[SECOND:])
    said = data.teacher(torch.tensor([5, 44]), torch.tensor([0, 0]))
    np.testing.assert_array_equal(said.logits.numpy(), found[[5, 44], 0])


def test_each_view_has_an_answer_of_its_own(weights, second_store, tmp_path):
    own = {"first": weights, "second": second_store.parent / "weights.safetensors"}
    for name, file in own.items():
        asked = {"teacher": "resnet8", "dataset": "digits", "n": 12, "views": 2, "device": "cpu"}
        build(*prepare_build(BuildConfig(**asked, weights=file, store=tmp_path / name, trust_teacher=True)))
    teachers = SeveralTeachers.open([tmp_path / name for name in own], "best", None)
    assert teachers.num_calls == 48
    both = np.stack([logits_of(tmp_path / name, 12) for name in own])
    labels, (rows, views) = Store.open(tmp_path / "first").read_sample("train/labels"), np.indices((12, 2))
    best = softmax(both.astype(np.float64), axis=-1)[:, rows, views, labels[rows]].argmax(axis=0)
    assert (best[:, 0] != best[:, 1]).any()
    found = teachers.read_outputs(["logits"], Rows.first(12))["logits"]
    np.testing.assert_array_equal(found, both[best, rows, views])


def test_answers_that_are_read_in_pieces_are_the_same(built_store, second_store, monkeypatch):
    teachers = SeveralTeachers.open([built_store, second_store], "weighted", N)
    whole = teachers.read_outputs(["logits"], Rows.first(N))["logits"]
    monkeypatch.setattr("student_train.several_teachers._READ_BYTES", 7 * 160)
    np.testing.assert_array_equal(teachers.read_outputs(["logits"], Rows.first(N))["logits"], whole)


def test_a_run_says_whose_calls_it_drew_on_and_what_all_cost(built_store, second_store, tmp_path):
    teachers = SeveralTeachers.open([built_store, second_store], "mean", N)
    result = trainer_of(teachers, tmp_path / "run").run()
    assert result["teacher_calls"] == N + SECOND
    assert (result["n"], result["combine"], result["store_rows"]) == (N, "mean", [N, SECOND])
    assert result["teacher"] == "resnet8+resnet8"
    manifests = [Store.open(place).manifest for place in (built_store, second_store)]
    assert result["stores"] == [manifest.store_id for manifest in manifests]
    assert result["store_id"] == manifests[0].store_id
    for said, manifest, place in zip(result["teachers"], manifests, (built_store, second_store), strict=True):
        assert said["teacher_fingerprint"] == manifest.identity.teacher.fingerprint
        assert (said["store"], said["ledger_head"]) == (str(place.resolve()), manifest.ledger_head)
    assert [said["teacher_calls"] for said in result["teachers"]] == [N, SECOND]
    assert RunRecord.read(tmp_path / "run").document() == result


def test_a_run_goes_on_with_the_same_teachers_combined_in_the_same_way(built_store, second_store, tmp_path):
    both = [built_store, second_store]
    result = trainer_of(SeveralTeachers.open(both, "mean", N), tmp_path / "run").run()
    assert trainer_of(SeveralTeachers.open(both, "mean", N), tmp_path / "run").run(resume=True) == result
    with pytest.raises(InvalidInput, match="started with combine mean, not best"):
        trainer_of(SeveralTeachers.open(both, "best", N), tmp_path / "run").run(resume=True)
    with pytest.raises(InvalidInput, match="started with stores"):
        trainer_of(SeveralTeachers.open(both[::-1], "mean", N), tmp_path / "run").run(resume=True)
    alone = TrainConfig(student="resnet8", batch_size=16, protocol=ProtocolConfig(max_evals=1))
    with pytest.raises(InvalidInput, match=r"started with teacher resnet8\+resnet8, not resnet8"):
        Trainer.open(alone, built_store, N, parse_method("kd"), CPU, RunFolder(tmp_path / "run")).run(resume=True)


def test_an_interrupted_run_ends_as_one_that_was_not(built_store, second_store, tmp_path):
    teachers = SeveralTeachers.open([built_store, second_store], "best", N)
    whole = trainer_of(teachers, tmp_path / "whole")
    for _ in range(2):
        whole.train_step()
    halved = trainer_of(teachers, tmp_path / "halved")
    halved.state.losses.append(halved.train_step())
    (tmp_path / "halved").mkdir()
    halved.save_state()
    again = trainer_of(teachers, tmp_path / "halved")
    again.restore_state(RunFolder(tmp_path / "halved").load_state(again.settings()))
    again.train_step()
    for name, tensor in whole.state.student.state_dict().items():
        torch.testing.assert_close(again.state.student.state_dict()[name], tensor, rtol=0, atol=0)


def test_all_rows_are_those_of_the_store_with_most(built_store, second_store):
    teachers = SeveralTeachers.open([second_store, built_store], "mean", None)
    assert (teachers.n, teachers.pool.place) == (96, built_store)
    assert [teacher.rows for teacher in teachers.teachers] == [SECOND, 96]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda identity: {"seed": 7}, "seed is 0 in one and 7 in the other"),
        (lambda identity: {"view_policy": "plain"}, "view_policy is augmented in one and plain"),
        (lambda identity: {"dataset": replace(identity.dataset, digest="0" * 64)}, r"dataset\.digest is"),
        (
            lambda identity: {"dataset": replace(identity.dataset, classes=identity.dataset.classes[::-1])},
            r"dataset\.classes is",
        ),
        (lambda identity: {"geometry": replace(identity.geometry, padding=1)}, "geometry.padding is 2 in one and 1 in"),
    ],
)
def test_stores_of_different_pools_are_refused_by_what_differs(built_store, second_store, tmp_path, change, named):
    other = changed(second_store, tmp_path / "other", **change(Store.open(second_store).manifest.identity))
    with pytest.raises(IdentityMismatch, match=named):
        SeveralTeachers.open([built_store, other], "mean", N)


@pytest.mark.parametrize("name", ["train/source_index", "train/labels", "train/views", "train/images"])
def test_rows_that_are_not_the_same_are_refused(built_store, second_store, tmp_path, name):
    values = Store.open(second_store).read_sample(name).copy()
    values[17] = values[18]
    values[17].flat[0] += 1 if name == "train/images" else 0
    values[17:18] += np.array(1, values.dtype) if name == "train/labels" else np.array(0, values.dtype)
    other = changed(second_store, tmp_path / "other", {name: values})
    with pytest.raises(IdentityMismatch, match=f"{name} differs, from row 17 on"):
        SeveralTeachers.open([built_store, other], "mean", N)
    # What is not learned from may differ.
    assert SeveralTeachers.open([built_store, other], "mean", 16).n == 16


def test_whole_blocks_are_compared_by_their_digests_alone(built_store, tmp_path, monkeypatch):
    teacher = Store.open(built_store).manifest.identity.teacher
    other = changed(built_store, tmp_path / "other", teacher=replace(teacher, fingerprint="1" * 64))
    assert Store.open(built_store).manifest.block_rows(Store.open(other).arrays.specs["train/images"]) <= 96
    monkeypatch.setattr("student_train.several_teachers._SAMPLE", ("train/images",))
    read = []
    monkeypatch.setattr(Store, "read_sample", lambda store, name, rows: read.append(rows) or np.zeros((len(rows), 1)))
    SeveralTeachers.open([built_store, other], "mean", None)
    block = Store.open(built_store).manifest.block_rows(Store.open(other).arrays.specs["train/images"])
    assert sum(map(len, read)) == 2 * (96 % block)
    values = dict(Store.open(other).manifest.samples)
    values["train/images"] = "f" * len(values["train/images"])
    stores = {other: replace(Store.open(other).manifest, samples=values)}
    opened = Store.open
    monkeypatch.setattr(Store, "open", lambda place: Store(place, stores[place]) if place in stores else opened(place))
    with pytest.raises(IdentityMismatch, match="train/images differs, from row 0 on"):
        SeveralTeachers.open([built_store, other], "mean", None)


def test_rows_are_compared_wherever_they_lie(weights, tmp_path):
    for n, rule in ((40, "random"), (70, "balanced")):
        config = config_of(tmp_path / "bought", weights, n=n, rest=Rest(40), select=SelectorSpec(rule))
        build(*prepare_build(config))
    placed = Store.open(tmp_path / "bought")
    images = placed.read_sample("train/images")[:70]
    assert placed.manifest.places
    assert len(images) > placed.manifest.block_rows(placed.arrays.specs["train/images"])
    fingerprint = {"teacher": replace(placed.manifest.identity.teacher, fingerprint="1" * 64)}
    samples = {name: placed.read_sample(name)[:70] for name in placed.manifest.samples if name.startswith("train/")}
    same = changed(placed.folder, tmp_path / "same", samples, **fingerprint)
    for both in ([placed.folder, same], [same, placed.folder]):
        assert SeveralTeachers.open(both, "mean", None).n == 70
    # What lies at the places of the first rows is not what these are.
    other = {**samples, "train/images": placed.arrays.read("train/images", 0, 70)}
    with pytest.raises(IdentityMismatch, match="train/images differs, from row 40 on"):
        SeveralTeachers.open(
            [placed.folder, changed(placed.folder, tmp_path / "other", other, **fingerprint)], "mean", None
        )


def test_answers_of_a_form_with_a_mean_are_combined_in_it(built_store, second_store, tmp_path):
    for text in ("log_probs", "probabilities"):
        first, second = tmp_path / f"first-{text}", tmp_path / f"second-{text}"
        keep_as(built_store, first, AnswerForm.read(text), N)
        keep_as(second_store, second, AnswerForm.read(text))
        data = trainer_of(SeveralTeachers.open([first, second], "mean", N), tmp_path / f"run-{text}").data
        logits = (logits_of(built_store, SECOND) + logits_of(second_store, SECOND)).astype(np.float64) / 2
        expected = softmax(logits, axis=-1)
        found = data.outputs[text].numpy()[:SECOND].astype(np.float64)
        np.testing.assert_allclose(np.exp(found) if text == "log_probs" else found, expected, rtol=1e-4, atol=1e-7)


def test_answers_that_cannot_be_combined_are_refused(built_store, second_store, tmp_path):
    keep_as(built_store, tmp_path / "log_probs", AnswerForm.read("log_probs"), N)
    with pytest.raises(IdentityMismatch, match="keeps answers as logits, and .* as log_probs"):
        SeveralTeachers.open([tmp_path / "log_probs", second_store], "mean", N)
    for text in ("top:4", "sampled:4", "label"):
        place = tmp_path / text.replace(":", "-")
        keep_as(built_store, place, AnswerForm.read(text), N)
        with pytest.raises(InvalidInput, match=f"keeps answers as {text}, which say nothing of some classes"):
            SeveralTeachers.open([second_store, place], "mean", N)


def test_a_teacher_that_is_named_twice_is_refused(built_store, stores):
    with pytest.raises(InvalidInput, match="answers of the same teacher, resnet8; give each once"):
        SeveralTeachers.open([built_store, stores["hdf5"]], "mean", N)


def test_weights_need_labels_and_the_others_do_without(built_store, second_store, tmp_path):
    bare = {}
    for name, place in (("first", built_store), ("second", second_store)):
        labels = Store.open(place).read_sample("train/labels").copy()
        labels[[3, 30]] = UNLABELLED
        bare[name] = changed(place, tmp_path / name, {"train/labels": labels})
    places = list(bare.values())
    with pytest.raises(InvalidInput, match=r"2 of 48 rows of .* have none; give --combine mean or best"):
        SeveralTeachers.open(places, "weighted", N)
    found = SeveralTeachers.open(places, "best", N).read_outputs(["logits"], Rows.first(N))["logits"]
    both = np.stack([logits_of(place, SECOND) for place in places])[:, 3, 0]
    np.testing.assert_array_equal(found[3, 0], both[softmax(both, axis=-1).max(axis=-1).argmax()])


def test_what_one_teacher_refused_the_other_answers_and_what_both_did_is_left_out(built_store, second_store, tmp_path):
    places = []
    for place, refused in ((built_store, (3, 5)), (second_store, (5, 7))):
        places.append(changed(place, tmp_path / place.name))
        store = Store.open(places[-1])
        for cell in refused:
            store.write_outputs([cell], empty_answers(store.outputs, 1))
    teachers = SeveralTeachers.open(places, "mean", N)
    trainer = trainer_of(teachers, tmp_path / "run")
    assert (trainer.data.empty_answers, trainer.data.n) == (1, N - 1)
    found = trainer.data.outputs["logits"].numpy()
    np.testing.assert_array_equal(found[3], logits_of(second_store, SECOND)[3])
    np.testing.assert_array_equal(found[6], logits_of(built_store, N)[7])  # row 5 is gone
    result = trainer.run()
    assert (result["teacher_calls"], result["empty_answers"]) == (N + SECOND, 1)


@pytest.mark.parametrize(
    ("method", "why"), [("fitnets", "learns from layer"), ("vanilla", "asks no teacher"), ("srrl", "learns from")]
)
def test_methods_of_anything_but_answers_are_refused_before_reading(
    built_store, second_store, tmp_path, monkeypatch, method, why
):
    teachers = SeveralTeachers.open([built_store, second_store], "mean", N)
    monkeypatch.setattr(Store, "read_outputs", None)
    with pytest.raises(InvalidInput, match=why):
        trainer_of(teachers, tmp_path / "run", method)


def test_a_stream_is_refused(built_store, second_store, tmp_path):
    teachers = SeveralTeachers.open([built_store, second_store], "mean", N)
    with pytest.raises(InvalidInput, match="answers of several stores are combined in memory; give one --store"):
        trainer_of(teachers, tmp_path / "run", stream=True)


def test_rows_that_no_store_has_whole_are_refused(built_store, second_store, tmp_path):
    teachers = SeveralTeachers.open([built_store, second_store], "mean", 97)
    with pytest.raises(InvalidInput, match="97 rows are asked for and"):
        trainer_of(teachers, tmp_path / "run")
    with pytest.raises(InvalidInput, match="--n 0 learns from no teacher's answers"):
        SeveralTeachers.open([built_store, second_store], "mean", 0)


def test_rows_beyond_a_gap_do_not_count_as_answered(built_store, second_store, tmp_path):
    shutil.copytree(second_store, tmp_path / "gap")
    Store.open(tmp_path / "gap").retract([8])
    assert [found.rows for found in SeveralTeachers.open([built_store, tmp_path / "gap"], "mean", N).teachers] == [N, 8]
    Store.open(tmp_path / "gap").retract([0])
    with pytest.raises(StoreIncomplete, match="no whole row to combine; leave it out, or finish it with"):
        SeveralTeachers.open([built_store, tmp_path / "gap"], "mean", N)
