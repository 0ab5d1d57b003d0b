"""The mark that the HDF5 library sets in a file while a program has it open for writing, and takes away at its end.

A program that was killed leaves it there, and no program opens the file any more, though nothing of it may have
changed. The mark is a byte of the superblock: "HDF5 File Format Specification" 3.0, II.A, version 3; its checksum is
Jenkins's lookup3.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from ground.durable import open_own
from ground.errors import StoreBusy
from storage.holders import advice, lock_holders, named, users

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_VERSION, _FLAGS = 8, 11
_CHECKSUM = 44
_SIZE = 48
_MASK = 0xFFFFFFFF


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as an HDF5 file does."""
    return _superblock(path).startswith(_SIGNATURE)


def is_marked(path: Path) -> bool:
    """Whether a file says that it is open for writing, and its superblock is whole."""
    block = _superblock(path)
    is_ours = len(block) == _SIZE and block.startswith(_SIGNATURE) and block[_VERSION] == 3
    return is_ours and block[_FLAGS] != 0 and block[_CHECKSUM:] == _checksum_of(block)


def clear_mark(path: Path) -> None:
    """Take the mark away; the file is then as its program left it.

    Raises:
        StoreBusy: somebody has the file open.
    """
    descriptor = open_own(path, os.O_RDWR)
    try:
        require_unused(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise locked(path) from error
        block = bytearray(os.pread(descriptor, _SIZE, 0))
        block[_FLAGS] = 0
        block[_CHECKSUM:] = _checksum_of(block)
        os.pwrite(descriptor, block, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_unused(path: Path) -> None:
    """Raise `StoreBusy` if another process of this machine has a file locked or open."""
    if lock_holders(path):
        raise locked(path)
    found = users(path)
    if found:
        raise StoreBusy(
            f"{path} is open in {named(found)}; {advice(found)}, or close it there: nothing is wrong with it"
        )


def locked(path: Path) -> StoreBusy:
    """The error for a file that somebody has locked."""
    found = lock_holders(path) or users(path)
    return StoreBusy(
        f"{path} is locked by {named(found)}, as a program does that has it open for writing; {advice(found)}, or "
        "close it there: nothing is wrong with it"
    )


def _superblock(path: Path) -> bytes:
    descriptor = open_own(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, _SIZE, 0)
    finally:
        os.close(descriptor)


def _checksum_of(block: bytes | bytearray) -> bytes:
    return _lookup3(bytes(block[:_CHECKSUM])).to_bytes(4, "little")


def _lookup3(data: bytes) -> int:
    """Bob Jenkins's hashlittle with initial value 0 (lookup3.c, 2006): 32 bits, of at least one byte."""
    state = [(0xDEADBEEF + len(data)) & _MASK] * 3
    *blocks, last = (data[start : start + 12].ljust(12, b"\0") for start in range(0, len(data), 12))
    for block in blocks:
        _add(state, block)
        for step, bits in enumerate((4, 6, 8, 16, 19, 4)):
            x, y, z = step % 3, (step + 1) % 3, (step + 2) % 3
            state[x] = ((state[x] - state[z]) & _MASK) ^ _turned(state[z], bits)
            state[z] = (state[z] + state[y]) & _MASK
    _add(state, last)
    for step, bits in enumerate((14, 11, 25, 16, 4, 14, 24)):
        x, y = (step + 2) % 3, (step + 1) % 3
        state[x] = ((state[x] ^ state[y]) - _turned(state[y], bits)) & _MASK
    return state[2]


def _add(state: list[int], block: bytes) -> None:
    for place, word in enumerate(struct.unpack("<3I", block)):
        state[place] = (state[place] + word) & _MASK


def _turned(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK
