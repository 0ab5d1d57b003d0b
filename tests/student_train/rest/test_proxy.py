"""Proxies: students of the same store answer the rest, are refused where they are not, and are never the teacher."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ground.errors import IdentityMismatch, InvalidInput
from ground.user_code import UserCode
from ground.views import evaluation_batches
from models import create_model, read_metadata, save_weights
from models.compute import Compute
from storage.run_proof import RunProofs
from storage.store import Store
from student_train.finished_student import FinishedStudent
from student_train.rest.base import RestBatch
from student_train.rest.proxy import Proxy, ProxyRun
from student_train.rest.rows import HeldRest
from student_train.rest.spec import parse_rest, require_rest
from tests.student_train.rest.conftest import NUM_ASKED, result_of, trainer_of

CPU = Compute(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def runs(rest_store, tmp_path_factory):
    """Two students of 40 answers, one of 20, and one of labels alone."""
    folder = tmp_path_factory.mktemp("proxies")
    for name, seed, n in (("one", 0, None), ("two", 1, None), ("small", 0, 20)):
        trainer_of(rest_store, folder / name, "kd:ce=0", n=n, seed=seed, max_evals=1).run()
    trainer_of(rest_store, folder / "labels", "vanilla", ["ce"], 0, max_evals=1).run()
    return folder


def rows_of(store) -> HeldRest:
    opened = Store.open(store)
    images, labels = (opened.read_sample(f"train/{name}")[NUM_ASKED:] for name in ("images", "labels"))
    return HeldRest(torch.from_numpy(images), torch.from_numpy(labels))


def test_the_answers_are_the_mean_logits_of_the_students_on_plain_views(rest_store, runs):
    rest = rows_of(rest_store)
    loss = Proxy([ProxyRun.of(runs / name) for name in ("one", "two")])
    loss.begin(create_model("resnet8", 10, seed=0), rest, CPU, UserCode.REFUSED)
    said = []
    for name in ("one", "two"):
        student = FinishedStudent.open(runs / name)
        ((inputs, _),) = evaluation_batches(rest.images, rest.labels, student.rendering)
        with torch.no_grad():
            said.append(student.network(inputs).double())
    torch.testing.assert_close(loss.answers.double(), (said[0] + said[1]) / 2, rtol=1e-5, atol=1e-5)


def test_the_cost_is_the_divergence_from_the_proxies_of_the_very_rows(runs):
    loss = Proxy([ProxyRun.of(runs / "one")], temperature=2.0)
    generator = torch.Generator().manual_seed(3)
    loss.answers = torch.randn(6, 10, generator=generator)
    said, rows = torch.randn(3, 10, generator=generator), torch.tensor([5, 0, 2])
    batch = RestBatch(rows, torch.full((3,), -1), None, lambda role: said, lambda network, images: images)
    teacher, student = (x.double().numpy() / 2 for x in (loss.answers[rows], said))
    shares = [np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (teacher, student)]
    expected = 4 * (shares[0] * np.log(shares[0] / shares[1])).sum(axis=1).mean()
    np.testing.assert_allclose(loss(batch).item(), expected, rtol=1e-5)


def test_a_run_says_which_proxies_it_learned_from_and_counts_no_call_for_them(rest_store, runs, tmp_path):
    text = f"proxy:{runs / 'one'}+{runs / 'labels'},weight=0.5"
    trainer_of(rest_store, tmp_path / "run", rest=[text], max_evals=1, method="kd:ce=0").run()
    found = result_of(tmp_path / "run")
    (said,) = found["recipe"]["rest"]
    digests = [
        hashlib.sha256((runs / name / "student.safetensors").read_bytes()).hexdigest() for name in ("one", "labels")
    ]
    assert [proxy["weights"] for proxy in said["runs"]] == digests
    assert [proxy["teacher_calls"] for proxy in said["runs"]] == [NUM_ASKED, 0]
    assert (said["loss"], said["weight"], found["teacher_calls"]) == ("proxy", 0.5, NUM_ASKED)
    assert (found["answered_rows"], found["labelled_rows"], found["unlabelled_rows"]) == (NUM_ASKED, 0, 80)
    store = Store.open(rest_store)
    assert not any("proxy" in name for name in store.arrays.specs)


def test_calls_behind_a_proxy_count_where_the_method_itself_asks_nothing(rest_store, runs, tmp_path):
    store = Store.open(rest_store)
    behind, free = parse_rest([f"proxy:{runs / 'one'}"]), parse_rest([f"proxy:{runs / 'labels'}"])
    assert behind[0].drew_on_calls
    assert not free[0].drew_on_calls
    require_rest(behind, store, NUM_ASKED, asks_teacher=False)
    require_rest(free, store, 0, asks_teacher=False)
    # A vanilla student of 20 rows would else have 40 calls behind it, and say 20; or say 40, and have 20.
    for name, n in (("one", 20), ("small", NUM_ASKED)):
        with pytest.raises(IdentityMismatch, match="drew on the answers to"):
            require_rest(parse_rest([f"proxy:{runs / name}"]), store, n, asks_teacher=False)
    require_rest(parse_rest([f"proxy:{runs / 'small'}"]), store, NUM_ASKED, asks_teacher=True)


def test_proxies_of_other_stores_pools_and_answers_are_refused_before_anything_is_read(
    rest_store, runs, built_store, tmp_path
):
    other = trainer_of(built_store, tmp_path / "other", n=40, max_evals=1)
    other.run()
    with pytest.raises(IdentityMismatch, match="was trained from another store than this one"):
        trainer_of(rest_store, tmp_path / "run", rest=[f"proxy:{tmp_path / 'other'}"])
    with pytest.raises(IdentityMismatch, match=r"answers to 40 rows.*to have 20 of them; give --n 40"):
        trainer_of(rest_store, tmp_path / "run", rest=[f"proxy:{runs / 'one'}"], n=20, method="kd:ce=0")
    shutil.copytree(runs / "one", tmp_path / "elsewhere")
    said = result_of(tmp_path / "elsewhere") | {"dataset": "cifar100"}
    (tmp_path / "elsewhere" / "run.json").write_text(json.dumps(said))
    with pytest.raises(IdentityMismatch, match="was trained on cifar100, and this store holds digits"):
        trainer_of(rest_store, tmp_path / "run", rest=[f"proxy:{tmp_path / 'elsewhere'}"])
    assert not (tmp_path / "run").exists()


def test_a_proxy_that_hides_its_calls_is_refused(rest_store, runs, tmp_path):
    shutil.copytree(runs / "one", tmp_path / "forged")
    said = result_of(tmp_path / "forged") | {"n": 0, "teacher_calls": 0}
    (tmp_path / "forged" / "run.json").write_text(json.dumps(said))
    with pytest.raises(IdentityMismatch, match="is not what was trained: "):
        trainer_of(rest_store, tmp_path / "run", "vanilla", ["ce", f"proxy:{tmp_path / 'forged'}"], 0)
    # Weights of a student that asked say so in their file, and so does who begins with them.
    weights = runs / "one" / "student.safetensors"
    trainer_of(rest_store, tmp_path / "begun", "vanilla", ["ce"], 0, max_evals=1, init=weights).run()
    found = result_of(tmp_path / "begun")
    assert (found["teacher_calls"], found["init_calls"]) == (0, NUM_ASKED)
    with pytest.raises(IdentityMismatch, match=f"began with weights of a student that {NUM_ASKED} calls are behind"):
        trainer_of(rest_store, tmp_path / "run", "vanilla", ["ce", f"proxy:{tmp_path / 'begun'}"], 0)


@pytest.mark.parametrize(
    ("changed", "recorded", "said"),
    [
        ({"classes": json.dumps(list("9876543210"))}, {}, "other images or classes than this store's"),
        ({"dataset_digest": "0" * 64}, {}, "other images or classes than this store's"),
        ({}, {"n": 20, "teacher_calls": 20}, "weights that say n '40', and its run.json says 20"),
        ({"init_calls": "500"}, {}, "weights that say init_calls '500', and its run.json says 0"),
    ],
)
def test_weights_of_another_run_are_refused_also_where_nothing_vouches_for_theirs(
    rest_store, runs, tmp_path, changed, recorded, said
):
    forged = tmp_path / "forged"
    shutil.copytree(runs / "one", forged)
    # Nothing is as the ledger has it, so that it cannot say which run this was.
    weights = forged / "student.safetensors"
    network = create_model("resnet8", 10, seed=9)
    save_weights(network, weights, read_metadata(weights) | changed)
    (forged / "metrics.csv").write_text("step\n")
    (forged / "run.json").write_text(json.dumps(result_of(forged) | {"seconds": 7.0} | recorded))
    with pytest.raises(IdentityMismatch, match=said):
        trainer_of(rest_store, tmp_path / "run", "kd:ce=0", [f"proxy:{forged}"], n=recorded.get("n"))


def unproven(run: Path, copy: Path) -> Path:
    """A run as a release before proofs left it: its weights and its record agree, and no ledger knows the two."""
    shutil.copytree(run, copy)
    # Its store's ledger has an entry of the run as it was; nothing of this one is in it.
    weights = copy / "student.safetensors"
    save_weights(create_model("resnet8", 10, seed=9), weights, read_metadata(weights))
    (copy / "metrics.csv").write_text("step\n")
    (copy / "run.json").write_text(json.dumps(result_of(copy) | {"seconds": 7.0}))
    assert not RunProofs().of(copy, Path(result_of(copy)["store"])).is_proven
    return copy


def test_a_proxy_that_nothing_vouches_for_is_used_and_said_to_be_so(rest_store, runs, tmp_path, caplog):
    old = unproven(runs / "one", tmp_path / "old")
    digest = hashlib.sha256((old / "student.safetensors").read_bytes()).hexdigest()
    trainer_of(rest_store, tmp_path / "run", "kd:ce=0", [f"proxy:{old}+{runs / 'two'}"], max_evals=1).run()
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith(f"the proxy {old} is taken at its word about what it learned from: nothing vouches for")
    assert result_of(tmp_path / "run")["unproven_proxies"] == [digest]
    # That run is vouched for itself, and what it learned from is behind whoever learns from it.
    caplog.clear()
    trainer_of(rest_store, tmp_path / "next", "kd:ce=0", [f"proxy:{tmp_path / 'run'}"], max_evals=1).run()
    assert "taken at its word" not in caplog.text
    assert result_of(tmp_path / "next")["unproven_proxies"] == [digest]


def test_of_proxies_that_are_vouched_for_nothing_is_said(rest_store, runs, tmp_path, caplog):
    store = Store.open(rest_store)
    assert require_rest(parse_rest([f"proxy:{runs / 'one'}"]), store, NUM_ASKED, asks_teacher=True) == ()
    assert not caplog.records
    trainer_of(rest_store, tmp_path / "run", "kd:ce=0", [f"proxy:{runs / 'one'}"], max_evals=1).run()
    assert "unproven_proxies" not in result_of(tmp_path / "run")


def test_a_run_names_the_outputs_that_its_proxies_read(rest_store, runs, tmp_path):
    trainer_of(rest_store, tmp_path / "none", "vanilla", ["ce", f"proxy:{runs / 'labels'}"], 0, max_evals=1).run()
    assert result_of(tmp_path / "none")["teacher_outputs"] == []
    (spec,) = parse_rest([f"proxy:{runs / 'one'}"])
    assert spec.proxies[0].record.teacher_outputs == ("logits",)
    trainer_of(rest_store, tmp_path / "run", "kd:ce=0", [spec.text], max_evals=1).run()
    assert result_of(tmp_path / "run")["teacher_outputs"] == ["logits"]


def test_a_proxy_is_read_once_and_its_weights_are_those_whose_digest_was_taken(rest_store, runs, tmp_path):
    for name in ("moved", "replaced"):
        shutil.copytree(runs / "one", tmp_path / name)
    moved, replaced = (parse_rest([f"proxy:{tmp_path / name}"])[0].proxies[0] for name in ("moved", "replaced"))
    (tmp_path / "moved").rename(tmp_path / "away")
    assert moved.describe()["n"] == NUM_ASKED
    shutil.copy(runs / "two" / "student.safetensors", tmp_path / "replaced")
    with pytest.raises(InvalidInput, match="was replaced while it was being used"):
        replaced.student(UserCode.REFUSED)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("proxy", "names no run"),
        ("proxy:", "names no run"),
        ("proxy:weight=2", "names no run"),
        ("proxy:{one}+", "names no run"),
        ("proxy:{one}+{one}", "names a student twice"),
        ("proxy:{one},runs=2", "what stands after the colon"),
        ("proxy:{one},temperature=0", "temperature"),
        ("proxy:{one}/nowhere", "give the folder of another run"),
    ],
)
def test_text_that_names_no_proxy_is_refused(runs, text, said):
    with pytest.raises(InvalidInput, match=said):
        parse_rest([text.format(one=runs / "one")])


def test_the_same_student_elsewhere_is_the_same_proxy(runs, tmp_path):
    shutil.copytree(runs / "one", tmp_path / "copy")
    here, there = (parse_rest([f"proxy:{folder}"]) for folder in (runs / "one", tmp_path / "copy"))
    assert here == there
    assert here != parse_rest([f"proxy:{runs / 'two'}"])
