"""Images of a large sample are never held: what is built, grown and extended is what it is for a small one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ground.errors import StoreUnreadable
from storage.store import Store
from teacher_cache import shown
from teacher_cache.build import build
from teacher_cache.config import ExtensionConfig
from teacher_cache.datasets import open_dataset
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build
from tests.teacher_cache.damage import arrays_of, change, config_of, problems

FORMATS = ("zarr", "hdf5")


@pytest.fixture
def nothing_held(monkeypatch) -> None:
    """Samples are large, and little is decoded at once: 30 of the digits."""
    monkeypatch.setattr(shown, "MOST_HELD_BYTES", 0)
    monkeypatch.setattr(shown, "DECODED_BYTES", 30 * 32 * 32 * 3)


class Counted:
    """A split that notes which images were read, and how many at once."""

    def __init__(self, split) -> None:
        self.split, self.labels, self.read_indices = split, split.labels, list[list[int]]()

    def __len__(self) -> int:
        return len(self.split)

    def read(self, indices):
        self.read_indices.append(indices.tolist())
        return self.split.read(indices)

    def content_digest(self):
        return self.split.content_digest()


def counted(dataset):
    """A copy, as the digits are one object for all who open them in a process."""
    return replace(dataset, train=Counted(dataset.train), test=Counted(dataset.test))


@pytest.mark.parametrize("array_format", FORMATS)
def test_a_large_sample_is_built_and_grown_into_the_store_of_a_small_one(array_format, weights, tmp_path, request):
    def calls(name: str, n: int) -> int:
        return build(*prepare_build(config_of(tmp_path / name, weights, array_format, n=n, views=2))).new_calls

    expected = [calls("held", n) for n in (70, 150)]
    request.getfixturevalue("nothing_held")
    assert [calls("not", n) for n in (70, 150)] == expected
    held, other = arrays_of(tmp_path / "held"), arrays_of(tmp_path / "not")
    for name, values in held.items():
        np.testing.assert_array_equal(values, other[name], name)
    assert Store.open(tmp_path / "held").manifest.samples == Store.open(tmp_path / "not").manifest.samples
    assert problems(tmp_path / "not") == []


def test_images_that_are_held_are_decoded_once_and_others_twice(weights, tmp_path, request):
    once = counted(open_dataset("digits"))
    build(*prepare_build(config_of(tmp_path / "held", weights), once))
    read = sorted(index for indices in once.train.read_indices for index in indices)
    assert len(read) == len({*read}) == 70 + 17
    request.getfixturevalue("nothing_held")
    twice = counted(open_dataset("digits"))
    build(*prepare_build(config_of(tmp_path / "not", weights), twice))
    train = Store.open(tmp_path / "held").read("train/source_index").tolist()
    assert twice.train.read_indices[:3] == [train[:30], train[30:60], train[60:]]
    assert sum(map(len, twice.train.read_indices)) == 70 + 70 + 17


@pytest.mark.parametrize("is_held", [True, False])
def test_a_build_decodes_what_its_store_does_not_have_and_nothing_else(is_held, weights, tmp_path, request):
    if not is_held:
        request.getfixturevalue("nothing_held")
    build(*prepare_build(config_of(tmp_path / "store", weights, n=150)))
    again = counted(open_dataset("digits"))
    assert build(*prepare_build(config_of(tmp_path / "store", weights, n=150), again)).new_calls == 0
    assert again.train.read_indices == again.test.read_indices == []
    grown = counted(open_dataset("digits"))
    assert build(*prepare_build(config_of(tmp_path / "store", weights, n=180), grown)).new_calls == 30
    store = Store.open(tmp_path / "store")
    read = {index for indices in grown.train.read_indices for index in indices}
    new = store.read("train/source_index").tolist()[150:] + store.read("val/source_index").tolist()[150 // 4 :]
    assert read == {*new}
    assert grown.test.read_indices == []


def test_pixels_do_not_depend_on_where_they_are_read(weights, tmp_path, request):
    held = prepare_build(config_of(tmp_path / "store", weights, n=150, views=2))
    request.getfixturevalue("nothing_held")
    decoded = prepare_build(config_of(tmp_path / "store", weights, n=150, views=2))
    build(*held)
    stored = decoded.shown.kept_in(Store.open(tmp_path / "store"))
    assert held.shown.kept_in(Store.open(tmp_path / "store")) is held.shown
    assert held.plan.input_digests == decoded.plan.input_digests == stored.input_digests()
    for cells in ([0], [299, 3, 128, 127, 3], range(100, 164)):
        expected = held.shown.pixels(cells)
        assert (decoded.shown.pixels(cells) == expected).all()
        assert (stored.pixels(cells) == expected).all()


def test_an_image_that_was_changed_in_the_store_is_not_shown(weights, tmp_path, nothing_held):
    prepared = prepare_build(config_of(tmp_path / "store", weights))
    build(*prepared)
    change(tmp_path / "store", "train/images", 3)
    with pytest.raises(StoreUnreadable, match="train/images .* not what the build wrote, in rows 0 to 63"):
        prepared.shown.kept_in(Store.open(tmp_path / "store")).pixels([5])


@pytest.mark.parametrize("array_format", FORMATS)
def test_an_extension_shows_what_the_store_keeps(array_format, weights, tmp_path):
    for name, features in (("small", "pooled"), ("large", "pooled,layer1")):
        build(*prepare_build(config_of(tmp_path / name, weights, array_format, features=features, views=2)))
    prepared = prepare_extension(
        ExtensionConfig(store=tmp_path / "small", features="layer1", weights=weights, device="cpu")
    )
    assert not isinstance(prepared.shown.images, np.ndarray)
    extend(*prepared)
    small, large = arrays_of(tmp_path / "small"), arrays_of(tmp_path / "large")
    for name in large.keys() - {"train/digest"}:
        np.testing.assert_array_equal(small[name], large[name], name)
    assert problems(tmp_path / "small") == []
