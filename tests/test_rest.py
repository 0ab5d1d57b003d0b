"""Stage two learns from the rows that were answered, and does not see what a store keeps beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ground.errors import InvalidInput
from models.compute import Compute
from storage.rows import Rows
from storage.store import Store
from student_train.methods import parse_method
from student_train.needs import Wanted
from student_train.protocol import ProtocolConfig
from student_train.request import Request
from student_train.rest.spec import parse_rest
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer
from teacher_cache.build import build
from teacher_cache.config import ExtensionConfig
from teacher_cache.convert import convert
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build
from teacher_cache.rest import Rest
from teacher_cache.selection import SelectorSpec
from tests.conftest import run_command
from tests.teacher_cache.damage import config_of

CPU = Compute(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module", params=["zarr", "hdf5"])
def pair(request, weights, few_tested, tmp_path_factory) -> tuple[Path, Path]:
    """A store of 70 rows, and the same with 120 images besides; treat them as read-only."""
    folder = tmp_path_factory.mktemp("pair")
    for name, rest in (("without", 0), ("with", 120)):
        build(*prepare_build(config_of(folder / name, weights, request.param, rest=Rest(rest)), few_tested))
    return folder / "without", folder / "with"


@pytest.mark.parametrize("settings", [{}, {"stream": True, "stream_rows": 64}])
@pytest.mark.parametrize("method", ["ckd", "crd"])
def test_a_student_is_the_same_with_a_rest_beside_its_rows_and_without(pair, tmp_path, method, settings):
    config = TrainConfig(student="resnet8", batch_size=16, protocol=ProtocolConfig(max_evals=2), **settings)
    for store in pair:
        out = RunFolder(tmp_path / store.name)
        Trainer.open(config, store, None, parse_method(method), CPU, out).run()
    one, other = (load_file(tmp_path / store.name / "student.safetensors") for store in pair)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0)
    results = [json.loads((tmp_path / store.name / "run.json").read_text()) for store in pair]
    assert [(result["n"], result["teacher_calls"]) for result in results] == [(70, 70)] * 2


@pytest.fixture(scope="module", params=["zarr", "hdf5"])
def bought(request, weights, few_tested, tmp_path_factory) -> tuple[Path, Path]:
    """A store of which a rule bought the last 30 of 70 rows out of its rest, in places all over the arrays, and a copy
    with each row at its own number; treat them as read-only.
    """
    folder = tmp_path_factory.mktemp("bought")
    for n, rule in ((40, "random"), (70, "balanced")):
        changes = {"n": n, "rest": Rest(120), "select": SelectorSpec(rule)}
        build(*prepare_build(config_of(folder / "places", weights, request.param, **changes), few_tested))
    convert(folder / "places", request.param, folder / "copy")
    assert len(Store.open(folder / "places").manifest.places) > 5
    return folder / "places", folder / "copy"


@pytest.mark.parametrize("settings", [{}, {"stream": True, "stream_rows": 64}])
@pytest.mark.parametrize(("method", "n"), [("kd", 30), ("vanilla", 0)])
def test_a_student_is_the_same_wherever_rows_and_rest_lie(bought, tmp_path, method, n, settings):
    config = TrainConfig(student="resnet8", batch_size=16, protocol=ProtocolConfig(max_evals=1), **settings)
    spec = replace(parse_method(method), rest=parse_rest(["ce"]))
    for store in bought:
        Trainer.open(config, store, n, spec, CPU, RunFolder(tmp_path / store.name)).run()
    one, other = (load_file(tmp_path / store.name / "student.safetensors") for store in bought)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0)
    results = [json.loads((tmp_path / store.name / "run.json").read_text()) for store in bought]
    assert [(result["rest_rows"], result["teacher_calls"]) for result in results] == [(190 - n, n)] * 2
    # What the order of the rest was is part of a run whose store may yet be given another; places are not.
    assert results[0]["rest_order"] == results[1]["rest_order"]


def test_a_run_is_not_gone_on_with_once_a_rule_has_bought_of_its_rest(weights, tmp_path):
    config = config_of(tmp_path / "store", weights, n=40, rest=Rest(120))
    build(*prepare_build(config))
    spec = replace(parse_method("kd"), rest=parse_rest(["ce"]))
    training = TrainConfig(student="resnet8", batch_size=16, protocol=ProtocolConfig(max_evals=1))

    def trainer(name: str = "run") -> Trainer:
        return Trainer.open(training, config.store, 40, spec, CPU, RunFolder(tmp_path / name))

    result = trainer().run()
    assert trainer().run(resume=True) == result
    build(*prepare_build(replace(config, n=43, select=SelectorSpec("balanced"), rest=Rest(117))))
    with pytest.raises(InvalidInput, match="was started with rest_order"):
        trainer().run(resume=True)
    other = trainer("other").run()
    # Then each row lies at its own number again, and is still another one.
    extend(*prepare_extension(ExtensionConfig(store=config.store, features="layer2", weights=weights, device="cpu")))
    assert Store.open(config.store).manifest.places == ()
    with pytest.raises(InvalidInput, match="was started with rest_order"):
        trainer().run(resume=True)
    assert trainer("other").run(resume=True) == other


def test_the_memory_that_is_asked_for_is_that_of_the_rows(pair):
    wanted = Wanted(student=(), teacher=("logits",), parameters=False)
    one, other = (Request.checked(Store.open(store), None, wanted, None) for store in pair)
    assert one.needed_bytes == other.needed_bytes


def test_more_rows_than_were_answered_are_refused_however_many_images_there_are(pair):
    with pytest.raises(InvalidInput, match="71 rows are asked for and .* has 70 images that the teacher was asked"):
        Store.open(pair[1]).require_rows(Rows.first(71))


def test_the_commands_of_stage_two_do_without_the_rest(pair, tmp_path):
    options = ("--method", "kd", "--student", "resnet8", "--max-evals", 1, "--device", "cpu")
    trained = run_command("ckd-train", "--store", pair[1], *options, "--out", tmp_path / "run", "--json")
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["n"] == 70
    asked = run_command("ckd-train", "--store", pair[1], *options, "--n", 100, "--out", tmp_path / "more")
    assert asked.returncode == 2
    assert "100 rows are asked for" in asked.stderr
