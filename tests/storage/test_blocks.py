"""Each block of rows of a sample array has a digest: what reading, growing and verifying it cost and find."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import StoreUnreadable
from ground.geometry import ViewGeometry
from storage.blocks import BlockHasher
from storage.manifest import FILE_NAME, Manifest
from storage.rows import Rows
from storage.schema import ArraySpec
from storage.store import Store
from tests.manifests import sealed
from tests.storage.conftest import make_identity, make_samples

# A chunk of 64 such images is a block of its own.
IDENTITY = make_identity(geometry=ViewGeometry(image_size=40, crop_size=40, padding=1))
N = 150


class Watched:
    """Rows that note which of them were asked for."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.asked = values, set[int]()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.asked |= set(range(*rows.indices(len(self))))
        return self.values[rows]


def of_blocks(values: np.ndarray, rows: int) -> str:
    """The digests of blocks as anybody computes them."""
    starts = range(0, len(values), rows)
    return "".join(hashlib.sha256(values[first : first + rows].tobytes()).hexdigest() for first in starts)


def as_format_3(folder) -> None:
    """Write a store's manifest as the releases before did, with one digest for each array."""
    store, document = Store.open(folder), json.loads((folder / FILE_NAME).read_text())
    whole = {name: hashlib.sha256(store.read_sample(name).tobytes()).hexdigest() for name in document["samples"]}
    (folder / FILE_NAME).write_text(json.dumps(sealed({**document, "format_version": 3, "samples": whole})))


def change(store: Store, name: str, row: int) -> None:
    values = store.arrays.read(name, row, row + 1)
    values.view(np.uint8).reshape(-1)[0] ^= 1
    store.arrays.write(name, row, values)
    store.arrays.sync()


@pytest.fixture(scope="module")
def samples():
    return make_samples(IDENTITY, N)


@pytest.fixture
def store(tmp_path, array_format, samples) -> Store:
    return Store.create(tmp_path / "store", IDENTITY, array_format=array_format, samples=samples)


@given(st.binary(max_size=60), st.integers(1, 70), st.lists(st.integers(0, 60)))
def test_digests_of_blocks_do_not_depend_on_the_pieces_they_pass_by_in(content, size, cuts):
    values = np.frombuffer(content, np.uint8)
    hasher = BlockHasher(size)
    for piece in np.split(values, sorted(cuts)):
        hasher.update(piece)
    assert hasher.hexdigests() == of_blocks(values, size)


@pytest.mark.parametrize(
    ("row_shape", "dtype", "rows"),
    [
        ((32, 32, 3), "uint8", 64),  # one chunk is 192 KiB
        ((8, 8, 3), "uint8", 64 * 21),
        ((224, 224, 3), "uint8", 55),  # one chunk is 8 MB
        ((), "int64", 64 * 512),
    ],
)
def test_a_block_is_the_whole_chunks_that_fit_into_256_kib(row_shape, dtype, rows):
    assert ArraySpec("train/images", row_shape, np.dtype(dtype)).block_rows == rows


def test_the_manifest_holds_the_digest_of_every_block(store, samples):
    found = Manifest.load(store.folder).samples
    assert len(found["train/images"]) == 3 * 64
    for name, values in samples.items():
        assert found[name] == of_blocks(values, store.arrays.specs[name].block_rows), name


def test_rows_are_checked_with_the_blocks_that_they_are_in_and_no_others(store, samples):
    change(store, "train/images", 70)
    expected = Rows.of(np.array([3, 63, 128, 149]))
    np.testing.assert_array_equal(store.read_sample("train/images", expected), samples["train/images"][expected.index])
    for row in (64, 127):
        with pytest.raises(StoreUnreadable, match=r"train/images .*not what the build wrote, in rows 64 to 127\)"):
            store.read_sample("train/images", Rows.of(np.array([0, row])))


def test_every_damaged_block_is_named(store):
    for row in (0, 1, 149):
        change(store, "train/images", row)
    found = [str(error).partition("wrote, in ")[2].partition(")")[0] for error in store.sample_problems("train/images")]
    assert found == ["rows 0 to 63", "rows 128 to 149"]
    assert list(store.sample_problems("val/images")) == []


def test_a_store_that_grows_reads_and_digests_its_last_block_and_the_new_rows(store, monkeypatch):
    more = {name: Watched(values) for name, values in make_samples(IDENTITY, 200).items()}
    change(store, "train/images", 3)  # which nobody looks at
    read: list[tuple[str, int, int]] = []
    reading = store.arrays.read
    monkeypatch.setattr(store.arrays, "read", lambda *rows: (read.append(rows), reading(*rows))[1])
    before = store.manifest.samples["train/images"]
    store.grow(more)
    assert more["train/images"].asked == set(range(150, 200))
    assert not more["test/images"].asked
    assert [rows for rows in read if rows[0] == "train/images"] == [("train/images", 128, 150)]
    grown = Store.open(store.folder)
    assert grown.manifest.samples["train/images"][:128] == before[:128]
    for name, rows in more.items():
        assert grown.manifest.samples[name] == of_blocks(rows.values, grown.arrays.specs[name].block_rows), name


def test_rows_that_were_changed_are_not_vouched_for_by_growing(store):
    change(store, "train/images", 149)
    with pytest.raises(StoreUnreadable, match="in rows 128 to 149"):
        store.grow(make_samples(IDENTITY, 200))
    assert Store.open(store.folder).manifest == store.manifest


def test_rows_of_a_store_make_another_one(store, tmp_path, samples):
    other = {"zarr": "hdf5", "hdf5": "zarr"}[store.manifest.array_format]
    made = Store.create(tmp_path / "other", IDENTITY, array_format=other, samples=store.samples())
    assert made.manifest.samples == store.manifest.samples
    for name, values in samples.items():
        np.testing.assert_array_equal(made.read_sample(name), values)
    change(store, "val/images", 30)
    with pytest.raises(StoreUnreadable, match="val/images"):
        Store.create(tmp_path / "third", IDENTITY, array_format=other, samples=store.samples())


@pytest.mark.parametrize("digests", ["", "ab" * 32, "ab" * 128, "AB" * 96, "xy" * 96])
def test_a_manifest_with_digests_of_more_or_fewer_blocks_is_refused(store, digests):
    document = json.loads((store.folder / FILE_NAME).read_text())
    document["samples"]["train/images"] = digests
    (store.folder / FILE_NAME).write_text(json.dumps(sealed(document)))
    with pytest.raises(StoreUnreadable, match="samples"):
        Store.open(store.folder)


def test_a_store_of_format_3_is_checked_as_a_whole_and_gets_digests_of_blocks(store, samples, monkeypatch):
    after = store.manifest.samples
    as_format_3(store.folder)
    old = Store.open(store.folder)
    hashed = []
    hashing = hashlib.sha256
    chosen = Rows.of(np.array([5, 149]))
    np.testing.assert_array_equal(old.read_sample("train/images", chosen), samples["train/images"][chosen.index])
    monkeypatch.setattr(hashlib, "sha256", lambda *content: (hashed.append(1), hashing(*content))[1])
    np.testing.assert_array_equal(old.read_sample("train/images"), samples["train/images"])
    assert not hashed, "an array that was found whole is not looked at for every row of it"
    monkeypatch.undo()
    old.upgrade({}, None)
    assert Store.open(store.folder).manifest.samples == after


def test_a_change_in_a_store_of_format_3_is_found_whatever_is_read_and_not_upgraded_away(store):
    as_format_3(store.folder)
    change(store, "train/images", 149)
    old = Store.open(store.folder)
    with pytest.raises(StoreUnreadable, match=r"not what the build wrote\)"):
        old.read_sample("train/images", Rows.first(3))
    with pytest.raises(StoreUnreadable, match=r"not what the build wrote\)"):
        old.upgrade({}, None)
    assert Manifest.load(store.folder).format_version == 3


def test_a_manifest_of_format_3_has_one_digest_for_each_array(store):
    document = json.loads((store.folder / FILE_NAME).read_text())
    (store.folder / FILE_NAME).write_text(json.dumps(sealed({**document, "format_version": 3})))
    with pytest.raises(StoreUnreadable, match=r"samples\.train/images is"):
        Store.open(store.folder)


def test_the_digest_of_a_manifest_of_format_3_leaves_out_what_is_of_its_ledger(store):
    recorded = store.manifest.digest
    store.save(replace(store.manifest, ledger_head="ab" * 32, ledger_genesis="cd" * 32))
    assert Manifest.load(store.folder).digest == recorded
    as_format_3(store.folder)
    document = json.loads((store.folder / FILE_NAME).read_text())
    for name in ("digest", "format_version", "ledger_head", "ledger_genesis"):
        del document[name]
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert Manifest.load(store.folder).digest == hashlib.sha256(canonical.encode()).hexdigest()
