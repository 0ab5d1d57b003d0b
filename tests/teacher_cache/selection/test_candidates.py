"""What rules choose among, a block at a time, and what memory does not hold."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ground.errors import InvalidInput
from teacher_cache.selection import SelectorSpec
from teacher_cache.selection import candidates as candidates_module
from teacher_cache.selection import kcenter as kcenter_module
from teacher_cache.selection import typical as typical_module
from teacher_cache.selection.candidates import images_of
from tests.teacher_cache.selection.pools import pool_of
from tests.teacher_cache.selection.runs import make_run


def test_images_come_in_order_and_a_few_at_a_time(monkeypatch):
    pool = pool_of([0] * 20)
    monkeypatch.setattr(candidates_module, "DECODED_BYTES", 7 * 8 * 8 * 3)
    blocks = list(images_of(pool, pool.left))
    assert [len(images) for _, images in blocks] == [7, 7, 6]
    np.testing.assert_array_equal(np.concatenate([images.numpy() for _, images in blocks]), pool.images.read(pool.left))
    assert np.concatenate([np.arange(20)[places] for places, _ in blocks]).tolist() == list(range(20))


@pytest.fixture
def with_memory(monkeypatch):
    """Have so many bytes free, and no image be read."""

    def give(free: float, pool) -> None:
        monkeypatch.setattr(candidates_module, "free_main_memory", lambda: free)
        monkeypatch.setattr(type(pool.images), "read", lambda *_: pytest.fail("an image was read"))

    return give


@pytest.mark.parametrize("name", ["kcenter", "typical", "uncertain", "mix:kcenter=0.5,random=0.5"])
def test_what_memory_does_not_hold_is_refused_before_an_image_is_read(name, with_memory, tmp_path):
    pool = pool_of([0, 1, 2, 3] * 1000, bought=8)
    text = f"uncertain:run={make_run(tmp_path / 'run', pool)}" if name == "uncertain" else name
    with_memory(100_000.0, pool)
    said = "needs 0.. GB of memory for 3992 candidates and the 8 images that were bought, and 0.0 GB are free; free"
    with pytest.raises(InvalidInput, match=said):
        SelectorSpec.read(text).make().require(pool, 4)


@pytest.mark.parametrize("name", ["kcenter", "typical"])
def test_the_refusal_says_how_many_candidates_would_fit(name, with_memory, monkeypatch):
    pool = pool_of([0, 1, 2, 3] * 1000, bought=8)
    monkeypatch.setattr(kcenter_module, "ROWS", 16)
    monkeypatch.setattr(typical_module, "AT_ONCE", 16)
    monkeypatch.setattr(typical_module, "BATCH", 16)
    with_memory(6.5e6, pool)
    with pytest.raises(InvalidInput, match="give subset=") as caught:
        SelectorSpec.read(name).make().require(pool, 4)
    fitting = int(re.search(r"subset=(\d+)$", str(caught.value))[1])
    assert 500 < fitting < 3000
    SelectorSpec.read(f"{name}:subset={fitting}").make().require(pool, 4)


def test_a_subset_smaller_than_the_round_is_refused():
    pool = pool_of([0] * 30)
    with pytest.raises(InvalidInput, match="is to choose 8 images among 5; give a subset of 8 at least"):
        SelectorSpec.read("kcenter:subset=5").make().require(pool, 8)
    SelectorSpec.read("kcenter:subset=500").make().require(pool, 30)
