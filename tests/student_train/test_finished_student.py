"""What a run's folder says of its student, and what is asked of its store where an earlier release said less."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from ground.errors import IdentityMismatch, InvalidInput
from student_train.finished_student import FinishedStudent
from tests.running import run_command


@pytest.fixture
def older_run(finished_run, tmp_path) -> Path:
    """As a release left it that said neither rendering nor fit nor classes."""
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    document = json.loads((folder / "run.json").read_text())
    for name in ("student_rendering", "fit"):
        del document[name]
    (folder / "run.json").write_text(json.dumps(document))
    weights = folder / "student.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(weights), weights)
    return folder


def test_a_run_says_all_of_it_without_its_store(finished_run, tmp_path):
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    document = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(document | {"store": str(tmp_path / "gone")}))
    student = FinishedStudent.open(folder)
    assert student.classes == ("cat", "dog", "owl")
    assert (student.rendering.size, student.rendering.geometry.image_size) == (32, 72)
    # A plain view of 63 of 72 pixels: the odd pixel is rounded once, as the teacher's library does.
    assert (student.fit.shape, student.fit.interpolation) == ("centre-1", "bicubic")
    assert not student.network.training


def test_an_older_run_is_completed_from_its_store(older_run, photograph_store, tmp_path):
    student = FinishedStudent.open(older_run)
    assert student.classes == ("cat", "dog", "owl")
    assert student.fit.interpolation == "bicubic"
    # It was shown images as its teacher was, which is what those runs mean.
    assert student.rendering.size == 64
    document = json.loads((older_run / "run.json").read_text())
    (older_run / "run.json").write_text(json.dumps(document | {"store": str(tmp_path / "gone")}))
    with pytest.raises(InvalidInput, match="its store cannot be asked .* say where it is, with --store"):
        FinishedStudent.open(older_run)
    assert FinishedStudent.open(older_run, photograph_store).classes == ("cat", "dog", "owl")


def test_another_store_is_refused(older_run, built_store):
    with pytest.raises(IdentityMismatch, match="is not the store that"):
        FinishedStudent.open(older_run, built_store)


@pytest.mark.parametrize(("damage", "says"), [("run.json", "holds no finished run"), ("student.safetensors", "no ch")])
def test_a_run_without_its_files_is_refused(finished_run, tmp_path, damage, says):
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (folder / damage).unlink()
    with pytest.raises(InvalidInput, match=says):
        FinishedStudent.open(folder)


MODULE = """
from torch import nn


def student(num_classes):
    body = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(4, num_classes))
"""


def test_a_student_that_is_the_users_code_answers_only_where_that_is_allowed(photograph_store, photographs, tmp_path):
    (tmp_path / "own_students.py").write_text(MODULE)

    def run(*arguments: object):
        return run_command("ckd-train", *arguments, cwd=tmp_path)

    trained = run(
        "--store", photograph_store, "--student", "python:own_students:student", "--student-size", 32, "--method", "kd",
        "--max-evals", 1, "--out", "run", "--allow-code",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    images = photographs / "test" / "dog"
    for command in (("predict", "run", images), ("export", "run", "--to", "export")):
        refused = run(*command)
        assert refused.returncode == 2
        assert refused.stderr.rstrip().endswith("look at it, then give --allow-code")
        done = run(*command, "--allow-code")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "student.pt2").exists()
