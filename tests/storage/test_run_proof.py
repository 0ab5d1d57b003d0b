"""Results of a run are what they were when it ended, or the check names the file that is not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ground.documents import typed
from ground.errors import InvalidInput
from storage.ledger import Ledger
from storage.ledger_chain import KEY_VARIABLE
from storage.ledger_check import ledger_problems
from storage.manifest import Manifest
from storage.run_proof import ProvenBy, RunProofs, prove_run
from storage.run_record import RunRecord
from storage.store_folder import LEDGER_FILE
from storage.store_ledger import own_ledger
from tests.storage.test_run_record import DOCUMENT


@pytest.fixture
def store(built_store, tmp_path) -> Path:
    """A copy, whose ledger is written to."""
    return Path(shutil.copytree(built_store, tmp_path / "store"))


def finished_run(folder: Path, store: Path) -> Path:
    """A run as it ends; its numbers are made up."""
    manifest = Manifest.load(store)
    folder.mkdir()
    (folder / "metrics.csv").write_text("step\n1\n")
    (folder / "student.safetensors").write_bytes(b"weights")
    sources = {"store_id": manifest.store_id, "ledger_head": manifest.ledger_head, "store": str(store)}
    record = typed(DOCUMENT | sources, RunRecord)
    prove_run(folder, record, store, manifest)
    record.save(folder)
    return folder


@pytest.fixture
def run(store, tmp_path) -> Path:
    return finished_run(tmp_path / "run", store)


@pytest.fixture
def away(store, tmp_path) -> Path:
    """A run of a store whose ledger could not be written to: its proof is in its own folder."""
    ledger = store / LEDGER_FILE
    kept = ledger.rename(store / "kept")
    ledger.symlink_to(kept)
    try:
        return finished_run(tmp_path / "away", store)
    finally:
        kept.replace(ledger)


def edited(**values: object) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        document = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(document | values))

    return change


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(content) and None


CHANGES = {
    "accuracy": (edited(test_accuracy=0.99), "run.json (results) is not what"),
    "method": (edited(method="ckd"), "run.json (results) is not what"),
    "seed": (edited(seed=4), "run.json (results) is not what"),
    "n": (edited(n=801), "run.json (results) is not what"),
    "teacher_calls": (edited(teacher_calls=1), "run.json (results) is not what"),
    "a key more": (edited(note="best of all"), "run.json (results) is not what"),
    "another store": (edited(store_id="0" * 32), "run.json (results) is not what"),
    "weights": (written("student.safetensors", b"foreign"), "student.safetensors (weights) is not what"),
    "metrics": (written("metrics.csv", b""), "metrics.csv (metrics) is not what"),
    "no metrics": (lambda run: (run / "metrics.csv").unlink(), "metrics.csv (metrics) is missing"),
    "a pipe": (
        lambda run: ((run / "metrics.csv").unlink(), os.mkfifo(run / "metrics.csv")),
        "metrics.csv (metrics) is missing",
    ),
}


def test_a_run_is_proven_by_its_stores_ledger_and_the_ledger_is_whole(run, store):
    proof = RunProofs().of(run, store)
    assert (proof.by, proof.sentences) == (ProvenBy.LEDGER, ())
    assert not (run / "proof.json").exists()
    with closing(own_ledger(store)) as ledger:
        assert ledger_problems(ledger) == []


def test_the_order_and_layout_of_run_json_are_no_results(run, store):
    document = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(dict(reversed(document.items()))))
    assert RunProofs().of(run, store).is_proven


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize("kind", ["run", "away"])
def test_what_was_changed_is_named_wherever_the_proof_is(kind, case, store, request):
    folder = request.getfixturevalue(kind)
    change, message = CHANGES[case]
    change(folder)
    proof = RunProofs().of(folder, store)
    assert not proof.is_proven
    assert any(message in problem for problem in proof.problems), proof
    assert len([problem for problem in proof.problems if "store:" not in problem]) == 1


def test_a_run_of_an_earlier_release_is_not_proven_and_nothing_contradicts_it(run, built_store):
    proof = RunProofs().of(run, built_store)
    assert (proof.by, proof.problems) == (ProvenBy.NOTHING, ())
    assert "has no entry of it, and it has no proof.json" in proof.missing


def test_a_run_whose_store_is_gone_is_not_proven_by_a_ledger(run, tmp_path):
    assert "there is no store that can be read" in RunProofs().of(run, tmp_path / "gone").missing
    assert "nothing says where its store is" in RunProofs().of(run, None).missing


def test_a_proof_in_the_runs_folder_needs_no_store(away, store):
    assert RunProofs().of(away, store).by is ProvenBy.DIGEST
    assert RunProofs().of(away, None).by is ProvenBy.DIGEST


def test_a_ledger_that_cannot_be_written_to_is_said_and_fails_nothing(store, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")

    def refuse(ledger: Ledger, content: object) -> None:
        with closing(sqlite3.connect(store / LEDGER_FILE)) as other:
            other.execute("BEGIN IMMEDIATE")
            with closing(sqlite3.connect(store / LEDGER_FILE, timeout=0)) as ours:
                try:
                    ours.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    raise OSError(str(error)) from error

    monkeypatch.setattr(Ledger, "record_run", refuse)
    run = finished_run(tmp_path / "busy", store)
    assert "the store's ledger could not be written to (database is locked)" in caplog.text
    assert RunProofs().of(run, store).by is ProvenBy.DIGEST


def test_a_proof_that_cannot_be_written_fails_nothing(store, tmp_path, caplog):
    (store / LEDGER_FILE).unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "proof.json").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("")
    (tmp_path / "run" / "student.safetensors").write_text("")
    manifest = Manifest.load(store)
    prove_run(tmp_path / "run", typed(DOCUMENT, RunRecord), store, manifest)
    assert "these results are not proven" in caplog.text


def test_a_run_that_ends_again_is_recorded_once(run, store):
    with closing(own_ledger(store)) as ledger:
        before = ledger.head()
    prove_run(run, RunRecord.read(run), store, Manifest.load(store))
    with closing(own_ledger(store)) as ledger:
        assert ledger.head() == before


def test_an_entry_that_was_changed_proves_nothing(run, store):
    edited(test_accuracy=0.99)(run)
    # The digest of the forged results, in the payload of the entry: its hash gives it away.
    with closing(sqlite3.connect(store / LEDGER_FILE)) as database, database:
        (payload,) = database.execute("SELECT payload FROM entries WHERE kind = 'run'").fetchone()
        content = json.loads(payload) | {"results": digest_of_results(run)}
        database.execute(
            "UPDATE entries SET payload = ? WHERE kind = 'run'",
            (json.dumps(content, sort_keys=True, separators=(",", ":")),),
        )
    proof = RunProofs().of(run, store)
    assert not proof.is_proven
    assert "was changed: its hash does not match" in proof.problems[0]


def digest_of_results(run: Path) -> str:
    document = json.loads((run / "run.json").read_text())
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_a_proof_that_anybody_can_make_does_not_stand_against_the_ledger(run, store):
    edited(test_accuracy=0.99)(run)
    # As a forger who has the code: there is no ledger where the store is said to be.
    prove_run(run, RunRecord.read(run), run, Manifest.load(store))
    assert (run / "proof.json").exists()
    proof = RunProofs().of(run, store)
    assert not proof.is_proven
    assert "run.json (results) is not what entry" in proof.problems[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "proof.json is no proof"),
        (b"[]", "proof.json is no proof"),
        (b"{}", "proof.json is no proof"),
        (b'{"run": {}, "at": "", "seal": "", "hash": ""}', "proof.json is no proof"),
    ],
)
def test_a_damaged_proof_is_a_sentence(away, store, content, message):
    (away / "proof.json").write_bytes(content)
    (problem,) = RunProofs().of(away, store).problems
    assert problem.startswith(message)


def test_a_proof_that_was_edited_is_known_by_its_seal(away, store):
    document = json.loads((away / "proof.json").read_text())
    document["run"]["weights"] = "0" * 64
    (away / "proof.json").write_text(json.dumps(document))
    (problem,) = RunProofs().of(away, store).problems
    assert "proof.json was changed: its seal does not match" in problem


def test_a_proof_is_sealed_with_the_key_and_checked_with_it(store, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    # The store's ledger was begun without a key, and so takes no entry with one.
    run = finished_run(tmp_path / "sealed", store)
    assert RunProofs().of(run, store).by is ProvenBy.KEY
    monkeypatch.setenv(KEY_VARIABLE, "another")
    assert "or sealed with another key" in RunProofs().of(run, store).problems[0]
    monkeypatch.delenv(KEY_VARIABLE)
    assert "is sealed with a key; set it in CKD_LEDGER_KEY" in RunProofs().of(run, store).problems[0]


def test_a_proof_without_a_seal_is_none_where_a_key_is_set(away, store, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    assert "was made without it, or forged" in RunProofs().of(away, store).problems[0]


def test_a_proof_of_another_store_is_named(away, store):
    edited(store_id="0" * 32)(away)
    assert any("store: the proof is of a run from store" in problem for problem in RunProofs().of(away, store).problems)


def test_a_run_in_front_of_another_store_is_named(away, stores):
    (problem,) = RunProofs().of(away, stores["hdf5"]).problems[:1]
    assert problem.startswith("store: the run was trained from store")


def test_a_ledger_that_was_rolled_back_lacks_what_the_run_saw(away, store):
    with closing(sqlite3.connect(store / LEDGER_FILE)) as database, database:
        database.execute("UPDATE entries SET hash = ? WHERE hash = ?", ("0" * 64, Manifest.load(store).ledger_head))
    problems = RunProofs().of(away, store).problems
    assert any(problem.startswith("entry: the ledger lacks entry") for problem in problems)


def test_a_run_without_results_is_a_sentence(tmp_path, store):
    with pytest.raises(InvalidInput, match=r"run\.json' cannot be used"):
        RunProofs().of(tmp_path, store)
