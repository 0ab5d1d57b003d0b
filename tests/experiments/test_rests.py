"""What a grid's methods learn from the rest, run by run."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from experiments.grid import ALL_LABELS
from experiments.grid_file import read_grid
from experiments.plan import plan_runs
from experiments.rests import rest_of_run
from experiments.stores import Stores
from ground.errors import InvalidInput
from models import create_model, read_metadata, save_weights
from tests.experiments.grids import results, run, small, write

KD = {"label": "kd + labels", "method": "kd", "rest": "ce"}


def with_rest(weights: Path, **changes):
    return small(weights, **({"methods": ["vanilla", KD], "n": [24], "store": {"rest": 40}} | changes))


@pytest.fixture(scope="module")
def finished(made_once, weights) -> Path:
    """A grid of which labels alone are a row, and a method that learns from labels of the rest; read only."""

    def fill(folder: Path) -> None:
        done = run(write(folder / "grid.yaml", with_rest(weights)), folder / "out")
        assert done.returncode == 0, done.stderr
        assert "3 runs, 0 found finished, 3 trained, 0 failed; 24 new teacher calls" in done.stdout

    return made_once("finished-with-rest", fill)


def test_labels_alone_are_trained_on_all_that_a_store_keeps_at_no_call(finished):
    table = results(finished / "out").set_index("label")
    assert table.loc[ALL_LABELS, ["n", "teacher_calls", "answered_rows", "labelled_rows"]].tolist() == [0, 0, 0, 64]
    assert table.loc["kd + labels", ["n", "teacher_calls", "answered_rows", "labelled_rows"]].tolist() == [
        24,
        24,
        24,
        40,
    ]
    assert table["rest"].fillna("").to_dict() == {"vanilla": "", "kd + labels": "ce", ALL_LABELS: "ce"}
    manifest = json.loads((finished / "out" / "stores" / "resnet8-digits" / "manifest.json").read_text())
    assert (manifest["n"], manifest["rest"]) == (24, 40)


def test_the_same_grid_trains_what_is_left_and_calls_nobody(finished, tmp_path, weights):
    out = tmp_path / "out"
    write(tmp_path / "grid.yaml", with_rest(weights))
    assert run(tmp_path / "grid.yaml", out).returncode == 0
    [alone] = [path for path in out.glob("runs/*/*/run.json") if "-n0-" in str(path)]
    before = alone.read_text()
    alone.unlink()
    again = run(tmp_path / "grid.yaml", out)
    assert "2 found finished, 1 trained, 0 failed; 0 new teacher calls" in again.stdout, again.stderr
    same = ("test_accuracy", "best_val_accuracy", "steps", "labelled_rows")
    assert [json.loads(alone.read_text())[name] for name in same] == [json.loads(before)[name] for name in same]


def test_a_finished_grid_can_be_given_a_rest(tmp_path, weights):
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    assert run(write(grid, with_rest(weights, methods=["vanilla"], store={})), out).returncode == 0
    more = run(write(grid, with_rest(weights, methods=["vanilla"])), out)
    assert "2 runs, 1 found finished, 1 trained, 0 failed; 0 new teacher calls" in more.stdout, more.stderr
    assert sorted(results(out)["n"]) == [0, 24]


def test_a_dry_run_counts_labels_alone(tmp_path, weights):
    planned = run(write(tmp_path / "grid.yaml", with_rest(weights)), tmp_path / "out", "--dry-run", "--json")
    said = json.loads(planned.stdout)
    assert said["by_method"] == {"vanilla": 1, "kd + labels": 1, ALL_LABELS: 1}
    assert (said["calls"], said["calls_without_store"]) == (24, 24)
    assert said["student_seconds"] > 0


def planned(tmp_path, document, out: Path = Path()):
    return plan_runs(read_grid(write(tmp_path / "grid.yaml", document)), "fp32", out, 64)


def test_a_rest_changes_the_folders_of_those_alone_that_learn_from_it(tmp_path, weights):
    def folders(**changes) -> dict[str, str]:
        return {run.label: run.folder for run in planned(tmp_path, with_rest(weights, **changes))}

    one, other, none = folders(), folders(store={"rest": 41}), folders(store={}, methods=["vanilla"])
    assert one["vanilla"] == other["vanilla"] == none["vanilla"]
    assert one["kd + labels"] != other["kd + labels"]
    assert one[ALL_LABELS] != other[ALL_LABELS]
    grown = {run.folder for run in planned(tmp_path, with_rest(weights, n=[24, 48]))}
    # A larger n brings validation images, which labels are chosen by.
    assert grown & set(one.values()) == {one["vanilla"]}


def test_a_store_that_keeps_more_than_the_grid_asks_for_decides_which_runs_they_are(finished, tmp_path, weights):
    out, asked = finished / "out", with_rest(weights)
    made = {run.folder for run in planned(tmp_path, asked, out)}
    assert made == {run.folder for run in planned(tmp_path, asked)}
    # Nothing is taken from the store, so that runs which would find what it keeps now are the same.
    assert {run.folder for run in planned(tmp_path, with_rest(weights, store={"rest": 20}), out)} == made


def test_each_seed_and_sample_has_one_run_of_labels_alone_after_the_methods(tmp_path, weights):
    runs = planned(tmp_path, with_rest(weights, seeds=2, sample_seeds=2, n=[24, 48]))
    alone = [run for run in runs if run.label == ALL_LABELS]
    assert [(run.config.seed, run.sample_seed) for run in alone] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [run.label for run in runs[:5]] == ["vanilla", "kd + labels"] * 2 + [ALL_LABELS]
    assert all(run.n == 0 and [spec.text for spec in run.spec.rest] == ["ce"] for run in alone)


def test_a_rest_adds_to_the_work_of_a_step(tmp_path, weights):
    work = {run.label: run.work for run in planned(tmp_path, with_rest(weights))}
    # 24 rows are one step of 24 images; 40 of the rest are one of 64.
    assert work == {"vanilla": 24, "kd + labels": 24 + 64, ALL_LABELS: 64}
    told = with_rest(weights, training={"max_evals": 2, "steps_per_eval": 5})
    assert {run.label: run.work for run in planned(tmp_path, told)} == {name: 5 * of for name, of in work.items()}


@pytest.mark.parametrize(
    ("changes", "line", "said"),
    [
        ({"store": {}}, 7, "kd + labels learns from images that the teacher is not asked about, and stores of this"),
        ({"store": {"rest": 0}}, 7, "keep none; add store: {rest: all}"),
        ({"store": {"rest": "al"}}, 13, "a number, all, or none"),
        ({"methods": [{**KD, "rest": "cee"}]}, 7, "no loss of the rest is called 'cee'; did you mean ce"),
        ({"methods": [{**KD, "rest": "ce:wieght=2"}]}, 7, "did you mean weight"),
        ({"methods": [{**KD, "rest": "proxy:runs/{m}"}]}, 7, "no part of a run's path is called 'm'"),
        ({"methods": [{**KD, "label": ALL_LABELS}]}, 5, "is the row that a grid with a rest has anyway"),
        ({"store": {}, "methods": ["kd"], "labels_only": True}, 12, "add store: {rest: all} to keep them"),
        (
            {
                "methods": [{**KD, "choose": {"lr": [0.1, 0.2]}}],
                "choose": {"lr": [n / 100 for n in range(1, 41)], "average": [n / 100 for n in range(30)]},
            },
            20,
            "validation would choose among more than 1000 trainings",
        ),
    ],
)
def test_what_is_wrong_with_a_rest_is_named_with_its_line(tmp_path, weights, changes, line, said):
    path = write(tmp_path / "grid.yaml", with_rest(weights, **changes))
    with pytest.raises(InvalidInput) as refused:
        read_grid(path)
    assert said in str(refused.value)
    assert re.match(rf"{re.escape(str(path))}, line \d+: ", str(refused.value))


def test_labels_alone_can_be_turned_off(tmp_path, weights):
    labels = {run.label for run in planned(tmp_path, with_rest(weights, labels_only=False))}
    assert labels == {"vanilla", "kd + labels"}


def test_a_path_of_a_proxy_is_below_the_grids_folder_with_what_the_run_is(finished, tmp_path):
    out = finished / "out"
    [kd] = [path.parent for path in out.glob("runs/*/*/run.json") if "-n24-" in str(path) and "kd" in path.parent.name]
    pattern = str(kd.relative_to(out)).replace("n24", "n{n}").replace("seed0", "seed{seed}")
    [spec] = rest_of_run([f"proxy:{pattern},weight=0.5"], out, n=24, seed=0, sample=3)
    assert [proxy.folder for proxy in spec.proxies] == [kd.resolve()]
    assert spec.make().weight == 0.5
    [absolute] = rest_of_run([f"proxy:{kd}"], tmp_path, n=24, seed=0, sample=0)
    assert absolute.proxies == spec.proxies
    with pytest.raises(InvalidInput, match=r"n48.*run\.json"):
        rest_of_run([f"proxy:{pattern}"], out, n=48, seed=0, sample=0)


def test_a_proxy_that_is_missing_or_of_another_store_is_refused_before_any_call(finished, tmp_path, weights):
    [kd] = [path.parent for path in finished.glob("out/runs/*/*/run.json") if "kd" in path.parent.name]
    for proxy, said in ((tmp_path / "none", "run.json"), (kd, "which is not there yet; train one from it")):
        document = with_rest(weights, methods=["vanilla", {**KD, "rest": ["ce", f"proxy:{proxy}"]}])
        refused = run(write(tmp_path / "grid.yaml", document), tmp_path / "out")
        assert refused.returncode == 2
        assert said in refused.stderr
        assert "kd + labels: " in refused.stderr
        assert not (tmp_path / "out" / "stores").exists()


def test_a_proxy_of_the_same_store_teaches(finished, tmp_path, weights):
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", finished / "out", out], check=True)
    [kd] = [path.parent for path in out.glob("runs/*/*/run.json") if "kd" in path.parent.name]
    entry = {"label": "by proxy", "method": "kd", "rest": f"proxy:{kd.relative_to(out)}"}
    done = run(write(tmp_path / "grid.yaml", with_rest(weights, methods=["vanilla", KD, entry])), out)
    assert "4 runs, 3 found finished, 1 trained, 0 failed; 0 new teacher calls" in done.stdout, done.stderr
    table = results(out).set_index("label")
    assert table.loc["by proxy", ["teacher_calls", "answered_rows", "unlabelled_rows"]].tolist() == [24, 24, 40]


def test_of_a_proxy_that_nothing_vouches_for_a_grid_warns_once(finished, tmp_path, weights, capsys):
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", finished / "out", out], check=True)
    [kd] = [path.parent for path in out.glob("runs/*/*/run.json") if "kd" in path.parent.name]
    entry = {"label": "by proxy", "method": "kd", "rest": f"proxy:{kd.relative_to(out)}"}
    document = with_rest(weights, methods=["vanilla", KD, entry], seeds=2)

    def warnings() -> int:
        grid = read_grid(write(tmp_path / "grid.yaml", document))
        stores = Stores(grid, out, "cpu")
        stores.check_proxies(plan_runs(stores.grid, "fp32", out, stores.images.num_images))
        return capsys.readouterr().err.count(f"the proxy {kd.resolve()} is taken at its word")

    assert warnings() == 0
    # As if a release before proofs had made it: the ledger has no entry of anything that is in the folder.
    weights_of_run = kd / "student.safetensors"
    network = create_model("resnet8", num_classes=10, seed=9)
    save_weights(network, weights_of_run, read_metadata(weights_of_run))
    (kd / "metrics.csv").write_text("step\n")
    (kd / "run.json").write_text(json.dumps(json.loads((kd / "run.json").read_text()) | {"seconds": 7.0}))
    assert warnings() == 1
