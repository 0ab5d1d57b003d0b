"""Answers that were in hand when a build could not go on are kept, and committed by the next one without a call."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stand_ins.full_disk import MOMENTS, full_from, small_disk
from ground.errors import CKDError, DiskFull, Interrupted, InvalidInput, StoreBusy, StoreUnreadable
from storage.ledger import Ledger
from storage.spool import Spool, spool_files
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from teacher_cache import answered
from teacher_cache.build import build
from teacher_cache.config import ExtensionConfig
from teacher_cache.datasets import open_dataset
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build
from teacher_cache.teachers import ZooTeacher
from tests.conftest import run_command
from tests.teacher_cache.damage import arrays_of, build_store, config_of, problems, totals

N, BATCH = 48, 8


def asked(folder: Path, weights: Path, array_format: str = "zarr"):
    return config_of(folder, weights, array_format, n=N, features="pooled", batch_size=BATCH)


def fail_at(monkeypatch, owner, name: str, error: BaseException, at_call: int = 3) -> None:
    """Have a function raise at its `at_call`-th call."""
    original, calls = getattr(owner, name), []

    def failing(*arguments, **options):
        calls.append(name)
        if len(calls) == at_call:
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, failing)


NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
GONE = StoreUnreadable("the server does not answer")
# Where a build fails, and with what.
FAILURES = {
    "conversion": (answered, "to_arrays", MemoryError()),
    "assembly": (answered, "Answered", MemoryError()),
    "lease": (Ledger, "holds_lease", GONE),
    "write": (Store, "write_outputs", NO_ROOM),
    "publish": (Store, "publish", DiskFull("no room left")),
    "commit": (Ledger, "commit", DiskFull("no room left")),
    "server": (Ledger, "commit", GONE),
    "next reservation": (Ledger, "reserve", DiskFull("no room left")),
    "bug": (Store, "publish", ZeroDivisionError()),
}


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
@pytest.mark.parametrize("failure", FAILURES)
def test_what_is_in_hand_at_a_failure_is_committed_by_the_next_build(
    tmp_path, weights, forwards, monkeypatch, failure, array_format
):
    folder = tmp_path / "store"
    prepared = prepare_build(asked(folder, weights, array_format))
    with monkeypatch.context() as patch:
        fail_at(patch, *FAILURES[failure])
        with pytest.raises(type(FAILURES[failure][2])):
            build(*prepared)
    made = sum(forwards)
    assert 2 * BATCH <= made < N
    assert totals(folder)[2] == 0
    assert prepare_build(asked(folder, weights, array_format)).plan.needed_calls == N - made
    report = build(*prepare_build(asked(folder, weights, array_format)))
    assert (report.new_calls, report.lost_calls, report.rows_valid) == (N - made, 0, N)
    assert totals(folder) == (N, 0, 0), "spent is what the teacher was asked"
    assert sum(forwards) == N
    assert problems(folder) == []
    assert list(spool_files(folder)) == []
    whole = build_store(tmp_path / "whole", weights, array_format, n=N, features="pooled", batch_size=BATCH)
    for name, values in arrays_of(whole).items():
        np.testing.assert_array_equal(arrays_of(folder)[name], values, err_msg=name)


def test_both_batches_in_hand_are_kept(tmp_path, weights, forwards, monkeypatch, caplog):
    folder = tmp_path / "store"
    with monkeypatch.context() as patch:
        fail_at(patch, Ledger, "commit", DiskFull("no room left"), at_call=1)
        with pytest.raises(DiskFull):
            build(*prepare_build(asked(folder, weights)))
    assert sum(forwards) == 2 * BATCH
    assert f"{2 * BATCH} answers in hand are kept in {folder}/answers-1-" in caplog.text
    report = build(*prepare_build(asked(folder, weights)))
    assert (report.adopted_calls, report.lost_calls) == (2 * BATCH, 0)


def test_the_room_is_taken_before_the_first_call(tmp_path, weights, forwards, monkeypatch):
    folder = tmp_path / "store"
    prepared = prepare_build(asked(folder, weights))
    monkeypatch.setattr(os, "posix_fallocate", refusing_spools(os.posix_fallocate))
    with pytest.raises(DiskFull, match=r"no room left to write .*answers-1-.*\.spool; free some space"):
        build(*prepared)
    assert forwards == []
    assert totals(folder) == (0, 0, 0)
    assert list(spool_files(folder)) == []


def refusing_spools(allocate):
    def allocating(descriptor: int, offset: int, size: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".spool":
            raise NO_ROOM
        allocate(descriptor, offset, size)

    return allocating


def test_what_could_not_be_kept_is_said_and_counts_as_lost(tmp_path, weights, forwards, monkeypatch, caplog):
    folder = tmp_path / "store"
    with monkeypatch.context() as patch:
        fail_at(patch, Ledger, "commit", DiskFull("no room left"))
        fail_at(patch, Spool, "write", DiskFull("no room here either"), at_call=1)
        with pytest.raises(DiskFull):
            build(*prepare_build(asked(folder, weights)))
    made = sum(forwards)
    assert "answers that are paid for could not be kept, and their calls are lost: no room here either" in caplog.text
    # What was written and published before its commit failed is whole; the batch behind it is gone.
    report = build(*prepare_build(asked(folder, weights)))
    assert report.lost_calls == made - 3 * BATCH > 0
    assert totals(folder) == (N, 0, report.lost_calls)
    assert list(spool_files(folder)) == []


@pytest.mark.parametrize("times", [1, 2])
def test_who_stops_a_build_at_once_keeps_the_answer_that_is_being_paid_for(
    tmp_path, weights, forwards, monkeypatch, times
):
    folder, call = tmp_path / "store", ZooTeacher.call

    def interrupted(self, views, outputs):
        if len(forwards) == 2:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return call(self, views, outputs)

    prepared = prepare_build(asked(folder, weights))
    with monkeypatch.context() as patch:
        patch.setattr(ZooTeacher, "call", interrupted)
        with pytest.raises(Interrupted if times == 1 else KeyboardInterrupt):
            build(*prepared)
    assert sum(forwards) == 3 * BATCH
    assert build(*prepare_build(asked(folder, weights))).lost_calls == 0
    assert totals(folder) == (N, 0, 0)
    assert sum(forwards) == N


def test_a_teacher_that_hangs_can_still_be_left(tmp_path, weights, forwards, monkeypatch):
    def hanging(self, views, outputs):
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    prepared = prepare_build(asked(tmp_path / "store", weights))
    monkeypatch.setattr(ZooTeacher, "call", hanging)
    with pytest.raises(KeyboardInterrupt):
        build(*prepared)


def test_a_display_that_fails_ends_a_build_with_nothing_lost(tmp_path, weights, forwards):
    """A caller's own display; the commands' never fails, see ground/test_terminal.py."""
    folder = tmp_path / "store"

    def broken(steps: int, note: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        build(*prepare_build(asked(folder, weights)), broken)
    assert build(*prepare_build(asked(folder, weights))).lost_calls == 0
    assert totals(folder) == (N, 0, 0)
    assert sum(forwards) == N


def test_an_extension_keeps_what_it_has_in_hand(tmp_path, weights, forwards, monkeypatch):
    folder = build_store(tmp_path / "store", weights, n=N, features="pooled")
    wanted = ExtensionConfig(store=folder, features="layer1,pooled", weights=weights, batch_size=BATCH, device="cpu")
    del forwards[:]
    with monkeypatch.context() as patch:
        fail_at(patch, Ledger, "commit", DiskFull("no room left"))
        with pytest.raises(DiskFull):
            extend(*prepare_extension(wanted))
    made = sum(forwards)
    report = extend(*prepare_extension(wanted))
    assert (report.new_calls, report.lost_calls) == (N - made, 0)
    assert sum(forwards) == N
    assert problems(folder) == []
    assert list(spool_files(folder)) == []


def test_whoever_settles_a_session_looks_for_its_answers_first(tmp_path, weights, forwards, monkeypatch):
    """Another builder that waits for the one that failed, at the end of a build of its own."""
    folder = tmp_path / "store"
    prepared = prepare_build(asked(folder, weights))
    with monkeypatch.context() as patch:
        fail_at(patch, Ledger, "commit", GONE, at_call=1)
        # Nor can it give its lease back, as when the server is gone.
        patch.setattr(Ledger, "end_session", lambda self, session: (_ for _ in ()).throw(GONE))
        with pytest.raises(StoreUnreadable):
            build(*prepared)
    with monkeypatch.context() as patch:
        with closing(Ledger(folder / LEDGER_FILE)) as ledger:
            (lease,) = ledger.leases().values()
        patch.setattr("teacher_cache.settle.dead_leases", lambda *_: [])
        report = build(
            *prepare_build(config_of(folder, weights, n=N, features="pooled", batch_size=BATCH, lease_seconds=0.5))
        )
    assert lease.session == 1
    assert (report.adopted_calls, report.lost_calls) == (2 * BATCH, 0)
    assert totals(folder) == (N, 0, 0)
    assert sum(forwards) == N
    assert list(spool_files(folder)) == []


def spooled(folder: Path, weights: Path, monkeypatch) -> Path:
    """A store with a spool of two batches, none of which is in the store."""
    with monkeypatch.context() as patch:
        fail_at(patch, Store, "write_outputs", NO_ROOM, at_call=1)
        with pytest.raises(OSError, match="No space left"):
            build(*prepare_build(asked(folder, weights)))
    ((path, session),) = spool_files(folder)
    assert session == 1
    return path


@pytest.mark.parametrize("place", ["front", "header", "answers"])
def test_a_spool_that_was_damaged_is_named_and_its_calls_are_lost(tmp_path, weights, monkeypatch, caplog, place):
    folder = tmp_path / "store"
    path = spooled(folder, weights, monkeypatch)
    content = bytearray(path.read_bytes())
    last = len(content.rstrip(b"\0")) - 1
    content[{"front": 3, "header": 60, "answers": last}[place]] ^= 1
    path.write_bytes(content)
    (found,) = [problem for problem in problems(folder) if ".spool" in problem]
    assert found.startswith(f"{path.name}: is damaged")
    report = build(*prepare_build(asked(folder, weights)))
    assert f"{path} is damaged" in caplog.text
    assert (report.lost_calls, report.rows_valid) == (2 * BATCH, N)
    assert path.read_bytes() == content, "nothing that may have held answers is deleted"
    (found,) = problems(folder)
    assert found.startswith(f"{path.name}: is damaged")
    assert "their calls are settled" in found


def test_a_whole_spool_is_expected_and_only_its_calls_are_unsettled(tmp_path, weights, monkeypatch):
    folder = tmp_path / "store"
    path = spooled(folder, weights, monkeypatch)
    found = [problem for problem in problems(folder) if "is not there" not in problem]
    assert len(found) == 2 * BATCH
    assert all("is not settled" in problem for problem in found)
    assert all(f"its answer is kept in {path.name}; run the build again" in problem for problem in found)
    assert not any(problem.startswith(path.name) for problem in found)


def test_a_spool_of_another_store_or_ledger_is_named_and_left_alone(tmp_path, weights, monkeypatch, forwards):
    theirs = spooled(tmp_path / "theirs", weights, monkeypatch)
    folder = build_store(tmp_path / "ours", weights, n=N, features="pooled")
    planted = [folder / theirs.name, folder / theirs.name.replace("answers-1-", "answers-7-")]
    for path in planted:
        path.write_bytes(theirs.read_bytes())
    expected = [f"{path.name}: holds answers that the ledger knows no calls for; move it away" for path in planted]
    assert problems(folder) == expected
    build(*prepare_build(config_of(folder, weights, n=N + 8, features="pooled")))
    assert [path.exists() for path in planted] == [True, True]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_link_or_a_pipe_in_place_of_a_spool_is_not_followed(tmp_path, weights, monkeypatch, kind):
    folder, outside = tmp_path / "store", tmp_path / "outside"
    path = spooled(folder, weights, monkeypatch)
    path.rename(outside)
    before = outside.read_bytes()
    {"link": lambda: path.symlink_to(outside), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    assert f"{path.name}: is no file of its own, but a link, a folder or a pipe; move it away" in problems(folder)
    with pytest.raises(InvalidInput, match="is no file of its own.*answers that are paid for"):
        prepare_build(asked(folder, weights))
    assert totals(folder) == (0, 2 * BATCH, 0)
    assert outside.read_bytes() == before
    path.rmdir() if kind == "folder" else path.unlink()
    outside.rename(path)
    assert build(*prepare_build(asked(folder, weights))).lost_calls == 0


@pytest.mark.parametrize("where", ["open", "pread"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_a_spool_that_cannot_be_read_settles_nothing(tmp_path, weights, monkeypatch, where, number):
    folder = tmp_path / "store"
    path = spooled(folder, weights, monkeypatch)
    original = getattr(os, where)

    def failing(place, *arguments, **options):
        name = Path(f"/proc/self/fd/{place}").readlink() if where == "pread" else Path(os.fsdecode(place))
        if name.suffix == ".spool":
            raise OSError(number, os.strerror(number))
        return original(place, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, where, failing)
        with pytest.raises(StoreUnreadable, match=f"spool cannot be read \\({os.strerror(number)}\\)"):
            prepare_build(asked(folder, weights))
        assert any("spool cannot be read" in problem for problem in problems(folder))
    assert totals(folder) == (0, 2 * BATCH, 0)
    assert path.exists()
    assert build(*prepare_build(asked(folder, weights))).lost_calls == 0


def test_answers_that_came_too_late_are_dropped(tmp_path, weights, monkeypatch, forwards):
    """The calls were given up by others before: they are made again, and what was spooled answers nothing."""
    folder = tmp_path / "store"
    path = spooled(folder, weights, monkeypatch)
    with closing(Ledger(folder / LEDGER_FILE)) as ledger:
        ledger.lose([call.id for call in ledger.unsettled_calls(1)])
    build(*prepare_build(asked(folder, weights)))
    assert totals(folder) == (N, 0, 2 * BATCH)
    assert not path.exists()


def test_a_repair_commits_what_was_spooled(tmp_path, weights, monkeypatch, forwards):
    folder = tmp_path / "store"
    spooled(folder, weights, monkeypatch)
    made = sum(forwards)
    shown = run_command("ckd-cache", "repair", "--store", folder, "--json")
    assert '"adopted": 16' in shown.stdout, shown.stdout
    assert run_command("ckd-cache", "repair", "--store", folder, "--yes").returncode in (0, 1)
    assert totals(folder) == (made, 0, 0)
    assert list(spool_files(folder)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("array_format", "step"), [("zarr", 3), ("hdf5", 1)])
def test_a_disk_that_is_full_at_any_one_write_drops_no_answer(
    tmp_path, weights, forwards, monkeypatch, array_format, step
):
    """Each write, sync and transaction of a build fails once, in a build of its own; of zarr's many files a third."""
    place, digits = 1 - step, open_dataset("digits")
    # Nothing of them is written, and each preparation would load the teacher again.
    teacher = prepare_build(config_of(tmp_path / "none", weights, array_format, n=12)).teacher
    while True:
        place += step
        folder = tmp_path / f"store-{place}"
        del forwards[:]
        with monkeypatch.context() as patch:
            writes = fail_one_write(patch, place)
            config = config_of(folder, weights, array_format, n=12, batch_size=4)
            prepared = prepare_build(config, digits, teacher)
            # That of the very last entry of the witness, and what only gives room back, need not end a build.
            with suppress(CKDError, OSError):
                build(*prepared)
        failed = len(writes) >= place
        made = sum(forwards)
        report = build(*prepare_build(config, digits, teacher))
        assert (report.new_calls, report.lost_calls, report.rows_valid) == (12 - made, 0, 12), writes[-1]
        assert totals(folder) == (12, 0, 0), writes[-1]
        assert problems(folder) == [], writes[-1]
        assert list(spool_files(folder)) == [], writes[-1]
        if not failed:
            break
    assert place > 40, "every write was among them"


def fail_one_write(patch, place: int) -> list[str]:
    """Have the `place`-th write fail for lack of room; the names of those that were made."""
    from storage.database import Database

    writes: list[str] = []

    def counting(owner, name: str, error: BaseException) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments, **options):
            writes.append(name)
            if len(writes) == place:
                raise error
            return original(*arguments, **options)

        patch.setattr(owner, name, wrapped)

    for name in ("pwrite", "fsync", "posix_fallocate"):
        counting(os, name, NO_ROOM)
    counting(Database, "write", DiskFull("no room left to write the ledger"))
    return writes


@pytest.mark.slow
@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_is_full_from_any_step_on_drops_no_answer(
    tmp_path, weights, forwards, monkeypatch, moment, array_format
):
    """A real disk without a free byte: what was not promised room fails, in the database as well."""
    with small_disk(tmp_path / "disk", 64) as disk:
        if disk is None:
            pytest.skip("this user may not mount a disk")
        wanted = asked(disk.folder / "store", weights, array_format)
        prepared = prepare_build(wanted)
        with monkeypatch.context() as patch, suppress(DiskFull):
            full_from(disk, moment, 2, patch.setattr)
            build(*prepared)
        made = sum(forwards)
        disk.free()
        report = build(*prepare_build(wanted))
        assert (report.new_calls, report.lost_calls, report.rows_valid) == (N - made, 0, N)
        assert totals(wanted.store) == (N, 0, 0)
        assert problems(wanted.store) == []


def test_a_builder_whose_lease_ended_in_the_middle_says_so(tmp_path, weights, monkeypatch, forwards):
    folder = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "holds_lease", lambda self, session: False)
        with pytest.raises(StoreBusy, match="its lease ended"):
            build(*prepare_build(asked(folder, weights)))
    report = build(*prepare_build(asked(folder, weights)))
    assert report.lost_calls == 0, "nobody had given its calls up yet"
    assert sum(forwards) == N


def test_a_spool_of_a_session_that_nobody_knows_is_named(built_store, tmp_path):
    folder = shutil.copytree(built_store, tmp_path / "store")
    (folder / "answers-77-01234567.spool").write_bytes(bytes(4096))
    (found,) = problems(folder)
    assert found.startswith("answers-77-01234567.spool: is of a session that the ledger does not know")
