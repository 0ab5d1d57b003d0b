"""What a student is trained from, block by block: images and outputs pass through a buffer, the rest is in memory.

A block is so many whole chunks of images, and the same rows of every output. Labels, views and the digests of answers
over the classes are read when the stream is made: which rows have an answer without content is known before the first
step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch
from torch import Tensor

from ground.errors import InvalidInput, OlderFormat, StoreUnreadable
from ground.geometry import Rendering
from ground.main_memory import free_main_memory
from ground.ranks import ALONE, Ranks
from ground.views import evaluation_batches
from models.compute import Compute
from storage.answers import empty_answers
from storage.digest import output_digests
from storage.manifest import FORMAT_VERSION
from storage.rows import Rows
from storage.schema import DIGEST
from storage.store import Store
from student_train.block_stream import AHEAD, BlockStream, StreamedArray
from student_train.data import (
    Inputs,
    StudentData,
    TrainImages,
    chosen_rows,
    read_labels,
    read_parameters,
    without_content,
)
from student_train.mixed_rows import read_mixed
from student_train.needs import Wanted
from student_train.read_ahead import read_ahead
from student_train.request import Request
from student_train.rest.rows import IMAGES, StreamedRest
from student_train.row_arrays import as_tensor
from student_train.several_teachers import SeveralTeachers
from student_train.stream_order import BlockOrder

log = logging.getLogger(__name__)

# The buffer, with what is read ahead, takes a tenth of the rows, and no more than this, but at least so many blocks.
SHARE, MOST_BYTES, LEAST_BLOCKS = 10, 512 << 20, 16
# Blocks of huge images are a few rows; batches should not need many blocks.
_LEAST_BLOCK_ROWS = 32
_EVALUATED_AT_ONCE = 256
# In chunks.
_DIGESTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Streaming:
    """Whether to stream, and how.

    Args:
        always: also what fits into memory.
        never: not even what does not.
        rows: that batches are drawn from at a time, rounded up to blocks; None follows from the size of a row.
        ranks: the processes that load the same; where one of them streams, all do, for batches are drawn otherwise.
    """

    always: bool = False
    never: bool = False
    rows: int | None = None
    ranks: Ranks = ALONE


def load_data(
    store: Store,
    n: int | None,
    wanted: Wanted,
    compute: Compute,
    rendering: Rendering | None = None,
    streaming: Streaming | None = None,
    teachers: SeveralTeachers | None = None,
) -> StudentData:
    """As `StudentData.load`, from a stream where that is asked for, or memory does not hold what is wanted.

    Args:
        teachers: whose answers are to be combined, where there are several; the store is then their pool.

    Raises:
        InvalidInput: the method needs all rows at hand; or as there.
        OlderFormat: the store has one digest of all images, and is to be streamed.
    """
    streaming = Streaming() if streaming is None else streaming
    wanted = wanted if teachers is None else teachers.wanted(wanted)
    request = Request.checked(store, n, wanted, rendering, streaming.ranks.neighbours, teachers)
    fits = not streaming.ranks.any(not request.fits_memory)
    if not streaming.always and (streaming.never or fits):
        return StudentData.read(request, wanted, compute)
    if wanted.unstreamable is not None:
        why = "" if fits else f"{request.shown_size}: "
        raise InvalidInput(f"{why}{wanted.unstreamable}, or lower --n to what fits into memory, without --stream")
    _require_digests_of_blocks(store)
    if not streaming.always:
        log.warning("%s: batches are drawn from a stream", request.shown_size)
    return _stream(request, wanted, compute, streaming.rows)


def _require_digests_of_blocks(store: Store) -> None:
    older = store.manifest.older
    if older is not None:
        raise OlderFormat(
            f"{store.place} is of format {older.version}, in which a block of images cannot be checked alone, as a "
            f"stream does; bring it up to format {FORMAT_VERSION} with: {store.command('upgrade')}"
        )


def _stream(request: Request, wanted: Wanted, compute: Compute, rows: int | None) -> StudentData:
    store, size = request.store, block_rows(request.store)
    chosen = rows_with_content(request)
    index = torch.from_numpy(request.rows.index)
    index = index if chosen is None else index[chosen]
    stream = _block_stream(request, index, size, rows)
    views = torch.from_numpy(store.read_sample("train/views", request.rows))
    return StudentData(
        place=store.place.resolve(),
        ledger_head=request.ledger_head,
        manifest=store.manifest,
        compute=compute,
        rendering=request.rendering,
        train=TrainImages(
            StreamedArray(stream, IMAGES),
            read_labels(store, "train", request.rows, compute, chosen),
            read_mixed(store, request.rows, compute, chosen),
        ),
        val=StoredImages.of(store, "val", len(request.val_rows), compute),
        test=StoredImages.of(store, "test", store.manifest.num_test, compute),
        views=views if chosen is None else views[chosen],
        outputs={name: StreamedArray(stream, name) for name in request.names},
        parameters=read_parameters(store, compute) if wanted.parameters else {},
        empty_answers=len(request.rows) - len(index),
        rest=_streamed_rest(request, compute, size, rows),
        rest_order=request.rest_order,
        unasked=request.unasked,
        stream=stream,
    )


def _block_stream(request: Request, index: Tensor, size: int, rows: int | None) -> BlockStream:
    """A stream of those rows of a store, in blocks of `size` of the store's."""
    numbers, block_of = (index // size).unique_consecutive(return_inverse=True)
    order = BlockOrder(block_of, _window(request, size, rows))
    return BlockStream(StoreBlocks(request, index.numpy(), numbers.numpy(), size), order, size)


def _streamed_rest(request: Request, compute: Compute, size: int, rows: int | None) -> StreamedRest | None:
    if not len(request.rest):
        return None
    # Of these rows images alone are there.
    beyond = replace(request, rows=request.rest, names=())

    def stream_of(index: Tensor) -> BlockStream:
        return _block_stream(beyond, request.rest.end - len(request.rest) + index, size, rows)

    labels = read_labels(request.store, "train", request.rest, compute)
    return StreamedRest(labels, stream_of, torch.arange(len(labels)))


def block_rows(store: Store) -> int:
    """Rows that are read at once: of images, whole chunks that have a digest together."""
    checked = store.arrays.specs[IMAGES].block_rows
    return checked * ceil(_LEAST_BLOCK_ROWS / checked)


def _window(request: Request, size: int, rows: int | None) -> int:
    """Blocks that batches are drawn from at a time.

    Raises:
        InvalidInput: they do not fit into memory.
    """
    if rows is None:
        blocks = min(len(request.rows) // (SHARE * size), MOST_BYTES // (size * request.row_bytes))
        window = max(LEAST_BLOCKS, blocks) - AHEAD
    else:
        window = ceil(rows / size)
    most, free = ceil(len(request.rows) / size), free_main_memory()
    needed = request.readers * (min(window, most) + AHEAD) * size * request.row_bytes
    if needed > free:
        raise InvalidInput(
            f"the buffer of a stream would take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free; "
            "lower --stream-rows, or use losses that need fewer features"
        )
    return min(window, most)


def rows_with_content(request: Request) -> Tensor | None:
    """Which rows have answers with content, (m,) int64, or None for all of them.

    Raises:
        InvalidInput: too few of them have.
        StoreUnreadable: a digest cannot be read, or an answer without content is damaged; others are not looked at yet.
    """
    store, names = request.store, request.store.manifest.identity.answer_names
    wanted = [name for name in names if name in request.names]
    if not wanted:
        return None
    suspects = _rows_that_digest_as_empty(request, wanted)
    empty = torch.zeros(len(request.rows), dtype=torch.bool)
    if len(suspects):
        answers = store.read_outputs(wanted, Rows.of(suspects))
        empty[torch.from_numpy(suspects)] = without_content(store, _tensors(answers))
    return chosen_rows(store, empty, len(request.rows))


def _rows_that_digest_as_empty(request: Request, wanted: list[str]) -> np.ndarray:
    """Rows with a view whose answer has the digest of one without content, which is always written alike: (m,) int64.

    A digest takes 16 bytes, and an answer over a thousand classes 4,000.
    """
    store, spec = request.store, request.store.arrays.specs[DIGEST]
    outputs = [output for output in store.outputs if output.name in wanted]
    places = [place for place, output in enumerate(store.outputs) if output.name in wanted]
    nothing = output_digests(outputs, empty_answers(outputs, 1))[0]

    def read(block: tuple[int, int]) -> np.ndarray:
        found = store.arrays.read(DIGEST, *block)[:, :, places]
        return block[0] + np.flatnonzero((found == nothing).all(axis=(2, 3)).any(axis=1))

    return np.concatenate(list(read_ahead(read, request.rows.blocks(_DIGESTS_AT_ONCE * spec.chunk_rows))))


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: as_tensor(values) for name, values in arrays.items()}


@dataclass(frozen=True, slots=True)
class StoreBlocks:
    """The blocks of a stream, see `BlockReader`.

    Args:
        index: (n,) int64, the store's row of each row of the sample, increasing.
        numbers: (blocks,) int64, which stretch of the store's rows each block is.
        size: rows of a block in the store; a block has those of them that are in the sample.
    """

    request: Request
    index: np.ndarray
    numbers: np.ndarray
    size: int

    def empty(self, rows: int) -> dict[str, np.ndarray]:
        """See `BlockReader.empty`."""
        store = self.request.store
        specs = {IMAGES: store.arrays.specs[IMAGES]}
        specs |= {name: store.arrays.specs[store.array_of(name)] for name in self.request.names}
        return {name: np.empty((rows, *spec.row_shape), spec.dtype) for name, spec in specs.items()}

    def block(self, number: int) -> Mapping[str, np.ndarray]:
        """See `BlockReader.block`."""
        first = int(self.numbers[number]) * self.size
        last = min(first + self.size, self.request.rows.end)
        found = self._read([IMAGES, *self.request.names], Rows.between(first, last))
        begin, end = np.searchsorted(self.index, (first, last))
        if end - begin < last - first:
            found = {name: values[self.index[begin:end] - first] for name, values in found.items()}
        self._require_content(found)
        return found

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """See `BlockReader.rows`."""
        wanted, places = np.unique(self.index[rows.numpy()], return_inverse=True)
        return as_tensor(self._read([name], Rows.of(wanted))[name])[torch.from_numpy(places)]

    def _require_content(self, found: Mapping[str, np.ndarray]) -> None:
        """Raise `StoreUnreadable` for an answer that its digest alone did not give away."""
        store = self.request.store
        answers = {name: found[name] for name in store.manifest.identity.answer_names if name in found}
        if answers and without_content(store, _tensors(answers)).any():
            raise StoreUnreadable(
                f"{store.place} has an answer without content that is not written as others are; leave out --stream, "
                "or build the store again in a new folder"
            )

    def _read(self, names: list[str], rows: Rows) -> dict[str, np.ndarray]:
        store, outputs = self.request.store, [name for name in names if name != IMAGES]
        found = store.read_outputs(outputs, rows) if outputs else {}
        return found | ({IMAGES: store.read_sample(IMAGES, rows)} if IMAGES in names else {})


@dataclass(frozen=True, slots=True)
class StoredImages:
    """Images to measure a student on, which stay in the store.

    Args:
        labels: (N,) int64, on the device.
    """

    store: Store
    split: str
    labels: Tensor
    compute: Compute

    @classmethod
    def of(cls, store: Store, split: str, count: int, compute: Compute) -> StoredImages:
        """The first images of a split; raises `StoreUnreadable` if their labels are damaged."""
        return cls(store, split, read_labels(store, split, Rows.first(count), compute), compute)

    def batches(self, rendering: Rendering) -> Iterator[Inputs]:
        """See `Evaluated.batches`; raises `StoreUnreadable` for images that are damaged."""
        name = f"{self.split}/images"
        checked = self.store.arrays.specs[name].block_rows
        blocks = list(Rows.first(len(self.labels)).blocks(checked * ceil(_EVALUATED_AT_ONCE / checked)))

        def read(block: tuple[int, int]) -> Tensor:
            return torch.from_numpy(self.store.read_sample(name, Rows.between(*block)))

        for (first, last), images in zip(blocks, read_ahead(read, blocks), strict=True):
            yield from evaluation_batches(
                self.compute.to_device(images), self.labels[first:last], rendering, last - first
            )
