"""A run's folder: who may use it, what is kept for resuming, and metrics with columns of single losses."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os

import pytest
import torch

from ground.errors import InvalidInput, StoreBusy
from storage.run_record import RunProtocol, RunSettings
from student_train.run_folder import METRICS, RunFolder

SETTINGS = RunSettings(
    student="resnet8",
    method="kd",
    seed=0,
    lr=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    batch_size=64,
    student_view="fresh",
    protocol=RunProtocol(patience=50, plateaus=3, max_evals=None),
    recipe={"losses": []},
    n=48,
    precision="fp32",
    store_id="0" * 32,
    teacher="resnet20",
    teacher_fingerprint="1" * 64,
    dataset="digits",
)


def changed(**fields) -> RunSettings:
    return RunSettings(**{name: getattr(SETTINGS, name) for name in SETTINGS.__struct_fields__} | fields)


def state_of(settings: RunSettings) -> dict[str, object]:
    return {"config": json.dumps(settings.document()), "step": 7, "modules": {"w": torch.arange(3.0)}}


def test_what_is_kept_for_resuming_comes_back(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.load_state(SETTINGS) is None
    folder.save_state(state_of(SETTINGS))
    found = folder.load_state(SETTINGS)
    assert found["step"] == 7
    assert torch.equal(found["modules"]["w"], torch.arange(3.0))


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("method", "ckd"), ("n", 47), ("lr", 0.1)])
def test_a_state_of_other_settings_is_refused_by_the_setting_that_differs(tmp_path, name, value):
    folder = RunFolder(tmp_path)
    folder.save_state(state_of(SETTINGS))
    with pytest.raises(InvalidInput, match=f"was started with {name} .*, not {value}"):
        folder.load_state(changed(**{name: value}))


def test_a_store_that_was_made_from_the_runs_own_is_as_good(tmp_path):
    folder, later = RunFolder(tmp_path), changed(store_id="2" * 32)
    folder.save_state(state_of(SETTINGS))
    with pytest.raises(InvalidInput, match="store_id"):
        folder.load_state(later)
    assert folder.load_state(later, {"0" * 32}) is not None


def tampered(folder: RunFolder, **values) -> None:
    path = folder.path / "resume.pt"
    torch.save(torch.load(path, weights_only=True) | values, path)


@pytest.mark.parametrize("key", ["", "secret"])
@pytest.mark.parametrize("values", [{"step": 8}, {"modules": {"w": torch.ones(3)}}, {"more": 1}])
def test_a_state_that_was_changed_is_refused(tmp_path, monkeypatch, key, values):
    monkeypatch.setenv("CKD_LEDGER_KEY", key)
    folder = RunFolder(tmp_path)
    folder.save_state(state_of(SETTINGS))
    assert folder.load_state(SETTINGS)["step"] == 7
    tampered(folder, **values)
    with pytest.raises(InvalidInput, match="does not match its own digest; delete it to start again"):
        folder.load_state(SETTINGS)


def test_a_state_is_resumed_under_the_key_that_it_was_saved_with(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.save_state(state_of(SETTINGS))
    monkeypatch.setenv("CKD_LEDGER_KEY", "secret")
    with pytest.raises(InvalidInput, match="was saved without the key in CKD_LEDGER_KEY"):
        folder.load_state(SETTINGS)
    folder.save_state(state_of(SETTINGS))
    monkeypatch.setenv("CKD_LEDGER_KEY", "another")
    with pytest.raises(InvalidInput, match="does not match its own digest"):
        folder.load_state(SETTINGS)
    monkeypatch.delenv("CKD_LEDGER_KEY")
    with pytest.raises(InvalidInput, match="is sealed with a key; set it in CKD_LEDGER_KEY"):
        folder.load_state(SETTINGS)


def test_a_state_of_a_release_without_digests_goes_on(tmp_path):
    torch.save(state_of(SETTINGS), tmp_path / "resume.pt")
    assert RunFolder(tmp_path).load_state(SETTINGS)["step"] == 7


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04"])
def test_a_damaged_state_is_a_sentence(tmp_path, content):
    (tmp_path / "resume.pt").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"resume\.pt cannot be resumed from; delete it to start again"):
        RunFolder(tmp_path).load_state(SETTINGS)


@pytest.mark.parametrize(
    ("left", "said"),
    [("run.json", "holds a run already"), ("resume.pt", "holds a run already"), ("manifest.json", "is a store")],
)
def test_a_folder_of_something_else_is_not_taken_over(tmp_path, left, said):
    (tmp_path / left).write_text("{}")
    with pytest.raises(InvalidInput, match=said):
        RunFolder(tmp_path).check(resume=False)


def test_metrics_have_a_column_for_every_single_loss_after_the_known_ones(tmp_path):
    row = dict.fromkeys(METRICS, 1)
    RunFolder(tmp_path).save_metrics([row, row | {"loss/ce": 0.5}, row | {"loss/ce": 0.25, "loss/kd": 2.0}])
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*METRICS, "loss/ce", "loss/kd"]
    assert [(row["loss/ce"], row["loss/kd"]) for row in rows] == [("", ""), ("0.5", ""), ("0.25", "2.0")]


def hold(path, held, done) -> None:
    with RunFolder(path).opened(resume=True):
        held.set()
        done.wait(30)


def test_only_one_training_writes_to_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, done))
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(StoreBusy, match="another training writes to"), RunFolder(tmp_path).opened(resume=True):
            pass
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_a_pipe_as_the_lock_is_refused_and_nobody_waits(tmp_path, kind):
    lock, victim = tmp_path / "run.lock", tmp_path / "victim"
    lock.symlink_to(victim) if kind == "link" else os.mkfifo(lock)
    with pytest.raises(InvalidInput, match=r"run\.lock is no file of its own"), RunFolder(tmp_path).opened(resume=True):
        pass
    assert not victim.exists()


def test_what_links_in_a_run_folder_point_to_is_left(tmp_path):
    folder, victim = tmp_path / "run", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("years of work")
    for name in ("metrics.csv", "resume.pt", f".metrics.csv.{os.getpid()}.partial"):
        (folder / name).symlink_to(victim)
    RunFolder(folder).save_metrics([{"step": 1}])
    RunFolder(folder).save_state(state_of(SETTINGS))
    assert victim.read_text() == "years of work"
    assert not (folder / "metrics.csv").is_symlink()
    assert RunFolder(folder).load_state(SETTINGS)["step"] == 7
