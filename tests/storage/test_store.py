"""One suite for both array formats: what a store promises to whoever reads it."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import zarr

from ground.errors import IdentityMismatch, InvalidInput, StoreBusy, StoreIncomplete, StoreUnreadable
from storage.identity import require_same
from storage.locks import FileLock
from storage.manifest import Manifest
from storage.rows import Rows
from storage.schema import OutputSpec, RowCounts, output_array
from storage.store import Store, runs_of
from tests.manifests import sealed
from tests.storage.conftest import VIEWS, N, make_identity, make_outputs, make_samples


def read_with_the_library(store: Store, name: str) -> np.ndarray:
    """An array as any user of h5py or zarr would read it, without our code."""
    if store.manifest.array_format == "hdf5":
        with h5py.File(store.folder / "data.h5", "r") as file:
            return file[name][:]
    return zarr.open_array(store.folder / "data.zarr" / name, mode="r")[:]


def test_what_was_written_is_what_any_reader_of_the_format_reads(empty_store):
    written = [empty_store.pay(first, 35) for first in (0, 35)]
    for output in make_identity().outputs:
        expected = np.concatenate([outputs[output.name] for outputs in written])
        found = read_with_the_library(empty_store.store, output_array(output.name))
        assert found.dtype == output.dtype
        np.testing.assert_array_equal(found, expected)
    for name, values in make_samples(make_identity()).items():
        np.testing.assert_array_equal(read_with_the_library(empty_store.store, name), values)
    assert read_with_the_library(empty_store.store, "train/valid").all()


def test_outputs_come_back_after_reopening(whole_store):
    expected = make_outputs(make_identity(), 35, 35)
    again = Store.open(whole_store.store.folder)
    found = again.read_outputs(["logits", "layer1"], Rows.first(N))
    assert set(found) == {"logits", "layer1"}
    np.testing.assert_array_equal(found["layer1"][35:], expected["layer1"])
    assert found["logits"].shape == (N, VIEWS, 5)


def test_any_set_of_rows_is_read_as_those_rows_of_all(whole_store):
    store = Store.open(whole_store.store.folder)
    chosen = Rows.of(np.array([0, 1, 2, 40, 63, 64, 65, N - 1]))
    every, some = store.read_outputs(["layer1"], Rows.first(N)), store.read_outputs(["layer1"], chosen)
    np.testing.assert_array_equal(some["layer1"], every["layer1"][chosen.index])
    images = store.read_sample("train/images")
    np.testing.assert_array_equal(store.read_sample("train/images", chosen), images[chosen.index])


def test_missing_cells_are_those_of_the_rows_that_are_asked_for(empty_store):
    store = empty_store.store
    empty_store.pay(0, 10)
    assert len(store.missing_cells(Rows.first(10))) == 0
    asked = Rows.of(np.array([3, 9, 10, 12, N - 1, N, N + 4]))
    expected = [row * VIEWS + view for row in (10, 12, N - 1, N, N + 4) for view in range(VIEWS)]
    assert store.missing_cells(asked).tolist() == expected
    store.require_rows(Rows.of(np.array([3, 9])))
    with pytest.raises(StoreIncomplete, match="has 10 whole rows, 13 are needed"):
        store.require_rows(Rows.of(np.array([3, 12])))


def test_rows_in_any_pieces_equal_rows_written_at_once(empty_store):
    for first, count in ((3, 1), (0, 3), (60, 10), (4, 56)):
        empty_store.pay(first, count)
    for first, count in ((3, 1), (0, 3), (60, 10), (4, 56)):
        outputs = make_outputs(make_identity(), first, count)
        found = read_with_the_library(empty_store.store, "train/features/layer1")
        np.testing.assert_array_equal(found[first : first + count], outputs["layer1"])


def test_zeros_are_written_too(empty_store):
    """A dead layer's map is an answer like any other; a chunk that is missing must mean that it was lost."""
    outputs = {name: np.zeros_like(values) for name, values in make_outputs(make_identity(), 0, N).items()}
    empty_store.write(0, outputs)
    if empty_store.store.manifest.array_format == "zarr":
        chunks = empty_store.store.arrays.path / "train" / "features" / "layer1"
        assert sorted(chunk.name for chunk in chunks.glob("c.*")) == ["c.0.0.0.0.0", "c.1.0.0.0.0"]
    assert Store.open(empty_store.store.folder).read_outputs(["layer1"], Rows.first(N))["layer1"].max() == 0


def test_written_rows_are_invisible_until_published(empty_store):
    outputs = make_outputs(make_identity(), 0, 4)
    flat = {name: values.reshape(4 * VIEWS, *values.shape[2:]) for name, values in outputs.items()}
    empty_store.store.write_outputs(range(4 * VIEWS), flat)
    assert not empty_store.store.valid().any()
    empty_store.store.publish(range(4 * VIEWS))
    assert empty_store.store.valid_prefix() == 4
    assert Store.open(empty_store.store.folder).valid().sum() == 4 * VIEWS


def test_an_unfinished_store_says_how_many_rows_and_how_to_finish(empty_store):
    empty_store.pay(0, 35)
    assert empty_store.store.read_outputs(["logits"], Rows.first(35))["logits"].shape[0] == 35
    with pytest.raises(StoreIncomplete, match=rf"35 whole rows, {N} are needed; finish it with: ckd-cache build"):
        empty_store.store.read_outputs(["logits"], Rows.first(N))
    with pytest.raises(InvalidInput, match="has 70 images; ask for fewer"):
        empty_store.store.require_rows(Rows.first(71))


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("train/logits", "logits"),
        ("train/features/pooled", "pooled"),
        ("train/features/layer2.pre", "layer2.pre"),
        ("train/digest", "layer2.pre"),  # its last byte belongs to the last output
    ],
)
def test_a_changed_value_is_refused_not_used(whole_store, name, used):
    arrays = whole_store.store.arrays
    values = arrays.read(name, 41, 42)
    values.view(np.uint8).reshape(-1)[-1] ^= 1
    arrays.write(name, 41, values)
    arrays.sync()
    with pytest.raises(StoreUnreadable, match=f"{used} of row 41 of .* does not match its digest"):
        Store.open(whole_store.store.folder).read_outputs(["layer1", used], Rows.first(N))
    assert Store.open(whole_store.store.folder).read_outputs(["layer1"], Rows.first(N)), (
        "other outputs can still be used"
    )


def test_a_store_grows_without_touching_its_rows(whole_store):
    before = {name: read_with_the_library(whole_store.store, name) for name in whole_store.store.arrays.specs}
    samples = make_samples(make_identity(), 150)
    whole_store.store.grow(samples)
    again = Store.open(whole_store.store.folder)
    assert (again.manifest.n, again.manifest.num_val, again.manifest.num_test) == (150, 37, 9)
    for name, values in before.items():
        np.testing.assert_array_equal(read_with_the_library(again, name)[: len(values)], values)
    np.testing.assert_array_equal(again.read("train/images"), samples["train/images"])
    np.testing.assert_array_equal(again.read("val/labels"), samples["val/labels"])
    assert again.valid_prefix() == N
    assert not again.valid()[N:].any()


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_rows_that_are_bought_of_a_rest_follow_the_others_and_what_was_written_stays(
    tmp_path, array_format, interrupted
):
    every = make_samples(make_identity(), 200)

    def in_order(index: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[index] if name.startswith("train/") else values for name, values in every.items()}

    def samples_are(order: np.ndarray) -> None:
        found = Store.open(tmp_path)
        for name, values in in_order(order).items():
            np.testing.assert_array_equal(found.read(name), values, name)
            np.testing.assert_array_equal(found.read_sample(name), values, name)
            some = Rows.of(np.arange(len(values))[1::3])
            np.testing.assert_array_equal(found.read_sample(name, some), values[some.index], name)
            assert list(found.sample_problems(name)) == list(found.sample_problems(name, found.manifest.n)) == []
            np.testing.assert_array_equal(found.samples()[name][3:9], values[3:9], name)

    order = np.arange(150)
    store = Store.create(tmp_path, make_identity(), array_format=array_format, samples=in_order(order), rest=100)
    written = {name: store.arrays.read(name, 0, 150) for name in ("train/images", "train/source_index")}
    for n, bought in ((53, [149, 70, 71]), (60, [180, 148, 99, 52, 51, 100, 50]), (64, [150, 72, 199, 54])):
        order = np.concatenate([order[: store.manifest.n], bought, order[store.manifest.n :]])
        _, first = np.unique(order, return_index=True)
        order = order[np.sort(first)]
        if interrupted:
            store.arrays.grow(RowCounts(n=200, rest=200, num_val=50, num_test=9).of)
            store = Store.open(tmp_path)
        store.grow(in_order(order), n)
        samples_are(order)
        assert (store.manifest.n, store.manifest.num_images) == (n, len(order))
    # By the seed the first of the rest are next, wherever they lie, and further ones follow.
    order = np.concatenate([order, [160, 161, 162]])
    places = store.manifest.places
    store.grow(in_order(order), 80)
    samples_are(order)
    assert store.manifest.places[: len(places)] == places
    for name, values in written.items():
        np.testing.assert_array_equal(store.arrays.read(name, 0, 150), values)
    # What it is copied into has each row at its own number.
    laid = Store.lay_out(tmp_path, replace(store.manifest, arrays=f"data-1{store.arrays.path.suffix}"), store.samples())
    assert laid.manifest.places == ()
    for name, values in in_order(order).items():
        np.testing.assert_array_equal(laid.arrays.read(name, 0, len(values)), values, name)


def test_a_rest_of_which_an_image_is_no_longer_kept_is_refused(tmp_path):
    every = make_samples(make_identity(), 150)
    store = Store.create(tmp_path, make_identity(), array_format="zarr", samples=every, rest=100)
    before = store.manifest
    index = np.delete(np.arange(150), 70)
    others = {name: values[index] if name.startswith("train/") else values for name, values in every.items()}
    with pytest.raises(StoreUnreadable, match="source_index .*the rest has images that are not of the sample's"):
        store.grow(others, 60)
    assert Store.open(tmp_path).manifest == before


def test_growing_again_after_an_interrupted_growth_gives_the_same_store(whole_store):
    samples = make_samples(make_identity(), 150)
    # As if the process had died after the arrays grew and before the manifest said so.
    whole_store.store.arrays.grow(RowCounts(n=200, num_val=50, num_test=9).of)
    again = Store.open(whole_store.store.folder)
    assert again.manifest.n == N
    again.grow(samples)
    np.testing.assert_array_equal(again.read("train/images"), samples["train/images"])
    assert not again.valid()[N:].any()


def test_a_stores_ids_are_its_own_and_those_it_was_made_from(whole_store):
    manifest = whole_store.store.manifest
    assert manifest.ids == {manifest.store_id}
    history = ({"store_id": "1" * 32, "made_by": "convert"}, {"store_id": "2" * 32, "made_by": "extend"})
    assert replace(manifest, history=history).ids == {manifest.store_id, "1" * 32, "2" * 32}


def test_parameters_of_the_teacher_come_back_without_a_row_axis(whole_store):
    store, written = whole_store.store, make_samples(make_identity())
    found = Store.open(store.folder).read_parameters()
    assert list(found) == ["head/weight", "head/bias", "norm/layer2/scale", "norm/layer2/shift"]
    for name, values in found.items():
        assert (values.dtype, values.shape) == (np.float32, written[f"teacher/{name}"].shape[1:])
        np.testing.assert_array_equal(values, written[f"teacher/{name}"][0])
        np.testing.assert_array_equal(values, read_with_the_library(store, f"teacher/{name}")[0])


def test_parameters_of_the_teacher_take_no_more_room_than_their_values(tmp_path):
    identity = make_identity()
    store = Store.create(tmp_path / "s", identity, array_format="zarr", samples=make_samples(identity))
    assert (store.arrays.path / "teacher" / "head" / "weight" / "c.0.0.0").stat().st_size == 5 * 6 * 4


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("train/labels", 2),
        ("val/images", 2),
        ("test/labels", 2),
        ("train/views", 2),
        ("teacher/head/bias", 0),
        ("teacher/norm/layer2/scale", 0),
    ],
)
def test_a_changed_sample_is_refused_not_used(whole_store, name, row):
    arrays = whole_store.store.arrays
    values = arrays.read(name, row, row + 1)
    values.view(np.uint8).reshape(-1)[0] ^= 1
    arrays.write(name, row, values)
    arrays.sync()
    again = Store.open(whole_store.store.folder)
    with pytest.raises(StoreUnreadable, match=f"array {name} in .*it is not what the build wrote"):
        again.read_sample(name)
    if name.startswith("teacher/"):
        with pytest.raises(StoreUnreadable, match=f"array {name} in .*it is not what the build wrote"):
            again.read_parameters()


def test_a_missing_chunk_is_an_error_not_zeros(tmp_path):
    identity = make_identity()
    store = Store.create(tmp_path / "s", identity, array_format="zarr", samples=make_samples(identity))
    (tmp_path / "s" / "data.zarr" / "train" / "labels" / "c.1").unlink()
    assert store.read("train/labels", 64).tolist() == [row % 5 for row in range(64)]
    with pytest.raises(StoreUnreadable, match=r"c\.1, which holds row 64: No such file"):
        store.read("train/labels")


def test_who_needs_a_store_alone_does_not_get_it_while_others_write(empty_store):
    folder = empty_store.store.folder
    with FileLock(folder / "build.lock") as one, FileLock(folder / "build.lock") as other:
        assert one.try_shared()
        assert other.try_shared()
        with pytest.raises(StoreBusy, match="a build is writing"), Store.alone(folder):
            pass
    with Store.alone(folder), FileLock(folder / "build.lock") as other:
        assert not other.try_shared()


def test_runs_cover_exactly_the_cells():
    assert runs_of([]) == []
    assert runs_of([3, 4, 5, 9, 11, 12]) == [(3, 3), (9, 1), (11, 2)]


def test_identity_that_differs_is_named_field_by_field(tmp_path):
    ours = make_identity()
    theirs = make_identity(seed=4, outputs=(OutputSpec("logits", (5,), "float32"),))
    with pytest.raises(IdentityMismatch, match=r"seed \(store: 3, asked: 4\); outputs \(store: .*layer1:float16"):
        require_same(ours, theirs, tmp_path)
    require_same(ours, make_identity(), tmp_path)


def test_the_manifest_survives_a_round_trip(whole_store):
    assert Manifest.load(whole_store.store.folder) == whole_store.store.manifest


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document.pop("identity"),
        lambda document: document.update(n=-1),
        lambda document: document.update(n="70"),
        lambda document: document.update(array_format="pickle"),
        lambda document: document.update(arrays="../data.zarr"),
        lambda document: document.update(arrays="/etc/data.h5"),
        lambda document: document.update(arrays=None),
        lambda document: document.update(n=1 << 39),
        lambda document: document.update(history=[{"store_id": 7}]),
        lambda document: document.update(ledger=["sqlite:///x"]),
        lambda document: document.update(format_version=99),
        lambda document: document.update(format_version=2),
        lambda document: document["identity"].update(views=0),
        lambda document: document["identity"]["outputs"][1].update(name="../../etc/passwd"),
        lambda document: document["identity"]["outputs"][1].update(name="layer1.post"),
        lambda document: document["identity"]["outputs"][1].update(name="layer9"),
        lambda document: document["identity"]["outputs"].reverse(),
        lambda document: document["identity"]["outputs"].insert(1, document["identity"]["outputs"][2]),
        lambda document: document["identity"]["teacher"].pop("layers"),
        lambda document: document["identity"]["teacher"].update(layers=7),
        lambda document: document["identity"]["teacher"].update(layers=["pooled", "layer1", "layer2.pre"]),
        lambda document: document["identity"]["teacher"]["layers"].append("stem"),
        lambda document: document["identity"]["teacher"]["layers"].append("logits"),
        lambda document: document["identity"]["teacher"]["layers"].append("../stem"),
        lambda document: document["identity"]["teacher"]["layers"].append("x\x1b[31m"),
        lambda document: document["identity"]["teacher"]["layers"].append("x" * 129),
        lambda document: document["identity"]["teacher"]["layers"].append({}),
        lambda document: document["identity"]["teacher"]["layers"].extend(f"more{n}" for n in range(2000)),
        lambda document: document["identity"].pop("parameters"),
        lambda document: document["identity"].update(parameters=[]),
        lambda document: document["identity"]["parameters"].pop(0),
        lambda document: document["identity"]["parameters"].pop(1),
        lambda document: document["identity"]["parameters"].pop(3),
        lambda document: document["identity"]["parameters"].reverse(),
        lambda document: document["identity"]["parameters"].append(document["identity"]["parameters"][3]),
        lambda document: document["identity"]["parameters"][0].update(name="../../etc/passwd"),
        lambda document: document["identity"]["parameters"][0].update(shape=[4, 6]),
        lambda document: document["identity"]["parameters"][0].update(shape=[5, 7]),
        lambda document: document["identity"]["parameters"][0].update(shape=[5]),
        lambda document: document["identity"]["parameters"][0].update(shape=[5, 6, 1]),
        lambda document: document["identity"]["parameters"][0].update(shape=[5, 1 << 40]),
        lambda document: document["identity"]["parameters"][0].update(shape="56"),
        lambda document: document["identity"]["parameters"][0].update(dtype="float16"),
        lambda document: document["identity"]["parameters"][0].update(dtype="<f4"),
        lambda document: document["identity"]["parameters"][1].update(shape=[6]),
        lambda document: document["identity"]["parameters"][2].update(shape=[3]),
        lambda document: document["identity"]["parameters"][2].update(name="norm/layer1/scale"),
        lambda document: document["samples"].pop("teacher/head/bias"),
        lambda document: document["samples"].update({"teacher/norm/layer1/scale": "0" * 64}),
        lambda document: document["samples"].update({"teacher/head/bias": "0"}),
        lambda document: document["identity"]["outputs"][1].update(dtype="object"),
        lambda document: document["identity"]["outputs"][1].update(shape=[1 << 20, 1 << 20]),
        lambda document: document["identity"]["geometry"].update(crop_size=4000),
        lambda document: document["identity"]["teacher"]["normalisation"].update(mean=["a", "b", "c"]),
    ],
)
def test_a_hostile_manifest_is_refused_in_a_sentence(whole_store, damage):
    path = whole_store.store.folder / "manifest.json"
    document = json.loads(path.read_text())
    damage(document)
    # With a digest that fits, so that it is the content that is refused.
    path.write_text(json.dumps(sealed(document)))
    with pytest.raises(StoreUnreadable) as refused:
        Store.open(path.parent)
    assert "its own digest" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_manifest_is_refused(whole_store, content):
    path = whole_store.store.folder / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(StoreUnreadable, match="is not a manifest"):
        Store.open(path.parent)


def test_a_missing_store_says_how_to_build_one(tmp_path):
    with pytest.raises(StoreUnreadable, match="there is no store at .*; build one with: ckd-cache build"):
        Store.open(tmp_path / "nowhere")


def test_truncated_arrays_are_a_sentence(whole_store):
    path = whole_store.store.arrays.path
    if path.is_file():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        chunk = next((path / "train" / "logits").glob("c.0*"))
        chunk.write_bytes(chunk.read_bytes()[:10])
    with pytest.raises(StoreUnreadable):
        Store.open(whole_store.store.folder).read_outputs(["logits"], Rows.first(N))
