"""Teachers in bf16 and fp16: as torch's autocast computes, each with calls of its own, and for teachers alone."""

from __future__ import annotations

import json
from contextlib import closing

import numpy as np
import pytest
import torch

from ground.errors import IdentityMismatch, InvalidInput
from ground.views import resize
from models import create_model
from models.compute import Compute
from models.names import CALL_PRECISIONS
from storage.ledger import Ledger
from storage.ledger_check import ledger_problems
from storage.ledger_report import call_histories
from storage.store import Store
from teacher_cache.build import build
from teacher_cache.datasets import open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.teachers import TeacherSource, ZooTeacher, untrained_teacher
from teacher_cache.trace import runs_of_call
from tests.conftest import run_command
from tests.teacher_cache.damage import build_store, config_of, problems

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("name", ["resnet8", "timm:mobilenetv3_small_050"])
@pytest.mark.parametrize("precision", TYPES)
def test_a_teacher_answers_as_the_network_under_autocast(name, precision):
    teacher = untrained_teacher(
        TeacherSource(name=name), open_dataset("digits"), Compute.choose("cpu", precision, precisions=CALL_PRECISIONS)
    )
    rendering = teacher.card.rendering
    views = torch.randint(0, 256, (2, 3, *2 * [rendering.geometry.crop_size]), dtype=torch.uint8)
    said = teacher.call(views, ["logits"])["logits"]
    network = create_model(name, num_classes=10, seed=0, image_size=rendering.size).eval()
    network.to(memory_format=torch.channels_last)
    pixels = rendering.normalisation.apply(resize(views, rendering.size, rendering.interpolation))
    with torch.inference_mode(), torch.autocast("cpu", TYPES[precision]):
        expected = network.represent(pixels, []).logits
    assert said.dtype == expected.dtype == TYPES[precision]
    assert torch.equal(said, expected)
    assert teacher.card.identity.precision == precision


def test_another_precision_is_another_call_of_the_same_teacher_and_budget(tmp_path, weights, forwards):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    shared = {"n": 12, "features": "pooled", "ledger": url}
    exact = build_store(tmp_path / "fp32", weights, **shared)
    for count, precision in enumerate(TYPES, start=2):
        for name in ("one", "two"):
            build_store(tmp_path / f"{precision}-{name}", weights, precision=precision, **shared)
        assert sum(forwards) == 12 * count, "the second store of a precision has its answers from the first one"
    fingerprints = {
        Store.open(folder).manifest.identity.teacher.fingerprint for folder in tmp_path.iterdir() if folder.is_dir()
    }
    assert len(fingerprints) == 1, "as it was before precisions were told apart"
    assert not np.array_equal(*(Store.open(tmp_path / name).read("train/logits") for name in ("fp32", "fp16-one")))
    for folder in (exact, *(tmp_path / f"{precision}-two" for precision in TYPES)):
        assert problems(folder, url) == []
    with closing(Ledger(url)) as ledger:
        assert ledger.summary().committed == 36
        assert ledger_problems(ledger) == []
    report = build(*prepare_build(config_of(tmp_path / "bf16-one", weights, precision="bf16", **shared)))
    assert (report.new_calls, sum(forwards)) == (0, 36)
    refused = run_command(
        *("ckd-cache", "build", "--store", tmp_path / "new", "--teacher", "resnet8", "--weights", weights, "--n", 16),
        *("--dataset", "digits", "--device", "cpu", "--ledger", url, "--precision", "fp16", "--budget", 39),
    )
    assert refused.returncode == 3
    assert "asked for 4 calls of resnet8, 36 are already paid" in refused.stderr


@pytest.mark.parametrize(("first", "second"), [("fp32", "bf16"), ("bf16", "fp16"), ("fp16", "fp32")])
def test_a_store_is_never_of_two_precisions(tmp_path, weights, forwards, first, second):
    folder = build_store(tmp_path / "store", weights, n=10, features="none", precision=first)
    with pytest.raises(IdentityMismatch, match=rf"teacher.precision \(store: {first}, asked: {second}\)"):
        prepare_build(config_of(folder, weights, n=12, features="none", precision=second))
    assert sum(forwards) == 10


def test_a_run_drew_on_the_calls_of_its_own_precision(tmp_path, weights):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    build_store(tmp_path / "bf16", weights, n=10, features="none", precision="bf16", ledger=url)
    folder = build_store(tmp_path / "fp32", weights, n=10, features="none", ledger=url)
    words = ["--store", folder, "--out", tmp_path / "runs" / "one", "--method", "kd", "--student", "resnet8"]
    trained = run_command("ckd-train", *words, "--max-evals", 1, "--device", "cpu", env={"CKD_LEDGER": url})
    assert trained.returncode == 0, trained.stderr
    traced = run_command("ckd-cache", "ledger", "trace", tmp_path / "runs" / "one", "--ledger", url, "--json")
    assert traced.returncode == 0, traced.stdout + traced.stderr
    assert [call["id"] for call in json.loads(traced.stdout)["calls"]] == list(range(11, 21))
    with closing(Ledger(url)) as ledger:
        for number, call in call_histories(ledger, [3, 13]).items():
            found = runs_of_call(call, ledger, [tmp_path / "runs"])
            assert (len(found.runs), found.unclear) == (int(number == 13), {})


def test_a_device_that_cannot_run_it_is_said_before_any_call(tmp_path, weights, forwards, monkeypatch):
    kind = type(create_model("resnet8", num_classes=10))
    represent = kind.represent

    def unable(self, *arguments):
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16:
            raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'\nmore")
        return represent(self, *arguments)

    monkeypatch.setattr(kind, "represent", unable)
    with pytest.raises(InvalidInput, match="resnet8 cannot run in fp16 on cpu .*slow_conv2d.*; give another --prec"):
        prepare_build(config_of(tmp_path / "store", weights, precision="fp16"))
    prepare_build(config_of(tmp_path / "store", weights, precision="bf16"))
    assert (sum(forwards), list(tmp_path.iterdir())) == (0, [])


def test_what_overflows_in_fp16_is_told_from_weights_that_are_wrong(tmp_path, weights, monkeypatch):
    call = ZooTeacher.call
    monkeypatch.setattr(
        ZooTeacher, "call", lambda self, views, outputs: {n: t * 1e12 for n, t in call(self, views, outputs).items()}
    )
    with pytest.raises(InvalidInput, match="no number; fp16 ends at 65504, so build .* with --precision bf16 or fp32"):
        build_store(tmp_path / "store", weights, n=10, features="none", precision="fp16")


@pytest.mark.parametrize(
    "words",
    [
        ("ckd-train", "--method", "kd"),
        ("ckd-cache", "train-teacher", "--teacher", "resnet8", "--dataset", "digits"),
    ],
)
def test_nothing_is_trained_in_fp16(tmp_path, built_store, words):
    where = ("--store", built_store) if words[0] == "ckd-train" else ()
    refused = run_command(*words, *where, "--out", tmp_path / "out", "--precision", "fp16", "--device", "cpu")
    assert refused.returncode == 2
    assert "fp16 is for a teacher's calls: training in it needs losses that are scaled" in refused.stderr
    assert "give --precision fp32 or bf16" in refused.stderr
    assert "[auto|fp32|bf16]" in run_command(*words[: 1 + (words[0] == "ckd-cache")], "--help").stdout
    assert not (tmp_path / "out").exists()
