"""An exported student says what the student says, of any number of images, and carries its description."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput
from student_train import export
from student_train.export import describe, export_student
from student_train.finished_student import FinishedStudent
from tests.running import run_command
from tests.student_train.conftest import train


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def noise(student: FinishedStudent, count: int) -> torch.Tensor:
    return torch.randn(count, 3, student.rendering.size, student.rendering.size)


def test_a_program_says_what_the_student_says_and_is_described_beside_it(run):
    done = run_command("ckd-train", "export", run, "--to", "export", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    file, student = run / "student.pt2", FinishedStudent.open(run)
    assert (said["file"], said["written"], said["bytes"]) == (str(file), True, file.stat().st_size)
    assert said["difference"] <= 1e-5
    extra = {export.DESCRIPTION: ""}
    program = torch.export.load(file, extra_files=extra).module()
    with torch.inference_mode():
        for count in (1, 7):
            images = noise(student, count)
            torch.testing.assert_close(program(images), student.network(images), rtol=1e-4, atol=1e-5)
    document = json.loads((run / "student.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert document.pop("files") == {"student.pt2": digest} == {"student.pt2": said["digest"]}
    assert document == describe(student) == json.loads(extra[export.DESCRIPTION])
    assert document["classes"] == ["cat", "dog", "owl"]
    assert (document["size"], document["crop"], document["resize"], document["interpolation"]) == (
        32,
        63,
        72,
        "bicubic",
    )


def test_a_file_names_parameters_as_the_library_does_and_nothing_of_this_machine(foreign_run, tmp_path):
    done = export_student(FinishedStudent.open(foreign_run), "export", tmp_path / "owls.pt2")
    assert done.description == tmp_path / "owls.json"
    program = torch.export.load(done.file)
    assert "features.0.0.weight" in program.state_dict
    content = done.file.read_bytes()
    for path in (sys.prefix, str(Path(torch.__file__).parent.parent), str(Path(__file__).parents[2]), str(foreign_run)):
        assert path.encode() not in content


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zoo", "foreign", "reused head"])
def test_an_onnx_file_runs_in_onnxruntime_with_the_same_logits(request, kind, photograph_store, tmp_path):
    import onnx
    import onnxruntime

    if kind == "reused head":
        run = train(photograph_store, tmp_path / "run", "resnet8", "simkd:on=pooled", student_size=32)
    else:
        run = request.getfixturevalue({"zoo": "finished_run", "foreign": "foreign_run"}[kind])
    file = tmp_path / "student.onnx"
    done = run_command("ckd-train", "export", run, "--to", "onnx", "--out", file)
    assert done.returncode == 0, done.stderr
    assert "its logits of noise are the student's but for" in done.stdout
    student = FinishedStudent.open(run)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 7):
        images = noise(student, count)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(logits, student.network(images).numpy(), rtol=1e-4, atol=1e-5)
    model = onnx.load(file)
    texts = {item.key: item.value for item in model.metadata_props}
    assert json.loads(texts["classes"]) == ["cat", "dog", "owl"]
    assert (texts["input"], json.loads(texts["size"])) == ("images", student.rendering.size)
    document = json.loads((tmp_path / "student.json").read_text())
    assert document["files"] == {"student.onnx": hashlib.sha256(file.read_bytes()).hexdigest()}
    first = {"zoo": "conv1.weight", "foreign": "features.0.0.weight", "reused head": "body.conv1.weight"}[kind]
    assert first in {tensor.name for tensor in model.graph.initializer}
    content = file.read_bytes()
    for path in (sys.prefix, str(Path(torch.__file__).parent.parent), str(Path(__file__).parents[2]), str(run)):
        assert path.encode() not in content


def test_a_second_file_of_a_student_is_described_with_the_first(run):
    student = FinishedStudent.open(run)
    first = export_student(student, "export")
    second = export_student(student, "export", run / "another.pt2")
    assert second.description == run / "another.json"
    (run / "another.json").unlink()
    shutil.move(run / "another.pt2", run / "else.pt2")
    described = json.loads((run / "student.json").read_text())
    (run / "student.json").write_text(json.dumps(described | {"files": {"student.onnx": "0" * 64}}))
    export_student(student, "export")
    files = json.loads((run / "student.json").read_text())["files"]
    assert files == {"student.onnx": "0" * 64, "student.pt2": first.digest}


def test_a_file_that_says_something_else_is_not_written(run, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    done = run_command("ckd-train", "export", run, "--to", "export")
    assert done.returncode == 1
    assert "student.pt2 was not written: its logits differ by" in done.stderr
    assert not (run / "student.pt2").exists()
    assert not (run / "student.json").exists()


def test_no_other_file_is_replaced(run):
    student = FinishedStudent.open(run)
    before = (run / "run.json").read_bytes()
    with pytest.raises(InvalidInput, match="run.json is no description of a student"):
        export_student(student, "export", run / "run.pt2")
    with pytest.raises(InvalidInput, match=r"does not end in \.pt2"):
        export_student(student, "export", run / "student.safetensors")
    assert (run / "run.json").read_bytes() == before


def test_a_package_that_is_missing_is_named_with_its_command(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        InvalidInput, match=r"needs the package onnx; install it with: pip install 'teacher-cache\[onnx\]'"
    ):
        export_student(FinishedStudent.open(run), "onnx")


@pytest.mark.slow
def test_without_a_runtime_it_is_said_that_nothing_was_compared(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = run_command("ckd-train", "export", run, "--to", "onnx")
    assert done.returncode == 0, done.stderr
    assert "not checked, as onnxruntime is not installed" in done.stdout
    assert (run / "student.onnx").exists()
