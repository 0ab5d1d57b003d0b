"""Sizes of arrays, worked out by hand."""

from __future__ import annotations

import numpy as np

from storage.schema import ArraySpec, OutputSpec, RowCounts, output_arrays, parameter_arrays, sample_arrays


def test_a_row_and_its_cells_have_the_bytes_of_their_numbers():
    spec = ArraySpec("train/features/layer1", (2, 16, 8, 8), np.dtype(np.float16))
    assert (spec.split, spec.row_bytes, spec.cell_bytes) == ("train", 2 * 16 * 8 * 8 * 2, 16 * 8 * 8 * 2)


def test_chunks_are_64_rows_or_8_megabytes_or_one_row():
    def chunk_rows(*shape: int) -> int:
        return ArraySpec("train/x", shape, np.dtype(np.uint8)).chunk_rows

    assert chunk_rows(10) == 64
    assert chunk_rows(1 << 20) == 8
    assert chunk_rows(1 << 30) == 1
    assert ArraySpec("teacher/head/bias", (10,), np.dtype(np.float32)).chunk_rows == 1


def test_room_is_taken_for_whole_chunks():
    spec = ArraySpec("train/logits", (1, 10), np.dtype(np.float32))
    assert [spec.stored_bytes(rows) for rows in (0, 1, 64, 65)] == [0, 64 * 40, 64 * 40, 128 * 40]


def test_a_store_has_the_arrays_of_its_format():
    # docs/store-format.md lists them.
    images = {array.name: array.row_shape for array in sample_arrays(32, 2, 3)}
    assert images == {
        **{f"{split}/images": (32, 32, 3) for split in ("train", "val", "test")},
        **{f"{split}/{name}": () for split in ("train", "val", "test") for name in ("labels", "source_index")},
        "train/views": (2, 3),
    }
    outputs = (OutputSpec("logits", (10,), "float32"), OutputSpec("pooled", (64,), "float16"))
    said = {array.name: (array.row_shape, array.dtype.name) for array in output_arrays(outputs, 2)}
    assert said == {
        "train/logits": ((2, 10), "float32"),
        "train/features/pooled": ((2, 64), "float16"),
        "train/digest": ((2, 2, 16), "uint8"),
        "train/valid": ((2,), "bool"),
    }
    (head,) = parameter_arrays((OutputSpec("head/bias", (10,), "float32"),))
    assert (head.name, head.row_shape) == ("teacher/head/bias", (10,))


def test_arrays_of_answers_have_fewer_rows_than_those_of_images_where_there_is_a_rest():
    counts, outputs = RowCounts(n=40, rest=7, num_val=10, num_test=9), (OutputSpec("logits", (10,), "float32"),)
    specs = (*sample_arrays(32, 2, 3), *output_arrays(outputs, 2), *parameter_arrays(outputs))
    assert {spec.name: counts.of(spec) for spec in specs} == {
        **{f"train/{name}": 47 for name in ("images", "labels", "source_index", "views")},
        **{f"val/{name}": 10 for name in ("images", "labels", "source_index")},
        **{f"test/{name}": 9 for name in ("images", "labels", "source_index")},
        **{f"train/{name}": 40 for name in ("logits", "digest", "valid")},
        "teacher/logits": 1,
    }
