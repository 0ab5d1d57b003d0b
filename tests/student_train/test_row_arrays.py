"""Rows of outputs in memory: laid out as networks lay them out, and the same values."""

from __future__ import annotations

import pytest
import torch

from student_train.row_arrays import laid_channels_last


@pytest.mark.parametrize("shape", [(130, 2, 3, 4, 5), (7, 1, 1, 2, 2), (3, 1, 4, 1, 1)])
def test_maps_are_laid_out_in_place_and_stay_what_they_are(shape):
    values = torch.randn(shape).half()
    rows = values.clone()
    laid = laid_channels_last(rows)
    assert torch.equal(laid, values)
    assert laid.data_ptr() == rows.data_ptr()
    chosen = laid[torch.tensor([2, 0]), torch.tensor([0, 0])]
    assert chosen.is_contiguous(memory_format=torch.channels_last)


def test_vectors_are_left_as_they_are():
    rows = torch.randn(4, 2, 3)
    assert laid_channels_last(rows) is rows
