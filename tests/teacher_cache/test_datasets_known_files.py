"""Digests that are kept between commands never make a changed data set pass as the one that it was."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import tarfile
from pathlib import Path

import msgspec
import pytest

from teacher_cache.datasets import known_files, open_dataset
from teacher_cache.datasets.known_files import NUM_SAMPLED, KnownFiles, cache_folder
from tests.photographs import write_photographs

NAMES = [f"{number:03}.bin" for number in range(100)]


class Reader:
    """Hashes files of a folder, and notes which it read."""

    def __init__(self, root: Path, names=NAMES) -> None:
        self.root, self.names, self.rows = root, names, list[int]()

    def __call__(self, rows) -> list[bytes]:
        self.rows += rows
        return [hashlib.sha256((self.root / self.names[row]).read_bytes()).digest() for row in rows]


@pytest.fixture(autouse=True)
def settled_at_once(monkeypatch, tmp_path) -> None:
    """Files of a test are a moment old; and each test has a cache of its own."""
    monkeypatch.setattr(known_files, "SETTLED_NANOSECONDS", 0)
    monkeypatch.setenv("CKD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    for name in NAMES:
        (root / name).write_bytes(name.encode() * 3)
    return root


def read(root: Path, names=NAMES, **options) -> list[int]:
    """Rows whose files were read; what was found is what their bytes are."""
    reader = Reader(root, names)
    found = KnownFiles(root, **options).digests(names, names, reader)
    assert found == [hashlib.sha256((root / name).read_bytes()).digest() for name in names]
    return sorted(reader.rows)


def cache_file() -> Path:
    (file,) = (cache_folder() / "digests").iterdir()
    return file


def test_files_that_are_known_are_read_by_sample_alone(folder):
    assert read(folder) == list(range(100))
    sampled = {tuple(read(folder)) for _ in range(3)}
    assert {len(rows) for rows in sampled} == {NUM_SAMPLED}
    assert len(sampled) > 1
    assert read(folder, rehash=True) == list(range(100))
    assert len(read(folder)) == NUM_SAMPLED


def _same_size(file: Path) -> None:
    file.write_bytes(file.read_bytes()[::-1])


def _same_size_and_time(file: Path) -> None:
    before = file.stat()
    _same_size(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _another_file_of_that_size_and_time(file: Path) -> None:
    before, other = file.stat(), file.with_suffix(".other")
    other.write_bytes(file.read_bytes()[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)


def _longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")


def _a_link(file: Path) -> None:
    other = file.with_name("elsewhere")
    other.write_bytes(b"else")
    file.unlink()
    file.symlink_to(other)


@pytest.mark.parametrize(
    "change", [_same_size, _same_size_and_time, _another_file_of_that_size_and_time, _longer, _a_link]
)
def test_a_file_that_was_changed_is_read_again(change, folder, monkeypatch):
    read(folder)
    change(folder / NAMES[41])
    monkeypatch.setattr(known_files, "NUM_SAMPLED", 0)
    assert read(folder) == [41]
    assert read(folder) == []


def test_files_that_come_and_go_are_followed(folder, monkeypatch):
    read(folder)
    (folder / NAMES[3]).unlink()
    (folder / "new").write_bytes(b"new")
    monkeypatch.setattr(known_files, "NUM_SAMPLED", 0)
    assert read(folder, [*NAMES[:3], *NAMES[4:], "new"]) == [99]
    # Of the same folder, other files are still known, and those that are gone are not.
    assert read(folder, ["new", NAMES[7]]) == []
    assert NAMES[3].encode() not in cache_file().read_bytes()


def test_a_file_that_changes_as_it_is_read_or_a_moment_before_is_not_kept(folder, monkeypatch):
    class Changing(Reader):
        def __call__(self, rows) -> list[bytes]:
            found = super().__call__(rows)
            _same_size(self.root / NAMES[8])
            return found

    KnownFiles(folder).digests(NAMES, NAMES, Changing(folder))
    monkeypatch.setattr(known_files, "NUM_SAMPLED", 0)
    assert read(folder) == [8]
    monkeypatch.setattr(known_files, "SETTLED_NANOSECONDS", 3600 * 10**9)
    _same_size(folder / NAMES[9])
    assert read(folder) == read(folder) == [9]


def test_what_is_kept_counts_for_nothing_once_a_file_that_is_read_is_not_what_was_kept(folder, monkeypatch, caplog):
    KnownFiles(folder).digests(NAMES, NAMES, lambda rows: [bytes(32) for _ in rows])
    with caplog.at_level(logging.WARNING):
        assert set(read(folder)) == set(range(100))
    assert "changed though their sizes and times say that they did not" in caplog.text
    assert len(read(folder)) == NUM_SAMPLED


def _flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _sealed(**changed) -> object:
    """What makes another document of one, with its seal."""

    def made(content: bytes) -> bytes:
        document = msgspec.msgpack.decode(content[32:], type=known_files._Document)
        inner = msgspec.msgpack.encode(msgspec.structs.replace(document, **changed))
        return hashlib.sha256(inner).digest() + inner

    return made


@pytest.mark.parametrize(
    "damage",
    [
        _flipped,
        lambda content: content[:-40],
        lambda content: b"",
        lambda content: hashlib.sha256(b"junk").digest() + b"junk",
        _sealed(rules="0, pillow 1"),
        _sealed(root="/elsewhere"),
        _sealed(digests=b"short"),
        _sealed(stamps=b"odd"),
        _sealed(names=b"a\0a"),
    ],
)
def test_a_damaged_cache_is_ignored_and_made_again(damage, folder):
    read(folder)
    cache_file().write_bytes(damage(cache_file().read_bytes()))
    assert read(folder) == list(range(100))
    assert len(read(folder)) == NUM_SAMPLED


def test_a_link_in_place_of_the_cache_is_not_followed(folder, tmp_path):
    read(folder)
    whole = cache_file().rename(tmp_path / "whole")
    (cache_folder() / "digests" / whole.name).symlink_to(whole)
    target = cache_folder() / "digests"
    name = next(iter(os.listdir(target)))
    (target / name).unlink()
    read(folder)
    kept = cache_file()
    kept.rename(tmp_path / "kept")
    kept.symlink_to(tmp_path / "kept")
    assert read(folder) == list(range(100))


def test_without_a_cache_everything_is_read(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("CKD_CACHE", "off")
    assert read(folder) == read(folder) == list(range(100))
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.setenv("CKD_CACHE", str(tmp_path / "file"))
    assert read(folder) == read(folder) == list(range(100))


def test_the_cache_is_where_users_have_theirs(monkeypatch, tmp_path):
    monkeypatch.delenv("CKD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "ckd"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / ".cache" / "ckd"
    monkeypatch.delenv("HOME")
    assert cache_folder() is None


def _as_table(root: Path) -> str:
    with (root / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for path in sorted(root.glob("*/*/*")):
            rows.writerow([path.relative_to(root), path.parent.name, path.parent.parent.name])
    return f"csv:{root / 'table.csv'}"


def _as_shards(root: Path) -> str:
    shards = root.parent / "shards"
    shards.mkdir()
    for split in ("train", "test"):
        with tarfile.open(shards / f"{split}-000.tar", "w") as tar:
            for number, path in enumerate(sorted(root.glob(f"{split}/*/*"))):
                label = path.parent.name.encode()
                for suffix, content in ((path.suffix, path.read_bytes()), (".cls", label)):
                    member = tarfile.TarInfo(f"{number:05}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return f"tar:{shards}"


@pytest.mark.parametrize("spec_of", [lambda root: f"imagefolder:{root}", _as_table, _as_shards])
def test_a_data_set_that_is_known_has_the_digest_that_its_files_give(spec_of, tmp_path, monkeypatch):
    write_photographs(tmp_path / "photos")
    spec = spec_of(tmp_path / "photos")
    found = [open_dataset(spec).digest for _ in range(2)]
    reads = []
    split = type(open_dataset(spec).train)
    monkeypatch.setattr(known_files, "NUM_SAMPLED", 0)
    monkeypatch.setattr(
        split, "encoded", lambda self, name, plain=split.encoded: reads.append(name) or plain(self, name)
    )
    found.append(open_dataset(spec).digest)
    assert reads == []
    found.append(open_dataset(spec, rehash=True).digest)
    known = open_dataset(spec)
    assert sorted(reads) == sorted([*known.train.files, *known.test.files])
    monkeypatch.setenv("CKD_CACHE", "off")
    assert found == [open_dataset(spec).digest] * 4
