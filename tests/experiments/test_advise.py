"""`advise` trains on labels before it calls anybody, buys the pilot and no more, and says the same again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import create_model, save_weights
from storage.ledger import Ledger
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from tests.conftest import run_command

STORE = Path("stores", "resnet8-digits")


def advise(weights: Path, out: Path, *options: object, dataset: object = "digits"):
    return run_command(
        "ckd-cache", "advise", "--teacher", "resnet8", "--student", "resnet8", "--dataset", dataset,
        "--weights", weights, "--seeds", 2, "--max-evals", 1, "--steps-per-eval", 6, "--out", out, "--device", "cpu",
        "--jobs", 1, "--trust-teacher", "--n", 96, *options,
    )  # fmt: skip


def spent(folder: Path) -> tuple[int, int | None]:
    ledger = Ledger(folder / LEDGER_FILE)
    summary = ledger.summary()
    ledger.close()
    return summary.spent, summary.budget


@pytest.fixture(scope="module")
def labels_only(made_once, weights) -> Path:
    """Advice without a call; read only."""

    def fill(folder: Path) -> None:
        done = advise(weights, folder / "out", "--pilot", 0, "--json")
        assert done.returncode == 0, done.stderr
        (folder / "said.json").write_text(done.stdout)

    return made_once("advice-of-labels", fill)


@pytest.fixture(scope="module")
def advised(made_once, labels_only, weights) -> Path:
    """The same with a pilot of as many calls as there was room for; read only."""

    def fill(folder: Path) -> None:
        shutil.copytree(labels_only / "out", folder / "out")
        done = advise(weights, folder / "out", "--pilot", 32, "--json")
        assert done.returncode == 0, done.stderr
        (folder / "said.json").write_text(done.stdout)

    return made_once("advice-of-a-pilot", fill)


def said(folder: Path) -> dict:
    return json.loads((folder / "said.json").read_text())


def test_without_a_pilot_labels_alone_are_trained_and_nobody_is_called(labels_only):
    found = said(labels_only)
    assert (found["calls_made"], found["new_calls"]) == (0, 0)
    assert (found["labels_alone"]["runs"], found["labelled_images"]) == (2, 1150)
    assert (found["verdict"], found["buy"], found["pilot"], found["expected"]) == ("cannot tell yet", None, {}, {})
    assert spent(labels_only / "out" / STORE)[0] == 0
    store = Store.open(labels_only / "out" / STORE)
    assert not store.read("train/valid").any()
    assert found["suggestion"] is None
    # Room for 8 pilots of 200 is room for all, and 287 validation images, a quarter, to choose students by.
    assert (store.manifest.n, store.manifest.num_images, store.manifest.num_val) == (1150, 1150, 287)


def test_a_pilot_is_bought_once_and_is_the_hard_limit(advised):
    found = said(advised)
    assert (found["calls_made"], found["new_calls"]) == (32, 32)
    assert spent(advised / "out" / STORE) == (32, 32)
    assert list(found["pilot"]) == ["8", "16", "32"]
    assert list(found["expected"]) == ["32", "64", "96"]
    for point in found["pilot"].values():
        assert point["calls_alone"]["runs"] == point["calls_and_labels"]["runs"] == 2
        assert point["gain"] == pytest.approx(point["calls_and_labels"]["mean"] - found["labels_alone"]["mean"])
    for prospect in found["expected"].values():
        for interval in (prospect["calls_alone"], prospect["calls_and_labels"]):
            assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1
    assert (found["teacher"], found["student"], found["dataset"]) == ("resnet8", "resnet8", "digits")
    store = Store.open(advised / "out" / STORE)
    right = store.read("train/logits")[:32, 0].argmax(axis=1) == store.read("train/labels")[:32]
    assert found["suggestion"]["teacher_accuracy"] == pytest.approx(right.mean())
    assert found["suggestion"]["judged_answers"] == 32
    assert f"right in {100 * right.mean():.1f} % of its 32 answers about labelled images" in found["sentences"][-1]
    assert json.loads((advised / "out" / "advice.json").read_text()) == found


def test_the_same_question_is_answered_again_without_a_call_or_a_training(advised, weights, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(advised / "out", out)
    again = advise(weights, out, "--pilot", 32, "--json")
    assert json.loads(again.stdout) == said(advised) | {"new_calls": 0}
    assert "after 1 evaluations" not in again.stderr
    shown = advise(weights, out, "--pilot", 32, "--gain", 0.5)
    assert "(labels alone, of 1150 images)" in shown.stdout
    assert "50.0 points are asked for" in shown.stdout
    assert "32 calls were made, 0 of them now" in shown.stdout


def test_labels_are_trained_before_the_first_call(weights, tmp_path):
    # Its teacher was never trained, so that it is doubted after its first answers.
    refused = run_command(
        "ckd-cache", "advise", "--teacher", "resnet8", "--student", "resnet8", "--dataset", "digits",
        "--weights", weights, "--seeds", 1, "--max-evals", 1, "--out", tmp_path, "--device", "cpu",
        "--jobs", 1, "--pilot", 80, "--n", 160,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "labels alone: " in refused.stderr
    assert "first 64" in refused.stderr
    assert spent(tmp_path / STORE)[0] == 64


def test_students_are_trained_as_long_as_asked(weights, tmp_path):
    done = advise(weights, tmp_path, "--pilot", 0, "--schedule", "cosine", "--steps-per-eval", 2)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(found.read_text()) for found in tmp_path.glob("runs/**/run.json")]
    assert [run["steps"] for run in runs] == [2, 2]
    assert {run["protocol"]["schedule"] for run in runs} == {"cosine"}


def test_validation_chooses_among_the_rates_that_are_given(weights, labels_only, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(labels_only / "out", out)
    done = advise(weights, out, "--pilot", 0, "--lr", 0.05, "--lr", 1e-6, "--json")
    assert done.returncode == 0, done.stderr
    runs = [json.loads(found.read_text()) for found in out.glob("runs/**/run.json")]
    assert sorted(run["lr"] for run in runs) == [1e-6, 1e-6, 0.05, 0.05]
    best = {
        seed: max((run for run in runs if run["seed"] == seed), key=lambda run: run["best_val_accuracy"])
        for seed in (0, 1)
    }
    found = json.loads(done.stdout)
    assert found["rates"] == [1e-6, 0.05]
    assert found["labels_alone"]["mean"] == pytest.approx(np.mean([run["test_accuracy"] for run in best.values()]))
    assert not any("at one rate" in sentence for sentence in found["sentences"])
    assert "All students learned at one rate, 0.05" in said(labels_only)["sentences"][-1]


def test_validation_chooses_among_weights_of_the_labels_beside_calls(weights, tmp_path):
    several = ("--pilot", 32, "--lr", 0.05, "--lr", 0.2, "--rest", "ce:weight=auto", "--dry-run", "--json")
    planned = json.loads(advise(weights, tmp_path / "out", *several).stdout)
    # Three sizes, two seeds, two rates; and four weights, where there is one to choose.
    assert planned["by_method"] == {"calls alone": 12, "calls and labels": 48, "vanilla, all labels": 4}
    assert (planned["calls"], planned["new_calls"]) == (32, 32)


def test_a_dry_run_counts_and_does_nothing(weights, tmp_path):
    planned = json.loads(advise(weights, tmp_path / "out", "--pilot", 32, "--dry-run", "--json").stdout)
    assert (planned["calls"], planned["new_calls"], planned["runs"]) == (32, 32, 14)
    assert planned["by_method"] == {"calls alone": 6, "calls and labels": 6, "vanilla, all labels": 2}
    # What one thinks of buying is of no matter where nothing is asked of it: by default that is more than there is.
    without = advise(weights, tmp_path / "out", "--pilot", 0, "--n", 1600, "--dry-run")
    assert "2 students, 0 of them trained" in without.stdout
    assert "teacher calls: 0, 0 of them still to be paid" in without.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--pilot", 4), "--pilot 4 is too small to learn from a quarter of"),
        (("--pilot", 96), "--n 96 is no more than --pilot 96 buys anyway"),
        (("--n", 1200), "--n 1200 is more than the 1150 images that can be sampled"),
        (("--method", "vanilla", "--pilot", 32), "vanilla asks no teacher"),
        (("--method", "kdd", "--pilot", 32), "did you mean kd"),
        (("--loss", "ce", "--pilot", 32), "ce asks no teacher"),
        (("--gain", 1), "is not in the range 0<=x<1"),
        (("--gain", "nan", "--pilot", 32), "nan is not a finite number"),
        (("--rest", "pseudo", "--pilot", 32), "'pseudo' is not about labels"),
        (("--rest", "ce:weight=much", "--pilot", 32), "weight"),
        (("--lr", 0.05, "--lr", -1, "--pilot", 32), "--lr must be a finite number above 0"),
    ],
)
def test_senseless_questions_are_refused_before_any_call(weights, tmp_path, options, reason):
    refused = advise(weights, tmp_path / "out", *options)
    assert refused.returncode == 2
    assert reason in refused.stderr
    assert not (tmp_path / "out" / "stores").exists()


def test_a_store_without_answers_is_given_no_layers_and_the_remedy_costs_no_call(labels_only, weights, tmp_path):
    shutil.copytree(labels_only / "out", tmp_path / "out")
    refused = advise(weights, tmp_path / "out", "--pilot", 32, "--method", "fitnets")
    assert refused.returncode == 2
    assert "fitnets needs layers that the store in" in refused.stderr
    assert "give another --out" in refused.stderr
    assert spent(tmp_path / "out" / STORE)[0] == 0


def test_a_run_that_fails_ends_the_question_and_its_remedy_is_said(weights, tmp_path):
    failed = advise(weights, tmp_path, "--pilot", 0, "--lr", 1e30)
    assert failed.returncode == 2
    assert "--retry" in failed.stderr
    assert not (tmp_path / "advice.json").exists()


@pytest.fixture
def hardly_labelled(tmp_path) -> Path:
    """48 training images, of which six have a label; eight to test on."""
    rng = np.random.default_rng(0)
    for folder, count in {"train/ant": 3, "train/bee": 3, "unlabelled": 42, "test/ant": 4, "test/bee": 4}.items():
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / folder / f"{number:02}.png")
    return tmp_path / "photos"


def test_where_hardly_any_image_has_a_label_calls_are_compared_with_the_pilot(hardly_labelled, tmp_path):
    save_weights(create_model("resnet8", num_classes=2, seed=0), tmp_path / "two.safetensors", {})
    done = advise(
        tmp_path / "two.safetensors", tmp_path / "out", "--pilot", 40, "--n", 44, "--loss", "kd", "--json",
        dataset=f"imagefolder:{hardly_labelled}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["labels_alone"], found["beyond"], found["calls_made"]) == (None, "pilot", 40)
    assert found["pilot"]["40"]["calls_and_labels"] is None
    assert found["method"] == "kd"
    assert "nothing says what labels alone give" in found["sentences"][1]
    # Any method that was measured would refuse images without a label.
    assert found["suggestion"] is None
