"""Rows of the rest are the same from memory and from a stream, whichever of them are asked for."""

from __future__ import annotations

import pytest
import torch

from models.compute import Compute
from storage.store import Store
from student_train import streamed_data
from student_train.needs import Wanted
from student_train.streamed_data import Streaming, load_data
from tests.student_train.rest.conftest import NUM_REST

CPU = Compute(torch.device("cpu"), "fp32")
WANTED = Wanted(student=(), teacher=("logits",), parameters=False, rest=True)


@pytest.fixture
def both(rest_store, monkeypatch):
    monkeypatch.setattr(streamed_data, "block_rows", lambda store: 8)
    store = Store.open(rest_store)
    return [load_data(store, 40, WANTED, CPU, None, streaming) for streaming in (None, Streaming(always=True, rows=24))]


@pytest.mark.parametrize("index", [range(NUM_REST), range(3, 50, 2), [0, 79]])
def test_some_rows_of_memory_and_of_a_stream_are_alike(both, index):
    index = torch.tensor([*index])
    held, streamed = (data.rest.only(index) for data in both)
    assert torch.equal(held.labels, both[0].rest.labels[index])
    assert torch.equal(streamed.labels, held.labels)
    rows = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    assert torch.equal(held.images[rows], both[0].rest.images[index[rows]])
    assert torch.equal(streamed.images[rows], held.images[rows])
    assert held.stream is None
    assert int(streamed.stream.order.sizes.sum()) == len(index)


def test_rows_are_those_beyond_the_n(both, rest_store):
    images = torch.from_numpy(Store.open(rest_store).read_sample("train/images"))
    assert torch.equal(both[0].rest.images[torch.arange(NUM_REST)], images[40:])
    fewer = load_data(Store.open(rest_store), 30, WANTED, CPU)
    assert torch.equal(fewer.rest.images[torch.arange(NUM_REST + 10)], images[30:])
