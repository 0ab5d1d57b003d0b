"""A student learns from the store alone, and a resumed run equals an uninterrupted one."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import create_model, load_weights
from models.compute import Compute
from storage.errors import InvalidInput, StoreIncomplete
from storage.store import Store
from storage.views import apply_views, evaluation_batches
from student_train import trainer as trainer_module
from student_train.anchor import anchor
from student_train.data import StudentData
from student_train.methods import parse_method
from student_train.protocol import ProtocolConfig
from student_train.run_folder import RunFolder
from student_train.trainer import TrainConfig, Trainer
from tests.conftest import COMMANDS, run_command

CPU = Compute(torch.device("cpu"), "fp32")
SOURCE = {"store": "a store", "ledger_head": "a hash"}


def make_trainer(store, out, method="kd", n=None, **settings) -> Trainer:
    evals = settings.pop("max_evals", 4)
    patience = settings.pop("patience", 50)
    recipe = parse_method(method)
    data = StudentData.load(store, n, recipe.needs, CPU)
    protocol = ProtocolConfig(max_evals=evals, patience=patience)
    config = TrainConfig(student="resnet8", method=method, protocol=protocol, **settings)
    folder = RunFolder(out)
    folder.start(resume=True)
    return Trainer(config, data, recipe, folder)


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
        make_trainer(built_store, tmp_path / name, method, max_evals=2).run(SOURCE)
    assert_same_run(tmp_path / "one", tmp_path / "other")
    make_trainer(built_store, tmp_path / "third", method, max_evals=2, seed=1).run(SOURCE)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "one", tmp_path / "third")


@pytest.mark.parametrize("method", ["kd", "ckd"])
def test_a_resumed_run_equals_an_uninterrupted_one(built_store, tmp_path, monkeypatch, method):
    monkeypatch.setattr(trainer_module, "_SAVE_EVERY_SECONDS", 0.0)
    # A patience of 1 makes plateaus likely, so that going back to the best weights is part of what is resumed.
    settings = {"max_evals": 7, "patience": 1, "lr": 0.3}
    make_trainer(built_store, tmp_path / "whole", method, **settings).run(SOURCE)

    def die(row):
        if row["epoch"] == 4:
            raise MemoryError("as if the process had died")

    with pytest.raises(MemoryError):
        make_trainer(built_store, tmp_path / "resumed", method, **settings).run(SOURCE, die)
    resumed = make_trainer(built_store, tmp_path / "resumed", method, **settings)
    resumed.run(SOURCE)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


def test_run_json_says_what_was_measured(built_store, tmp_path):
    trainer = make_trainer(built_store, tmp_path / "run", n=64, max_evals=3)
    result = trainer.run(SOURCE)
    assert result == json.loads((tmp_path / "run" / "run.json").read_text())
    expected = {"method": "kd", "student": "resnet8", "n": 64, "seed": 0, "teacher_calls": 64} | SOURCE
    assert {name: result[name] for name in expected} == expected
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert result["best_val_accuracy"] == max(accuracies)
    best = rows[accuracies.index(max(accuracies))]
    assert result["test_accuracy"] == float(best["test_accuracy"])
    # The saved student is the one with the best validation accuracy, measured here without our evaluation code.
    student = create_model("resnet8", num_classes=10).eval()
    load_weights(student, tmp_path / "run" / "student.safetensors")
    store = Store.open(built_store)
    identity = store.manifest.identity
    images = torch.from_numpy(store.read("test/images")).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (identity.teacher.normalisation.mean, identity.teacher.normalisation.std)
    )
    with torch.inference_mode():
        predicted = student((images - mean) / std).argmax(dim=1).numpy()
    assert result["test_accuracy"] == pytest.approx(np.mean(predicted == store.read("test/labels")), abs=2 / 360)
    assert not (tmp_path / "run" / "resume.pt").exists()


def test_labels_alone_cost_no_teacher_call(built_store, tmp_path):
    assert make_trainer(built_store, tmp_path / "run", "vanilla", max_evals=1).run(SOURCE)["teacher_calls"] == 0


def test_an_evaluation_comes_every_epoch_worth_of_steps(built_store, tmp_path):
    for method in ("kd", "ckd"):
        trainer = make_trainer(built_store, tmp_path / method, method, n=90, max_evals=2, batch_size=32)
        assert trainer.run(SOURCE)["steps"] == 2 * 3, "ceil(90 / 32) steps each"


def test_a_teacher_that_can_be_learned_is_learned(built_store, tmp_path):
    """The student is the teacher's own architecture: KD alone brings its logits close to the stored ones."""
    trainer = make_trainer(built_store, tmp_path / "run", "kd:ce=0", max_evals=40, student_view="teacher", lr=0.1)
    first = float(trainer.train_step())
    trainer.step = 0
    trainer.run(SOURCE)
    last = trainer.rows[-1]["train_loss"]
    assert last < first / 3


def test_the_students_view_can_be_the_teachers(built_store):
    data = StudentData.load(built_store, None, {"logits"}, CPU)
    rows = torch.tensor([5, 17, 3])
    inputs, which = data.inputs(rows, 0, seed=0, student_view="teacher")
    store = Store.open(built_store)
    identity = store.manifest.identity
    images, views = (torch.from_numpy(store.read(f"train/{name}")) for name in ("images", "views"))
    expected = apply_views(images[rows], views[rows, 0], identity.geometry)
    torch.testing.assert_close(inputs, identity.teacher.normalisation.apply(expected))
    said = data.teacher(rows, which)
    np.testing.assert_array_equal(said.logits, store.read("train/logits")[rows.numpy(), 0])
    fresh, _ = data.inputs(rows, 0, seed=0, student_view="fresh")
    other, _ = data.inputs(rows, 1, seed=0, student_view="fresh")
    assert not torch.equal(fresh, other)


def test_features_are_loaded_when_a_loss_needs_them(built_store):
    data = StudentData.load(built_store, 50, {"layer2"}, CPU)
    said = data.teacher(torch.arange(4), torch.zeros(4, dtype=torch.int64))
    assert said.features["layer2"].shape == (4, 32, 16, 16)
    assert said.features["layer2"].dtype == torch.float32
    with pytest.raises(StoreIncomplete, match="the loss needs layer9; build another store with --features layer9"):
        StudentData.load(built_store, 50, {"layer9"}, CPU)


def test_a_smaller_n_takes_the_beginning_and_the_papers_share_of_validation(built_store):
    data = StudentData.load(built_store, 40, {"logits"}, CPU)
    store = Store.open(built_store)
    np.testing.assert_array_equal(data.train.labels, store.read("train/labels")[:40])
    assert len(data.val.labels) == 10
    with pytest.raises(InvalidInput, match="--n 97 asks for more than the 96 images"):
        StudentData.load(built_store, 97, {"logits"}, CPU)


def test_anchoring_sets_the_level_and_nothing_else(built_store, tmp_path):
    trainer = make_trainer(built_store, tmp_path / "run", "ckd")
    trainer.train_step()
    student, data = trainer.student, trainer.data
    with torch.no_grad():
        student.head.bias += torch.linspace(-20, 20, 10)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    anchor(student, data, trainer.method)
    assert student.training
    changed = [name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["fc.bias"]
    identity = data.manifest.identity
    student.eval()
    with torch.inference_mode():
        batches = evaluation_batches(
            data.train.images, data.train.labels, identity.geometry, identity.teacher.normalisation
        )
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
                anchor(trainer.student, trainer.data, trainer.method)
    anchored, plain = (trainer.student.state_dict() for trainer in trainers)
    for name, tensor in plain.items():
        if name != "fc.bias":
            torch.testing.assert_close(anchored[name], tensor, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(anchored["fc.bias"], plain["fc.bias"])


def test_an_interrupted_command_goes_on_with_resume(built_store, tmp_path):
    out = tmp_path / "run"
    command = [
        "--store",
        built_store,
        "--student",
        "resnet8",
        "--method",
        "kd",
        "--device",
        "cpu",
        "--out",
        out,
    ]
    command += ["--max-evals", "30", "--precision", "fp32"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [COMMANDS / "ckd-train", *map(str, command)], stderr=subprocess.PIPE, text=True, env=environment
    )
    while not out.exists():
        time.sleep(0.1)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
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


def test_stage_two_runs_with_everything_but_the_store_gone(store_of_each_format, tmp_path):
    """No data set, no weights, no network, no stage one: only a copy of the store's folder."""
    store = tmp_path / "elsewhere" / "store"
    shutil.copytree(store_of_each_format, store)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CKD_DATA": "/nonexistent",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.student_train.offline_student", "--store", store, "--student", "resnet8",
         "--method", "ckd", "--max-evals", "1", "--out", tmp_path / "run", "--json"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["teacher_calls"] == 96


def test_a_hostile_resume_file_runs_no_code(built_store, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    trainer = make_trainer(built_store, tmp_path / "run")
    (tmp_path / "run" / "resume.pt").write_bytes(pickle.dumps({"config": Bomb()}))
    with pytest.raises(InvalidInput, match="cannot be resumed from"):
        trainer.run(SOURCE)
    assert not (tmp_path / "exploded").exists()
