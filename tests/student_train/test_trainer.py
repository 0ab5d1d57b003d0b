"""A student learns from the store alone, and a resumed run equals an uninterrupted one."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from itertools import chain

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ground.errors import Diverged, Interrupted, InvalidInput, StoreBusy, StoreIncomplete
from ground.terminal import StopRequest
from ground.views import apply_views, evaluation_batches
from models import create_model, load_weights
from models.compute import Compute
from models.evaluation import accuracy
from models.trained_on import TrainedOn
from storage.store import Store
from storage.store_ledger import newest_head, own_ledger
from student_train import trainer as trainer_module
from student_train.anchor import anchor
from student_train.bound_method import BoundMethod
from student_train.data import StudentData
from student_train.methods import parse_losses, parse_method
from student_train.needs import Wanted
from student_train.protocol import ProtocolConfig
from student_train.run_folder import METRICS, RunFolder
from student_train.sampling import Batch
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build
from tests.conftest import run_command
from tests.running import begin_command, run_program

CPU = Compute(torch.device("cpu"), "fp32")


# Two steps an epoch, as of all rows in batches of the usual size.
SMALL = {"n": 24, "batch_size": 16}


def make_trainer(store, out, method="kd", n=None, **settings) -> Trainer:
    evals = settings.pop("max_evals", 4)
    chosen = {name: settings.pop(name) for name in ("patience", "schedule", "steps_per_eval") if name in settings}
    protocol = ProtocolConfig(max_evals=evals, **chosen)
    config = TrainConfig(student="resnet8", protocol=protocol, **settings)
    return Trainer.open(config, store, n, parse_method(method), CPU, RunFolder(out))


def load(folder, n, *outputs) -> StudentData:
    wanted = Wanted(student=(), teacher=outputs, parameters=False)
    return StudentData.load(Store.open(folder), n, wanted, CPU)


def one_pass(rows) -> Batch:
    return Batch(rows, (slice(0, len(rows)),))


def train_arguments(store, evaluations: int) -> list[object]:
    """What the installed command is given where it must repeat itself."""
    settings = {"--student": "resnet8", "--method": "kd", "--device": "cpu", "--precision": "fp32"}
    return ["--store", store, *chain.from_iterable(settings.items()), "--max-evals", evaluations]


def assert_same_run(one, other):
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (one, other))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    results = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]


@pytest.mark.parametrize("method", ["vanilla", "kd", "ckd", "ckd:pairs=all"])
def test_the_same_seed_gives_the_same_student(built_store, tmp_path, method):
    for name in ("one", "other"):
        make_trainer(built_store, tmp_path / name, method, max_evals=2, **SMALL).run(resume=True)
    assert_same_run(tmp_path / "one", tmp_path / "other")
    make_trainer(built_store, tmp_path / "third", method, max_evals=2, seed=1, **SMALL).run(resume=True)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "one", tmp_path / "third")


@pytest.mark.parametrize("method", ["kd", "ckd"])
def test_a_resumed_run_equals_an_uninterrupted_one(built_store, tmp_path, monkeypatch, method):
    monkeypatch.setattr(trainer_module, "SAVE_EVERY_SECONDS", 0.0)
    # A patience of 1 makes plateaus likely, so that going back to the best weights is part of what is resumed.
    settings = {"max_evals": 7, "patience": 1, "lr": 0.3, **SMALL}
    make_trainer(built_store, tmp_path / "whole", method, **settings).run(resume=True)

    def die(row):
        if row["epoch"] == 4:
            raise MemoryError("as if the process had died")

    with pytest.raises(MemoryError):
        make_trainer(built_store, tmp_path / "resumed", method, **settings).run(resume=True, on_eval=die)
    resumed = make_trainer(built_store, tmp_path / "resumed", method, **settings)
    resumed.run(resume=True)
    assert len({row["lr"] for row in resumed.state.rows}) > 1, "the test needs a plateau"
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


RECIPES = {
    "average": {"average": 0.99, "patience": 1, "lr": 0.3},
    "cosine": {"schedule": "cosine", "patience": 1, "student_view": "resized"},
    "both": {"average": 0.9, "schedule": "cosine", "student_view": "trivial", "steps_per_eval": 2},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_run_of_another_recipe_equals_an_uninterrupted_one(built_store, tmp_path, monkeypatch, recipe):
    monkeypatch.setattr(trainer_module, "SAVE_EVERY_SECONDS", 0.0)
    settings = {"max_evals": 7, **SMALL, **RECIPES[recipe]}
    make_trainer(built_store, tmp_path / "whole", "ckd", **settings).run()

    def die(row):
        if row["epoch"] == 4:
            raise MemoryError("as if the process had died")

    with pytest.raises(MemoryError):
        make_trainer(built_store, tmp_path / "resumed", "ckd", **settings).run(on_eval=die)
    resumed = make_trainer(built_store, tmp_path / "resumed", "ckd", **settings)
    resumed.run(resume=True)
    assert len({row["lr"] for row in resumed.state.rows}) > 1, "the test needs a rate that falls"
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")
    with pytest.raises(InvalidInput, match="was started with"):
        make_trainer(built_store, tmp_path / "resumed", "ckd", max_evals=7, **SMALL).run(resume=True)


def test_a_recipe_is_in_the_record_and_the_usual_one_leaves_it_as_it_was(built_store, tmp_path):
    usual = make_trainer(built_store, tmp_path / "usual", max_evals=1).run()
    assert "average" not in usual
    assert not {"schedule", "steps_per_eval"} & usual["protocol"].keys()
    other = make_trainer(
        built_store, tmp_path / "other", max_evals=1, average=0.99, schedule="cosine", student_view="trivial"
    ).run()
    assert (other["average"], other["protocol"]["schedule"], other["student_view"]) == (0.99, "cosine", "trivial")


@pytest.mark.parametrize("n", [32, 96])
def test_evaluations_come_every_so_many_steps_whatever_n(built_store, tmp_path, n):
    """As many as go once through the rows make the run that has them without being told."""
    trainer = make_trainer(built_store, tmp_path / "run", n=n, max_evals=3, batch_size=32, steps_per_eval=2)
    run = trainer.run()
    assert [row["step"] for row in trainer.state.rows] == [2, 4, 6]
    assert (run["steps"], run["protocol"]["steps_per_eval"]) == (6, 2)
    epoch = n // 32
    for name, told in (("told", {"steps_per_eval": epoch}), ("usual", {})):
        make_trainer(built_store, tmp_path / name, n=n, max_evals=2, batch_size=32, **told).run()
    told, usual = (load_file(tmp_path / name / "student.safetensors") for name in ("told", "usual"))
    assert all(torch.equal(told[name], usual[name]) for name in usual)


def test_the_rate_of_every_step_follows_the_cosine(built_store, tmp_path):
    trainer = make_trainer(built_store, tmp_path / "run", n=48, max_evals=4, batch_size=16, lr=0.2, schedule="cosine")
    step, rates = trainer.train_step, []

    def noting():
        rates.append(trainer.state.optimizer.param_groups[0]["lr"])
        return step()

    trainer.train_step = noting
    trainer.run()
    # Four evaluations of three steps.
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * step / 12)) for step in range(12)])
    assert (rates[0], rates[6]) == pytest.approx((0.2, 0.1))
    assert [row["lr"] for row in trainer.state.rows] == [rates[2], rates[5], rates[8], rates[11]]


def heads_of_a_run(trainer: Trainer) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The head's weight as training begins and after each step, and as it is measured each time; float64."""
    after, measured = [trainer.state.student.head.weight.detach().double().clone()], []
    step, accuracy_on = trainer.train_step, trainer.accuracy_on

    def stepping():
        losses = step()
        after.append(trainer.state.student.head.weight.detach().double().clone())
        return losses

    def measuring(images):
        measured.append(trainer.state.evaluated.head.weight.detach().double().clone())
        return accuracy_on(images)

    trainer.train_step, trainer.accuracy_on = stepping, measuring
    trainer.run()
    return after, measured


def test_what_is_measured_and_kept_is_the_average_while_the_weights_go_their_own_way(built_store, tmp_path):
    settings = {"n": 48, "max_evals": 3, "batch_size": 16}
    plain, _ = heads_of_a_run(make_trainer(built_store, tmp_path / "plain", "kd", **settings))
    averaged = make_trainer(built_store, tmp_path / "averaged", "kd", average=0.999, **settings)
    weights, measured = heads_of_a_run(averaged)
    assert len(weights) == 1 + 9
    assert all(torch.equal(one, other) for one, other in zip(weights, plain, strict=True))
    average, averages = weights[0], []
    for count, weight in enumerate(weights[1:]):
        decay = min(0.999, (1 + count) / (10 + count))
        average = decay * average + (1 - decay) * weight
        averages.append(average)
    # Validation three times, then test of the last average.
    for found, step in zip(measured[:4], (3, 6, 9, 9), strict=True):
        torch.testing.assert_close(found, averages[step - 1], rtol=1e-5, atol=1e-6)
    best = max(averaged.state.rows, key=lambda row: row["val_accuracy"])
    kept = load_file(tmp_path / "averaged" / "student.safetensors")["fc.weight"]
    torch.testing.assert_close(kept.double(), averages[best["step"] - 1], rtol=1e-5, atol=1e-6)


def test_a_plateau_goes_back_to_the_best_average(built_store, tmp_path, monkeypatch):
    trainer = make_trainer(built_store, tmp_path / "run", patience=1, max_evals=9, average=0.9)
    accuracies = iter([0.5, 0.4])
    monkeypatch.setattr(trainer, "accuracy_on", lambda images: next(accuracies))
    stop = StopRequest()
    trainer.train_interval(stop)
    trainer.evaluate()
    best = {name: tensor.clone() for name, tensor in trainer.state.evaluated.state_dict().items()}
    trainer.train_interval(stop)
    trainer.evaluate()
    for network in (trainer.state.student, trainer.state.evaluated):
        assert all(torch.equal(tensor, best[name]) for name, tensor in network.state_dict().items())


def test_stopping_between_evaluations_changes_nothing(built_store, tmp_path):
    """The state in the middle of an interval, with the losses so far, is part of what is kept."""
    make_trainer(built_store, tmp_path / "whole", "kd", max_evals=3, batch_size=16).run()
    stopped = make_trainer(built_store, tmp_path / "stopped", "kd", max_evals=3, batch_size=16)
    step = stopped.train_step

    def stop_at_step_8():
        if stopped.state.step == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    stopped.train_step = stop_at_step_8
    with pytest.raises(Interrupted, match="stopped after step 9"):
        stopped.run()
    make_trainer(built_store, tmp_path / "stopped", "kd", max_evals=3, batch_size=16).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_threads_are_recorded_and_a_resumption_with_another_number_says_so(built_store, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trainer_module, "SAVE_EVERY_SECONDS", 0.0)

    def die(row):
        raise MemoryError("as if the process had died")

    for name in ("same", "other"):
        with pytest.raises(MemoryError):
            make_trainer(built_store, tmp_path / name, max_evals=2).run(
                on_eval=lambda row: row["epoch"] == 2 and die(row)
            )
    assert make_trainer(built_store, tmp_path / "same", max_evals=2).run(resume=True)["threads"] == [1]
    assert "threads" not in caplog.text
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert make_trainer(built_store, tmp_path / "other", max_evals=2).run(resume=True)["threads"] == [1, 2]
    assert caplog.text.count("this run had 1 CPU threads before and goes on with 2") == 1


@pytest.mark.parametrize(
    ("name", "numbers"), [("threads", [0]), ("threads", ["1"]), ("threads", 1), ("num_ranks", [2**70])]
)
def test_a_state_with_impossible_threads_or_ranks_is_damaged(built_store, tmp_path, name, numbers):
    trainer = make_trainer(built_store, tmp_path / "run", max_evals=2)
    with trainer.folder.opened(resume=True):
        setattr(trainer, name, numbers)
        trainer.save_state()
    with pytest.raises(InvalidInput, match="cannot be resumed from|is damaged"):
        make_trainer(built_store, tmp_path / "run", max_evals=2).run(resume=True)


def emptied(store: Store, split: str) -> None:
    """Give a store a manifest that says that a split has no images; its own digests hold."""
    manifest = store.manifest
    samples = {name: "" if name.startswith(f"{split}/") else digest for name, digest in manifest.samples.items()}
    store.save(dataclasses.replace(manifest, samples=samples, **{f"num_{split}": 0}))


@pytest.mark.parametrize(("split", "words"), [("val", "no validation images"), ("test", "no test images")])
def test_a_store_that_measures_nothing_is_not_trained_from(built_store, tmp_path, split, words):
    shutil.copytree(built_store, tmp_path / "store")
    emptied(Store.open(tmp_path / "store"), split)
    result = run_command("ckd-train", "--store", tmp_path / "store", "--method", "kd", "--out", tmp_path / "run")
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_store_of_one_class_is_not_trained_from(built_store, tmp_path):
    store = Store.open(built_store)
    dataset = dataclasses.replace(store.manifest.identity.dataset, classes=("0",))
    store.manifest = dataclasses.replace(
        store.manifest, identity=dataclasses.replace(store.manifest.identity, dataset=dataset)
    )
    with pytest.raises(InvalidInput, match="has a single class"):
        StudentData.load(store, None, Wanted(student=(), teacher=("logits",), parameters=False), CPU)


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_end(built_store, tmp_path):
    arguments = train_arguments(built_store, 4)
    child = run_program("tests.student_train.killed_student", 2, *arguments, "--out", tmp_path / "killed")
    assert child.returncode == -signal.SIGKILL, child.stderr
    for name, more in (("killed", ["--resume"]), ("whole", [])):
        done = run_command("ckd-train", *arguments, "--out", tmp_path / name, *more, env={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_plateau_goes_back_to_the_best_weights_with_a_lower_rate_and_no_momentum(built_store, tmp_path, monkeypatch):
    trainer = make_trainer(built_store, tmp_path / "run", patience=1, max_evals=9)
    accuracies = iter([0.5, 0.4])  # an improvement, a plateau
    monkeypatch.setattr(trainer, "accuracy_on", lambda images: next(accuracies))
    stop = StopRequest()
    trainer.train_interval(stop)
    trainer.evaluate()
    best = {name: tensor.clone() for name, tensor in trainer.state.student.state_dict().items()}
    trainer.train_interval(stop)
    assert trainer.evaluate()["lr"] == 0.05
    for name, tensor in trainer.state.student.state_dict().items():
        torch.testing.assert_close(tensor, best[name], rtol=0, atol=0)
    assert not trainer.state.optimizer.state
    trainer.train_interval(stop)
    assert trainer.state.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


def test_a_diverging_loss_is_a_sentence_not_a_result(built_store, tmp_path):
    with pytest.raises(Diverged, match="the loss is (nan|inf) at step .*; lower --lr"):
        make_trainer(built_store, tmp_path / "run", "ckd", lr=1e9, max_evals=20).run()
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_finished_run_of_other_settings_is_not_passed_off(built_store, tmp_path):
    done = make_trainer(built_store, tmp_path / "run", "kd", n=32, max_evals=1).run()
    assert make_trainer(built_store, tmp_path / "run", "kd", n=32, max_evals=1).run(resume=True) == done
    with pytest.raises(InvalidInput, match="was started with n 32, not 40"):
        make_trainer(built_store, tmp_path / "run", "kd", n=40, max_evals=1).run(resume=True)
    with pytest.raises(InvalidInput, match="was started with recipe"):
        make_trainer(built_store, tmp_path / "run", "kd:temperature=2", n=32, max_evals=1).run(resume=True)
    with pytest.raises(InvalidInput, match="holds a run already"):
        make_trainer(built_store, tmp_path / "run", "kd", n=32, max_evals=1).run()


def test_two_trainings_do_not_share_a_folder(built_store, tmp_path):
    trainer = make_trainer(built_store, tmp_path / "run", max_evals=1)
    with trainer.folder.opened(resume=False), pytest.raises(StoreBusy, match="another training writes"):
        trainer.run()
    with pytest.raises(InvalidInput, match="is a store; give another --out"):
        make_trainer(built_store, built_store, max_evals=1).run()


def test_training_anchors_before_it_measures(built_store, tmp_path):
    """Where the level of the logits is thrown off, anchoring brings it back."""
    for spec, moved in (("ckd", False), ("ckd:anchor=false", True)):
        trainer = make_trainer(built_store, tmp_path / spec, spec, max_evals=1)
        step = trainer.train_step

        def throw_off(trainer=trainer, step=step):
            loss = step()
            with torch.no_grad():
                trainer.state.student.head.bias[3] += 1e3
            return loss

        trainer.train_step = throw_off
        trainer.run()
        assert (trainer.state.student.head.bias[3].item() > 500) is moved


def test_the_level_is_set_of_the_average_where_that_is_measured(built_store, tmp_path):
    trainer = make_trainer(built_store, tmp_path / "run", "ckd", max_evals=2, average=0.9)
    raw = trainer.state.student.head.bias.detach().clone()
    trainer.train_interval(StopRequest())
    trainer.evaluate()
    average, data = trainer.state.evaluated, trainer.data
    with torch.inference_mode():
        batches = evaluation_batches(data.train.images, data.train.labels, data.rendering)
        logits = torch.cat([average(inputs) for inputs, _ in batches])
    targets = (data.outputs["logits"][:, 0] + torch.nn.functional.one_hot(data.train.labels, 10)) / 2
    torch.testing.assert_close(logits.mean(dim=0), targets.mean(dim=0), rtol=1e-3, atol=1e-3)
    # No loss of comparisons moves the bias that is trained, and nothing else does but weight decay.
    torch.testing.assert_close(trainer.state.student.head.bias.detach(), raw, rtol=0.01, atol=1e-5)
    assert not average.training
    assert trainer.state.student.training


def test_each_pass_goes_through_batch_norm_alone(built_store, tmp_path):
    trainer = make_trainer(built_store, tmp_path / "run", "ckd", batch_size=8)
    stepper, student = trainer.stepper, trainer.state.student
    batch = stepper.sampling.batch(0, labels=stepper.labels, batch_size=8, seed=0)
    inputs, _ = trainer.data.inputs(batch, 0, seed=0, student_view="fresh")
    student.train()
    found = stepper.represent(student, inputs, batch, ()).logits
    apart = torch.cat([student(inputs[:8]), student(inputs[8:])])
    together = student(inputs)
    torch.testing.assert_close(found, apart)
    assert not torch.allclose(found, together, atol=1e-3)


def test_views_stay_with_their_answers(tmp_path, weights):
    """Of several views, the one that is replayed is the one whose logits are handed out."""
    config = BuildConfig(
        teacher="resnet8", weights=weights, dataset="digits", n=20, views=3, store=tmp_path / "s", device="cpu"
    )
    build(*prepare_build(config))
    data = load(tmp_path / "s", None, "logits")
    network = create_model("resnet8", num_classes=10).eval()
    load_weights(network, weights)
    rows = torch.arange(20)
    inputs, which = data.inputs(one_pass(rows), 5, seed=0, student_view="teacher")
    assert set(which.tolist()) == {0, 1, 2}
    with torch.inference_mode():
        torch.testing.assert_close(data.teacher(rows, which).logits, network(inputs), rtol=1e-4, atol=1e-4)


def test_losses_are_float32_under_autocast(built_store, tmp_path):
    trainer = make_trainer(built_store, tmp_path / "run", "kd")
    trainer.stepper.data = dataclasses.replace(trainer.data, compute=Compute(torch.device("cpu"), "bf16"))
    seen, original = [], BoundMethod.losses

    def looking(self, signals, parts):
        seen.append((signals.student.logits.dtype, signals.teacher.logits.dtype))
        return original(self, signals, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundMethod, "losses", looking)
        assert trainer.train_step().total.dtype == torch.float32
    assert seen == [(torch.float32, torch.float32)]


def test_run_json_says_what_was_measured(built_store, tmp_path):
    trainer = make_trainer(built_store, tmp_path / "run", n=64, max_evals=3)
    result = trainer.run(resume=True)
    assert result == json.loads((tmp_path / "run" / "run.json").read_text())
    expected = {
        "method": "kd",
        "student": "resnet8",
        "n": 64,
        "seed": 0,
        "sample_seed": 0,
        "teacher_calls": 64,
        "store": str(built_store),
    }
    expected["ledger_head"] = newest_head(Store.open(built_store))
    assert {name: result[name] for name in expected} == expected
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert result["best_val_accuracy"] == max(accuracies)
    assert [row["test_accuracy"] for row in rows] == [""] * 3, "measured at the end alone"
    # The saved student is the one with the best validation accuracy, measured here without our evaluation code.
    student = create_model("resnet8", num_classes=10).eval()
    metadata = load_weights(student, tmp_path / "run" / "student.safetensors").metadata
    store = Store.open(built_store)
    identity = store.manifest.identity
    assert TrainedOn.read(metadata, tmp_path) == TrainedOn.of(
        "resnet8",
        dataset=identity.dataset.name,
        dataset_digest=identity.dataset.digest,
        classes=identity.dataset.classes,
        rendering=identity.teacher_rendering,
    )
    images = torch.from_numpy(store.read("test/images")).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (identity.teacher.normalisation.mean, identity.teacher.normalisation.std)
    )
    with torch.inference_mode():
        predicted = student((images - mean) / std).argmax(dim=1).numpy()
    assert result["test_accuracy"] == pytest.approx(np.mean(predicted == store.read("test/labels")), abs=2 / 360)
    assert not (tmp_path / "run" / "resume.pt").exists()


def measured(trainer: Trainer, monkeypatch, validation: list[float]) -> list[dict[str, torch.Tensor]]:
    """The weights whenever test images are measured; what validation says is given."""
    found, said, accuracy_on = [], iter(validation), trainer.accuracy_on

    def measure(images):
        if images is trainer.data.val:
            return next(said)
        found.append({name: tensor.clone() for name, tensor in trainer.state.student.state_dict().items()})
        return accuracy_on(images)

    monkeypatch.setattr(trainer, "accuracy_on", measure)
    return found


def is_same(one, other) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_test_images_are_measured_on_the_last_and_the_best_weights_alone(built_store, tmp_path, monkeypatch):
    trainer = make_trainer(built_store, tmp_path / "run", n=64, max_evals=4)
    found = measured(trainer, monkeypatch, [0.1, 0.2, 0.5, 0.3])
    result = trainer.run()
    assert len(found) == 2
    assert not is_same(*found)
    assert is_same(found[1], load_file(tmp_path / "run" / "student.safetensors")), "the student is the best"
    network = create_model("resnet8", num_classes=10)
    for weights, name in zip(found, ("last_test_accuracy", "test_accuracy"), strict=True):
        network.load_state_dict(weights)
        batches = trainer.data.test.batches(trainer.data.rendering)
        assert result[name] == accuracy(network, batches, CPU)


def test_the_last_weights_are_measured_once_where_they_are_the_best(built_store, tmp_path, monkeypatch):
    trainer = make_trainer(built_store, tmp_path / "run", n=64, max_evals=2)
    found = measured(trainer, monkeypatch, [0.1, 0.2])
    result = trainer.run()
    assert len(found) == 1
    assert result["test_accuracy"] == result["last_test_accuracy"]


def test_curves_on_test_images_change_nothing_else(built_store, tmp_path, monkeypatch):
    settings = {"n": 64, "max_evals": 5, "patience": 1, "lr": 0.3}
    for name, every in (("without", None), ("with", 2)):
        trainer = make_trainer(built_store, tmp_path / name, test_every=every, **settings)
        measured(trainer, monkeypatch, [0.5, 0.4, 0.3, 0.6, 0.2])
        trainer.run()
    results = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("without", "with")]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    rows = trainer.state.rows
    assert [row["test_accuracy"] is not None for row in rows] == [False, True, False, True, False]
    assert rows[3]["test_accuracy"] == results[1]["test_accuracy"], "the fourth validated best"
    # A run may be gone on with, and asked for again, with another.
    assert (
        make_trainer(built_store, tmp_path / "without", test_every=1, **settings).run(resume=True)["evaluations"] == 5
    )
    with pytest.raises(InvalidInput, match="--test-every must be at least 1, got 0"):
        make_trainer(built_store, tmp_path / "none", test_every=0)


def test_a_run_that_an_earlier_release_began_ends_with_the_same_numbers(built_store, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "SAVE_EVERY_SECONDS", 0.0)
    settings = {"max_evals": 3, "batch_size": 32}
    expected = make_trainer(built_store, tmp_path / "whole", **settings).run()
    begun = make_trainer(built_store, tmp_path / "run", **settings)

    def die(row):
        raise MemoryError("as if the process had died")

    with pytest.raises(MemoryError):
        begun.run(on_eval=die)
    # As an earlier release leaves it: test images were measured whenever validation improved.
    begun.state.rows[0]["test_accuracy"] = 0.125
    begun.save_state()
    result = make_trainer(built_store, tmp_path / "run", **settings).run(resume=True)
    assert {name: result[name] for name in result if name != "seconds"} == {
        name: expected[name] for name in expected if name != "seconds"
    }
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["test_accuracy"] for row in csv.DictReader(file)] == ["0.125", "", ""]


def test_metrics_tell_each_loss_beside_the_sum(built_store, tmp_path):
    method = parse_losses(["ce", "kd:weight=0.25", "kd:temperature=2"])
    config = TrainConfig(student="resnet8", batch_size=16, protocol=ProtocolConfig(max_evals=2))
    trainer = Trainer.open(config, built_store, 48, method, CPU, RunFolder(tmp_path / "run"))
    steps, step = [], trainer.train_step
    trainer.train_step = lambda: steps.append(step()) or steps[-1]
    trainer.run()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*METRICS, "loss/ce", "loss/kd", "loss/kd.2"]
    for place, row in enumerate(rows):
        of_row = steps[3 * place : 3 * place + 3]
        assert float(row["train_loss"]) == torch.stack([losses.total for losses in of_row]).mean().item()
        means = torch.stack([losses.terms for losses in of_row]).mean(dim=0).tolist()
        assert [float(row[name]) for name in ("loss/ce", "loss/kd", "loss/kd.2")] == means
        # Before their weights, so runs of different weights can be compared.
        assert means[0] + 0.25 * means[1] + means[2] == pytest.approx(float(row["train_loss"]))


def test_a_run_begun_without_single_losses_is_finished_with_them(built_store, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "SAVE_EVERY_SECONDS", 0.0)

    def die(row):
        raise MemoryError("as if the process had died")

    settings = {"max_evals": 3, "batch_size": 32}
    begun = make_trainer(built_store, tmp_path / "run", "kd", **settings)
    with pytest.raises(MemoryError):
        begun.run(on_eval=die)
    # As an earlier release leaves it.
    begun.state.rows[0] = {name: begun.state.rows[0][name] for name in METRICS}
    begun.save_state()
    kept = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)
    del kept["terms"]
    begun.folder.save_state(kept)
    make_trainer(built_store, tmp_path / "run", "kd", **settings).run(resume=True)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["loss/ce"]) for row in rows] == [False, True, True]


def test_labels_alone_cost_no_teacher_call(built_store, tmp_path):
    assert make_trainer(built_store, tmp_path / "run", "vanilla", max_evals=1).run(resume=True)["teacher_calls"] == 0


def test_an_evaluation_comes_every_epoch_worth_of_steps(built_store, tmp_path):
    for method in ("kd", "ckd"):
        trainer = make_trainer(built_store, tmp_path / method, method, n=90, max_evals=2, batch_size=32)
        assert trainer.run(resume=True)["steps"] == 2 * 3, "ceil(90 / 32) steps each"


@pytest.mark.slow
def test_a_teacher_that_can_be_learned_is_learned(built_store, tmp_path):
    """The student is the teacher's own architecture: KD alone brings its logits close to the stored ones."""
    settings = {"max_evals": 40, "student_view": "teacher", "lr": 0.1, **SMALL}
    trainer = make_trainer(built_store, tmp_path / "run", "kd:ce=0", **settings)
    first = float(trainer.train_step().total)
    trainer.state.step = 0
    trainer.run(resume=True)
    last = trainer.state.rows[-1]["train_loss"]
    assert last < first / 3


def test_the_students_view_can_be_the_teachers(built_store):
    data = load(built_store, None, "logits")
    rows = torch.tensor([5, 17, 3])
    inputs, which = data.inputs(one_pass(rows), 0, seed=0, student_view="teacher")
    store = Store.open(built_store)
    identity = store.manifest.identity
    images, views = (torch.from_numpy(store.read(f"train/{name}")) for name in ("images", "views"))
    expected = apply_views(images[rows], views[rows, 0], identity.geometry)
    torch.testing.assert_close(inputs, identity.teacher.normalisation.apply(expected))
    said = data.teacher(rows, which)
    np.testing.assert_array_equal(said.logits, store.read("train/logits")[rows.numpy(), 0])
    fresh, _ = data.inputs(one_pass(rows), 0, seed=0, student_view="fresh")
    other, _ = data.inputs(one_pass(rows), 1, seed=0, student_view="fresh")
    assert not torch.equal(fresh, other)


def test_features_are_loaded_when_a_loss_needs_them(built_store):
    data = load(built_store, 50, "layer2")
    said = data.teacher(torch.arange(4), torch.zeros(4, dtype=torch.int64))
    assert said.features["layer2"].shape == (4, 32, 16, 16)
    assert said.features["layer2"].dtype == torch.float32
    with pytest.raises(StoreIncomplete, match="needs layer9; add it with: ckd-cache extend --store .* --features"):
        load(built_store, 50, "layer9")


def test_a_smaller_n_takes_the_beginning_and_the_papers_share_of_validation(built_store):
    data = load(built_store, 40, "logits")
    store = Store.open(built_store)
    np.testing.assert_array_equal(data.train.labels, store.read("train/labels")[:40])
    assert len(data.val.labels) == 10
    with pytest.raises(InvalidInput, match="97 rows are asked for and .* has 96 images"):
        load(built_store, 97, "logits")


def test_anchoring_sets_the_level_and_nothing_else(built_store, tmp_path):
    trainer = make_trainer(built_store, tmp_path / "run", "ckd")
    trainer.train_step()
    student, data = trainer.state.student, trainer.data
    with torch.no_grad():
        student.head.bias += torch.linspace(-20, 20, 10)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    anchor(student, data, trainer.stepper.method)
    assert student.training
    changed = [name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["fc.bias"]
    identity = data.manifest.identity
    student.eval()
    with torch.inference_mode():
        batches = evaluation_batches(data.train.images, data.train.labels, identity.teacher_rendering)
        logits = torch.cat([student(inputs) for inputs, _ in batches])
    targets = (data.outputs["logits"][:, 0] + torch.nn.functional.one_hot(data.train.labels, 10)) / 2
    torch.testing.assert_close(logits.mean(dim=0), targets.mean(dim=0), rtol=1e-3, atol=1e-3)


def test_anchoring_changes_no_gradient(built_store, tmp_path):
    """The same weights come out of training with and without it, apart from the head's bias."""
    trainers = [make_trainer(built_store, tmp_path / spec, spec) for spec in ("ckd", "ckd:anchor=false")]
    for trainer in trainers:
        for _ in range(3):
            trainer.train_step()
            if trainer.method.is_anchored:
                anchor(trainer.state.student, trainer.data, trainer.stepper.method)
    anchored, plain = (trainer.state.student.state_dict() for trainer in trainers)
    for name, tensor in plain.items():
        if name != "fc.bias":
            torch.testing.assert_close(anchored[name], tensor, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(anchored["fc.bias"], plain["fc.bias"])


@pytest.mark.slow
def test_an_interrupted_command_goes_on_with_resume(built_store, tmp_path):
    out = tmp_path / "run"
    command = [*train_arguments(built_store, 30), "--out", out]
    child = begin_command("ckd-train", *command, env={"OMP_NUM_THREADS": "1"})
    while not out.exists():
        assert child.poll() is None, child.stderr
        time.sleep(0.1)
    time.sleep(1)
    os.kill(child.pid, signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert "go on with the same command and --resume" in stderr
    refused = run_command("ckd-train", *command)
    assert refused.returncode == 2
    assert "holds a run already; go on with --resume" in refused.stderr
    other = run_command("ckd-train", *command, "--resume", "--lr", "0.1")
    assert other.returncode == 2
    assert "was started with lr 0.05, not 0.1" in other.stderr
    done = run_command("ckd-train", *command, "--resume", "--json", env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["evaluations"] == 30
    again = run_command("ckd-train", *command, "--resume", "--json")
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_stage_two_runs_with_everything_but_the_store_gone(stores, tmp_path):
    """No data set, no weights, no network, no stage one: only copies of the stores' folders, one of each format."""
    commands = []
    for name in stores:
        store = shutil.copytree(stores[name], tmp_path / "elsewhere" / name)
        method = ["--student", "resnet8", "--method", "ckd", "--max-evals", "1", "--json"]
        commands.append([str(word) for word in ("--store", store, *method, "--out", tmp_path / f"run-{name}")])
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CKD_DATA": "/nonexistent",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.student_train.offline_student", json.dumps(commands)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert [json.loads(said)["teacher_calls"] for said in result.stdout.split("\0")[:-1]] == [96, 96]


def test_a_hostile_resume_file_runs_no_code(built_store, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    trainer = make_trainer(built_store, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "resume.pt").write_bytes(pickle.dumps({"config": Bomb()}))
    with pytest.raises(InvalidInput, match="cannot be resumed from"):
        trainer.run(resume=True)
    assert not (tmp_path / "exploded").exists()


def test_a_finished_run_is_proven_until_somebody_changes_it(built_store, tmp_path):
    store = shutil.copytree(built_store, tmp_path / "store")
    head = newest_head(Store.open(store))
    result = make_trainer(store, tmp_path / "run", max_evals=1).run()
    assert result["ledger_head"] == head, "as when the store was read: the proof is a later entry"
    with closing(own_ledger(store)) as ledger:
        assert ledger.head() != head == newest_head(Store.open(store))
    said = run_command("ckd-train", "verify", tmp_path / "run")
    assert said.returncode == 0, said.stderr
    assert "is proven by an entry in its store's ledger" in said.stdout
    shutil.copy(tmp_path / "run" / "run.json", tmp_path / "run" / "student.safetensors")
    said = run_command("ckd-train", "verify", tmp_path / "run", "--json")
    assert said.returncode == 1
    document = json.loads(said.stdout)
    assert (document["proven"], document["by"]) == (False, "no")
    assert "student.safetensors (weights) is not what" in document["problems"][0]
    moved = store.rename(tmp_path / "moved")
    assert run_command("ckd-train", "verify", tmp_path / "run").returncode == 1
    said = run_command("ckd-train", "verify", tmp_path / "run", "--store", moved)
    assert "is not what entry" in said.stdout


def test_what_is_no_run_cannot_be_verified(tmp_path):
    said = run_command("ckd-train", "verify", tmp_path)
    assert said.returncode == 2
    assert "holds no finished run (no run.json); give the folder of one" in said.stderr


@pytest.mark.parametrize(
    "change",
    [{"step": 2}, {"step": 4}, {"step": 1 << 52}, {"losses": torch.ones(2), "terms": torch.ones(2, 2)}],
)
def test_a_state_that_does_not_add_up_is_refused_before_a_step(built_store, tmp_path, change):
    settings = {"max_evals": 3, "batch_size": 32}
    begun = make_trainer(built_store, tmp_path / "run", "kd", **settings)
    begun.train_interval(StopRequest())
    begun.evaluate()
    (tmp_path / "run").mkdir()
    begun.folder.save_state({"config": json.dumps(begun.settings().document()), **begun.state.saved()} | change)
    with pytest.raises(InvalidInput, match=r"the state in .* is damaged .*delete resume\.pt to start again"):
        make_trainer(built_store, tmp_path / "run", "kd", **settings).run(resume=True)
