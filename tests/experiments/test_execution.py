"""A grid through the installed command: what is done is not done again, and nothing stops anything else."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path

import pytest

from storage.ledger import Ledger
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from tests.conftest import COMMANDS, run_command
from tests.experiments.grids import lasting, results, run, small, write
from tests.running import Begun, begin_command


@pytest.fixture(scope="module")
def finished(made_once, weights) -> tuple[Path, Path]:
    """A grid and the folder of its runs, with calls on test images; treat the folder as read-only."""

    def fill(folder: Path) -> None:
        grid = write(folder / "grid.yaml", small(weights, methods=["vanilla", "kd", "ckd"], test_images=8))
        done = run(grid, folder / "out", "--jobs", 2)
        assert done.returncode == 0, done.stderr
        assert "6 runs, 0 found finished, 6 trained, 0 failed; 56 new teacher calls" in done.stdout

    folder = made_once("finished", fill)
    return folder / "grid.yaml", folder / "out"


def spent(store: Path) -> int:
    ledger = Ledger(store / LEDGER_FILE)
    total = ledger.summary().spent
    ledger.close()
    return total


def test_one_store_serves_every_n_and_is_paid_once(finished):
    _, out = finished
    assert spent(out / "stores" / "resnet8-digits") == 48
    assert spent(out / "stores" / "resnet8-digits-test") == 8
    table = results(out)
    assert list(table["label"]) == ["vanilla", "kd", "ckd"] * 2
    assert list(table["teacher_calls"]) == [0, 24, 24, 0, 48, 48]
    assert table["chosen"].all()


def test_calls_on_test_images_describe_every_student(finished):
    _, out = finished
    for folder in results(out)["run"]:
        described = json.loads((out / folder / "logits.json").read_text())
        assert described["images"] == 8
        assert 0 <= described["correlation_difference"] <= 2


def test_the_same_grid_again_does_nothing(finished, tmp_path):
    grid, done = finished
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", done, out], check=True)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("run.json")}
    again = run(grid, out)
    assert again.returncode == 0, again.stderr
    assert "6 found finished, 0 trained, 0 failed; 0 new teacher calls" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("run.json")} == before


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(finished, tmp_path):
    grid, out = finished
    planned = run(grid, tmp_path / "new", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    said = json.loads(planned.stdout)
    assert (said["runs"], said["calls"], said["new_calls"]) == (6, 56, 56)
    assert (said["calls_without_nesting"], said["calls_without_store"]) == (24 + 48 + 8, 2 * 24 + 2 * 48 + 8)
    assert said["evaluations"] == 12
    assert said["student_seconds"] > 0
    assert not (tmp_path / "new").exists()
    rest = json.loads(run(grid, out, "--dry-run", "--json").stdout)
    assert (rest["finished"], rest["new_calls"], rest["student_seconds"]) == (6, 0, 0)


STRANGERS_CODE = """
from pathlib import Path

Path('it-ran').touch()
from student_train.losses import DistillationLoss


class Mean(DistillationLoss):
    \"\"\"Mean of the student's logits.\"\"\"

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, signals):
        return self.scale * self.logits(signals)[0].mean()
"""


@pytest.fixture
def strangers(tmp_path, weights) -> Path:
    """A folder with a grid that names a class in a file beside it."""
    losses = ["kd", "helper:Mean:scale=2"]
    write(tmp_path / "grid.yaml", small(weights, methods=[{"losses": losses}], n=[24], training={"max_evals": 1}))
    (tmp_path / "helper.py").write_text(STRANGERS_CODE)
    return tmp_path


@pytest.mark.parametrize("flags", [[], ["--allow-code"]])
def test_a_dry_run_imports_nothing_that_a_grid_names(strangers, flags):
    planned = run_command(
        "ckd-pipeline", "run", "grid.yaml", "--dry-run", "--device", "cpu", "--jobs", 1, *flags, cwd=strangers
    )
    assert planned.returncode == 0, planned.stderr
    assert "helper:Mean is not checked: a dry run imports no code of yours" in planned.stdout
    assert "1 runs, 0 of them finished\nteacher calls: 24 in all" in planned.stdout
    assert not (strangers / "it-ran").exists()


def test_a_grid_that_names_a_class_is_refused_before_anything_unless_the_user_allows_it(strangers):
    refused = run_command("ckd-pipeline", "run", "grid.yaml", "--out", "out", cwd=strangers)
    assert refused.returncode == 2
    assert "line " in refused.stderr
    assert "the loss helper:Mean is code from outside this program" in refused.stderr
    assert "give --allow-code" in refused.stderr
    assert not (strangers / "it-ran").exists()
    assert not (strangers / "out").exists()


def test_a_grid_cannot_allow_its_own_code(strangers):
    text = (strangers / "grid.yaml").read_text()
    (strangers / "grid.yaml").write_text(f"{text}allow_code: true\n")
    refused = run_command("ckd-pipeline", "run", "grid.yaml", "--dry-run", cwd=strangers)
    assert refused.returncode == 2
    assert "no setting of the grid is called 'allow_code'" in refused.stderr


@pytest.mark.slow
def test_an_allowed_class_trains_and_workers_import_nothing_else_from_where_they_start(strangers):
    for name in ("multiprocessing", "signal", "yaml"):
        (strangers / f"{name}.py").write_text(
            f"open('{strangers}/{name}-ran', 'w')\nraise ImportError('not Python own')\n"
        )
    arguments = ["run", "grid.yaml", "--out", "out", "--device", "cpu", "--jobs", 1, "--allow-code"]
    done = run_command("ckd-pipeline", *arguments, cwd=strangers, spawn_workers=True)
    assert done.returncode == 0, done.stderr
    assert "1 trained, 0 failed" in done.stdout
    assert (strangers / "it-ran").exists()
    assert [path.name for path in strangers.glob("*-ran")] == ["it-ran"]


def test_status_and_results_say_the_same(finished):
    _, out = finished
    said = json.loads(run_command("ckd-pipeline", "status", out, "--json").stdout)
    assert (said["runs"], said["finished"], said["waiting"], said["failures"]) == (6, 6, 0, {})
    found = {(row["label"], row["n"]): (row["mean"], row["std"]) for row in said["accuracy"]}
    # One seed: the mean is the run's, and there is no deviation.
    assert found == {(row.label, row.n): (row.test_accuracy, None) for row in results(out).itertuples()}


@pytest.mark.slow
def test_a_new_method_a_new_seed_and_a_larger_n_run_just_what_is_new(finished, tmp_path, weights):
    _, before = finished
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", before, out], check=True)
    document = small(weights, methods=["vanilla", "kd", "ckd", "fitnets"], n=[24, 48, 60], test_images=8)
    grown = run(write(tmp_path / "grid.yaml", document), out)
    assert grown.returncode == 0, grown.stderr
    # fitnets needs maps: 48 rows are called again for them, and 12 more rows are bought.
    assert "12 runs, 6 found finished, 6 trained, 0 failed; 60 new teacher calls" in grown.stdout
    kept = {row["run"]: row for row in lasting(before)}
    assert all(row == kept[row["run"]] for row in lasting(out) if row["run"] in kept)


@pytest.mark.slow
def test_a_run_that_was_begun_goes_on_after_its_store_was_extended(tmp_path, weights):
    document = small(weights, methods=["kd"], n=[96], training={"max_evals": 40}, store={"trust_teacher": True})
    grid, out = write(tmp_path / "grid.yaml", document), tmp_path / "out"
    process = begin(grid, out)
    wait_for(lambda: any("loaded;" in log.read_text() for log in out.rglob("train.log")), process)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert list(out.rglob("resume.pt"))
    done = run(write(grid, document | {"methods": ["kd", "fitnets"]}), out)
    assert done.returncode == 0, done.stderr
    assert "0 found finished, 2 trained, 0 failed; 96 new teacher calls" in done.stdout
    assert any("going on after step" in log.read_text() for log in out.rglob("train.log"))


@pytest.mark.slow
def test_more_outputs_and_more_rows_fit_the_budget_together_or_not_at_all(tmp_path, weights):
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    document = small(weights, methods=["kd"], n=[24], store={"budget": 60})
    assert run(write(grid, document), out).returncode == 0
    # 24 calls again for maps and 24 for rows: either fits the 36 that are left.
    refused = run(write(grid, document | {"methods": ["fitnets"], "n": [48]}), out)
    assert refused.returncode == 3
    assert "asked for 48 calls" in refused.stderr
    assert spent(out / "stores" / "resnet8-digits") == 24


@pytest.mark.slow
def test_more_test_images_cost_the_difference(finished, tmp_path, weights):
    _, before = finished
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", before, out], check=True)
    document = small(weights, methods=["vanilla", "kd", "ckd"], test_images=11)
    more = run(write(tmp_path / "grid.yaml", document), out)
    assert "6 found finished, 0 trained, 0 failed; 3 new teacher calls" in more.stdout, more.stderr
    assert {json.loads(path.read_text())["images"] for path in out.rglob("logits.json")} == {11}


@pytest.fixture(scope="module")
def sampled(made_once, weights) -> tuple[Path, Path]:
    """A grid that was given a second sample after it was finished, and its folder; treat the folder as read-only."""

    def fill(folder: Path) -> None:
        one = small(weights, methods=["kd"], n=[24], test_images=8, store={"budget": 24})
        done = run(write(folder / "grid.yaml", one), folder / "out")
        assert "1 runs, 0 found finished, 1 trained, 0 failed; 32 new teacher calls" in done.stdout, done.stderr
        more = run(write(folder / "grid.yaml", one | {"sample_seeds": [0, 3]}), folder / "out")
        assert "2 runs, 1 found finished, 1 trained, 0 failed; 24 new teacher calls" in more.stdout, more.stderr

    folder = made_once("sampled", fill)
    return folder / "grid.yaml", folder / "out"


@pytest.mark.slow
def test_a_second_sample_pays_for_its_own_images_and_for_nothing_else(sampled):
    _, out = sampled
    first, second = out / "stores" / "resnet8-digits", out / "stores" / "resnet8-digits-sample3"
    # The budget is 24, of each of them.
    assert (spent(first), spent(second), spent(out / "stores" / "resnet8-digits-test")) == (24, 24, 8)
    assert {path.name for path in (out / "stores").iterdir()} == {first.name, second.name, "resnet8-digits-test"}
    for split in ("train", "val"):
        images = [set(Store.open(store).read(f"{split}/source_index").tolist()) for store in (first, second)]
        assert images[0] != images[1]
    table = results(out)
    assert list(table["sample_seed"]) == [0, 3]
    assert list(table["store"]) == ["stores/resnet8-digits", "stores/resnet8-digits-sample3"]
    assert list(table["proven"]) == ["ledger", "ledger"]
    assert table["store_id"].nunique() == 2
    for folder, sample in zip(table["run"], (0, 3), strict=True):
        assert json.loads((out / folder / "run.json").read_text())["sample_seed"] == sample
        assert json.loads((out / folder / "logits.json").read_text())["images"] == 8


@pytest.mark.slow
def test_status_and_report_are_over_both_samples(sampled, tmp_path):
    _, before = sampled
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", before, out], check=True)
    [mean] = json.loads(run_command("ckd-pipeline", "status", out, "--json").stdout)["accuracy"]
    accuracies = list(results(out)["test_accuracy"])
    assert (mean["runs"], mean["samples"], mean["seeds"]) == (2, 2, 1)
    assert mean["mean"] == pytest.approx(statistics.mean(accuracies))
    assert mean["std"] == pytest.approx(statistics.stdev(accuracies))
    assert "samples" in run_command("ckd-pipeline", "status", out).stdout
    reported = run_command("ckd-pipeline", "report", out)
    assert "2 of 2 runs" in reported.stdout, reported.stderr
    assert "missing" not in reported.stdout
    assert "2 runs, of 2 samples of images and 1 seed;" in (out / "report.html").read_text()


@pytest.mark.slow
def test_a_dry_run_counts_every_sample(sampled, tmp_path):
    grid, out = sampled
    said = json.loads(run(grid, tmp_path / "new", "--dry-run", "--json").stdout)
    assert (said["runs"], said["samples"], said["calls"], said["new_calls"]) == (2, 2, 2 * 24 + 8, 2 * 24 + 8)
    rest = run(grid, out, "--dry-run").stdout
    assert "56 in all for 2 samples of images, each a store of its own, 0 of them still to be paid" in rest


@pytest.mark.slow
def test_a_budget_is_of_each_sample(tmp_path, weights):
    document = small(weights, methods=["kd"], sample_seeds=2)
    for budget, code in ((48, 0), (47, 3)):
        grid = write(tmp_path / "grid.yaml", document | {"store": {"budget": budget}})
        planned = run(grid, tmp_path / "out", "--dry-run")
        assert planned.returncode == code
        assert ("96 in all" if code == 0 else "47 of the budget of 47 remain") in planned.stdout + planned.stderr


@pytest.mark.slow
def test_a_store_of_another_seed_is_not_taken_for_sample_0(tmp_path, weights):
    out, document = tmp_path / "out", small(weights, methods=["kd"], n=[24])
    assert run(write(tmp_path / "one.yaml", document | {"store": {"seed": 5}}), out).returncode == 0
    refused = run(write(tmp_path / "two.yaml", document | {"sample_seeds": 2}), out)
    assert refused.returncode == 2
    assert "seed (store: 5, asked: 0)" in refused.stderr
    assert spent(out / "stores" / "resnet8-digits") == 24
    assert not (out / "stores" / "resnet8-digits-sample1").exists()


def test_a_result_of_other_settings_in_a_runs_folder_is_refused(finished, tmp_path):
    _, before = finished
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", before, out], check=True)
    table = results(out)
    kd, ckd = (table.loc[(table["label"] == label) & (table["n"] == 48), "run"].item() for label in ("kd", "ckd"))
    (out / kd / "run.json").write_bytes((out / ckd / "run.json").read_bytes())
    refused = run_command("ckd-pipeline", "status", out)
    assert refused.returncode == 2
    assert "is not what was planned for this run" in refused.stderr


@pytest.mark.slow
def test_a_changed_setting_never_takes_results_of_the_old_one(finished, tmp_path, weights):
    _, before = finished
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", before, out], check=True)
    document = small(weights, methods=["kd"], n=[24], training={"max_evals": 1})
    changed = run(write(tmp_path / "grid.yaml", document), out)
    assert "1 runs, 0 found finished, 1 trained" in changed.stdout
    assert list(results(out)["max_evals"]) == [1]


@pytest.mark.slow
def test_another_teacher_under_finished_runs_is_refused(finished, tmp_path):
    from models import create_model, save_weights

    _, before = finished
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", before, out], check=True)
    other = tmp_path / "other.safetensors"
    save_weights(create_model("resnet8", num_classes=10, seed=5), other, {})
    grid = write(tmp_path / "grid.yaml", small(other))
    refused = run(grid, out)
    assert refused.returncode == 2
    assert "teacher" in refused.stderr
    # Even where the store was removed.
    subprocess.run(["rm", "-r", out / "stores"], check=True)
    refused = run(grid, out)
    assert refused.returncode == 2
    assert "is of another resnet8 than the one whose weights are given now" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_validation_chooses_among_learning_rates(tmp_path, weights):
    document = small(weights, methods=["kd"], n=[48], choose={"lr": [0.2, 0.001]})
    out = tmp_path / "out"
    done = run(write(tmp_path / "grid.yaml", document), out)
    assert done.returncode == 0, done.stderr
    table = results(out)
    assert list(table["lr"]) == [0.2, 0.001]
    best = table["best_val_accuracy"].idxmax()
    assert [place for place, chosen in enumerate(table["chosen"]) if chosen] == [best]


@pytest.mark.slow
def test_a_failed_run_is_reported_and_stops_nothing_else(tmp_path, weights):
    methods = ["kd", {"label": "wild", "method": "kd", "training": {"lr": 1e30}}]
    grid = write(tmp_path / "grid.yaml", small(weights, methods=methods, n=[24]))
    out = tmp_path / "out"
    first = run(grid, out)
    assert first.returncode == 1
    assert "2 runs, 0 found finished, 1 trained, 1 failed" in first.stdout
    assert "failed: runs/" in first.stdout
    assert "lower --lr" in first.stdout
    assert "Traceback" not in first.stderr
    said = json.loads(run_command("ckd-pipeline", "status", out, "--json").stdout)
    assert (said["finished"], said["failed"]) == (1, 1)
    # It is not tried again by itself, and it is on request.
    assert "1 found finished, 0 trained, 1 failed" in run(grid, out).stdout
    again = run(grid, out, "--retry")
    assert again.returncode == 1
    assert "wild resnet8/resnet8 n=24" in again.stderr


def test_a_budget_is_refused_before_any_call(tmp_path, weights):
    grid = write(tmp_path / "grid.yaml", small(weights, store={"budget": 47}))
    refused = run(grid, tmp_path / "out")
    assert refused.returncode == 3
    assert "budget" in refused.stderr
    assert not (tmp_path / "out" / "stores").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": [24, 100000]}, "line 11: --n 100000 is more than the"),
        ({"dataset": "imagefolder:nowhere"}, "line 2: "),
        ({"test_images": 100000}, "has 360 test images"),
    ],
)
def test_what_the_images_do_not_allow_is_refused_before_any_call(tmp_path, weights, change, said):
    grid = write(tmp_path / "grid.yaml", small(weights, **change))
    refused = run(grid, tmp_path / "out")
    assert refused.returncode == 2, refused.stdout
    assert said in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "stores").exists()


@pytest.mark.slow
def test_a_folder_of_something_else_is_left_alone(tmp_path, weights, built_store):
    grid = write(tmp_path / "grid.yaml", small(weights))
    assert "is no grid's folder" in run(grid, built_store).stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    refused = run(grid, tmp_path / "mine")
    assert refused.returncode == 2
    assert "holds files that no grid made" in refused.stderr


def begin(grid: Path, out: Path, *options: object) -> Begun:
    return begin_command("ckd-pipeline", "run", grid, "--out", out, "--device", "cpu", *options)


def begin_in_earnest(grid: Path, out: Path, *options: object) -> subprocess.Popen[str]:
    """The installed script, whose workers start as they do for users, each in seconds."""
    command = [COMMANDS / "ckd-pipeline", "run", grid, "--out", out, "--device", "cpu", *map(str, options)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(condition, process: Begun | subprocess.Popen[str], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def descendants(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return children + [other for child in children for other in descendants(child)]


LONG = {"methods": ["kd", "ckd"], "n": [96], "store": {"trust_teacher": True}, "training": {"max_evals": 6}}


def num_finished(out: Path) -> int:
    return len(list(out.rglob("run.json")))


def begun(out: Path) -> int:
    return sum("begun by process" in log.read_text() for log in out.rglob("train.log"))


@pytest.mark.slow
def test_a_grid_killed_twice_and_finished_equals_one_that_was_not(tmp_path, weights):
    grid = write(tmp_path / "grid.yaml", small(weights, **LONG, seeds=2))
    whole = run(grid, tmp_path / "whole", "--jobs", 2)
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "killed"
    for reached in (lambda: begun(out) >= 1, lambda: num_finished(out) >= 2):
        process = begin(grid, out, "--jobs", 2)
        wait_for(reached, process)
        workers = descendants(process.pid)
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 20
        while any(map(alive, workers)):
            assert time.monotonic() < deadline, "a worker outlived what started it"
            time.sleep(0.05)
    rest = run(grid, out, "--jobs", 2)
    assert rest.returncode == 0, rest.stderr
    assert "0 new teacher calls" in rest.stdout
    assert lasting(out) == lasting(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_stops_after_the_step_and_the_same_command_goes_on(tmp_path, weights):
    grid = write(tmp_path / "grid.yaml", small(weights, **LONG))
    out = tmp_path / "out"
    process = begin_in_earnest(grid, out, "--jobs", 2)
    wait_for(lambda: begun(out) == 2, process)
    # As a terminal does: to the whole group.
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "runs are left in" in stderr
    assert "Traceback" not in stderr
    assert not list(out.rglob("failure.json"))
    rest = run(grid, out)
    assert rest.returncode == 0, rest.stderr
    assert num_finished(out) == 2


@pytest.mark.slow
def test_a_kill_while_the_teacher_is_trained_leaves_a_folder_to_go_on_with(tmp_path):
    document = {
        "dataset": "digits",
        "pairs": [{"teacher": "resnet8", "student": "resnet8", "teacher_epochs": 1}],
        "methods": ["kd"],
        "n": [24],
        "seeds": 1,
        "training": {"max_evals": 1},
    }
    grid, out = write(tmp_path / "grid.yaml", document), tmp_path / "out"
    process = begin(grid, out)
    wait_for(lambda: (out / "teachers").exists(), process)
    process.kill()
    process.communicate()
    rest = run(grid, out)
    assert rest.returncode == 0, rest.stderr
    assert "1 trained, 0 failed; 24 new teacher calls" in rest.stdout


@pytest.mark.slow
def test_a_worker_that_is_killed_fails_its_run_and_no_other(tmp_path, weights):
    grid = write(tmp_path / "grid.yaml", small(weights, **LONG))
    out = tmp_path / "out"
    process = begin(grid, out, "--jobs", 1)
    wait_for(lambda: begun(out) == 1, process)
    [log] = out.rglob("train.log")
    os.kill(int(log.read_text().rpartition("process ")[2].split()[0]), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 1, stderr
    assert "2 runs, 0 found finished, 1 trained, 1 failed" in stdout
    assert "was killed by signal 9 (SIGKILL); was memory short? give fewer --jobs" in stdout
    retried = run(grid, out, "--retry")
    assert retried.returncode == 0, retried.stderr
    assert "1 found finished, 1 trained, 0 failed" in retried.stdout


@pytest.mark.slow
def test_two_pipelines_do_not_work_on_one_folder(tmp_path, weights):
    grid = write(tmp_path / "grid.yaml", small(weights, **LONG))
    out = tmp_path / "out"
    process = begin(grid, out, "--jobs", 1)
    wait_for(lambda: begun(out) == 1, process)
    second = run(grid, out)
    assert second.returncode == 2
    assert "another ckd-pipeline works on" in second.stderr
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
