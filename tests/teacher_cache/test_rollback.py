"""A store that is put back from a backup, or grown in two copies, is not paid for again without a word."""

from __future__ import annotations

import json
import shutil
from contextlib import closing

import pytest

from ground.errors import RolledBack
from models.compute import Compute
from storage.ledger import Ledger
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from storage.witness import witness_folder
from student_train.data import StudentData
from student_train.needs import Wanted
from teacher_cache.convert import convert
from teacher_cache.prepare import prepare_build
from teacher_cache.repair import repair
from tests.running import run_command
from tests.teacher_cache.damage import build_store, config_of, problems, totals

_SETTINGS = {"features": "none", "n": 8, "batch_size": 8}


@pytest.fixture
def backup(tmp_path, weights):
    """The state of `tmp_path / "store"` with 8 rows, when it has 12."""
    store = build_store(tmp_path / "store", weights, **_SETTINGS)
    shutil.copytree(store, tmp_path / "backup")
    build_store(store, weights, **_SETTINGS | {"n": 12})
    return tmp_path / "backup"


@pytest.fixture
def rolled_back(backup, tmp_path):
    shutil.rmtree(tmp_path / "store")
    return backup.rename(tmp_path / "store")


def _rollbacks(store) -> list[str]:
    with closing(Ledger(store / LEDGER_FILE)) as ledger, ledger.reading() as connection:
        return list(connection.exec_driver_sql("SELECT payload FROM entries WHERE kind = 'rollback'").scalars())


def test_a_store_put_back_from_a_backup_is_refused_by_all_who_record_or_train(rolled_back, tmp_path, weights, forwards):
    attempts = [
        lambda: build_store(rolled_back, weights, **_SETTINGS | {"n": 12}),
        lambda: prepare_build(config_of(rolled_back, weights, **_SETTINGS | {"n": 12})),
        lambda: repair(rolled_back, act=True),
        lambda: convert(rolled_back, "hdf5", tmp_path / "out"),
        lambda: StudentData.load(
            Store.open(rolled_back), None, Wanted((), ("logits",), False), Compute.choose("cpu", "fp32")
        ),
    ]
    before = totals(rolled_back)
    for attempt in attempts:
        with pytest.raises(RolledBack, match="it was rolled back to an older state; bring back the newer one"):
            attempt()
    assert forwards == []
    assert totals(rolled_back) == before


def test_verify_and_the_commands_say_it_and_what_to_do(rolled_back, weights):
    (problem,) = problems(rolled_back)
    assert "it was rolled back to an older state" in problem
    done = run_command("ckd-cache", "verify", "--store", rolled_back)
    assert done.returncode == 1
    assert "--accept-rollback" in done.stdout
    shown = run_command("ckd-cache", "repair", "--store", rolled_back, "--accept-rollback")
    assert (shown.returncode, _rollbacks(rolled_back)) == (1, [])
    done = run_command("ckd-cache", "repair", "--store", rolled_back, "--accept-rollback", "--yes")
    assert done.returncode == 0, done.stderr
    assert len(_rollbacks(rolled_back)) == 1
    assert problems(rolled_back) == []


def test_a_rollback_that_is_accepted_is_chained_and_builds_go_on(rolled_back, weights):
    settings = _SETTINGS | {"n": 12}
    build_store(rolled_back, weights, **settings, accept_rollback=True)
    assert len(_rollbacks(rolled_back)) == 1
    assert problems(rolled_back) == []
    build_store(rolled_back, weights, **settings)
    assert len(_rollbacks(rolled_back)) == 1


def test_of_two_copies_that_both_grow_the_second_is_a_fork(backup, tmp_path, weights, monkeypatch):
    # On a machine that has not seen the original grow.
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("CKD_WITNESS", str(tmp_path / "elsewhere"))
        build_store(backup, weights, **_SETTINGS | {"n": 12})
        assert problems(backup) == []
    with pytest.raises(RolledBack, match="it is a fork, two heads follow entry"):
        build_store(backup, weights, **_SETTINGS | {"n": 12})
    assert problems(tmp_path / "store") == []


def test_a_converted_store_and_its_source_both_go_on(backup, tmp_path, weights):
    store = tmp_path / "store"
    out = convert(store, "hdf5", tmp_path / "out").out
    for n in (16, 20):
        build_store(store, weights, **_SETTINGS | {"n": n})
        build_store(out, weights, "hdf5", **_SETTINGS | {"n": n})
    assert problems(store) == problems(out) == []


def test_a_build_that_is_stopped_is_seen_as_far_as_it_came(tmp_path, weights, monkeypatch):
    store = build_store(tmp_path / "store", weights, **_SETTINGS)
    monkeypatch.setattr(Ledger, "commit", _fail)
    with pytest.raises(ZeroDivisionError):
        build_store(store, weights, **_SETTINGS | {"n": 12})
    with closing(Ledger(store / LEDGER_FILE)) as ledger, ledger.reading() as connection:
        newest = connection.exec_driver_sql("SELECT seq, kind FROM entries ORDER BY seq DESC LIMIT 1").one()
    (file,) = witness_folder().glob("*.json")
    assert (json.loads(file.read_text())["newest"]["entry"], "reserve") == tuple(newest)


def test_an_unwritable_witness_stops_no_build(tmp_path, weights, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CKD_WITNESS", str(tmp_path / "file" / "below"))
    store = build_store(tmp_path / "store", weights, **_SETTINGS)
    assert totals(store) == (8, 0, 0)
    assert caplog.text.count("was not advanced") == 1


def _fail(*_: object, **__: object) -> None:
    raise ZeroDivisionError


def test_verify_hints_at_a_manifest_without_a_seal_where_a_key_is_set(tmp_path, weights, monkeypatch):
    monkeypatch.setenv("CKD_LEDGER_KEY", "one")
    store = build_store(tmp_path / "store", weights, **_SETTINGS)
    assert "seal" not in run_command("ckd-cache", "verify", "--store", store).stderr
    manifest = store / "manifest.json"
    document = json.loads(manifest.read_text())
    del document["seal"]
    manifest.write_text(json.dumps(document))
    done = run_command("ckd-cache", "verify", "--store", store)
    assert done.returncode == 0, done.stdout
    assert "is not sealed with the key in CKD_LEDGER_KEY" in " ".join(done.stderr.split())
