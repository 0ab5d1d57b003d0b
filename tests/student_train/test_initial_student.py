"""What a student begins with, and how it is shown images: its library's way, and nothing new for the zoo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from ground.errors import CheckpointError, CheckpointMismatch, InvalidInput
from ground.user_code import UserCode
from models import create_model, save_weights
from models.compute import Compute
from models.origins import preprocessing_of
from storage.run_proof import RunProofs
from storage.run_record import RunRecord
from storage.store import Store
from student_train.initial_student import InitialStudent, student_rendering
from student_train.methods import parse_method
from student_train.protocol import ProtocolConfig
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer
from tests.photographs import CLASSES
from tests.running import run_command
from tests.student_train.conftest import train

FOREIGN = "torchvision:mobilenet_v3_small"
CPU = Compute.choose("cpu", "fp32")


@pytest.fixture(scope="module")
def rendering(photograph_store):
    return Store.open(photograph_store).manifest.identity.teacher_rendering


@pytest.fixture(scope="module")
def of_a_thousand(tmp_path_factory) -> Path:
    """As torchvision publishes weights: another number of classes."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("published") / "published.safetensors"
    save_file(torchvision.models.mobilenet_v3_small(num_classes=20).state_dict(), path)
    return path


def made(init: Path | None, rendering, student: str = "resnet8", classes: tuple[str, ...] = CLASSES) -> InitialStudent:
    return InitialStudent.make(TrainConfig(student=student, init=init), classes, rendering)


def of_its_own_classes():
    return create_model("resnet8", num_classes=len(CLASSES) + 1, seed=0)


def test_a_student_of_other_classes_than_the_stores_is_refused_before_it_is_trained(rendering):
    config = TrainConfig(student=f"python:{__name__}:of_its_own_classes", code=UserCode.ALLOWED)
    with pytest.raises(InvalidInput, match=f"answers for {len(CLASSES) + 1} classes, and the store has {len(CLASSES)}"):
        InitialStudent.make(config, CLASSES, rendering)


# How it is shown images


def test_a_student_of_another_library_is_shown_pixels_as_that_has_them(photograph_store, foreign_run):
    identity, own = Store.open(photograph_store).manifest.identity, preprocessing_of(FOREIGN)
    shown = student_rendering(TrainConfig(student=FOREIGN, student_size=64), identity)
    # The teacher's library resizes bicubically.
    assert identity.teacher_rendering.interpolation == "bicubic"
    assert (shown.normalisation, shown.interpolation, shown.size) == (own.normalisation, "bilinear", 64)
    assert shown.geometry == identity.geometry
    record = RunRecord.read(foreign_run)
    assert record.student_rendering == shown
    assert record.student_preprocessing == "own"


def test_the_zoo_is_shown_images_as_ever(photograph_store, finished_run):
    identity = Store.open(photograph_store).manifest.identity
    for size in (None, 32):
        shown = student_rendering(TrainConfig(student="resnet8", student_size=size), identity)
        assert shown == replace(identity.teacher_rendering, input_size=size)
    assert "student_preprocessing" not in json.loads((finished_run / "run.json").read_text())


def as_an_earlier_release(config: TrainConfig, store: Path, folder: Path) -> None:
    """A run that was begun and stopped, whose settings say nothing of how its student is shown pixels."""
    config = replace(config, student_preprocessing="teacher")
    trainer = Trainer.open(config, store, None, parse_method("kd"), CPU, RunFolder(folder))
    folder.mkdir()
    trainer.save_state()
    assert "student_preprocessing" not in trainer.settings().document()


def test_a_run_that_an_earlier_release_began_goes_on_as_its_teacher_was_shown_images(photograph_store, tmp_path):
    config = TrainConfig(student=FOREIGN, batch_size=8, protocol=ProtocolConfig(max_evals=1))
    as_an_earlier_release(config, photograph_store, tmp_path / "run")
    trainer = Trainer.open(
        config, photograph_store, None, parse_method("kd"), CPU, RunFolder(tmp_path / "run"), resume=True
    )
    result = trainer.run(resume=True)
    identity = Store.open(photograph_store).manifest.identity
    assert result["student_rendering"]["normalisation"]["mean"] == list(identity.teacher.normalisation.mean)
    assert "student_preprocessing" not in result
    # Finished, it is found again, and is proven.
    again = Trainer.open(
        config, photograph_store, None, parse_method("kd"), CPU, RunFolder(tmp_path / "run"), resume=True
    )
    assert again.run(resume=True) == result
    assert RunProofs().of(tmp_path / "run", photograph_store).is_proven


# What it begins with


def test_all_but_a_head_of_other_classes_is_taken_and_that_is_said(of_a_thousand, rendering, caplog):
    caplog.set_level("INFO")
    initial, plain = (made(init, rendering, FOREIGN) for init in (of_a_thousand, None))
    begun, seeded, given = initial.network.state_dict(), plain.network.state_dict(), load_file(of_a_thousand)
    head = {"classifier.3.weight", "classifier.3.bias"}
    for key, tensor in begun.items():
        assert torch.equal(tensor, seeded[key] if key in head else given[key]), key
    assert "classifier.3.bias, classifier.3.weight begin as the seed makes them" in caplog.text
    assert plain.digest is None
    assert made(of_a_thousand, rendering, FOREIGN).digest == initial.digest


def test_a_whole_network_of_the_zoo_is_taken_with_its_head(tmp_path, rendering, caplog):
    caplog.set_level("INFO")
    network = create_model("resnet8", len(CLASSES), seed=9)
    save_weights(network, tmp_path / "weights.safetensors", {})
    begun = made(tmp_path / "weights.safetensors", rendering).network.state_dict()
    assert all(torch.equal(tensor, begun[key]) for key, tensor in network.state_dict().items())
    assert "begin as the seed" not in caplog.text


def test_a_head_of_the_same_number_of_other_classes_is_left_too(tmp_path, finished_run, rendering, caplog):
    caplog.set_level("INFO")
    weights = finished_run / "student.safetensors"
    kept, left = made(weights, rendering), made(weights, rendering, classes=("cat", "dog", "yak"))
    given = load_file(weights)
    assert torch.equal(kept.network.head.weight, given["fc.weight"])
    assert not torch.equal(left.network.head.weight, given["fc.weight"])
    assert torch.equal(left.network.state_dict()["conv1.weight"], given["conv1.weight"])
    assert kept.digest != left.digest


def test_one_of_several_sets_is_chosen_by_its_key(tmp_path, rendering):
    raw, ema = (create_model("resnet8", 20, seed=seed).state_dict() for seed in (1, 2))
    torch.save({"state_dict": raw, "ema": ema}, tmp_path / "both.pth")
    with pytest.raises(CheckpointMismatch, match="has 2 sets of weights that fit the network; choose one"):
        made(tmp_path / "both.pth", rendering)
    chosen = made(Path(f"{tmp_path / 'both.pth'}#ema"), rendering).network
    assert torch.equal(chosen.state_dict()["conv1.weight"], ema["conv1.weight"])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (
            lambda state: state | {"conv1.weight": torch.zeros(2, 3, 3, 3)},
            CheckpointMismatch,
            "misshapen: conv1.weight",
        ),
        (lambda state: {key: state[key] for key in state if key != "bn1.weight"}, CheckpointMismatch, "missing: bn1"),
        (lambda state: state | {"more": torch.zeros(2)}, CheckpointMismatch, "unexpected: more"),
        (lambda state: state | {"bn1.bias": torch.full((16,), torch.nan)}, CheckpointError, "not finite"),
    ],
)
def test_all_else_must_fit(tmp_path, rendering, change, error, says):
    save_file(change(create_model("resnet8", 20, seed=1).state_dict()), tmp_path / "weights.safetensors")
    with pytest.raises(error, match=says):
        made(tmp_path / "weights.safetensors", rendering)


def test_a_body_without_a_head_will_do(tmp_path, rendering):
    state = create_model("resnet8", 20, seed=1).state_dict()
    save_file({key: state[key] for key in state if not key.startswith("fc.")}, tmp_path / "body.safetensors")
    begun = made(tmp_path / "body.safetensors", rendering).network.state_dict()
    assert torch.equal(begun["conv1.weight"], state["conv1.weight"])


def test_a_run_is_bound_to_what_it_began_with(tmp_path, photograph_store):
    files = []
    for seed in (1, 2):
        files.append(tmp_path / f"{seed}.safetensors")
        save_weights(create_model("resnet8", 20, seed=seed), files[-1], {})
    common = ("ckd-train", "--store", photograph_store, "--student", "resnet8", "--student-size", 32, "--method", "kd")
    common = (*common, "--max-evals", 1, "--out", tmp_path / "run", "--resume", "--json")
    first = run_command(*common, "--init", files[0])
    assert first.returncode == 0, first.stderr
    assert len(json.loads(first.stdout)["init"]) == 64
    assert " ".join(first.stderr.split()).count("fc.bias, fc.weight begin as the seed makes them") == 1
    again = run_command(*common, "--init", files[0])
    assert json.loads(again.stdout) == json.loads(first.stdout)
    for other in (("--init", files[1]), ()):
        refused = run_command(*common, *other)
        assert refused.returncode == 2
        assert "was started with init" in refused.stderr
    missing = run_command(*common, "--init", tmp_path / "none.pth")
    assert missing.returncode == 2
    assert "there is no checkpoint at" in missing.stderr


def test_an_interrupted_run_with_given_weights_equals_an_uninterrupted_one(tmp_path, photograph_store):
    init = tmp_path / "weights.safetensors"
    save_weights(create_model("resnet8", 20, seed=1), init, {})
    whole = train(photograph_store, tmp_path / "whole", "resnet8", student_size=32, init=init)
    config = TrainConfig(
        student="resnet8", student_size=32, init=init, batch_size=8, lr=0.01, protocol=ProtocolConfig(max_evals=1)
    )
    stopped = RunFolder(tmp_path / "stopped")
    trainer = Trainer.open(config, photograph_store, None, parse_method("kd"), CPU, stopped)
    stopped.path.mkdir()
    trainer.prepare()
    trainer.state.student.train()
    trainer.state.losses.append(trainer.train_step())
    trainer.save_state()
    Trainer.open(config, photograph_store, None, parse_method("kd"), CPU, stopped, resume=True).run(resume=True)
    tensors = [load_file(folder / "student.safetensors") for folder in (whole, stopped.path)]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    untouched = train(photograph_store, tmp_path / "plain", "resnet8", student_size=32)
    assert not torch.equal(load_file(untouched / "student.safetensors")["conv1.weight"], tensors[0]["conv1.weight"])


@pytest.mark.parametrize("method", ["ckd", "simkd:on=pooled"])
def test_anchored_students_and_those_with_their_teachers_layer_begin_with_weights_too(
    method, tmp_path, photograph_store
):
    init = tmp_path / "weights.safetensors"
    save_weights(create_model("resnet8", 20, seed=1), init, {})
    run = train(photograph_store, tmp_path / "run", "resnet8", method, student_size=32, init=init)
    assert RunRecord.read(run).init == made(init, RunRecord.read(run).student_rendering).digest


def test_a_library_that_has_no_such_network_is_refused_before_anything_is_read(photograph_store, tmp_path):
    refused = run_command("ckd-train", "--store", photograph_store, "--student", "torchvision:resnet19")
    assert refused.returncode == 2
    assert "did you mean" in refused.stderr
    with pytest.raises(InvalidInput):
        TrainConfig(student="resnet8", student_preprocessing="none")
