"""Shards of tar, as webdataset writes them: `train-000.tar`, ..., and `test-000.tar` or `val-000.tar`.

A sample is the files of one key: KEY.jpg, and KEY.cls with its label, or KEY.json with one under "label"; one without
either, or with -1, is unlabelled. Headers are read once, images by their offset when they are wanted. Nothing is
unpacked: a member's name is never a path on this machine, and links, devices and sparse members are left out.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ground.errors import DatasetMissing, InvalidInput
from ground.listing import IMG_EXTENSIONS, LeftOut
from ground.terminal import plain
from teacher_cache.datasets.base import ImageDataset
from teacher_cache.datasets.photographs import Entry, Listing, as_dataset, place_of
from teacher_cache.datasets.request import Request
from teacher_cache.datasets.shard_names import shards_in, split_of

SHARDS = "a folder of shards has train-*.tar, and test-*.tar or val-*.tar"
# Beyond these a member is not an image, or not a label.
MOST_IMAGE_BYTES = 1 << 28
MOST_LABEL_BYTES = 1 << 20
# Long names are read whole; what is larger than this is none.
_MOST_HEADER_BYTES = 1 << 20
_BLOCK = 512
_READ_AT_ONCE = 1 << 20


class _Place(NamedTuple):
    """Where bytes lie: which shard, from where, how many."""

    shard: str
    offset: int
    size: int


@dataclass(slots=True)
class _Sample:
    image: _Place | None = None
    image_name: str = ""
    cls: _Place | None = None
    json: _Place | None = None


@dataclass(slots=True)
class _Shards:
    """The images of a folder of shards by name, and where each lies."""

    root: Path
    left_out: LeftOut = field(default_factory=LeftOut)
    places: dict[str, _Place] = field(default_factory=dict)

    def entries(self, shard: str) -> Iterator[Entry]:
        """The samples of a shard, in the order of their names."""
        for _, sample in sorted(self._samples(shard).items()):
            if sample.image is not None:
                name = f"{shard}/{sample.image_name}"
                self.places[name] = sample.image
                yield Entry(name, self._label(sample, name), split_of(shard))

    def fetch(self, name: str) -> bytes:
        """The bytes of an image."""
        return self._read(self.places[name], MOST_IMAGE_BYTES)

    def _samples(self, shard: str) -> dict[str, _Sample]:
        samples: dict[str, _Sample] = {}
        for member in _members(self.root / shard):
            if not member.isreg() or member.issparse():
                if not member.isdir():
                    self.left_out.add("links and other members that are no files", f"{shard}/{member.name}")
                continue
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or "\0" in member.name:
                self.left_out.add("names that lead out", f"{shard}/{member.name}")
                continue
            base, _, suffix = path.name.partition(".")
            sample = samples.setdefault((path.parent / base).as_posix(), _Sample())
            self._take(sample, path.as_posix(), suffix.lower(), _Place(shard, member.offset_data, member.size))
        return samples

    def _take(self, sample: _Sample, name: str, suffix: str, place: _Place) -> None:
        part = "image" if f".{suffix}" in IMG_EXTENSIONS else suffix
        if part not in ("image", "cls", "json"):
            return
        if getattr(sample, part) is not None:
            raise InvalidInput(
                f"{self.root / place.shard} has more than one {part} of the sample of {plain(name)}; a sample has one"
            )
        setattr(sample, part, place)
        if part == "image":
            sample.image_name = name

    def _label(self, sample: _Sample, name: str) -> str | None:
        if sample.cls is not None:
            text = self._text(sample.cls, name).strip()
        elif sample.json is not None:
            text = self._from_json(self._text(sample.json, name), name)
        else:
            return None
        return None if text in ("", "-1") else text

    def _from_json(self, text: str, name: str) -> str:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"the .json of {self._said(name)} is no JSON; write the shard again") from error
        label = document.get("label") if isinstance(document, dict) else None
        if label is not None and (isinstance(label, bool) or not isinstance(label, (int, str))):
            raise InvalidInput(f'"label" in the .json of {self._said(name)} is neither a number nor a name')
        return "" if label is None else str(label).strip()

    def _text(self, place: _Place, name: str) -> str:
        try:
            return self._read(place, MOST_LABEL_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InvalidInput(f"the label of {self._said(name)} cannot be read: {reason}") from error

    def _said(self, name: str) -> str:
        return plain(f"{self.root}/{name}")

    def _read(self, place: _Place, most: int) -> bytes:
        if place.size > most:
            raise OSError(0, f"it has {place.size} bytes, above the most of {most}")
        with (self.root / place.shard).open("rb") as file:
            file.seek(place.offset)
            data = file.read(place.size)
        if len(data) < place.size:
            raise OSError(0, "its shard is shorter than it was")
        return data


def open_shards(request: Request) -> ImageDataset:
    """Open the images in a folder of shards, and say in the log what was listed.

    Raises:
        DatasetMissing: there are no shards, or none of one split.
        InvalidInput: a shard is damaged or compressed, or a label cannot be read.
    """
    root = place_of(request)
    names = shards_in(root, ".tar")
    if not names:
        packed = shards_in(root, ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
        why = f"{packed[0]} is compressed: unpack that" if packed else SHARDS
        raise DatasetMissing(f"{root} has no .tar files; {why}")
    shards = _Shards(root)
    entries = [entry for name in names for entry in shards.entries(name)]
    listing = Listing(
        name=f"tar:{root.name}",
        place=root,
        entries=entries,
        fetch=shards.fetch,
        remedy="write the shard again without",
        hint=SHARDS,
        left_out=shards.left_out,
    )
    return as_dataset(listing, request)


class _Headers(io.FileIO):
    """A file of which nothing long is read: members are passed over by seeking."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError("a header is too long")
        return super().read(size) or b""


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of a shard.

    Raises:
        InvalidInput: it is no tar file, is compressed, cut short, or damaged.
    """
    try:
        length = os.path.getsize(path)
        with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not 0 <= member.size <= length - member.offset_data:
                    raise tarfile.ReadError("it is cut short")
                yield member
            _require_end(file, tar.offset)
    except (tarfile.TarError, OSError, ValueError, RecursionError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InvalidInput(f"cannot read {path}: {reason}; write it again as an uncompressed tar file") from error


def _require_end(file: _Headers, offset: int) -> None:
    """Two blocks of zeros end a tar file, and nothing but zeros follows; tarfile takes a damaged header for the end."""
    file.seek(offset)
    end = file.read(2 * _BLOCK)
    if len(end) < _BLOCK:
        raise tarfile.ReadError("it has no end: it is cut short")
    while end:
        if end.strip(b"\0"):
            raise tarfile.ReadError("it goes on after a damaged header, or after its end")
        end = file.read(_READ_AT_ONCE)
