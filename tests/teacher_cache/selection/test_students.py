"""Students of finished runs: what they say, and which are refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from ground.errors import IdentityMismatch, InvalidInput
from ground.user_code import CodeRefused
from ground.views import evaluation_batches
from models import create_model
from storage.run_record import STUDENT_FILE, RunTeacher
from teacher_cache.selection import SelectorSpec
from teacher_cache.selection.students import Student, probabilities
from tests.teacher_cache.selection.pools import pool_of
from tests.teacher_cache.selection.runs import STORE_ID, make_run


@pytest.fixture(scope="module")
def pool():
    return pool_of([0, 1, 2, 3] * 8, bought=5)


@pytest.fixture(scope="module")
def runs(pool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / f"run{seed}", pool, seed) for seed in range(3)]


def test_they_say_what_their_networks_say_of_plain_views(pool, runs):
    students = [Student.of(run) for run in runs]
    images = torch.from_numpy(pool.images.read(pool.left))
    found = torch.empty(3, len(pool.left), 4, dtype=torch.float64)
    for places, said in probabilities(students, pool, pool.left):
        found[:, places] = said
    for seed, student in enumerate(students):
        network = create_model("resnet8", 4, seed, 8).eval()
        ((inputs, _),) = evaluation_batches(images, images, student.rendering)
        with torch.no_grad():
            expected = network(inputs).double().numpy()
        expected = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found[seed].numpy(), expected, rtol=1e-4)


OTHER = RunTeacher(
    store="/elsewhere",
    store_id="b" * 32,
    teacher="vgg8",
    teacher_fingerprint="2" * 64,
    ledger_head=None,
    rows=8,
    teacher_calls=8,
)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"dataset": "cifar100"}, "was trained on cifar100, and these images are of drawn"),
        ({"store_id": "b" * 32}, "was trained from another store than this one"),
        ({"teachers": (OTHER,)}, "learned from several teachers"),
        ({"student_rendering": msgspec.UNSET}, "did not say how its student is shown images"),
    ],
)
def test_students_of_other_data_and_stores_are_refused_before_anything_is_asked(pool, tmp_path, said, message):
    run = make_run(tmp_path / "run", pool, **said)
    built = replace(pool, store_ids=frozenset({STORE_ID}))
    for rule in (f"uncertain:run={run}", f"kcenter:encoder={run}"):
        for work in ("require", "choose"):
            made = SelectorSpec.read(rule).make()
            with pytest.raises((IdentityMismatch, InvalidInput), match=message):
                made.require(built, 2) if work == "require" else made.choose(built, 2, np.random.default_rng(0))


def test_other_images_or_classes_of_the_same_name_are_refused(pool, runs, tmp_path):
    dataset = pool.identity.dataset
    for other in (replace(dataset, digest="2" * 64), replace(dataset, classes=("a", "b", "c", "d"))):
        changed = replace(pool, identity=replace(pool.identity, dataset=other))
        with pytest.raises(IdentityMismatch, match="other images or classes called drawn too"):
            Student.of(runs[0]).require_of(changed)


def test_before_there_is_a_store_any_run_of_the_data_set_will_do(pool, runs):
    Student.of(runs[0]).require_of(pool)
    with pytest.raises(IdentityMismatch, match="another store"):
        Student.of(runs[0]).require_of(replace(pool, store_ids=frozenset({"c" * 32})))


def test_a_run_is_read_once_and_its_student_may_not_be_replaced_meanwhile(pool, runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    rule = SelectorSpec.read(f"uncertain:run={tmp_path / 'run'}").make()
    rule.require(pool, 2)
    digest = dict(rule.looked_at())
    shutil.copy(runs[1] / STUDENT_FILE, tmp_path / "run" / STUDENT_FILE)
    assert dict(rule.looked_at()) == digest
    with pytest.raises(InvalidInput, match="was replaced while it was being used"):
        rule.choose(pool, 2, np.random.default_rng(0))


def test_students_that_are_code_are_refused_unless_they_are_allowed(pool, tmp_path):
    run = make_run(tmp_path / "run", pool, student="python:tests.nowhere:make")
    with pytest.raises(CodeRefused, match="--allow-code"):
        Student.of(run).open(pool)


def test_a_student_that_says_no_number_is_refused(pool, tmp_path):
    network = create_model("resnet8", 4, 0, 8)
    with torch.no_grad():
        network.head.weight.fill_(3e38)  # finite, as files of weights are; its logits are not
    run = make_run(tmp_path / "run", pool, network=network)
    with pytest.raises(InvalidInput, match="says what is no number"):
        SelectorSpec.read(f"margin:run={run}").make().choose(pool, 2, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uncertain", "missing a required argument: 'run'"),
        ("margin:run=a+", "names no run"),
        ("margin:run=a+./a", "names a run twice"),
        ("uncertain:run=a,subset=0", "subset must be at least 1"),
    ],
)
def test_text_that_names_no_run_is_refused(text, said):
    with pytest.raises(InvalidInput, match=said):
        SelectorSpec.read(text)


def test_a_folder_without_a_run_and_the_same_student_twice_are_refused(pool, runs, tmp_path):
    with pytest.raises(InvalidInput, match=r"holds no finished run \(no run.json\)"):
        SelectorSpec.read(f"uncertain:run={tmp_path}").make().require(pool, 2)
    shutil.copytree(runs[0], tmp_path / "copy")
    with pytest.raises(InvalidInput, match="have the same student"):
        SelectorSpec.read(f"margin:run={runs[0]}+{tmp_path / 'copy'}").make().require(pool, 2)
