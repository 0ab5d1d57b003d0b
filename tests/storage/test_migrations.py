"""Stores that older releases made open as they are, to be read; what leads on from nowhere is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import sqlite3
from contextlib import closing

import pytest

from ground.errors import OlderFormat, StoreUnreadable
from models import create_model, model_names
from storage.ledger import Ledger
from storage.manifest import FORMAT_VERSION, Manifest
from storage.migrations import brought_forward
from storage.rows import Rows
from storage.schema import HEAD_WEIGHT, VALID
from storage.store import Store
from storage.store_ledger import own_ledger
from storage.verify import store_problems
from tests.storage.old_formats import FORMAT_2, FORMAT_3, unpack

ARCHIVES = {2: FORMAT_2, 3: FORMAT_3}


@pytest.fixture(scope="module")
def stores_by_format(tmp_path_factory):
    """Format -> the folder of stores of it; treat them as read-only."""
    return {version: unpack(archive, tmp_path_factory.mktemp("old")) for version, archive in ARCHIVES.items()}


@pytest.fixture
def old_stores(stores_by_format):
    return stores_by_format[2]


@pytest.fixture(params=[(version, kind) for version in ARCHIVES for kind in ("zarr", "hdf5")], ids=str)
def old_store(request, stores_by_format):
    version, kind = request.param
    return stores_by_format[version] / kind


def _contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "-wal" not in path.name)
    return {path: path.read_bytes() for path in files if "-shm" not in path.name}


def test_an_older_store_opens_with_what_its_format_left_unsaid(old_store):
    manifest = Manifest.load(old_store)
    version = manifest.format_version
    assert json.loads((old_store / "manifest.json").read_text())["format_version"] == version < FORMAT_VERSION
    assert manifest.identity.teacher.layers[:5] == ("stem", "layer1", "layer2", "layer3", "pooled")
    assert len(manifest.identity.parameters) == (0 if version == 2 else 2)
    assert Store.open(old_store).read_outputs(["logits", "pooled"], Rows.first(8))["pooled"].shape == (8, 2, 64)


def test_an_older_store_is_verified_against_its_ledger_and_left_as_it_is(old_store):
    before = _contents(old_store)
    ledger = own_ledger(old_store)
    assert store_problems(Store.open(old_store), ledger) == []
    ledger.close()
    assert _contents(old_store) == before


def test_the_digest_of_an_older_manifest_is_the_one_its_release_recorded(old_store):
    document = json.loads((old_store / "manifest.json").read_text())
    for name in ("digest", "format_version", "ledger_head", "ledger_genesis"):
        document.pop(name, None)
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(canonical.encode()).hexdigest()
    ledger = own_ledger(old_store)
    manifest = Manifest.load(old_store)
    assert manifest.digest == expected == ledger.store_record(manifest.store_id)["manifest"]
    ledger.close()


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.save(),
        lambda store: store.record_ledger_head("0" * 64),
        lambda store: store.grow(store.samples()),
        lambda store: store.adopt([0], {}),
        lambda store: store.publish([0]),
        lambda store: store.retract([0]),
    ],
)
def test_an_older_store_is_not_written_to(old_store, write):
    before = _contents(old_store)
    with pytest.raises(
        OlderFormat, match=r"is of format [23], .*; bring it up to format 4 with: ckd-cache upgrade --store"
    ):
        write(Store.open(old_store))
    assert _contents(old_store) == before


def test_a_builders_lock_on_an_older_store_is_refused(old_store):
    with pytest.raises(OlderFormat), Store.alone(old_store):
        pass
    with Store.alone(old_store, older=True):
        pass


@pytest.mark.parametrize("name", model_names())
def test_the_layers_of_format_2_teachers_are_those_their_networks_have(old_stores, name):
    document = json.loads((old_stores / "zarr" / "manifest.json").read_text())
    document["identity"]["teacher"]["name"] = name
    network = create_model(name, num_classes=2, seed=0)
    found = brought_forward(document, 2, 3)["identity"]["teacher"]["layers"]
    assert found == [*network.feature_names, *network.extra_names]


def test_steps_leave_the_document_they_are_given_alone(old_stores):
    document = json.loads((old_stores / "zarr" / "manifest.json").read_text())
    before = copy.deepcopy(document)
    brought_forward(document, 2, FORMAT_VERSION)
    assert document == before


def test_an_older_manifest_that_was_changed_is_refused(tmp_path):
    path = unpack(FORMAT_2, tmp_path) / "zarr" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n": 7}))
    with pytest.raises(StoreUnreadable, match="does not match its own digest"):
        Manifest.load(path.parent)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (FORMAT_VERSION + 1, r"is of format version 5, written by a newer release than this one, .*; upgrade this one"),
        (1, r"is of format version '1', this release reads 2 to 4; use the release that wrote it"),
        ("4", r"is of format version '4', this release reads 2 to 4; use the release that wrote it"),
        (True, r"is of format version 'True', this release reads 2 to 4"),
        (None, r"is of format version 'None', this release reads 2 to 4"),
    ],
)
def test_a_version_that_nothing_leads_on_from_says_whose_it_is(tmp_path, version, sentence):
    path = unpack(FORMAT_2, tmp_path) / "zarr" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": version}))
    with pytest.raises(StoreUnreadable, match=sentence):
        Manifest.load(path.parent)


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [(4, "of schema 4, written by a newer release .*; upgrade this one"), (1, "not of schema 2 to 3; use the release")],
)
def test_a_ledger_of_another_schema_says_whose_it_is(tmp_path, schema, sentence):
    path = tmp_path / "ledger.sqlite"
    Ledger(path, create=True).close()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE entries SET payload = replace(payload, '\"schema\":3', ?)", (f'"schema":{schema}',))
    with pytest.raises(StoreUnreadable, match=sentence):
        Ledger(path)


def test_arrays_are_added_beside_those_that_are_there(empty_store):
    store, rows = empty_store.store, empty_store.store.manifest.rows_of
    kept = store.read("train/images").copy()
    spec = store.arrays.specs[f"teacher/{HEAD_WEIGHT}"]
    other = type(spec)("teacher/other/weight", (3, 2), spec.dtype)
    # As often as an interrupted upgrade is repeated.
    for _ in range(2):
        store.arrays.add([other], rows)
        assert store.arrays.read(other.name, 0, 1).tolist() == [[[0, 0]] * 3]
        store.arrays.write(other.name, 0, [[[1, 2]] * 3])
        store.arrays.sync()
    again = Store.open(store.folder)
    assert (again.read("train/images") == kept).all()
    assert not again.read(VALID).any()
    assert again.read_parameters().keys() == store.read_parameters().keys()


def test_arrays_are_not_added_through_links(empty_store, tmp_path):
    store = empty_store.store
    spec = store.arrays.specs[f"teacher/{HEAD_WEIGHT}"]
    other = type(spec)("elsewhere/weight", (3, 2), spec.dtype)
    if store.arrays.path.is_dir():
        (tmp_path / "outside" / "weight").mkdir(parents=True)
        (store.arrays.path / "elsewhere").symlink_to(tmp_path / "outside")
    else:
        import h5py

        with h5py.File(tmp_path / "outside.h5", "w") as outside:
            outside["weight"] = 1
        with h5py.File(store.arrays.path, "r+") as file:
            file["elsewhere"] = h5py.ExternalLink(tmp_path / "outside.h5", "/")
    before = _contents(tmp_path)
    with pytest.raises(StoreUnreadable, match="a link to another place"):
        store.arrays.add([other], lambda spec: 1)
    assert _contents(tmp_path) == before
