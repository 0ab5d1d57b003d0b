"""`until` buys calls in steps, stops at the target or at the budget, and pays no call twice."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import linregress

from experiments.grid import ALL_LABELS
from models import create_model, save_weights
from storage.ledger import Ledger
from storage.store_folder import LEDGER_FILE
from tests.conftest import run_command


def until(weights: Path, out: Path, *options: object, dataset: object = "digits", as_json: bool = True):
    return run_command(
        "ckd-pipeline", "until", "--teacher", "resnet8", "--student", "resnet8", "--dataset", dataset,
        "--weights", weights, "--seeds", 2, "--max-evals", 2, "--out", out, "--device", "cpu",
        "--jobs", 1, *(["--json"] if as_json else []), "--trust-teacher", *options,
    )  # fmt: skip


@pytest.mark.slow
def test_it_stops_at_the_target_and_says_what_each_step_brought(tmp_path, weights):
    # Of the 12 validation images some are right by chance.
    result = until(weights, tmp_path / "out", "--target", 0.001, "--step", 48, "--budget", 960)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["reached"]
    assert [(step["n"], step["new_calls"]) for step in said["steps"]] == [
        (48 * k, 48) for k in range(1, len(said["steps"]) + 1)
    ]
    assert all(step["val_accuracy"] < 0.001 for step in said["steps"][:-1])
    assert said["calls"] == said["steps"][-1]["n"] < 960


@pytest.mark.slow
def test_it_stops_at_the_budget_and_goes_on_with_a_larger_one(tmp_path, weights):
    out = tmp_path / "out"
    first = until(weights, out, "--target", 0.999, "--step", 24, "--budget", 50)
    assert first.returncode == 1, first.stderr
    said = json.loads(first.stdout)
    assert not said["reached"]
    assert [(step["n"], step["new_calls"]) for step in said["steps"]] == [(24, 24), (48, 24)]
    told = until(weights, out, "--target", 0.999, "--step", 24, "--budget", 50, as_json=False)
    assert told.stdout.splitlines()[-2].startswith("what labels alone give was not looked at; --rest ce")
    second = json.loads(until(weights, out, "--target", 0.999, "--step", 24, "--budget", 72).stdout)
    assert [(step["n"], step["new_calls"]) for step in second["steps"]] == [(24, 0), (48, 0), (72, 24)]
    assert [step["val_accuracy"] for step in second["steps"][:2]] == [step["val_accuracy"] for step in said["steps"]]


@pytest.mark.slow
def test_it_buys_by_a_rule_and_stops_where_little_is_expected(tmp_path, weights):
    out = tmp_path / "out"
    options = ("--target", 0.999, "--step", 24, "--budget", 960, "--select", "balanced", "--min-gain", 0.9)
    trained = ("--student-size", 16, "--steps-per-eval", 3, "--schedule", "cosine")
    result = until(weights, out, *options, *trained)
    assert result.returncode == 1, result.stderr
    said = json.loads(result.stdout)
    for record in out.glob("runs/*/*/run.json"):
        run = json.loads(record.read_text())
        assert (run["student_size"], run["steps"], run["protocol"]["schedule"]) == (16, 6, "cosine")
    assert (said["reached"], said["stopped"]) == (False, True)
    # Two students of one n say nothing of another.
    first, second = said["steps"]
    assert first["expected"] is None
    results = pd.read_csv(out / "results.csv")
    line = linregress(np.log2(results["n"]), results["best_val_accuracy"])
    assert second["expected"]["mean"] == pytest.approx(line.slope * np.log2(72 / 48))
    assert second["expected"]["low"] <= second["expected"]["mean"] <= second["expected"]["high"]
    [store] = (out / "stores").iterdir()
    made = json.loads((store / "manifest.json").read_text())["rounds"]
    assert [(of["rule"], of["first"], of["end"]) for of in made] == [("balanced", 0, 24), ("balanced", 24, 48)]


# At one of these rates a student stays what it was.
CHOOSING = ("--method", "kd", "--lr", 1e-6, "--lr", 0.05)
# What students of a few steps learn does not matter here.
SHORT = ("--method", "kd", "--step", 24, "--steps-per-eval", 2)
STORE = Path("stores", "resnet8-digits")


def runs_of(out: Path, n: int) -> dict[int, dict]:
    """Seed -> run.json of each student at one n."""
    found = [json.loads(record.read_text()) for record in out.glob(f"runs/*/*-n{n}-*/run.json")]
    return {run["seed"]: run for run in found}


def spent(folder: Path) -> tuple[int, int | None]:
    with closing(Ledger(folder / LEDGER_FILE)) as ledger:
        summary = ledger.summary()
    return summary.spent, summary.budget


@pytest.fixture(scope="module")
def from_labels(made_once, weights) -> Path:
    """48 calls with the labels of all other images, after those alone; read only."""

    def fill(folder: Path) -> None:
        done = until(weights, folder / "out", *SHORT, "--target", 0.999, "--budget", 48, "--rest", "ce")
        assert done.returncode == 1, done.stderr
        (folder / "said.json").write_text(done.stdout)
        (folder / "told.txt").write_text(done.stderr)

    return made_once("until-from-labels", fill)


def test_it_begins_with_labels_alone_and_says_what_calls_brought_beyond_them(from_labels):
    out, said = from_labels / "out", json.loads((from_labels / "said.json").read_text())
    told = (from_labels / "told.txt").read_text()
    first, *bought = said["steps"]
    assert [(step["n"], step["calls"], step["new_calls"]) for step in said["steps"]] == [
        (0,) * 3,
        (24,) * 3,
        (48, 48, 24),
    ]
    alone = runs_of(out, 0)
    assert {run["method"] for run in alone.values()} == {"vanilla"}
    assert {(run["teacher_calls"], run["labelled_rows"], run["val_rows"]) for run in alone.values()} == {(0, 1150, 287)}
    for measured, name in (("test_accuracy", "test_accuracy"), ("val_accuracy", "best_val_accuracy")):
        assert first[measured] == pytest.approx(np.mean([run[name] for run in alone.values()]))
    assert (first["labelled_rows"], first["expected"], first["beyond"]) == (1150, None, None)
    assert told.index("n=0: 0 calls (labels alone, of 1150 images)") < told.index("n=24: 24 calls (24 new)")
    for step in bought:
        runs = runs_of(out, step["n"])
        assert {(run["answered_rows"], run["labelled_rows"]) for run in runs.values()} == {
            (step["n"], 1150 - step["n"])
        }
        gains = [runs[seed]["test_accuracy"] - alone[seed]["test_accuracy"] for seed in (0, 1)]
        assert step["beyond"]["mean"] == pytest.approx(np.mean(gains))
        # Of two, every bootstrap mean is one of them or between them.
        assert (step["beyond"]["low"], step["beyond"]["high"]) == pytest.approx((min(gains), max(gains)))
        assert f"At {step['n']} calls, kd, rest ce is at" in step["beyond"]["sentence"]
        assert f"a difference of {100 * np.mean(gains):+.1f} points" in step["beyond"]["sentence"]
        assert step["beyond"]["sentence"] in told
    line = linregress(
        np.log2([24, 24, 48, 48]), [runs_of(out, n)[seed]["best_val_accuracy"] for n in (24, 48) for seed in (0, 1)]
    )
    assert bought[1]["expected"]["mean"] == pytest.approx(line.slope * np.log2(72 / 48))
    assert spent(out / STORE) == (48, 48)


def test_labels_alone_are_those_of_a_training_that_asks_for_them(from_labels, tmp_path):
    trained = run_command(
        "ckd-train", "--store", from_labels / "out" / STORE, "--student", "resnet8", "--method", "vanilla", "--n", 0,
        "--rest", "ce", "--seed", 1, "--steps-per-eval", 2, "--max-evals", 2, "--device", "cpu",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    alone, run = runs_of(from_labels / "out", 0)[1], json.loads((tmp_path / "run" / "run.json").read_text())
    for name in ("test_accuracy", "best_val_accuracy", "last_test_accuracy", "steps", "recipe", "labelled_rows"):
        assert run[name] == alone[name], name


def test_labels_alone_are_kept_as_a_row_of_its_table_and_of_its_report(from_labels, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(from_labels / "out", out)
    table = pd.read_csv(out / "results.csv")
    assert table[["label", "n"]].drop_duplicates().to_numpy().tolist() == [
        ["kd, rest ce", 24],
        ["kd, rest ce", 48],
        [ALL_LABELS, 0],
    ]
    assert run_command("ckd-pipeline", "report", out).returncode == 0
    said = json.loads((from_labels / "said.json").read_text())["steps"][-1]["beyond"]["sentence"]
    assert said.partition(": ")[0] in (out / "report.html").read_text()


def test_what_is_trained_is_not_trained_again_whatever_the_budget_becomes(from_labels, weights, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(from_labels / "out", out)
    before = {record: record.read_bytes() for record in out.glob("runs/*/*/run.json")}
    # As if it had been stopped while the second student learned from labels.
    stopped = next(record for record in before if "-n0-seed1-" in str(record))
    stopped.unlink()
    more = until(weights, out, *SHORT, "--target", 0.999, "--budget", 72, "--rest", "ce")
    assert more.returncode == 1, more.stderr
    said, earlier = json.loads(more.stdout), json.loads((from_labels / "said.json").read_text())
    assert [(step["n"], step["new_calls"]) for step in said["steps"]] == [(0, 0), (24, 0), (48, 0), (72, 24)]
    for step, same in zip(said["steps"], earlier["steps"], strict=False):
        assert step | {"new_calls": 0} == same | {"new_calls": 0}
    after = {record: record.read_bytes() for record in out.glob("runs/*/*/run.json")}
    assert {record for record in before if after[record] != before[record]} <= {stopped}
    assert len(after) == len(before) + 2


def test_it_ends_where_too_little_of_the_pool_is_left_to_learn_from(weights, tmp_path):
    asked = ("--method", "kd", "--step", 575, "--steps-per-eval", 2, "--target", 0.999, "--budget", 1150)
    done = until(weights, tmp_path / "out", *asked, "--rest", "ce")
    assert done.returncode == 1, done.stderr
    # With all 1,150 bought there would be no other label.
    assert [step["n"] for step in json.loads(done.stdout)["steps"]] == [0, 575]


@pytest.mark.slow
def test_validation_chooses_rates_and_weights_of_the_labels_at_each_step(weights, tmp_path):
    out, asked = tmp_path / "out", (*SHORT, *CHOOSING, "--target", 0.999, "--budget", 24, "--seeds", 1)
    done = until(weights, out, *asked, "--rest", "ce:weight=auto")
    assert done.returncode == 1, done.stderr
    alone, bought = json.loads(done.stdout)["steps"]
    for step, rests in ((alone, {"ce"}), (bought, {f"ce:weight={weight}" for weight in ("0.25", "1", "4", "16")})):
        runs = [json.loads(record.read_text()) for record in out.glob(f"runs/*/*-n{step['n']}-*/run.json")]
        assert {(run["lr"], *run["rest"]) for run in runs} == {(lr, rest) for lr in (1e-6, 0.05) for rest in rests}
        assert step["val_accuracy"] == max(run["best_val_accuracy"] for run in runs)
        best = [run["test_accuracy"] for run in runs if run["best_val_accuracy"] == step["val_accuracy"]]
        assert step["test_accuracy"] in best


@pytest.mark.slow
def test_a_candidate_that_diverged_has_lost_and_where_all_have_the_purchase_stops(weights, tmp_path):
    asked = (*SHORT, "--target", 0.999, "--budget", 24, "--seeds", 1, "--rest", "all")
    done = until(weights, tmp_path / "out", *asked, "--lr", 1e6, "--lr", 0.05)
    assert done.returncode == 1, done.stderr
    assert [step["n"] for step in json.loads(done.stdout)["steps"]] == [0, 24]
    runs = [json.loads(record.read_text()) for record in (tmp_path / "out").glob("runs/*/*/run.json")]
    assert {run["lr"] for run in runs} == {0.05}
    lost = until(weights, tmp_path / "lost", *asked, "--lr", 1e6)
    assert lost.returncode == 2
    assert "failed: the loss is" in lost.stderr
    assert "go on with the same command and --retry" in lost.stderr


@pytest.mark.slow
def test_a_sum_of_losses_is_bought_for_as_a_method_is(weights, tmp_path):
    out = tmp_path / "out"
    sum_of = ("--loss", "kd", "--loss", "rkd:weight=0.5")
    done = until(weights, out, *SHORT, *sum_of, "--target", 0.999, "--budget", 24, "--seeds", 1)
    assert done.returncode == 1, done.stderr
    [run] = [json.loads(record.read_text()) for record in out.glob("runs/*/*/run.json")]
    assert [part["loss"] for part in run["recipe"]["losses"]] == ["kd", "rkd"]
    [label] = pd.read_csv(out / "results.csv")["label"]
    assert label == "kd+rkd:weight=0.5"


@pytest.mark.parametrize("lines", [True, False])
def test_where_labels_alone_are_enough_nothing_is_bought(from_labels, weights, tmp_path, lines):
    out = tmp_path / "out"
    # What labels alone give is there already, and the same whatever the method is.
    shutil.copytree(from_labels / "out", out)
    shutil.rmtree(out / STORE)
    for run in out.glob("runs/*/*-n[1-9]*"):
        shutil.rmtree(run)
    asked = ("--target", 0.01, "--budget", 48, "--rest", "all")
    done = until(weights, out, *SHORT, *asked, as_json=not lines)
    assert done.returncode == 0, done.stderr
    alone = runs_of(out, 0)
    if lines:
        reached, kept = done.stdout.splitlines()[-2:]
        validation = np.mean([run["best_val_accuracy"] for run in alone.values()])
        assert reached == f"0.01 is reached by labels alone: validation {validation:.4f}; nothing is bought"
        assert kept.startswith("every run is in")
        assert "not looked at" not in done.stdout
    else:
        said = json.loads(done.stdout)
        assert (said["reached"], said["calls"], [step["n"] for step in said["steps"]]) == (True, 0, [0])
    assert len(alone) == len(list(out.glob("runs/*/*/run.json"))) == 2
    # Whoever finishes the store by hand is held to the budget too.
    assert spent(out / STORE) == (0, 48)


@pytest.mark.slow
def test_labels_alone_come_before_what_a_rule_buys_and_from_a_store_of_their_own(weights, tmp_path):
    out = tmp_path / "out"
    asked = ("--target", 0.999, "--budget", 24, "--seeds", 1, "--select", "balanced", "--rest", "all")
    done = until(weights, out, *SHORT, *asked)
    assert done.returncode == 1, done.stderr
    first, second = json.loads(done.stdout)["steps"]
    assert (first["n"], first["labelled_rows"], second["n"], second["new_calls"]) == (0, 1150, 24, 24)
    # One pair of students has no interval.
    assert (second["beyond"]["low"], second["beyond"]["high"]) == (None, None)
    assert "which has no interval" in second["beyond"]["sentence"]
    assert spent(out / STORE) == (0, 24)
    bought = out / "stores" / "resnet8-digits-balanced"
    assert spent(bought) == (24, 24)
    manifest = json.loads((bought / "manifest.json").read_text())
    assert (manifest["n"], manifest.get("rest", 0)) == (24, 0)
    assert run_command("ckd-cache", "verify", "--store", bought).returncode == 0
    assert [run["store"] for run in runs_of(out, 0).values()] == [str(out / STORE)]
    stores = {store["store"]: store["calls"] for store in json.loads((out / "grid.json").read_text())["stores"]}
    assert stores == {str(STORE): 0, "stores/resnet8-digits-balanced": 24}


def test_a_purchase_from_before_goes_on_with_labels_alone_and_without_being_told_again(weights, tmp_path):
    out, asked = tmp_path / "out", ("--target", 0.999, "--budget", 24, "--seeds", 1)
    plain = json.loads(until(weights, out, *SHORT, *asked).stdout)
    assert [(step["n"], step["beyond"]) for step in plain["steps"]] == [(24, None)]
    [before] = out.glob("runs/*/*/run.json")
    was = before.read_bytes()
    with_labels = json.loads(until(weights, out, *SHORT, *asked, "--rest", "all").stdout)
    assert [(step["n"], step["new_calls"]) for step in with_labels["steps"]] == [(0, 0), (24, 0)]
    assert before.read_bytes() == was
    again = until(weights, out, *SHORT, *asked)
    assert json.loads(again.stdout) == with_labels
    assert set(pd.read_csv(out / "results.csv")["proven"]) == {"ledger"}
    assert "evaluations in" not in again.stderr
    assert spent(out / STORE) == (24, 24)


@pytest.mark.slow
def test_a_store_that_was_given_a_rest_is_asked_what_its_labels_give(weights, tmp_path):
    out, asked = tmp_path / "out", ("--target", 0.999, "--budget", 24, "--seeds", 1)
    assert until(weights, out, *SHORT, *asked).returncode == 1
    assert run_command("ckd-cache", "extend", "--store", out / STORE, "--rest", 40).returncode == 0
    said = json.loads(until(weights, out, *SHORT, *asked).stdout)
    assert [(step["n"], step["labelled_rows"]) for step in said["steps"]] == [(0, 1150), (24, 0)]


@pytest.fixture
def photos(tmp_path) -> Path:
    """48 training images, of which six have a label; eight to test on."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    for name, count in {"train/ant": 3, "train/bee": 3, "unlabelled": 42, "test/ant": 4, "test/bee": 4}.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    save_weights(create_model("resnet8", num_classes=2, seed=0), tmp_path / "two.safetensors", {})
    return folder


@pytest.mark.slow
def test_labels_alone_are_of_the_images_that_have_one(photos, tmp_path):
    asked = ("--method", "kd:ce=0", "--step", 8, "--budget", 8, "--target", 0.999, "--seeds", 1, "--steps-per-eval", 2)
    images = {"dataset": f"imagefolder:{photos}"}
    done = until(tmp_path / "two.safetensors", tmp_path / "out", *asked, "--rest", "pseudo", **images)
    assert done.returncode in (0, 1), done.stderr
    first, *_ = json.loads(done.stdout)["steps"]
    # Of six, every fifth is for validation.
    assert (first["n"], first["labelled_rows"]) == (0, 5)
    # Without validation images nothing can be trained, by labels or by calls.
    shutil.rmtree(photos / "unlabelled")
    for name in ("ant/00", "bee/01"):
        (photos / "train" / f"{name}.png").unlink()
    refused = [
        until(tmp_path / "two.safetensors", tmp_path / "none", *asked, "--step", 2, *rest, **images).stderr
        for rest in ((), ("--rest", "all"))
    ]
    assert refused[0] == refused[1] != ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", 0.5, "--step", 100, "--budget", 50), "--step 100 takes 100 calls and --budget is 50"),
        (("--target", 0.5, "--step", 5000, "--budget", 9000), "more than the 1150 images of digits"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--method", "vanilla"), "asks no teacher"),
        (("--target", 50, "--step", 10, "--budget", 50), "is not in the range 0<x<1"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--method", "kdd"), "did you mean kd"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--select", "balancd"), "did you mean balanced"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--select", "balanced:run={kd}"), "no method is called 'kd'"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--rest", "cee"), "no loss of the rest is called 'cee'"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--rest", "20"), "no loss of the rest is called '20'"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--rest", "ALL"), "known: all, ce"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--rest", "all:weight=2"), "give it without settings"),
        (
            (
                *("--method", "kd:weight=auto", "--rest", "ce:weight=auto", "--rest", "pseudo:weight=auto"),
                *("--target", 0.5, "--step", 10, "--budget", 50),
                *(option for rate in range(1, 17) for option in ("--lr", rate / 100)),
            ),
            "validation would choose among more than 1000 trainings",
        ),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--loss", "nothing"), "no loss is called 'nothing'"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--rest", "ce", "--rest", "ce"), "ce is given twice"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--rest", "ce:weight=-1"), "weight"),
        (
            (*CHOOSING, "--target", 0.5, "--step", 10, "--budget", 50, "--select", "uncertain:run={kd}"),
            "kd chooses among trainings, and a rule looks at one",
        ),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--rest", "proxy:runs/a"), "is yet to be bought here"),
        (
            ("--target", 0.5, "--step", 10, "--budget", 50, "--rest", "ce", "--select", "balanced"),
            "what balanced leaves is another rest after every step",
        ),
    ],
)
def test_senseless_questions_are_refused_before_any_call(tmp_path, weights, options, said):
    result = until(weights, tmp_path / "out", *options)
    assert result.returncode == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()
