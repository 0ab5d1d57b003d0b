"""Students from stores that keep the same answers in every form, and from some that the teacher refused to give."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.stand_ins.kept_as import keep_as
from ground.errors import InvalidInput, StoreUnreadable
from models.compute import Compute
from storage.answers import AnswerForm, empty_answers
from storage.store import Store
from student_train.dense_answers import dense_answers, empty_rows
from student_train.methods import parse_losses, parse_method
from student_train.protocol import ProtocolConfig
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer
from tests.student_train.losses.checks import Largest

CPU = Compute(torch.device("cpu"), "fp32")
N = 24
FORMS = ("log_probs", "probabilities", "top:10", "top:4", "top:4:renormalise", "top:4:zero", "sampled:12", "label")
KeptAs = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def made_in_blocks():
    """Every store below is made in two blocks of rows."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("benchmarks.stand_ins.kept_as._ROWS_AT_ONCE", 16)
        yield


@pytest.fixture(scope="module")
def kept_as(built_store, tmp_path_factory) -> KeptAs:
    """A store of the same rows in a form, made once."""
    made: dict[str, Path] = {}

    def store_of(text: str) -> Path:
        if text not in made:
            made[text] = tmp_path_factory.mktemp("kept") / "store"
            keep_as(built_store, made[text], AnswerForm.read(text), N)
        return made[text]

    return store_of


def trainer_of(store: Path, out: Path, *losses: str, batch_size: int = 8, n: int | None = None, **changes) -> Trainer:
    """Of one method, or of a sum of losses."""
    method = parse_method(losses[0]) if len(losses) == 1 else parse_losses(losses)
    config = TrainConfig(student="resnet8", batch_size=batch_size, protocol=ProtocolConfig(max_evals=1), **changes)
    return Trainer.open(config, store, n, method, CPU, RunFolder(out))


def first_loss(store: Path, out: Path, *losses: str) -> float:
    trainer = trainer_of(store, out, *losses)
    trainer.state.student.train()
    return float(trainer.train_step().total)


FITTING = {
    "log_probs": ("kd", "dist", "ckd", "ckd_paper", "rkd", "crd:negatives=8", "mixup", "rkd_d:dims=5", "kd:weight=2"),
    "probabilities": ("kd", "ckd"),
    "top:10": ("kd", "ckd"),
    "top:4": ("kd", "dist", "ckd", "ckd:pairs=all", "mixup", "dkd", "rkd"),
    "top:4:renormalise": ("kd", "mixup"),
    "top:4:zero": ("kd:temperature=1", "mixup"),
    "sampled:12": ("kd:temperature=1", "soft_ce", "cutmix"),
    "label": ("kd", "dist", "ckd", "ckd_paper", "mixup"),
}


@pytest.mark.parametrize(("form", "method"), [(form, method) for form, fit in FITTING.items() for method in fit])
def test_a_step_from_every_form_has_a_finite_loss_and_changes_the_student(kept_as, tmp_path, form, method):
    trainer = trainer_of(kept_as(form), tmp_path, method)
    trainer.state.student.train()
    before = [tensor.clone() for tensor in trainer.state.student.parameters()]
    assert trainer.train_step().total.isfinite()
    assert any(
        not torch.equal(one, other) for one, other in zip(before, trainer.state.student.parameters(), strict=True)
    )


@pytest.mark.parametrize("method", ["kd", "dist", "mixup"])
@pytest.mark.parametrize("form", ["log_probs", "probabilities", "top:10"])
def test_the_first_step_costs_what_it_does_from_logits(built_store, kept_as, tmp_path, method, form):
    expected = first_loss(kept_as("logits"), tmp_path, method)
    assert first_loss(kept_as(form), tmp_path, method) == pytest.approx(expected, rel=1e-5)


def test_a_top_k_of_all_classes_trains_as_log_probabilities_do(kept_as, tmp_path):
    found = [first_loss(kept_as(form), tmp_path, "ckd") for form in ("log_probs", "top:10")]
    assert found[0] == found[1]


def test_a_run_is_anchored_and_says_what_it_read(kept_as, tmp_path):
    for form in ("log_probs", "top:4", "label"):
        trainer_of(kept_as(form), tmp_path / form, "ckd").run()
        record = json.loads((tmp_path / form / "run.json").read_text())
        assert record["teacher_outputs"] == [*AnswerForm.read(form).names]
        assert record["teacher_calls"] == record["n"] == N
        assert "empty_answers" not in record


@pytest.mark.parametrize(
    ("form", "losses", "said"),
    [
        (
            "sampled:12",
            ["kd"],
            "as sampled:12, and that is nothing to learn from for kd (it can with temperature=1 only)",
        ),
        ("sampled:12", ["ckd"], "for match_logits (it reads a logit of every class"),
        ("sampled:12", ["dist"], "for kd (it can with temperature=1 only) and dist (it is not linear in the teacher's"),
        ("top:4:renormalise", ["ckd"], "match_logits (differences between samples need the same classes"),
        ("top:4:renormalise", ["dist"], "for dist (it can with gamma=0 only); give a method of what is kept, as mixup"),
        ("label", ["ce", "kd:standardised=true"], "kd (rows of zeros"),
        ("label", ["dkd"], "dkd (it learns from what the teacher says of the other classes"),
    ],
)
def test_what_a_form_cannot_serve_is_refused_with_what_it_can(kept_as, tmp_path, form, losses, said):
    with pytest.raises(InvalidInput) as refused:
        trainer_of(kept_as(form), tmp_path, *losses)
    assert said in str(refused.value)
    fitting = str(refused.value).rpartition(" as ")[2].split(", ")
    assert fitting
    for method in fitting[:2]:
        assert np.isfinite(first_loss(kept_as(form), tmp_path, method))


def with_refusals(store: Path, out: Path, rows: list[int], form: str) -> Path:
    """The same store, in which some rows have answers without content."""
    kept = keep_as(store, out, AnswerForm.read(form), N)
    outputs = kept.manifest.identity.outputs
    kept.write_outputs(rows, empty_answers(outputs, len(rows)))
    kept.publish(rows)
    return out


@pytest.mark.parametrize("form", ["logits", *FORMS])
def test_rows_that_the_teacher_refused_are_left_out_and_counted(built_store, tmp_path, caplog, form):
    store = with_refusals(built_store, tmp_path / "store", [0, 7, 23], form)
    method = "soft_ce" if form != "top:4:renormalise" else "kd"
    with caplog.at_level(logging.WARNING):
        trainer = trainer_of(store, tmp_path / "run", method)
    assert "3 of 24 rows are left out: the teacher refused to answer" in caplog.text
    assert trainer.data.n == len(trainer.data.views) == N - 3
    whole = Store.open(store)
    left = [row for row in range(N) if row not in (0, 7, 23)]
    np.testing.assert_array_equal(trainer.data.train.images.numpy(), whole.read("train/images")[left])
    np.testing.assert_array_equal(trainer.data.train.labels.numpy(), whole.read("train/labels")[left])
    record = trainer.run()
    assert (record["n"], record["empty_answers"], record["teacher_calls"]) == (N, 3, N)
    assert all(np.isfinite(row["train_loss"]) for row in trainer.state.rows)


def test_a_student_that_asks_no_teacher_has_all_rows(built_store, tmp_path):
    store = with_refusals(built_store, tmp_path / "store", [1, 2], "label")
    assert trainer_of(store, tmp_path / "run", "vanilla").data.n == N


def test_a_run_with_refusals_is_found_finished_again(built_store, tmp_path):
    store = with_refusals(built_store, tmp_path / "store", [5], "top:4")
    first = trainer_of(store, tmp_path / "run", "kd").run()
    again = Trainer.open(
        TrainConfig(student="resnet8", batch_size=8, protocol=ProtocolConfig(max_evals=1)),
        store,
        None,
        parse_method("kd"),
        CPU,
        RunFolder(tmp_path / "run"),
    )
    assert again.run(resume=True) == first


def test_too_few_rows_with_content_are_refused(built_store, tmp_path):
    store = with_refusals(built_store, tmp_path / "store", list(range(1, N)), "log_probs")
    with pytest.raises(InvalidInput, match="1 of 24 rows of .* have an answer with content"):
        trainer_of(store, tmp_path / "run", "kd")


def test_ids_that_are_no_classes_are_refused(built_store, tmp_path):
    kept = keep_as(built_store, tmp_path / "store", AnswerForm.read("label"), N)
    said = empty_answers(kept.manifest.identity.outputs, 1)
    kept.write_outputs([3], said | {"label": np.array([10], np.int32)})
    kept.publish([3])
    with pytest.raises(StoreUnreadable, match="label of .* names classes beyond its 10"):
        trainer_of(tmp_path / "store", tmp_path / "run", "kd")


def test_answers_of_many_classes_are_made_dense_for_a_batch_alone():
    classes, rows, kept = 21_841, 512, 16
    ids = torch.randint(classes - kept, (rows, 1, 1)) + torch.arange(kept)
    said = {"top_k.ids": ids.int(), "top_k.values": torch.linspace(-1.0, -9.0, kept).expand(rows, 1, kept)}
    with Largest() as largest:
        assert not empty_rows(said).any()
        batch = {name: values[:8, 0] for name, values in said.items()}
        batch["top_k.ids"] = batch["top_k.ids"].long()
        dense = dense_answers(AnswerForm.read("top:16"), batch, classes)
    assert dense.shape == (8, classes)
    assert largest.numbers == 8 * classes
