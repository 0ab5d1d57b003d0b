"""One student of several ranks, as a user starts and stops it: the same run as of one process, and one that goes on."""

from __future__ import annotations

import csv
import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.running import ROOT, begin_command, run_command, run_program

KILLED, INTERRUPTED = int(signal.SIGKILL), int(signal.SIGINT)


def arguments(store: Path, out: Path, *more: object) -> list[str]:
    settings = ["--student", "resnet8", "--method", "ckd", "--batch-size", "32", "--max-evals", "3", "--lr", "0.01"]
    words = ["--store", store, *settings, "--device", "cpu", "--precision", "fp32", "--out", out, *more]
    return [str(word) for word in words]


def train_in_ranks(folder: Path, words: list[str], *ends: str, count: int = 2) -> tuple[list[int], list[str]]:
    """Exit codes, and what each rank wrote to stderr."""
    done = run_program("tests.student_train.ranked_command", count, folder, *ends, "--", *words)
    said = [(folder / f"rank{rank}.err").read_text() for rank in range(count)]
    assert done.stdout.startswith("["), done.stderr
    return json.loads(done.stdout), said


def results(run: Path) -> tuple[dict, list[dict[str, str]]]:
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return json.loads((run / "run.json").read_text()), [*rows]


@pytest.fixture(scope="module")
def of_one(made_once, built_store) -> Path:
    def fill(folder: Path) -> None:
        done = run_command("ckd-train", *arguments(built_store, folder / "run"))
        assert done.returncode == 0, done.stderr

    return made_once("run-of-one", fill) / "run"


@pytest.fixture(scope="module")
def of_two(made_once, built_store) -> Path:
    """The run's folder, beside what both ranks wrote."""

    def fill(folder: Path) -> None:
        codes, said = train_in_ranks(folder, arguments(built_store, folder / "run", "--json"))
        assert codes == [0, 0], said

    return made_once("run-of-two", fill) / "run"


def assert_close_runs(found: Path, expected: Path) -> None:
    """The same but for rounding, which may turn one image of a few dozen."""
    (ours, our_rows), (theirs, their_rows) = results(found), results(expected)
    measured = {"seconds", "threads", "ranks", "best_val_accuracy", "test_accuracy", "last_test_accuracy"}
    assert {name: ours[name] for name in ours.keys() - measured} == {
        name: theirs[name] for name in theirs.keys() - measured
    }
    for name in ("best_val_accuracy", "test_accuracy", "last_test_accuracy"):
        assert ours[name] == pytest.approx(theirs[name], abs=0.05)
    for row, other in zip(our_rows, their_rows, strict=True):
        assert row["step"] == other["step"]
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=1e-3)


def test_two_ranks_make_the_run_of_one_process(of_one, of_two):
    assert_close_runs(of_two, of_one)
    assert results(of_two)[0]["ranks"] == [2]
    assert "ranks" not in results(of_one)[0]
    ours, theirs = (load_file(run / "student.safetensors") for run in (of_two, of_one))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-2, atol=1e-3)


def test_only_the_first_rank_speaks(of_two):
    said = {path.name: path.read_text() for path in of_two.parent.glob("rank*")}
    assert json.loads(said["rank0.out"])["ranks"] == [2]
    assert said["rank1.out"] == said["rank1.err"] == ""


def test_two_ranks_average_weights_draw_views_and_lower_the_rate_as_one_process(built_store, tmp_path):
    recipe = ("--average", "0.9", "--schedule", "cosine", "--student-view", "trivial")
    done = run_command("ckd-train", *arguments(built_store, tmp_path / "one", *recipe))
    assert done.returncode == 0, done.stderr
    codes, said = train_in_ranks(tmp_path, arguments(built_store, tmp_path / "two", *recipe))
    assert codes == [0, 0], said
    assert_close_runs(tmp_path / "two", tmp_path / "one")
    assert results(tmp_path / "two")[0]["average"] == 0.9
    ours, theirs = (load_file(tmp_path / run / "student.safetensors") for run in ("two", "one"))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_all_and_the_run_goes_on_to_the_same_end(built_store, of_two, tmp_path, killed):
    words = arguments(built_store, tmp_path / "run", "--resume")
    codes, said = train_in_ranks(tmp_path, words, f"{killed}:4:{KILLED}")
    assert (codes[killed], codes[1 - killed]) == (-KILLED, 1)
    assert said[1 - killed].count("Error: ") == 1
    assert f"rank {1 - killed} of 2 lost another one; see what that said, then go on with" in said[1 - killed]
    assert (tmp_path / "run" / "resume.pt").exists()
    codes, said = train_in_ranks(tmp_path, words)
    assert codes == [0, 0], said
    assert "going on after step 3" in said[0]
    ours, theirs = (load_file(run / "student.safetensors") for run in (tmp_path / "run", of_two))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert (tmp_path / "run" / "metrics.csv").read_text() == (of_two / "metrics.csv").read_text()


def test_ctrl_c_of_one_rank_stops_all_after_the_same_step_and_one_process_goes_on(built_store, of_one, tmp_path):
    # As torchrun passes it on: the second time it does not end anything at once.
    twice = [f"1:4:{INTERRUPTED}"] * 2
    codes, said = train_in_ranks(tmp_path, arguments(built_store, tmp_path / "run"), *twice)
    assert codes == [130, 130]
    assert "".join(said).count("Error: stopped after step 5; go on with the same command and --resume") == 1
    done = run_command("ckd-train", *arguments(built_store, tmp_path / "run", "--resume", "--json"))
    assert done.returncode == 0, done.stderr
    assert "this run had 2 ranks before and goes on with 1: it may end in other numbers" in done.stderr
    assert json.loads(done.stdout)["ranks"] == [2, 1]
    assert_close_runs(tmp_path / "run", of_one)


def test_a_batch_of_fewer_rows_than_ranks_is_refused_once_before_anything_is_read(built_store, tmp_path):
    words = arguments(built_store, tmp_path / "run", "--batch-size", "4")
    codes, said = train_in_ranks(tmp_path, words, count=5)
    assert codes == [2] * 5
    assert "".join(said).count("Error: ") == 1
    assert "--batch-size 4 is the batch of all 5 ranks" in "".join(said)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("started_as", ["module", "command"])
def test_torchrun_starts_it(built_store, of_two, tmp_path, started_as):
    torchrun = ["torchrun", "--standalone", "--nproc-per-node", "2"]
    what = {"module": ["-m", "student_train.cli"], "command": [Path(sys.executable).parent / "ckd-train"]}[started_as]
    # The processes that it starts import everything themselves; only torchrun's own does not.
    environment = {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    command = [*torchrun, *what, *arguments(built_store, tmp_path / "run")]
    done = begin_command(*command, env=environment, cwd=ROOT).completed()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert (tmp_path / "run" / "metrics.csv").read_text() == (of_two / "metrics.csv").read_text()
