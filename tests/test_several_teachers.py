"""Two stores, one student, by the commands: what is refused, whose calls are traced, what the student is good for."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from msgspec import structs
from PIL import Image

import student_train.cli
import teacher_cache.cli
from storage.run_record import RUN_FILE, RunRecord
from storage.store import Store
from storage.store_folder import LEDGER_FILE

N, SECOND = 48, 40
SETTINGS = ("--student", "resnet8", "--method", "kd", "--max-evals", 1, "--device", "cpu", "--precision", "fp32")


def train(*arguments: object) -> Result:
    return CliRunner().invoke(student_train.cli.main, [str(argument) for argument in arguments])


def trace(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "250"}).invoke(
        teacher_cache.cli.main, ["ledger", "trace", *(str(argument) for argument in arguments)]
    )


def traced(*arguments: object) -> dict:
    result = trace(*arguments, "--json")
    assert result.exit_code in (0, 1), result.stderr
    return json.loads(result.stdout)


@dataclass(frozen=True)
class Trained:
    """Copies of two stores, and a run of both."""

    first: Path
    second: Path
    run: Path

    def rewrite(self, **changes: object) -> None:
        structs.replace(RunRecord.read(self.run), **changes).save(self.run)


@pytest.fixture
def trained(built_store, second_store, tmp_path, monkeypatch) -> Trained:
    monkeypatch.delenv("CKD_LEDGER", raising=False)
    found = Trained(tmp_path / "first", tmp_path / "second", tmp_path / "run")
    for source, place in ((built_store, found.first), (second_store, found.second)):
        shutil.copytree(source, place)
    both = ("--store", found.second, "--store", found.first)
    result = train(*both, "--combine", "weighted", "--n", N, *SETTINGS, "--out", found.run)
    assert result.exit_code == 0, result.stderr
    assert f"{N} rows ({N + SECOND} teacher calls)" in result.stdout
    return found


def test_every_ledger_vouches_for_its_own_calls(trained):
    found = traced(trained.run)
    assert (found["vouched"], found["problems"], found["proven"]) == (True, [], "ledger")
    assert (found["teacher_calls"], found["calls_total"], found["combine"]) == (N + SECOND, N + SECOND, "weighted")
    said = [(part["store"], part["n"], part["calls_total"]) for part in found["stores"]]
    assert said == [(str(trained.second), SECOND, SECOND), (str(trained.first), N, N)]
    assert found["stores"][0]["teacher"]["fingerprint"] != found["stores"][1]["teacher"]["fingerprint"]
    shown = trace(trained.run)
    assert shown.exit_code == 0
    assert f"the ledgers of all 2 stores were asked, and vouch for all {N} rows" in shown.stdout


def test_a_run_does_not_pass_where_one_of_two_ledgers_lacks_what_it_saw(trained):
    teachers = list(RunRecord.read(trained.run).teachers)
    trained.rewrite(teachers=(structs.replace(teachers[0], ledger_head="0" * 64), teachers[1]))
    found = trace(trained.run)
    assert found.exit_code == 1
    assert f"{trained.second}: the run saw the ledger at entry 000000000000" in found.stdout
    assert "the ledgers of all 2 stores were asked, and do not vouch" in found.stdout


def test_answers_that_the_second_ledger_knows_no_call_of_are_told(trained):
    store = Store.open(trained.second)
    store.write_outputs([7], {"logits": np.zeros((1, 10), np.float32)})
    problems = traced(trained.run)["problems"]
    assert [problem.startswith(f"{trained.second}: row 7 view 0: its logits is not what") for problem in problems] == [
        True
    ]


def test_calls_that_the_second_store_does_not_account_for_are_told(trained):
    teachers = list(RunRecord.read(trained.run).teachers)
    trained.rewrite(teachers=(structs.replace(teachers[0], teacher_calls=SECOND - 1), teachers[1]))
    problems = traced(trained.run)["problems"]
    assert f"the run says that it drew on {N + SECOND} calls, and its stores come to {N + SECOND - 1}" in problems
    trained.rewrite(teachers=(structs.replace(teachers[0], rows=SECOND + 1, teacher_calls=SECOND + 1), teachers[1]))
    problems = traced(trained.run)["problems"]
    assert f"{trained.second}: the run was trained on {SECOND + 1} rows, the store has {SECOND}" in problems
    trained.rewrite(teachers=(structs.replace(teachers[0], rows=N), teachers[0]))
    problems = traced(trained.run)["problems"]
    assert any("which is none of those that answered" in problem for problem in problems)
    document = json.loads((trained.run / RUN_FILE).read_text())
    document["teachers"] = document["teachers"][:1]
    (trained.run / RUN_FILE).write_text(json.dumps(document))
    refused = trace(trained.run)
    assert (refused.exit_code, "is not the result of a run" in refused.stderr) == (2, True)


def test_a_store_that_was_moved_is_found_by_its_id(trained, built_store):
    trained.second.rename(trained.second.with_name("moved"))
    assert "there is none; if it was moved, give --store DIR" in trace(trained.run).stderr
    assert traced(trained.run, "--store", trained.second.with_name("moved"))["vouched"]
    trained.second.with_name("moved").rename(trained.second)
    (trained.first / LEDGER_FILE).unlink()
    assert trace(trained.run).exit_code == 2


def test_the_way_back_from_a_call_of_either_ledger_finds_the_run(trained):
    for store, last in ((trained.first, N), (trained.second, SECOND)):
        first = traced(trained.run, "--limit", 96)["stores"]
        ids = [call["id"] for part in first if part["store"] == str(store) for call in part["calls"]]
        assert len(ids) == last
        found = traced("--call", ids[-1], "--store", store, trained.run.parent)
        assert [run["run"] for run in found["runs"]] == [str(trained.run)]


def test_a_proof_says_which_stores_it_does_not_ask(trained):
    said = train("verify", trained.run)
    assert said.exit_code == 0
    assert f"{SECOND} of its calls are in {trained.second}, which was not asked" in said.stdout
    assert json.loads(train("verify", trained.run, "--json").stdout)["not_asked"] == [str(trained.second)]
    trained.rewrite(teacher_calls=N)
    assert train("verify", trained.run).exit_code == 1


def test_its_student_answers_and_is_exported(trained, tmp_path):
    for place in (trained.first, trained.second):
        shutil.rmtree(place)
    Image.new("RGB", (32, 32), (90, 20, 200)).save(tmp_path / "image.png")
    named = train("predict", trained.run, tmp_path / "image.png", "--json")
    assert named.exit_code == 0, named.stderr
    assert len(json.loads(named.stdout)["images"][0]["best"]) == 5
    exported = train("export", trained.run, "--to", "export")
    assert exported.exit_code == 0, exported.stderr


@pytest.mark.parametrize(
    ("count", "more", "sentence"),
    [
        (2, (), "2 stores were given, and nothing says how their answers become one; add --combine, one of mean, best"),
        (1, ("--combine", "mean"), "--combine mean is for several stores, and one was given; add another --store"),
        (2, ("--combine", "mean", "--method", "fitnets"), "layers of different teachers have nothing in common"),
        (2, ("--combine", "mean", "--stream"), "answers of several stores are combined in memory; give one --store"),
        (2, ("--combine", "median"), "'median' is not one of 'mean', 'best', 'weighted'"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_a_sentence(built_store, second_store, tmp_path, count, more, sentence):
    places = [part for place in (built_store, second_store)[:count] for part in ("--store", place)]
    result = train(*places, *more, "--n", N, "--out", tmp_path / "run")
    assert (result.exit_code, sentence in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "run").exists()


def test_one_store_is_recorded_as_ever(built_store, tmp_path):
    result = train("--store", built_store, "--n", N, *SETTINGS, "--out", tmp_path / "run", "--json")
    said = json.loads(result.stdout)
    assert not {"combine", "stores", "store_rows", "teachers"} & set(said)
    assert (said["teacher"], said["teacher_calls"]) == ("resnet8", N)


def test_a_proxy_of_several_teachers_is_refused(trained):
    rest = ("--rest", f"proxy:{trained.run}", "--method", "vanilla")
    result = train("--store", trained.first, "--n", N, *SETTINGS[:2], *rest, "--out", trained.run.with_name("next"))
    assert result.exit_code == 2
    assert "learned from several teachers, whose calls are not this store's alone" in result.stderr
