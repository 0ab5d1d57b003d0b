"""Teachers that are files, through the commands: built, renamed, grown, extended, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from storage.store import Store
from tests.running import run_command

pytest.importorskip("onnxruntime")

CARD = {"size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
SCRIPT = ("--teacher", "export:teacher.pt", "--allow-code")


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with a teacher of the digits, as an ONNX file and as TorchScript."""
    from tests.onnx_classifier import classifier, written

    written(tmp_path / "teacher.onnx", classifier(classes=10))
    (tmp_path / "teacher.onnx.json").write_text(json.dumps(CARD))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.script(module).save(str(tmp_path / "teacher.pt"))
    return tmp_path


def build(place: Path, *arguments: object):
    own = ("--dataset", "digits", "--n", 6, "--view-policy", "plain", "--device", "cpu", "--store", "s")
    return run_command("ckd-cache", "build", *own, *arguments, cwd=place)


def test_a_store_keeps_what_onnxruntime_says_and_a_renamed_file_is_the_same_teacher(place):
    import onnxruntime

    built = build(place, "--teacher", "onnx:teacher.onnx", "--features", "all")
    assert built.returncode == 0, built.stderr
    assert "does not say how it is shown images" not in built.stderr
    store = Store.open(place / "s")
    identity = store.manifest.identity
    assert (identity.teacher.name, identity.teacher.input_size) == ("onnx:teacher.onnx", 16)
    assert [output.name for output in identity.outputs] == ["logits", "stage.Relu_output_0", "pooled"]
    assert store.manifest.sources["teacher"] == f"onnx:{place}/teacher.onnx"
    views = torch.from_numpy(store.read_sample("train/images")).permute(0, 3, 1, 2)
    shown = nn.functional.interpolate(views.float(), size=16, mode="bilinear", antialias=True).round() / 255
    session = onnxruntime.InferenceSession(place / "teacher.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(["logits"], {"images": ((shown - 0.5) / 0.25).numpy()})
    np.testing.assert_allclose(store.read("train/logits")[:, 0], expected, rtol=1e-2, atol=2e-2)

    (place / "teacher.onnx").rename(place / "renamed.onnx")
    (place / "teacher.onnx.json").rename(place / "renamed.json")
    again = build(place, "--teacher", "onnx:renamed.onnx", "--features", "all", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["new_calls"] == 0
    silent = run_command("ckd-cache", "build", "--store", "s", "--n", 8, cwd=place)
    assert (silent.returncode, "only you can say where that lies" in silent.stderr) == (2, True)
    (place / "renamed.json").write_text(json.dumps(CARD | {"mean": [0, 0, 0]}))
    # A store shows its teacher images as it did before; a new one as the card says now.
    again = build(place, "--teacher", "onnx:renamed.onnx", "--features", "all", "--json")
    assert (again.returncode, json.loads(again.stdout)["new_calls"]) == (0, 0)
    other = build(place, "--teacher", "onnx:renamed.onnx", "--features", "all", "--mean", 0, 0, 0)
    assert (other.returncode, "teacher.fingerprint (store: " in other.stderr) == (2, True)


def test_a_program_is_built_from_and_extended_without_its_size_being_said_again(place):
    refused = build(place, "--teacher", "export:teacher.pt", "--input-size", 32)
    assert (refused.returncode, "is only run where you say so" in refused.stderr) == (2, True)
    assert not (place / "s").exists()
    unsaid = build(place, *SCRIPT)
    assert (unsaid.returncode, "does not say which; give --input-size" in unsaid.stderr) == (2, True)
    built = build(place, *SCRIPT, "--input-size", 32)
    assert built.returncode == 0, built.stderr
    assert "does not say how it is shown images; it is taken to be 32 pixels" in " ".join(built.stderr.split())
    grown = run_command("ckd-cache", "build", "--store", "s", "--n", 8, *SCRIPT, cwd=place)
    assert grown.stdout == "2 new teacher calls; s holds 8 of 8 rows whole\n"
    unknown = run_command("ckd-cache", "extend", "--store", "s", "--features", "pooled", "--yes", *SCRIPT, cwd=place)
    assert (unknown.returncode, "no layer of export:teacher.pt is called 'pooled'" in unknown.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--weights", "teacher.pt"), "has its weights in it; leave out --weights"),
        (("--precision", "bf16"), "runs in the numbers of its file and not in bf16; leave out --precision"),
        (("--input-size", 24), "takes images of 16 pixels, and would be given 24"),
        (("--features", "stage"), "no layer of onnx:teacher.onnx is called 'stage'"),
    ],
)
def test_what_a_file_has_no_use_for_is_refused_before_any_call(place, arguments, sentence):
    done = build(place, "--teacher", "onnx:teacher.onnx", *arguments)
    assert (done.returncode, sentence in " ".join(done.stderr.split())) == (2, True), done.stderr
    assert not (place / "s").exists()


def test_a_file_is_described_without_a_call_and_is_no_student(place):
    described = json.loads(run_command("ckd-cache", "teacher", "onnx:teacher.onnx", "--json", cwd=place).stdout)
    shapes = {layer["name"]: layer["shape"] for layer in described["layers"]}
    assert shapes == {"logits": [10], "stage.Relu_output_0": [4, 8, 8], "pooled": [4]}
    assert (described["input_size"], described["parameters"]) == (16, None)
    assert build(place, "--teacher", "onnx:teacher.onnx").returncode == 0
    train = run_command("ckd-train", "--store", "s", "--student", "onnx:teacher.onnx", "--method", "kd", cwd=place)
    assert train.returncode == 2
    assert "is a teacher with its weights in it" in train.stderr


def test_a_program_that_was_exported_while_it_trained_is_refused_before_any_call(place):
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 10)
    ).train()
    images = (torch.randn(2, 3, 32, 32),)
    program = torch.export.export(module, images, dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, place / "training.pt2")
    done = build(place, "--teacher", "export:training.pt2", "--allow-code")
    assert (done.returncode, "export it after eval()" in " ".join(done.stderr.split())) == (2, True), done.stderr
    assert not (place / "s").exists()
