"""What a data set is to this project: two splits of labelled uint8 images, and a digest of their content.

A split hands out base-resolution images, before any view is cut, and decodes only what is asked for. The
digest identifies the data wherever they lie: it covers pixels or file bytes, labels and relative paths, never
the machine's own path.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ground.decoding import Undecodable, decode, decode_bytes, reads_anew, reason
from ground.documents import is_line, shown
from ground.errors import InvalidInput
from ground.geometry import Normalisation, Rendering, ViewGeometry
from ground.terminal import plain
from storage.schema import UNLABELLED
from teacher_cache.datasets.known_files import KnownFiles

IMAGENET_NORMALISATION = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

# Threads help where a file takes long, from a far disk or to decode outside Python's lock. Where one takes
# less than this they only wait for each other: on two cores they halve the rate of small cached files.
FAST_FILE_SECONDS = 0.5e-3
_NUM_THREADS = min(16, (os.cpu_count() or 1) + 4)
FILES_PER_TASK = 16
_NUM_FILES_NAMED = 3

# What the digest of a file whose pixels are read otherwise than by earlier releases covers besides its bytes.
_READ_ANEW = b"read as viewers show it"

_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


class Split(ABC):
    """One half of a data set, train or test.

    Attributes:
        labels: (N,) int64, the class of each image; `UNLABELLED` for training images that have none.
    """

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, indices: np.ndarray) -> np.ndarray:
        """The base images at `indices`, in that order: (len(indices), S, S, 3) uint8.

        Raises:
            InvalidInput: a file does not decode; the message names it.
            IndexError: an index is outside the split.
        """

    @abstractmethod
    def content_digest(self) -> bytes:
        """SHA-256 of this split's content and labels."""


@dataclass(frozen=True, eq=False)
class ArraySplit(Split):
    """Images that are in memory already.

    Args:
        images: (N, S, S, 3) uint8.
        labels: (N,) int64.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        assert self.images.dtype == np.uint8, self.images.dtype
        assert self.labels.dtype == np.int64, self.labels.dtype
        assert self.images.shape[0] == len(self.labels), (self.images.shape, len(self.labels))
        assert self.images.shape[1] == self.images.shape[2], self.images.shape
        assert self.images.shape[3] == 3, self.images.shape

    def read(self, indices: np.ndarray) -> np.ndarray:
        """See `Split.read`."""
        chosen: np.ndarray = self.images[np.asarray(indices, dtype=np.int64)]
        return chosen

    def content_digest(self) -> bytes:
        """See `Split.content_digest`."""
        digest = hashlib.sha256(f"{self.images.shape}".encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.digest()


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedSplit(Split):
    """Images that are encoded somewhere, each under a name of its own, decoded when they are read.

    Args:
        files: each image's name within the data set, as a path relative to its folder, with forward slashes.
        labels: (N,) int64.
        image_size: S, the side of a base image in pixels.
        fit: turns a decoded RGB image into one of S x S pixels.
        remedy: what a user can do to an image that does not decode, for instance "replace or delete".
        known: their digests, as far as they are known; None where nothing is kept of them.
    """

    files: Sequence[str]
    labels: np.ndarray
    image_size: int
    fit: Callable[[Image.Image, int], Image.Image]
    remedy: str
    known: KnownFiles | None = field(default=None, repr=False)
    # Images are read some at a time, and what the first took is true of the others.
    _decoding: _Pace = field(default_factory=lambda: _Pace(), init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.labels.dtype == np.int64, self.labels.dtype
        assert len(self.files) == len(self.labels), (len(self.files), len(self.labels))

    @abstractmethod
    def encoded(self, name: str) -> bytes:
        """The bytes of an image; raises `OSError` where they cannot be read."""

    @abstractmethod
    def decoded(self, name: str) -> Image.Image:
        """The pixels of an image; raises `Undecodable` where there are none."""

    @abstractmethod
    def file_of(self, name: str) -> str:
        """The file that an image is or lies in, as `known` looks for it."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """See `Split.read`."""
        chosen = np.asarray(indices, dtype=np.int64)
        images = np.empty((len(chosen), self.image_size, self.image_size, 3), dtype=np.uint8)
        problems: dict[str, str] = {}

        def decode_into(row: int) -> None:
            name = self.files[int(chosen[row])]
            try:
                images[row] = np.asarray(self.fit(self.decoded(name), self.image_size))
            except Undecodable as error:
                problems[name] = str(error)

        # In the order in which they lie: what lies together is read together.
        _map_files(decode_into, chosen.argsort(kind="stable").tolist(), self._decoding)
        if problems:
            pronoun = "it" if len(problems) == 1 else "them"
            raise InvalidInput(f"cannot decode {_sentence(problems)}; {self.remedy} {pronoun}")
        return images

    def content_digest(self) -> bytes:
        """See `Split.content_digest`; the order in which files were listed does not matter."""
        # A path holds no NUL, so no two lists of files give the same bytes here.
        rows = sorted(zip(self.files, self.labels.tolist(), self.file_digests, strict=True))
        parts = [
            b"%b\0%b%b" % (os.fsencode(name), label.to_bytes(8, "little", signed=True), digest)
            for name, label, digest in rows
        ]
        return hashlib.sha256(b"".join(parts)).digest()

    @cached_property
    def file_digests(self) -> list[bytes]:
        """SHA-256 of each file, in the order of `files`; reads those once that are not known."""
        pace = _Pace()

        def hashed(rows: Sequence[int]) -> list[bytes]:
            return _map_files(self._file_digest, rows, pace)

        if self.known is None:
            return hashed(range(len(self.files)))
        return self.known.digests(self.files, [self.file_of(name) for name in self.files], hashed)

    def files_also_in(self, other: EncodedSplit) -> list[str]:
        """Files of `other` with the very bytes of one of this split."""
        own = set(self.file_digests)
        return [name for name, digest in zip(other.files, other.file_digests, strict=True) if digest in own]

    def _file_digest(self, row: int) -> bytes:
        try:
            data = self.encoded(self.files[row])
        except OSError as error:
            raise InvalidInput(f"cannot read {self.files[row]}: {reason(error)}; {self.remedy} it") from error
        return hashlib.sha256(data + _READ_ANEW if reads_anew(data) else data).digest()


@dataclass(frozen=True, eq=False, kw_only=True)
class FileSplit(EncodedSplit):
    """Images that are files.

    Args:
        root: the data set's folder.
    """

    root: Path

    def encoded(self, name: str) -> bytes:
        """See `EncodedSplit.encoded`."""
        return (self.root / name).read_bytes()

    def decoded(self, name: str) -> Image.Image:
        """See `EncodedSplit.decoded`."""
        return decode(self.root / name)

    def file_of(self, name: str) -> str:
        """See `EncodedSplit.file_of`."""
        return name


@dataclass(frozen=True, eq=False, kw_only=True)
class ArchivedSplit(EncodedSplit):
    """Images that lie in files with others.

    Args:
        fetch: the bytes of an image, by its name; raises `OSError` where they cannot be read.
    """

    fetch: Callable[[str], bytes]

    def encoded(self, name: str) -> bytes:
        """See `EncodedSplit.encoded`."""
        return self.fetch(name)

    def decoded(self, name: str) -> Image.Image:
        """See `EncodedSplit.decoded`."""
        try:
            data = self.fetch(name)
        except OSError as error:
            raise Undecodable(reason(error)) from error
        return decode_bytes(data)

    def file_of(self, name: str) -> str:
        """See `EncodedSplit.file_of`: their names begin with it."""
        return name.partition("/")[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageDataset:
    """A labelled image data set, ready to be sampled; some of its training images may have no label.

    Args:
        name: the canonical name; never a path of this machine.
        classes: the name of each label.
        train: the pool that samples are drawn from.
        test: the split that accuracy is reported on.
        geometry: how views are cut from its base images.
        normalisation: what networks trained on it expect.
        options: of a command, that open it again from anywhere on this machine: name -> value.
        listing: what was listed of a folder and what was left out, in one line; None for other data sets.
        squares: of `ground.geometry.FIT_SHAPES`, how squares are made of photographs; None is the usual way.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    geometry: ViewGeometry
    normalisation: Normalisation
    options: Mapping[str, str] = field(default_factory=dict)
    listing: str | None = None
    squares: str | None = None

    def __post_init__(self) -> None:
        # By this rule a store's readers hold these names.
        for name in (self.name, *self.classes):
            if not is_line(name):
                raise InvalidInput(f"the name {shown(name)} is not a line of printable text; rename the folder")

    @property
    def rendering(self) -> Rendering:
        """How networks trained on it are shown its images."""
        return Rendering(geometry=self.geometry, normalisation=self.normalisation)

    @property
    def is_labelled(self) -> np.ndarray | None:
        """Which training images have a label: (N,) bool; None where all have."""
        found: np.ndarray = self.train.labels != UNLABELLED
        return None if found.all() else found

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return len(self.classes)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the content of both splits; reads every file that is not known, at the first use.

        Images that are in both are said in the log.
        """
        train, test = self.train, self.test
        # A store of test calls takes the test images as both.
        if isinstance(train, EncodedSplit) and isinstance(test, EncodedSplit) and train is not test:
            leaked = train.files_also_in(test)
            if leaked:
                log.info("%d test images are training images too, the first %s", len(leaked), plain(leaked[0]))
        return hashlib.sha256(self.train.content_digest() + self.test.content_digest()).hexdigest()


def _sentence(problems: dict[str, str]) -> str:
    """Name one file with its reason, or several with the first one's."""
    names = sorted(problems)
    if len(names) == 1:
        return f"{names[0]}: {problems[names[0]]}"
    first = ", ".join(names[:_NUM_FILES_NAMED])
    if len(names) > _NUM_FILES_NAMED:
        first += " and others"
    return f"{len(names)} files, {first} (the first: {problems[names[0]]})"


@dataclass(slots=True)
class _Pace:
    """Whether files are worked on fast, as far as it is known."""

    is_fast: bool | None = None


def _map_files(work: Callable[[int], _Result], rows: Sequence[int], pace: _Pace) -> list[_Result]:
    """`[work(row) for row in rows]`; by a pool of threads if the first few turned out to be slow."""

    def run(start: int) -> list[_Result]:
        return [work(row) for row in rows[start : start + FILES_PER_TASK]]

    first, is_fast = list[_Result](), pace.is_fast
    if is_fast is None:
        started = time.perf_counter()
        first = run(0)
        is_fast = time.perf_counter() - started < FAST_FILE_SECONDS * len(first)
        pace.is_fast = is_fast if len(first) == FILES_PER_TASK else None
    with ThreadPoolExecutor(1 if is_fast else _NUM_THREADS) as pool:
        chunks = pool.map(run, range(len(first), len(rows), FILES_PER_TASK))
        return first + [result for chunk in chunks for result in chunk]
