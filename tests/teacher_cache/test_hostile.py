"""A store from a stranger, and a ledger that lies: nothing outside the folder is touched, nothing hangs or is paid."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from benchmarks.stand_ins.planted_journal import plant_journal
from ground.errors import CKDError, InvalidInput, StoreUnreadable, store_command
from storage.ledger import Ledger
from storage.manifest import Manifest
from storage.rows import Rows
from storage.store import Store, array_specs
from student_train.cli import main as ckd_train
from teacher_cache.build import build
from teacher_cache.cli import main
from teacher_cache.config import ExtensionConfig
from teacher_cache.convert import convert
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build
from teacher_cache.repair import repair
from tests.conftest import run_command
from tests.manifests import sealed
from tests.teacher_cache.damage import build_store, config_of, problems


@pytest.fixture
def folder(tmp_path, weights) -> Path:
    return build_store(tmp_path / "store", weights, n=20, features="pooled")


def run(*arguments: object) -> Result:
    """A command in this process, which is quicker; what it does not catch is a traceback to a user."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def snapshot(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file() and not path.is_symlink()}


def rewrite_manifest(folder: Path, **changes) -> None:
    """As somebody who knows how the digest is made."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = document
        for part in outer:
            place = place[part]
        place[last] = value
    path.write_text(json.dumps(sealed(document)))


@pytest.mark.parametrize(
    "part", ["data.zarr", "data.zarr/train", "data.zarr/train/logits", "data.zarr/train/logits/zarr.json"]
)
def test_a_link_to_another_place_is_not_followed(folder, tmp_path, part):
    outside = tmp_path / "outside"
    shutil.copytree(folder, outside)
    victim = folder / part
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    victim.symlink_to(outside / part)
    before = snapshot(outside)
    for command in (("info",), ("verify",), ("repair", "--yes")):
        result = run(*command, "--store", folder)
        assert result.exit_code in (1, 2), result.stdout
    assert snapshot(outside) == before


def test_a_chunk_that_is_a_link_is_neither_read_nor_written(folder, tmp_path):
    outside = tmp_path / "secret"
    chunk = folder / "data.zarr" / "train" / "logits" / "c.0.0.0"
    shutil.copy(chunk, outside)
    chunk.unlink()
    chunk.symlink_to(outside)
    with pytest.raises(StoreUnreadable, match=r"c\.0\.0\.0"):
        Store.open(folder).read_outputs(["logits"], Rows.first(20))
    before = outside.read_bytes()
    with pytest.raises((CKDError, OSError)):
        repair(folder, act=True)
    assert outside.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "data.zarr/train/logits/zarr.json",
        "data.zarr/train/logits/c.0.0.0",
        "ledger.sqlite",
        "ledger.sqlite-journal",
    ],
)
def test_a_pipe_in_place_of_a_file_does_not_make_anybody_wait(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    commands = (("verify", "--json"), ("repair", "--yes")) if "c.0" in name else (("verify", "--json"),)
    for command in commands:
        result = run_command("ckd-cache", *command, "--store", folder)
        assert "Traceback" not in result.stderr, result.stderr
        assert result.returncode in (0, 1, 2)


def test_a_file_of_somebody_else_beside_the_ledger_is_not_written_to(folder, tmp_path):
    outside = tmp_path / "precious"
    outside.write_bytes(b"years of work")
    os.link(outside, folder / "ledger.sqlite-shm")
    result = run("verify", "--store", folder)
    assert "is no file of its own" in result.stdout + result.stderr
    assert outside.read_bytes() == b"years of work"


@pytest.mark.parametrize(
    "command",
    ["info", "verify", "repair --yes", "ledger summary", "ledger verify", "ledger list", "build", "ckd-train"],
)
def test_a_file_that_a_planted_journal_names_is_not_deleted(folder, tmp_path, weights, command):
    victim = tmp_path / "thesis.tex"
    victim.write_text("years of work")
    plant_journal(folder / "ledger.sqlite", victim)
    if command == "build":
        with pytest.raises(StoreUnreadable, match="is a rollback journal"):
            build(*prepare_build(config_of(folder, weights, n=30, features="pooled")))
    elif command == "ckd-train":
        words = ["--store", folder, "--out", tmp_path / "run", "--method", "kd", "--student", "resnet8"]
        result = CliRunner().invoke(ckd_train, [str(word) for word in words])
        assert result.exit_code == 2, result.output
        assert "is a rollback journal" in result.output
    else:
        result = run(*command.split(), "--store", folder)
        assert result.exit_code in (1, 2), result.output
        assert "ledger.sqlite-journal is a rollback journal, which can name any file" in result.output
    assert victim.read_text() == "years of work"


def test_verify_names_what_belongs_to_no_store(folder):
    (folder / "ledger.sqlite-mj7").write_text("?")
    (folder / "data.zarr" / "train" / "run.sh").write_text("?")
    result = run("verify", "--store", folder)
    assert result.exit_code == 0
    hints = [line for line in result.stdout.splitlines() if line.startswith("hint: ")]
    places = ("ledger.sqlite-mj7", "data.zarr/train/run.sh")
    assert hints == [f"hint: {folder / place} belongs to no store, and no command reads it" for place in places]
    assert len(json.loads(run("verify", "--store", folder, "--json").stdout)["hints"]) == 2


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_nothing_is_built_or_extended_through_a_link(tmp_path, weights, forwards, array_format):
    suffix = {"zarr": ".zarr", "hdf5": ".h5"}[array_format]
    outside, new = tmp_path / "outside", tmp_path / "new"
    outside.write_bytes(b"years of work")
    new.mkdir()
    (new / f"data{suffix}").symlink_to(outside)
    with pytest.raises(InvalidInput, match="is no file of its own, but a link"):
        build(*prepare_build(config_of(new, weights, array_format, n=20)))
    assert forwards == []
    folder = build_store(tmp_path / "store", weights, array_format, n=20, features="pooled")
    (folder / f"data-1{suffix}").symlink_to(outside)
    del forwards[:]
    with pytest.raises(InvalidInput, match="is no file of its own, but a link"):
        extend(
            *prepare_extension(ExtensionConfig(store=folder, features="layer1,pooled", weights=weights, device="cpu"))
        )
    assert forwards == []
    assert outside.read_bytes() == b"years of work"


@pytest.mark.parametrize("to", ["outside", "nowhere"])
def test_nothing_is_converted_through_a_link(folder, tmp_path, to):
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / to)
    with pytest.raises(InvalidInput, match="out is a link; give the folder that it leads to, or a new one, as --out"):
        convert(folder, "hdf5", tmp_path / "out")
    assert not (tmp_path / "nowhere").exists()
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("name", ["build.lock", "cells.lock"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_a_pipe_as_lock_is_a_sentence_and_nobody_waits(tmp_path, folder, weights, forwards, name, kind):
    place = folder / name
    place.unlink(missing_ok=True)
    place.symlink_to(tmp_path / "outside") if kind == "link" else os.mkfifo(place)
    del forwards[:]
    with pytest.raises(InvalidInput, match=rf"{name} is no file of its own, but a link, a folder or a pipe; move it"):
        build(*prepare_build(config_of(folder, weights, n=30, features="pooled")))
    result = run("verify", "--store", folder)
    assert f"{name}: is no file of its own" in result.stdout
    assert forwards == []
    assert not (tmp_path / "outside").exists()


def test_where_an_own_ledger_says_other_stores_are_is_not_looked_at(folder, tmp_path, weights):
    victim = build_store(tmp_path / "victim", weights, n=20, features="pooled")
    before = snapshot(victim)
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as database, database:
        victim_id = Manifest.load(victim).store_id
        database.execute("UPDATE sessions SET location = ?, store = ?", (str(victim), victim_id))
        database.execute("UPDATE calls SET status = 'reserved', settled_in = NULL, output_digest = NULL WHERE id > 10")
    store = Store.open(folder)
    store.retract(range(20))
    with pytest.raises(CKDError):
        build(*prepare_build(config_of(folder, weights, n=20, features="pooled")))
    after = snapshot(victim)
    assert after == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity__dataset__name": "\x1b]0;owned\x07"}, "dataset.name"),
        ({"identity__dataset__name": "\ud800"}, "dataset.name"),
        ({"identity__teacher__name": "resnet8; touch owned #"}, "teacher.name"),
        ({"ledger": "x\x1b[31m"}, "ledger"),
        ({"samples": {}}, "samples"),
        ({"samples": {"train/secret": "0" * 64}}, "samples"),
        ({"identity__outputs": [{"name": "logits", "shape": [1] * 80, "dtype": "float32"}]}, "impossible shape"),
        ({"n": 1 << 30}, "n is"),
        ({"n": 1 << 23}, "the number of digits in samples.train/"),
    ],
)
def test_a_manifest_that_no_build_writes_is_a_sentence(folder, changes, message):
    rewrite_manifest(folder, **changes)
    require_sentences(folder, message)


def test_a_manifest_of_more_rows_than_there_are_is_a_sentence(folder):
    manifest, n = Manifest.load(folder), 1 << 12
    specs = {spec.name: spec for spec in array_specs(manifest.identity)}
    grown = {
        name: "0" * 64 * -(-n // specs[name].block_rows) for name in manifest.samples if specs[name].split == "train"
    }
    rewrite_manifest(folder, n=n, samples={**manifest.samples, **grown})
    require_sentences(folder, f"{n} are needed")


def require_sentences(folder: Path, message: str) -> None:
    for command in (("info",), ("verify",), ("repair",)):
        result = run(*command, "--store", folder)
        assert result.exit_code in (1, 2)
        assert message in result.stdout + result.stderr
        assert "\x1b" not in result.stdout + result.stderr


def test_commands_that_are_suggested_can_be_pasted(tmp_path, weights):
    folder = build_store(tmp_path / "my store; echo owned", weights, n=20)
    (folder / "data.zarr" / "train" / "valid" / "c.0.0").unlink()
    printed = run("verify", "--store", folder).stdout
    assert f"ckd-cache repair --store '{folder}'" in printed


def test_a_suggested_command_is_one_word_for_each_name():
    suggested = store_command("repair", Path("my store; echo owned"), **{"from": "$HOME/a 'copy'"})
    expected = ["ckd-cache", "repair", "--store", "my store; echo owned", "--from", "$HOME/a 'copy'"]
    assert shlex.split(suggested) == expected


def test_a_missing_store_is_named_so_that_the_command_can_be_pasted(tmp_path):
    folder = tmp_path / "my store; echo owned"
    assert f"build one with: ckd-cache build --store '{folder}'" in run("info", "--store", folder).stderr


def test_a_manifest_of_an_extension_that_cannot_be_finished_is_reported(folder):
    (folder / "extension.json").write_text("{}")
    (found,) = problems(folder)
    assert found.startswith("extension.json: is the manifest of no extension that could be finished; see what can be")
    assert repair(folder, act=True).files == ["extension.json"]
    assert problems(folder) == []


@pytest.mark.parametrize("name", ["zarr.json", "train/logits/zarr.json"])
def test_verify_lists_what_it_cannot_open_as_a_problem(folder, name):
    (folder / "data.zarr" / name).unlink()
    result = run("verify", "--store", folder, "--json")
    assert result.exit_code == 1, result.stderr
    assert len(json.loads(result.stdout)["problems"]) >= 1


def test_repair_deletes_nothing_that_somebody_else_put_there(folder):
    kept = [folder / name for name in ("data-backup.h5", "data_mine.zarr", "database.h5", "notes.partial")]
    for path in kept:
        path.write_text("mine")
    (folder / ".odd.partial").mkdir()
    (folder / "extension.json").write_text("{}")
    (folder / "data-3.zarr").mkdir()
    assert repair(folder, act=True).files == ["data-3.zarr", "extension.json"]
    assert all(path.exists() for path in kept)
    assert not (folder / "data-3.zarr").exists()


def test_a_ledger_that_was_rolled_back_does_not_have_calls_paid_again(tmp_path, weights, forwards, monkeypatch):
    # With one, the ledger is refused before the store is looked at; see test_rollback.
    monkeypatch.setenv("CKD_WITNESS", "off")
    folder = build_store(tmp_path / "store", weights, n=20)
    older = (folder / "ledger.sqlite").read_bytes()
    build(*prepare_build(config_of(folder, weights, n=40)))
    (folder / "ledger.sqlite").write_bytes(older)
    with closing(Ledger(folder / "ledger.sqlite")) as ledger:
        rewrite_manifest(folder, ledger_head=ledger.head())
    del forwards[:]
    with pytest.raises(StoreUnreadable, match="the ledger knows no call for 20 answers .*: it was replaced or rolled"):
        build(*prepare_build(config_of(folder, weights, n=60)))
    assert forwards == []


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3c@ret@h/db",
        "postgresql:/u:s3cret@h/db",
        "//u:s3cret@h/db",
        "postgres:u:s3cret@h",
        "postgresql://h/db?sslpassword=s3cret",
        "postgresql://h/db?Password=s3cret",
        "postgresql://h/dbname=x password=s3cret",
        "postgresql://u:s3cret@h:abc/db",
        "mysql://u:s3cret@h/db",
        "mysql+pymysql://u:s3cret@h/db",
    ],
)
def test_a_url_with_a_slip_in_it_shows_no_password(url, tmp_path):
    with pytest.raises(InvalidInput) as refused:
        Ledger(url, create=True)
    assert "s3c" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_strangers_rows_in_a_ledger_are_a_sentence(folder):
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as database, database:
        database.execute("UPDATE calls SET output_digest = x'0102030405' WHERE id = 3")
        database.execute("UPDATE entries SET payload = '{\"seconds\":NaN}' WHERE kind = 'commit'")
    for command in (("verify",), ("ledger", "verify"), ("ledger", "summary", "--json"), ("ledger", "list")):
        run(*command, "--store", folder)
    assert problems(folder) != []
