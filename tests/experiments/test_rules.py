"""A grid whose stores are bought by rules: a row of the tables for each rule, a round for each n."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from experiments.grid import ALL_LABELS
from experiments.grid_file import read_grid
from experiments.plan import as_bought, plan_runs, plan_stores, store_folder
from experiments.rules import ends_behind, ends_of, usual_text
from ground.errors import InvalidInput
from storage.run_record import FAILURE_FILE, RUN_FILE
from storage.store import Store
from teacher_cache.selection import SELECTORS
from teacher_cache.selection.contract import Selector
from tests.conftest import run_command
from tests.experiments.grids import results, run, small, write
from tests.teacher_cache.damage import problems, totals

KD = {"label": "kd + labels", "method": "kd", "rest": "ce"}


class Seen(Selector):
    """The last of what is left; it wants finished runs, and notes what it was given."""

    name = "seen"
    source = "these tests"

    def __init__(self, run: str) -> None:
        self.runs = [Path(name) for name in run.split("+")]

    def require(self, pool, count):
        assert all((folder / RUN_FILE).is_file() for folder in self.runs)

    def choose(self, pool, count, rng):
        return pool.left[::-1][:count].copy()

    def looked_at(self):
        return {"runs": "+".join(folder.name for folder in self.runs)}


@pytest.fixture(autouse=True)
def _seen(monkeypatch):
    monkeypatch.setitem(SELECTORS, Seen.name, Seen)


def by_rules(weights: Path, *rules: str, **changes):
    return small(weights, **({"select": list(rules), "methods": ["kd"]} | changes))


def rounds(folder: Path) -> list[tuple[str, int, int]]:
    return [(made.rule.partition(":")[0], made.first, made.end) for made in Store.open(folder).manifest.rounds]


def test_each_rule_has_a_store_of_its_own_and_a_row_of_the_tables(tmp_path, weights):
    done = run(write(tmp_path / "grid.yaml", by_rules(weights, "random", "balanced")), tmp_path / "out")
    assert "4 runs, 0 found finished, 4 trained, 0 failed; 96 new teacher calls" in done.stdout, done.stderr
    table = results(tmp_path / "out")
    assert sorted(zip(table["label"], table["n"], strict=True)) == [
        ("kd", 24),
        ("kd", 48),
        ("kd by balanced", 24),
        ("kd by balanced", 48),
    ]
    store = tmp_path / "out" / "stores" / "resnet8-digits-balanced"
    assert rounds(store) == [("balanced", 0, 24), ("balanced", 24, 48)]
    assert rounds(tmp_path / "out" / "stores" / "resnet8-digits") == []
    assert totals(store) == (48, 0, 0)
    assert problems(store) == []
    again = run(tmp_path / "grid.yaml", tmp_path / "out")
    assert "4 runs, 4 found finished, 0 trained, 0 failed; 0 new teacher calls" in again.stdout, again.stderr
    assert run_command("ckd-pipeline", "report", tmp_path / "out").returncode == 0
    assert "kd by balanced" in (tmp_path / "out" / "report.html").read_text()


def test_a_rule_looks_at_the_students_of_the_n_before(tmp_path, weights):
    document = by_rules(weights, "seen:run={kd}", methods=["kd", "vanilla"], n=[16, 24, 40], seeds=2)
    done = run(write(tmp_path / "grid.yaml", document), tmp_path / "out")
    assert "12 runs, 0 found finished, 12 trained, 0 failed; 40 new teacher calls" in done.stdout, done.stderr
    [store] = (tmp_path / "out" / "stores").iterdir()
    assert rounds(store) == [("seen", 16, 24), ("seen", 24, 40)]
    for made, n in zip(Store.open(store).manifest.rounds, (16, 24), strict=True):
        looked_at = made.looked_at["runs"].split("+")
        assert [name.rpartition("-")[0] for name in looked_at] == [f"kd-by-seen-n{n}-seed{seed}" for seed in (0, 1)]
    again = run(tmp_path / "grid.yaml", tmp_path / "out")
    assert "12 runs, 12 found finished, 0 trained, 0 failed; 0 new teacher calls" in again.stdout, again.stderr
    more = run(
        write(tmp_path / "grid.yaml", document | {"n": [16, 24, 40, 56]}),
        tmp_path / "out",
    )
    assert "16 runs, 12 found finished, 4 trained, 0 failed; 16 new teacher calls" in more.stdout, more.stderr
    assert problems(store) == []


def test_what_a_rule_leaves_teaches_beside_what_it_bought(tmp_path, weights):
    few = {"max_evals": 2, "steps_per_eval": 3}  # not once through all labels
    document = by_rules(weights, "balanced", methods=["kd", KD], store={"rest": "all"}, training=few)
    done = run(write(tmp_path / "grid.yaml", document), tmp_path / "out")
    # Labels alone are one run, whatever rules there are.
    assert "5 runs, 0 found finished, 5 trained, 0 failed; 48 new teacher calls" in done.stdout, done.stderr
    store = tmp_path / "out" / "stores" / "resnet8-digits-balanced"
    assert (totals(store), Store.open(store).manifest.rest) == ((48, 0, 0), 1150 - 48)

    def counted() -> dict[tuple[str, int], list[int]]:
        table = results(tmp_path / "out")
        names = ["answered_rows", "labelled_rows", "unlabelled_rows"]
        return {(row["label"], row["n"]): [int(row[name]) for name in names] for _, row in table.iterrows()}

    expected = {
        ("kd by balanced", 24): [24, 0, 0],
        ("kd by balanced", 48): [48, 0, 0],
        ("kd + labels by balanced", 24): [24, 1126, 0],
        ("kd + labels by balanced", 48): [48, 1102, 0],
        (ALL_LABELS, 0): [0, 1150, 0],
    }
    assert counted() == expected
    again = run(tmp_path / "grid.yaml", tmp_path / "out")
    assert "5 runs, 5 found finished, 0 trained, 0 failed; 0 new teacher calls" in again.stdout, again.stderr
    # Another n is bought of what is left; a larger one brings validation images, which runs with labels are chosen by.
    more = run(write(tmp_path / "grid.yaml", document | {"n": [24, 48, 60]}), tmp_path / "out")
    assert "7 runs, 2 found finished, 5 trained, 0 failed; 12 new teacher calls" in more.stdout, more.stderr
    assert Store.open(store).manifest.places
    added = {("kd by balanced", 60): [60, 0, 0], ("kd + labels by balanced", 60): [60, 1090, 0]}
    assert counted() == expected | added
    assert (totals(store), problems(store)) == ((60, 0, 0), [])
    assert run_command("ckd-pipeline", "report", tmp_path / "out").returncode == 0


def test_what_is_left_teaches_once_students_that_a_rule_looks_at_had_it_buy_all(tmp_path, weights):
    document = by_rules(weights, "seen:run={kd}", methods=["kd", KD], n=[16, 24], store={"rest": 60})
    done = run(write(tmp_path / "grid.yaml", document), tmp_path / "out")
    assert "5 runs, 0 found finished, 5 trained, 0 failed; 24 new teacher calls" in done.stdout, done.stderr
    table = results(tmp_path / "out")
    assert sorted(zip(table["label"], table["n"], table["labelled_rows"], strict=True)) == [
        ("kd + labels by seen", 16, 68),
        ("kd + labels by seen", 24, 60),
        ("kd by seen", 16, 0),
        ("kd by seen", 24, 0),
        (ALL_LABELS, 0, 84),
    ]
    again = run(tmp_path / "grid.yaml", tmp_path / "out")
    assert "5 runs, 5 found finished, 0 trained, 0 failed; 0 new teacher calls" in again.stdout, again.stderr


def test_labels_alone_learn_from_the_store_of_the_seed_or_of_a_rule_that_makes_nothing(tmp_path, weights):
    def source(*rules: str) -> tuple[str, str]:
        document = by_rules(weights, *rules, store={"rest": "all"})
        grid = as_bought(read_grid(write(tmp_path / "grid.yaml", document)), tmp_path)
        [alone] = [run for run in plan_runs(grid, "fp32") if not run.n]
        assert alone.label == ALL_LABELS
        assert alone.store in {need.folder for need in plan_stores(grid)}
        return alone.folder, alone.store.removeprefix("stores/resnet8-digits")

    folder, store = source("balanced", "random")
    assert (folder, store) == source("random")
    assert store == ""
    assert source("views", "balanced", "seen:run={kd}")[1] == "-balanced"
    made = source("mix:views=0.5,random=0.5")
    assert made[1].startswith("-mix-")
    assert source("mix:views=0.50,random=0.5") == made


def test_rounds_are_part_of_what_a_run_is(tmp_path, weights):
    def folders(**changes) -> dict[tuple[str, int], str]:
        grid = read_grid(write(tmp_path / "grid.yaml", by_rules(weights, "random", "balanced", **changes)))
        return {(run.label, run.n): run.folder for run in plan_runs(grid, "fp32")}

    both, one, more = folders(), folders(n=[48]), folders(n=[24, 48, 96])
    assert both["kd", 48] == one["kd", 48]
    assert both["kd by balanced", 48] != one["kd by balanced", 48]
    assert both["kd by balanced", 48] == more["kd by balanced", 48]
    alone = plan_runs(read_grid(write(tmp_path / "grid.yaml", small(weights, methods=["kd"]))), "fp32")
    assert {run.folder for run in alone} == {both["kd", 24], both["kd", 48]}


def test_rounds_are_those_that_a_store_has_and_then_those_of_the_grid(tmp_path, weights):
    assert ends_of(tmp_path, (24, 48)) == [24, 48]
    run(write(tmp_path / "grid.yaml", by_rules(weights, "balanced", n=[24, 40])), tmp_path / "out")
    store = tmp_path / "out" / "stores" / "resnet8-digits-balanced"
    assert ends_of(store, (30, 48, 60)) == [24, 40, 48, 60]
    assert ends_behind([24, 40, 48], 24) == [24]
    assert ends_behind([24, 40, 48], 30) == [24, 40]
    assert ends_behind([24, 40, 48], 99) == [24, 40, 48, 99]


def test_a_dry_run_counts_the_calls_of_every_rule(tmp_path, weights):
    path = write(tmp_path / "grid.yaml", by_rules(weights, "random", "balanced", "seen:run={kd}"))
    said = json.loads(run(path, tmp_path / "out", "--dry-run", "--json").stdout)
    assert (said["calls"], said["new_calls"], said["runs"]) == (144, 144, 6)


def test_a_committee_may_be_of_several_networks_of_one_seed(tmp_path, weights):
    pairs = [{"teacher": "resnet8", "student": student, "weights": str(weights)} for student in ("resnet8", "resnet14")]
    document = by_rules(weights, "committee:run={kd}", pairs=pairs)
    assert read_grid(write(tmp_path / "grid.yaml", document)).rules == ("committee:run={kd}",)


def test_methods_by_rules_of_one_name_are_told_apart_by_their_settings(tmp_path, weights):
    rules = ("seen:run={kd}", "seen:run={vanilla}")
    grid = read_grid(write(tmp_path / "grid.yaml", by_rules(weights, *rules, methods=["kd", "vanilla"])))
    assert [entry.label for entry in grid.methods] == [
        f"{label} by {rule}" for rule in rules for label in ("kd", "vanilla")
    ]
    assert len({need.folder for need in plan_stores(grid)}) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"select": ["balancd"]}, "line 15: no rule is called 'balancd'; did you mean balanced"),
        ({"select": ["balanced", "balanced"]}, "line 15: a rule is named twice"),
        ({"select": ["kcenter", "kcenter:encoder=pixels"]}, "line 15: a rule is named twice"),
        ({"select": ["seen:run={dist}"]}, "no method is called 'dist'"),
        ({"select": ["sen:run={kd}"]}, "line 15: no rule is called 'sen'; did you mean seen"),
        ({"select": ["seen:run={kd},subset=4"]}, "no setting of rule seen is called 'subset'"),
        ({"select": ["committee:run={kd}"]}, "a committee has two runs at least"),
        (
            {"select": ["seen:run={kd}"], "store": {"rest": "all"}, "methods": [{**KD, "label": "kd"}]},
            "line 17: kd learns from a rest, of which nobody knows what is left before all rows are bought",
        ),
        ({"select": ["seen:run={kd}"], "choose": {"lr": [0.1, 0.2]}}, "kd chooses among trainings, and a rule looks"),
    ],
)
def test_rules_that_a_grid_cannot_have_are_refused(tmp_path, weights, changes, said):
    document = {**small(weights, methods=["kd"], n=[24]), **changes}
    with pytest.raises(InvalidInput, match=said):
        read_grid(write(tmp_path / "grid.yaml", document))


def test_a_rule_without_students_ends_for_itself_alone(tmp_path, weights):
    methods = ["vanilla", {"label": "kd", "method": "kd", "training": {"lr": 1e30}}]
    document = by_rules(weights, "seen:run={kd}", "balanced", n=[16, 24], methods=methods)
    done = run(write(tmp_path / "grid.yaml", document), tmp_path / "out")
    assert done.returncode == 1
    said = json.loads((tmp_path / "out" / "grid.json").read_text())
    assert len(said["runs"]) == 8
    # Those of labels that the other rule bought are all there; of this one's, those of the first n.
    table = results(tmp_path / "out")
    assert sorted(zip(table["label"], table["n"], strict=True)) == [
        ("vanilla by balanced", 16),
        ("vanilla by balanced", 24),
        ("vanilla by seen", 16),
    ]
    assert "looks at students of kd, and none of 1 is finished" in done.stdout + done.stderr
    [store] = (tmp_path / "out" / "stores").glob("*-seen-*")
    assert totals(store) == (16, 0, 0)


def test_what_is_left_by_a_rule_that_ended_teaches_nobody(tmp_path, weights):
    methods = [{"label": "kd", "method": "kd", "training": {"lr": 1e30}}, KD]
    document = by_rules(weights, "seen:run={kd}", n=[16, 24], methods=methods, store={"rest": "all"})
    done = run(write(tmp_path / "grid.yaml", document), tmp_path / "out")
    assert done.returncode == 1
    assert "5 runs, 0 found finished, 0 trained, 5 failed; 16 new teacher calls" in done.stdout, done.stderr


def test_a_rule_looks_at_those_students_that_are_finished(tmp_path, weights):
    document = by_rules(weights, "seen:run={kd}", n=[16, 24], seeds=2)
    path, out = write(tmp_path / "grid.yaml", document), tmp_path / "out"
    first = run(write(tmp_path / "first.yaml", document | {"n": [16]}), out)
    assert first.returncode == 0, first.stderr
    [lost] = (out / "runs").glob("*/*seed1*")
    (lost / RUN_FILE).unlink()
    (lost / FAILURE_FILE).write_text(json.dumps({"error": "it failed", "kind": "Diverged"}))
    done = run(path, out)
    assert done.returncode == 1, done.stderr
    [store] = (out / "stores").iterdir()
    [made] = Store.open(store).manifest.rounds
    assert "seed0" in made.looked_at["runs"]
    assert "seed1" not in made.looked_at["runs"]


def test_rules_that_differ_in_a_mark_have_stores_of_their_own(tmp_path, weights):
    rules = ("seen:run={kd}", "seen:run={kd}+{kd}")
    grid = read_grid(write(tmp_path / "grid.yaml", by_rules(weights, *rules)))
    first, second = (need.folder for need in plan_stores(grid))
    assert first != second


def test_a_rule_has_one_store_and_the_same_runs_however_it_is_written(tmp_path, weights):
    def planned(out: Path, *rules: str) -> tuple[list[str], list[str]]:
        grid = as_bought(read_grid(write(tmp_path / "grid.yaml", by_rules(weights, *rules))), out)
        return [need.folder for need in plan_stores(grid)], [run.folder for run in plan_runs(grid, "fp32", out)]

    usual, others = "kcenter", "kcenter:subset=9"
    written, again = "kcenter:encoder=pixels", "kcenter:subset=09,encoder=pixels"
    assert planned(tmp_path / "out", usual) == planned(tmp_path / "out", written)
    assert planned(tmp_path / "out", usual, others) == planned(tmp_path / "out", written, again)


def test_what_an_earlier_release_bought_by_a_longer_text_stays_what_it_is(tmp_path, weights):
    grid = read_grid(write(tmp_path / "grid.yaml", by_rules(weights, "kcenter:encoder=pixels")))
    # As that release computed it: of the text as it was written.
    digest = hashlib.sha256(b"kcenter:encoder=pixels").hexdigest()[:10]
    folder = f"stores/resnet8-digits-kcenter-{digest}"
    (tmp_path / "out" / folder).mkdir(parents=True)
    assert [need.folder for need in plan_stores(as_bought(grid, tmp_path / "out"))] == [folder]
    assert plan_runs(as_bought(grid, tmp_path / "out"), "fp32") == plan_runs(grid, "fp32")
    assert store_folder(grid, grid.pairs[0], 0, "kcenter:encoder=pixels") == folder


def test_labels_of_students_may_hold_any_mark():
    text = "committee:by=disagreement,run={kd:weight=2,temperature=4}+{dist}"
    assert usual_text(text) == "committee:run={kd:weight=2,temperature=4}+{dist}"


def test_a_grid_whose_folder_cannot_stand_in_a_rule_is_refused_before_any_call(tmp_path, weights):
    path = write(tmp_path / "grid.yaml", by_rules(weights, "seen:run={kd}"))
    done = run(path, tmp_path / "a+b")
    assert done.returncode == 2
    assert "whose path has to be printable, without any of + , = : { } in it; give another --out" in done.stderr
    assert not (tmp_path / "a+b" / "stores").exists()


def test_what_is_too_much_for_the_largest_n_is_refused_before_the_smallest_is_bought(tmp_path, weights):
    document = by_rules(weights, "seen:run={kd}", n=[16, 24], store={"budget": 20})
    done = run(write(tmp_path / "grid.yaml", document), tmp_path / "out")
    assert done.returncode == 3, done.stderr
    assert not (tmp_path / "out" / "stores").exists()


def test_a_grid_that_no_longer_names_the_n_that_was_bought_is_refused(tmp_path, weights):
    document = by_rules(weights, "seen:run={kd}", n=[16])
    assert run(write(tmp_path / "grid.yaml", document), tmp_path / "out").returncode == 0
    done = run(write(tmp_path / "grid.yaml", document | {"n": [24, 40]}), tmp_path / "out")
    assert done.returncode == 2
    assert "the grid has no such n; name 16 too" in done.stderr
