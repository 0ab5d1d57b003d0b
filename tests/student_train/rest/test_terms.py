"""A training with a rest: what a step costs, which rows come, and that it resumes, streams and counts as any other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ground.errors import InvalidInput
from ground.seeding import generator_for
from ground.terminal import StopRequest
from storage.schema import UNLABELLED
from storage.store import Store
from student_train import streamed_data
from student_train.rest.labels import Labels
from student_train.signals import Moment
from student_train.student_views import show
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build
from teacher_cache.rest import Rest
from tests.student_train.rest.conftest import NUM_ASKED, NUM_REST, result_of, trainer_of
from tests.student_train.test_trainer import assert_same_run

ALL = ["ce:ratio=0.5", "pseudo:confidence=0.1", "mean_teacher:ramp=2"]


def test_a_step_costs_the_method_and_each_loss_of_the_rest_by_its_weight(rest_store, tmp_path):
    trainer = trainer_of(rest_store, tmp_path / "run", "kd:ce=0", ["ce:weight=3,ramp=2"])
    plain = trainer_of(rest_store, tmp_path / "plain", "kd:ce=0")
    (term,), student = trainer.rest, trainer.state.student
    student.train()
    plain.state.student.train()
    # The first batch of the rest, by hand.
    batch = term._batch(0)
    inputs = show(
        term.rows.images[batch.rows], "fresh", term.rendering, generator_for(0, "rest ce student", 0), boxes=False
    )
    # Both passes leave their mark on batch norm alone, so the order does not matter for what a step costs.
    expected = F.cross_entropy(student(inputs), term.rows.labels[batch.rows]).item()
    found, without = trainer.train_step(), plain.train_step()
    np.testing.assert_allclose(found.terms[-1].item(), expected, rtol=1e-5)
    assert found.terms[0] == without.terms[0]
    weight = 3 * np.exp(-5)
    np.testing.assert_allclose(found.total.item(), without.total.item() + weight * expected, rtol=1e-5)


def test_labels_weigh_more_the_more_of_them_there_are_for_a_row_of_the_method_unless_told(rest_store, tmp_path):
    few = trainer_of(rest_store, tmp_path / "few", "kd:ce=0", ["ce", "pseudo"], 20, max_evals=1)
    beyond = Store.open(rest_store).read_sample("train/labels")[20:]
    expected = {"ce": ((beyond >= 0).sum() / 20) ** 0.4, "pseudo": 1.0}
    assert 1.1 < expected["ce"] < 3.9
    assert {term.loss.name: term.weight_at(0.0) for term in few.rest} == pytest.approx(expected)
    few.run()
    found = result_of(tmp_path / "few")
    assert found["rest_weights"] == pytest.approx(expected)
    assert [loss["weight"] for loss in found["recipe"]["rest"]] == [None, 1.0]
    told = trainer_of(rest_store, tmp_path / "told", "kd:ce=0", ["ce:weight=1"], 20)
    assert told.rest[0].weight_at(0.0) == 1.0


def test_what_labels_weigh_stays_within_what_was_tried():
    found = [Labels().usual_weight(rows, 100) for rows in (1, 100, 3200, 10**6)]
    assert found == pytest.approx([1.0, 1.0, 4.0, 4.0])  # 32 = 4 ** (1 / 0.4)
    assert Labels().usual_weight(900, 100) == pytest.approx(np.exp(0.4 * np.log(9)))


def test_labels_alone_are_recorded_as_they_were_before_there_was_a_usual_weight(rest_store, tmp_path):
    trainer_of(rest_store, tmp_path / "run", "vanilla", ["ce"], 0, max_evals=1).run()
    found = result_of(tmp_path / "run")
    assert found["recipe"]["rest"] == [{"loss": "ce", "ratio": 1.0, "weight": 1.0, "ramp": 0.0}]
    assert "rest_weights" not in found


def test_every_row_of_its_kind_comes_once_an_epoch(rest_store, rest_labels, tmp_path):
    trainer = trainer_of(rest_store, tmp_path / "run", "kd:ce=0", ["ce:ratio=0.5", "pseudo:ratio=2"])
    labels, pseudo = trainer.rest
    for term, expected in ((labels, int((rest_labels >= 0).sum())), (pseudo, NUM_REST)):
        assert term.num_rows == expected
        for epoch in range(2):
            steps = range(epoch * term.steps_per_epoch, (epoch + 1) * term.steps_per_epoch)
            seen = torch.cat([term._batch(step).rows for step in steps])
            assert sorted(seen.tolist()) == [*range(expected)]
    assert (labels.batch_size, pseudo.batch_size) == (8, 32)
    assert (labels.rows.labels != UNLABELLED).all()
    assert trainer.eval_every == max(labels.steps_per_epoch, pseudo.steps_per_epoch, 3)


def test_every_role_sees_another_view_and_the_same_step_the_same(rest_store, tmp_path):
    trainer = trainer_of(rest_store, tmp_path / "run", "kd:ce=0", ["pseudo"])
    (term,) = trainer.rest
    seen = []

    class Looking(torch.nn.Module):
        name = "pseudo"

        def forward(self, batch):
            seen.append([batch.look(role) for role in ("student", "teacher", "strong")])
            return batch.labels.float().mean()

    looking = replace(term, loss=Looking())
    for step in (0, 0, 1):
        looking.value(None, Moment(step=step), None)
    first, again, later = seen
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(first, later, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_a_resumed_run_equals_an_uninterrupted_one(rest_store, tmp_path):
    trainer_of(rest_store, tmp_path / "whole", "kd:ce=0", ALL, max_evals=3).run()
    begun = trainer_of(rest_store, tmp_path / "resumed", "kd:ce=0", ALL, max_evals=3)
    stop = StopRequest()
    begun.train_interval(stop)
    begun.evaluate()
    for _ in range(2):
        begun.state.losses.append(begun.train_step())
    begun.folder.path.mkdir()
    begun.save_state()
    trainer_of(rest_store, tmp_path / "resumed", "kd:ce=0", ALL, max_evals=3).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


def test_a_run_of_another_rest_is_not_gone_on_with(rest_store, tmp_path):
    trainer_of(rest_store, tmp_path / "run", "kd:ce=0", ["ce"], max_evals=1).run()
    with pytest.raises(InvalidInput, match=r"was started with recipe.rest.0.weight None, not 2.0; give the same"):
        trainer_of(rest_store, tmp_path / "run", "kd:ce=0", ["ce:weight=2"], max_evals=1).run(resume=True)


def test_a_run_is_not_gone_on_with_once_its_rest_has_grown(weights, tmp_path):
    config = BuildConfig(
        teacher="resnet8",
        weights=weights,
        store=tmp_path / "store",
        device="cpu",
        dataset="digits",
        n=20,
        rest=Rest(30),
        trust_teacher=True,
    )
    build(*prepare_build(config))
    trainer_of(config.store, tmp_path / "run", "vanilla", ["ce"], 0, max_evals=1).run()
    assert (result_of(tmp_path / "run")["rest_rows"], result_of(tmp_path / "run")["val_rows"]) == (50, 5)
    build(*prepare_build(replace(config, rest=Rest(40))))
    with pytest.raises(InvalidInput, match="was started with rest_rows 50, not 60"):
        trainer_of(config.store, tmp_path / "run", "vanilla", ["ce"], 0, max_evals=1).run(resume=True)


def test_the_view_that_teaches_is_never_changed(rest_store, tmp_path):
    trainer = trainer_of(rest_store, tmp_path / "run", "kd:ce=0", ["pseudo"], student_view="trivial")
    assert trainer.rest[0].views == {"student": "trivial", "teacher": "fresh", "strong": "trivial"}
    trainer = trainer_of(rest_store, tmp_path / "run", "kd:ce=0", ["pseudo"], student_view="teacher")
    assert trainer.rest[0].views == {"student": "fresh", "teacher": "fresh", "strong": "trivial"}


def test_labels_alone_are_vanilla_on_every_labelled_row(built_store, tmp_path):
    trainer_of(built_store, tmp_path / "asked", "vanilla", n=96).run()
    trainer_of(built_store, tmp_path / "labels", "vanilla", ["ce"], n=0).run()
    one, other = (load_file(tmp_path / name / "student.safetensors") for name in ("asked", "labels"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    found = result_of(tmp_path / "labels")
    assert (found["n"], found["teacher_calls"]) == (0, 0)
    assert (found["answered_rows"], found["labelled_rows"], found["unlabelled_rows"]) == (0, 96, 0)
    assert found["test_accuracy"] == result_of(tmp_path / "asked")["test_accuracy"]


def test_a_run_counts_its_rows_by_what_it_learned_from_each(rest_store, rest_labels, tmp_path):
    labelled = int((rest_labels >= 0).sum())
    counts = {}
    for name, method, rest, n in (
        ("both", "kd:ce=0", ["ce", "pseudo"], None),
        ("labels", "kd:ce=0", ["ce"], None),
        ("own", "kd:ce=0", ["mean_teacher"], 20),
        ("none", "vanilla", ["ce", "pseudo"], 0),
        ("plain", "kd:ce=0", [], 20),
    ):
        trainer_of(rest_store, tmp_path / name, method, rest, n, max_evals=1).run()
        found = result_of(tmp_path / name)
        counts[name] = [found[f"{kind}_rows"] for kind in ("answered", "labelled", "unlabelled")]
        assert found.get("rest") == (rest or None)
    assert counts["both"] == [NUM_ASKED, labelled, NUM_REST - labelled]
    assert counts["labels"] == [NUM_ASKED, labelled, 0]
    assert counts["own"] == [20, 0, NUM_REST + 20]
    assert sum(counts["none"]) == NUM_ASKED + NUM_REST
    assert counts["none"][0] == 0
    assert counts["plain"] == [20, 0, 0]


def test_validation_goes_with_the_labels_at_hand(rest_store, rest_labels, tmp_path):
    # A store of 40 rows has ten validation images.
    for rest, n, expected in (([], 12, 3), (["pseudo"], 12, 3), (["ce"], 12, 10), (["ce"], 0, 10)):
        method = "vanilla" if n == 0 else "kd:ce=0"
        trainer = trainer_of(rest_store, tmp_path / "run", method, rest, n)
        assert len(trainer.data.val.labels) == expected


def test_labels_are_not_learned_from_where_none_of_the_rest_has_one(rest_store, tmp_path, monkeypatch):
    read = streamed_data.read_labels

    def unlabelled(store, split, rows=None, *rest):
        found = read(store, split, rows, *rest)
        return torch.full_like(found, UNLABELLED) if split == "train" else found

    monkeypatch.setattr("student_train.data.read_labels", unlabelled)
    with pytest.raises(InvalidInput, match="--rest ce learns from labels, and 0 of 80 rows beyond the n have one"):
        trainer_of(rest_store, tmp_path / "run", "kd:ce=0", ["ce"])


def test_a_stream_trains_on_the_rest_and_resumes(rest_store, tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_data, "block_rows", lambda store: 8)
    settings = {"rest": ["ce", "pseudo"], "stream_rows": 24, "method": "kd:ce=0"}
    trainer_of(rest_store, tmp_path / "whole", max_evals=3, **settings).run()
    begun = trainer_of(rest_store, tmp_path / "part", max_evals=3, **settings)
    begun.train_interval(StopRequest())
    begun.evaluate()
    begun.state.losses.append(begun.train_step())
    begun.folder.path.mkdir()
    begun.save_state()
    for each in (begun.data, *begun.rest):
        each.close()
    trainer_of(rest_store, tmp_path / "part", max_evals=3, **settings).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "part")
    trainer = trainer_of(rest_store, tmp_path / "looked", **settings)
    term = trainer.rest[1]
    rows = torch.cat([term._batch(step).rows for step in range(term.steps_per_epoch)])
    assert sorted(rows.tolist()) == [*range(NUM_REST)]
    for each in trainer.rest:
        each.close()


def test_a_method_that_compares_trains_with_labels_of_the_rest(rest_store, tmp_path):
    trainer_of(rest_store, tmp_path / "run", "ckd:labels=0", ["ce"], max_evals=1).run()
    found = result_of(tmp_path / "run")
    assert not found["recipe"]["anchored"]
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert header.endswith(",loss/rest/ce")
