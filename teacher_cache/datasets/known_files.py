"""What is known of a folder's images from earlier commands: the digest of each, while its file has not changed.

Whether a data set is the one that a store was built from is a matter of every byte of it, and reading them all takes
minutes for a large one. So digests are kept in the user's cache, `$CKD_CACHE`, else `$XDG_CACHE_HOME/ckd`, else
`~/.cache/ckd`, one file for each folder of images. A digest counts only while its file has the size, the number and
both times, of its content and of its entry, that it had before it was read; the latter no program can set. Files that
were changed a moment before they were read are not kept, as a clock might not tell the next change from that one. Some
files are read each time all the same, and one that is not what was kept of it makes all of it worthless.

The cache costs nobody anything: one that is damaged, of other rules, or cannot be written is as good as none.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from PIL import __version__ as pillow_version

from ground.durable import open_own, write_bytes
from ground.errors import CKDError

VARIABLE = "CKD_CACHE"
OFF = "off"
# Digests also say which rules pixels are read by, and that takes Pillow.
_RULES = f"1, pillow {pillow_version}"
# Files that are read though they are known, each time.
NUM_SAMPLED = 32
# What file systems tell times apart by is at most 2 s (FAT).
SETTLED_NANOSECONDS = 3 * 10**9
_DIGEST_BYTES = hashlib.sha256().digest_size
# Size, number, and nanoseconds of the last change of content and of entry.
_STAMP_NUMBERS = 4
_NO_FILE = (-1,) * _STAMP_NUMBERS
_MOST_BYTES = 1 << 32

# Digests of the images in some rows, in order.
HashRows = Callable[[Sequence[int]], list[bytes]]

log = logging.getLogger(__name__)


class _Document(Struct):
    """What is written: names with NUL between them, and for each its stamp, as int64, and its digest."""

    rules: str
    root: str
    names: bytes
    stamps: bytes
    digests: bytes


@dataclass(slots=True, eq=False)
class _Kept:
    """What is known of some images: name -> its place in the two arrays.

    Args:
        stamps: (N, 4) int64.
        digests: N digests, one after the other.
    """

    place_of: dict[str, int] = field(default_factory=dict)
    stamps: np.ndarray = field(default_factory=lambda: np.empty((0, _STAMP_NUMBERS), np.int64))
    digests: bytes = b""

    def digest(self, place: int) -> bytes:
        """Of the image in that place."""
        return self.digests[place * _DIGEST_BYTES : (place + 1) * _DIGEST_BYTES]


@dataclass(frozen=True, eq=False)
class KnownFiles:
    """Digests of the images in a folder, as far as they are known.

    Args:
        root: the folder.
        kind: of its images: "files", or "members" of files.
        rehash: take nothing for known, and keep what is found.
    """

    root: Path
    kind: str = "files"
    rehash: bool = False
    # Of this process; both splits of a data set are asked for one after the other.
    _found: dict[str, tuple[tuple[int, ...], bytes]] = field(default_factory=dict, init=False, repr=False)

    def digests(self, names: Sequence[str], files: Sequence[str], hash_rows: HashRows) -> list[bytes]:
        """The digest of each image.

        Args:
            names: of the images, each once.
            files: relative to the folder, the file that each is or lies in.
            hash_rows: reads images, and hashes them.
        """
        now, stamps, kept = time.time_ns(), self._stamps(files), self._kept
        places = np.array([kept.place_of.get(name, -1) for name in names], dtype=np.int64)
        is_known = (places >= 0) & (stamps[:, 0] >= 0)
        is_known[is_known] = (kept.stamps[places[is_known]] == stamps[is_known]).all(axis=1)
        digests = [kept.digest(place) if known else b"" for place, known in zip(places.tolist(), is_known, strict=True)]
        known = np.flatnonzero(is_known).tolist()
        sampled = _sampled(known, are_files=len({*files}) == len(files))
        if any(digests[row] != found for row, found in zip(sampled, hash_rows(sampled), strict=True)):
            log.warning(
                "files in %s changed though their sizes and times say that they did not; all of them are read",
                self.root,
            )
            is_known[:] = False
        unknown = np.flatnonzero(~is_known).tolist()
        for row, digest in zip(unknown, hash_rows(unknown), strict=True):
            digests[row] = digest
        if unknown:
            settled = self._settled([files[row] for row in unknown], stamps[unknown], now)
            rows = [row for row, is_settled in zip(unknown, settled, strict=True) if is_settled]
            for row in rows:
                self._found[names[row]] = (tuple(stamps[row].tolist()), digests[row])
            self._keep(forget={names[row] for row in unknown})
        return digests

    def _stamps(self, files: Iterable[str]) -> np.ndarray:
        """Stamp of each file, (N, 4) int64; of one that cannot be looked at, -1."""
        folder, seen = f"{self.root}/", dict[str, tuple[int, ...]]()
        for file in files:
            if file not in seen:
                seen[file] = _stamp(folder + file)
        return np.array([seen[file] for file in files], dtype=np.int64).reshape(-1, _STAMP_NUMBERS)

    def _settled(self, files: Sequence[str], stamps: np.ndarray, now: int) -> list[bool]:
        """Which files are as they were before they were read, and had not been changed a moment before."""
        same = (self._stamps(files) == stamps).all(axis=1) & (stamps[:, 0] >= 0)
        # A time that lies ahead is none that the next change would have.
        is_past = (np.abs(now - stamps[:, 2:]) > SETTLED_NANOSECONDS).all(axis=1)
        settled: list[bool] = (same & is_past).tolist()
        return settled

    @cached_property
    def _path(self) -> Path | None:
        """Where it is kept; None where nothing is."""
        folder = cache_folder()
        if folder is None:
            return None
        subject = f"{self.kind}\0".encode() + os.fsencode(os.path.abspath(self.root))
        return folder / "digests" / f"{hashlib.sha256(subject).hexdigest()[:32]}.known"

    @cached_property
    def _kept(self) -> _Kept:
        if self.rehash or self._path is None:
            return _Kept()
        try:
            return _read(self._path, str(self.root))
        except FileNotFoundError:
            return _Kept()
        except (OSError, ValueError, CKDError, msgspec.MsgspecError) as error:
            log.info("what was kept of %s cannot be used (%s); its files are read", self.root, error)
            return _Kept()

    def _keep(self, forget: set[str]) -> None:
        """Write what is known now, without what is wrong and without files that are gone; see `HashRows`."""
        if self._path is None:
            return
        kept, found = self._kept, self._found
        others = [
            (name, place)
            for name, place in kept.place_of.items()
            if name not in forget and name not in found and (self.kind != "files" or os.path.lexists(self.root / name))
        ]
        names = [name for name, _ in others] + list(found)
        stamps = np.concatenate(
            [
                kept.stamps[[place for _, place in others]],
                np.array([stamp for stamp, _ in found.values()], dtype=np.int64).reshape(-1, _STAMP_NUMBERS),
            ]
        )
        digests = b"".join([kept.digest(place) for _, place in others] + [digest for _, digest in found.values()])
        document = _Document(
            _RULES, str(self.root), os.fsencode("\0".join(names)), stamps.astype("<i8").tobytes(), digests
        )
        try:
            content = msgspec.msgpack.encode(document)
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_bytes(self._path, hashlib.sha256(content).digest() + content)
        except (OSError, ValueError, CKDError) as error:
            log.info("what %s holds could not be kept for the next time (%s)", self.root, error)


def cache_folder() -> Path | None:
    """Where things are kept that can be had again; None where nothing is to be kept."""
    named = os.environ.get(VARIABLE)
    if named:
        folder = os.path.expanduser(named)
        return None if named == OFF or folder.startswith("~") else Path(folder).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if cache.is_absolute():
        return cache / "ckd"
    home = Path("~").expanduser() if os.environ.get("HOME") else Path()
    return home / ".cache" / "ckd" if home.is_absolute() else None


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return _NO_FILE
    # Numbers of files may take 64 bits without a sign.
    return found.st_size, found.st_ino & (2**63 - 1), found.st_mtime_ns, found.st_ctime_ns


def _sampled(known: Sequence[int], *, are_files: bool) -> list[int]:
    """Some of the images that are known: any files; of those that lie in files together, neighbours."""
    if len(known) <= NUM_SAMPLED:
        return list(known)
    # Unseeded: nobody can tell which files are looked at.
    chance = random.SystemRandom()
    if are_files:
        return sorted(chance.sample(known, NUM_SAMPLED))
    first = chance.randrange(len(known) - NUM_SAMPLED)
    return list(known[first : first + NUM_SAMPLED])


def _read(path: Path, root: str) -> _Kept:
    """What is kept in a file.

    Raises:
        ValueError: it is damaged, or of other rules.
    """
    with open(open_own(path, os.O_RDONLY), "rb") as file:
        if os.fstat(file.fileno()).st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        seal, content = file.read(_DIGEST_BYTES), file.read()
    if hashlib.sha256(content).digest() != seal:
        raise ValueError("it is damaged")
    document = msgspec.msgpack.decode(content, type=_Document)
    if (document.rules, document.root) != (_RULES, root):
        raise ValueError("it is of other rules")
    # At once: a call for each of a million names takes seconds.
    names = os.fsdecode(document.names).split("\0") if document.names else []
    stamps = np.frombuffer(document.stamps, "<i8").astype(np.int64).reshape(-1, _STAMP_NUMBERS)
    if not len(names) == len({*names}) == len(stamps) == len(document.digests) / _DIGEST_BYTES:
        raise ValueError("it is damaged")
    return _Kept({name: place for place, name in enumerate(names)}, stamps, document.digests)
