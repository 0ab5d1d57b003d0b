"""Answers that a builder had in hand when it could not go on: a file beside the store, for whoever settles its session.

The file is made, and its room on the disk taken, before the session's first call; it is zeros until something goes
wrong. What is written then is a header, JSON that says which calls were answered, and the answers as plain numbers,
all of it under one digest (with `CKD_LEDGER_KEY`, an HMAC). So an answer that was paid for is there whole, or not at
all. Layout: docs/store-format.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct

from ground.documents import Count, Hex32, Malformed, Positive
from ground.durable import allocate, fsync_path, open_own, reporting_full_disk
from ground.errors import InvalidInput, StoreUnreadable
from storage.bill import Bill, Billed, FailureKind
from storage.float_types import INTEGER_TYPE, StoredType, stored_type, type_of
from storage.ledger_bills import row_of
from storage.ledger_chain import Seal
from storage.schema import OutputSpec

SPOOL = re.compile(r"answers-([0-9]{1,18})-[0-9a-f]{8}\.spool")
_MAGIC = b"ckdspool"
_FRONT_BYTES = len(_MAGIC) + 8 + hashlib.sha256().digest_size
_HEADER_BYTES_PER_CALL = 128
# Of most; where there is no room for what they are, answers go before their bills.
_BILL_BYTES = 256
# Two batches of the largest size, and some room.
_MOST_HEADER_BYTES = 2 * (1 << 16) * _HEADER_BYTES_PER_CALL + (1 << 20)
_BLOCK = 1 << 20
_Input = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z", description="32 hexadecimal digits")]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Answers of some calls of one session.

    Args:
        calls: ids.
        cells: row * V + view, where each answer belongs.
        inputs: digest of each input.
        values: name -> (C, ...) in any type of `storage.float_types`, for every output that the store keeps.
        refused: of these calls, those whose answer is a refusal: paid for, and without content.
        bills: call -> its bill, where it has one.
    """

    calls: Sequence[int]
    cells: Sequence[int]
    inputs: Sequence[bytes]
    values: Mapping[str, np.ndarray]
    refused: Sequence[int] = ()
    bills: Mapping[int, Bill] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class SpooledAnswer:
    """One answer: `values` is name -> (1, ...), in the type it was kept in; a refusal has no content.

    Args:
        bill: None where the call has none, or there was no room for it.
    """

    call: int
    cell: int
    input_digest: bytes
    values: Mapping[str, np.ndarray]
    is_refusal: bool = False
    bill: Bill | None = None


class Spool:
    """The file of one session; its room is taken when it is made.

    Args:
        store: id of the store that the answers belong to.
        outputs: all that the store keeps.
        calls: most that are ever in hand at once.

    Raises:
        DiskFull: there is no room for so many answers.
    """

    def __init__(self, folder: Path, store: str, session: int, outputs: Sequence[OutputSpec], calls: int) -> None:
        self.path = folder / f"answers-{session}-{secrets.token_hex(4)}.spool"
        self._store, self._session, self._outputs = store, session, outputs
        self._room = room_bytes(outputs, calls)
        try:
            allocate(self.path, self._room)
        except BaseException:
            self.remove()
            raise
        fsync_path(folder)

    def write(self, groups: Sequence[Group]) -> None:
        """Keep answers, durably; the header comes last, so a file that was torn holds none.

        Raises:
            DiskFull: the file system took no room for what was promised.
        """
        arrays = [group.values[output.name] for group in groups for output in self._outputs]
        header, room = self._header(groups), self._room - _FRONT_BYTES - sum(values.nbytes for values in arrays)
        if len(header) > min(room, _MOST_HEADER_BYTES):
            header = self._header([replace(group, bills={}) for group in groups])
        hasher = hashlib.sha256(header)
        with reporting_full_disk(self.path):
            descriptor = open_own(self.path, os.O_WRONLY | os.O_CREAT)
            try:
                place = _write_at(descriptor, header, _FRONT_BYTES)
                for values in arrays:
                    content = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
                    hasher.update(content)
                    place = _write_at(descriptor, content, place)
                os.fsync(descriptor)
                seal = Seal.from_environment().answers(hasher.digest())
                _write_at(descriptor, _MAGIC + len(header).to_bytes(8, "little") + seal, 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _header(self, groups: Sequence[Group]) -> bytes:
        header = {
            "session": self._session,
            "store": self._store,
            "groups": [
                {
                    "calls": [int(call) for call in group.calls],
                    "cells": [int(cell) for cell in group.cells],
                    "inputs": [digest.hex() for digest in group.inputs],
                    **({"refused": [int(call) for call in group.refused]} if group.refused else {}),
                    **(
                        {"bills": [row_of(int(call), bill) for call, bill in group.bills.items()]}
                        if group.bills
                        else {}
                    ),
                    "arrays": [
                        {
                            "name": output.name,
                            "dtype": type_of(group.values[output.name]),
                            "shape": list(group.values[output.name].shape),
                        }
                        for output in self._outputs
                    ],
                }
                for group in groups
            ],
        }
        return json.dumps(header).encode()

    def remove(self) -> None:
        """Delete the file: nothing in it is needed any more."""
        self.path.unlink(missing_ok=True)


def room_bytes(outputs: Sequence[OutputSpec], calls: int) -> int:
    """Bytes that so many answers take at most, in float32: one that overflows its stored type is kept too."""
    answer = sum(prod(output.shape) * 4 for output in outputs)
    about = (_HEADER_BYTES_PER_CALL + _BILL_BYTES) * calls + 256 * (len(outputs) + 1) * 4
    return _FRONT_BYTES + about + answer * calls


def spool_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every spool of a folder with the session that its name speaks of; links and pipes among them too."""
    for item in sorted(folder.iterdir()):
        named = SPOOL.fullmatch(item.name)
        if named is not None:
            yield item, int(named[1])


def read_spool(path: Path, outputs: Sequence[OutputSpec], calls: set[int]) -> list[SpooledAnswer]:
    """What a spool holds of some calls; the memory it takes is that of these.

    Args:
        outputs: all that the store keeps, whatever their stored types are by now.

    Raises:
        Malformed: it is no whole spool of such a store; one that nothing was written to is empty, and whole.
        InvalidInput: a link, a pipe or a folder is in its place.
        StoreUnreadable: it could not be read, so nobody knows what it holds.
    """
    with _opened(path) as descriptor:
        found = None if descriptor is None else _checked(descriptor)
        return [] if descriptor is None or found is None else list(_answers(descriptor, *found, outputs, calls))


def spooled_store(path: Path) -> str | None:
    """Id of the store whose answers a spool holds; None where it holds none.

    Raises:
        Malformed: it is no whole spool.
        InvalidInput, StoreUnreadable: as for `read_spool`.
    """
    with _opened(path) as descriptor:
        found = None if descriptor is None else _checked(descriptor)
    return None if found is None else found[0].store


def is_file(path: Path) -> bool:
    """Whether there is an ordinary file, and no link, pipe or folder; builders delete their spools at any time."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


class _Array(Struct):
    name: str
    dtype: StoredType
    shape: list[Positive]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * stored_type(self.dtype).itemsize


class _Bill(Struct, array_like=True):
    """As `storage.ledger_bills.row_of` has it."""

    call: Count
    billed: Billed
    cost_micros: Count
    tokens_in: Count | None
    tokens_out: Count | None
    model: str | None
    request_id: str | None
    failure: FailureKind | None

    @property
    def bill(self) -> Bill:
        if self.billed is Billed.NO and self.cost_micros:
            raise Malformed("a bill in it contradicts itself")
        fields = msgspec.structs.asdict(self)
        del fields["call"]
        return Bill(**fields)


class _Group(Struct):
    calls: list[Count]
    cells: list[Count]
    inputs: list[_Input]
    arrays: list[_Array]
    refused: list[Count] = []
    bills: list[_Bill] = []


class _Header(Struct):
    session: Count
    store: Hex32
    groups: list[_Group]


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A descriptor; none for a file that its builder, or who settled its session, deleted meanwhile."""
    try:
        descriptor = open_own(path, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    except InvalidInput as error:
        raise InvalidInput(
            f"{path} is no file of its own, but a link, a folder or a pipe, where answers that are paid for may have "
            "been; put the file itself back, or move that away to give them up"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        yield descriptor
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)


def _unreadable(path: Path, error: OSError) -> StoreUnreadable:
    why = error.strerror or str(error)
    return StoreUnreadable(
        f"{path} cannot be read ({why}), and may hold answers that are paid for; see that it can be read, then run the "
        "same command again"
    )


def _checked(descriptor: int) -> tuple[_Header, int] | None:
    """The header, and where the answers begin, once all of it matches its digest; None for a file of zeros."""
    front = os.pread(descriptor, _FRONT_BYTES, 0)
    if not front.strip(b"\0"):
        return None
    size = int.from_bytes(front[len(_MAGIC) : len(_MAGIC) + 8], "little")
    if not front.startswith(_MAGIC) or len(front) < _FRONT_BYTES or not 0 < size <= _MOST_HEADER_BYTES:
        raise Malformed("it does not begin as a spool does")
    header = os.pread(descriptor, size, _FRONT_BYTES)
    try:
        # Straight into its own type: as objects of any kind, a header from anybody would take thirty times its size.
        found = msgspec.json.decode(header, type=_Header)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"what it says of its answers cannot be read: {error}") from error
    begins = _FRONT_BYTES + size
    left = sum(array.size_bytes for group in found.groups for array in group.arrays)
    if begins + left > os.fstat(descriptor).st_size:
        raise Malformed("it is cut short")
    hasher, place = hashlib.sha256(header), begins
    while left:
        block = os.pread(descriptor, min(left, _BLOCK), place)
        if not block:
            raise Malformed("it is cut short")
        hasher.update(block)
        place, left = place + len(block), left - len(block)
    if Seal.from_environment().answers(hasher.digest()) != front[len(_MAGIC) + 8 :]:
        raise Malformed("it does not match its digest")
    return found, begins


def _answers(
    descriptor: int, header: _Header, place: int, outputs: Sequence[OutputSpec], calls: set[int]
) -> Iterator[SpooledAnswer]:
    for group in header.groups:
        expected = [(output.name, [len(group.calls), *output.shape]) for output in outputs]
        alike = len(group.calls) == len(group.cells) == len(group.inputs) and all(
            (array.dtype == INTEGER_TYPE) == (output.dtype == INTEGER_TYPE)
            for array, output in zip(group.arrays, outputs, strict=False)
        )
        if not alike or [(array.name, array.shape) for array in group.arrays] != expected:
            raise Malformed("it holds other outputs than the store keeps")
        firsts, refused, bills = [], {*group.refused}, {said.call: said.bill for said in group.bills}
        for array in group.arrays:
            firsts.append(place)
            place += array.size_bytes
        for row, (call, cell, digest) in enumerate(zip(group.calls, group.cells, group.inputs, strict=True)):
            if call in calls:
                values = {
                    array.name: _read_row(descriptor, array, first, row)
                    for array, first in zip(group.arrays, firsts, strict=True)
                }
                yield SpooledAnswer(call, cell, bytes.fromhex(digest), values, call in refused, bills.get(call))


def _read_row(descriptor: int, array: _Array, first: int, row: int) -> np.ndarray:
    size = array.size_bytes // array.shape[0]
    content = os.pread(descriptor, size, first + row * size)
    return np.frombuffer(content, dtype=stored_type(array.dtype)).reshape(1, *array.shape[1:])


def _write_at(descriptor: int, content: bytes | memoryview, place: int) -> int:
    """Write all of it; returns where it ends."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, place)
        rest, place = rest[written:], place + written
    return place
