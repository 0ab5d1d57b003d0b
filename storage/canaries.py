"""What a teacher that is elsewhere said of a few fixed images when a store was begun: a small file beside the manifest.

It is part of what identifies such a teacher, whose weights nobody can look at: builds that follow ask about the same
images again and compare. The file is written once and never changed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np

from ground.documents import Count, Hex32, Hex64, Line, Malformed, read_object, typed
from ground.durable import create
from ground.errors import StoreUnreadable
from storage.schema import DIGEST_BYTES

CANARIES_FILE = "canaries.json"
# The purpose of their sessions in a ledger, and the row that their calls are recorded under, which no store has.
CANARY, CANARY_ROW = "canary", 1 << 24
# What such a session says that it keeps: the answer as it is in the file, under one digest.
CANARY_OUTPUT = "answer"
MOST_CANARY_BYTES = 16 << 20
_TYPES = ("float32", "int32")

# Output -> (...) as the teacher said it; None where it refused.
Said = Mapping[str, np.ndarray] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Array:
    dtype: Line
    shape: tuple[Count, ...]
    data: str

    @classmethod
    def of(cls, values: np.ndarray) -> _Array:
        data = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
        return cls(dtype=values.dtype.name, shape=values.shape, data=data)

    @property
    def values(self) -> np.ndarray:
        content = base64.b64decode(self.data, validate=True)
        if self.dtype not in _TYPES or len(content) != prod(self.shape) * np.dtype(self.dtype).itemsize:
            raise Malformed("an answer in it is none")
        return np.frombuffer(content, dtype=self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    teacher: Hex64
    model: Line | None
    inputs: tuple[Hex32, ...]
    answers: tuple[Mapping[Line, _Array] | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CanaryRecord:
    """What was said.

    Args:
        teacher: its fingerprint.
        model: that answered, as the provider resolved it; None where it does not say.
        inputs: digest of the pixels of each image.
        answers: to each.
    """

    teacher: str
    model: str | None
    inputs: tuple[bytes, ...]
    answers: tuple[Said, ...]

    def create(self, folder: Path) -> None:
        """Write it into a store's folder, unless somebody else did."""
        document = asdict(self._document())
        create(folder / CANARIES_FILE, (json.dumps({**document, "digest": _digest(document)}) + "\n").encode())

    def _document(self) -> _Document:
        return _Document(
            teacher=self.teacher,
            model=self.model,
            inputs=tuple(digest.hex() for digest in self.inputs),
            answers=tuple(_arrays(said) for said in self.answers),
        )

    @classmethod
    def load(cls, folder: Path) -> CanaryRecord | None:
        """Of a store; None where there is none yet.

        Raises:
            StoreUnreadable: it is damaged.
        """
        path = folder / CANARIES_FILE
        if not path.exists():
            return None
        try:
            document = read_object(path, MOST_CANARY_BYTES)
            if document.pop("digest", None) != _digest(document):
                raise Malformed("it was changed: it does not match its own digest")
            found = typed(document, _Document, exact=True)
            if len(found.inputs) != len(found.answers):
                raise Malformed("it has not one answer to each image")
            answers = tuple(_values(said) for said in found.answers)
        except ValueError as error:
            raise StoreUnreadable(
                f"{path}, what the teacher said of a few images when the store was begun, cannot be used ({error}); "
                "bring it back from a copy, or delete it to take what the teacher says now for the same"
            ) from error
        inputs = tuple(bytes.fromhex(digest) for digest in found.inputs)
        return cls(teacher=found.teacher, model=found.model, inputs=inputs, answers=answers)


def digest_of_answer(said: Said) -> bytes:
    """What a ledger records of an answer: 16 bytes."""
    arrays = _arrays(said)
    document = None if arrays is None else {name: asdict(array) for name, array in sorted(arrays.items())}
    return hashlib.sha256(_text(document)).digest()[:DIGEST_BYTES]


def _arrays(said: Said) -> Mapping[str, _Array] | None:
    return None if said is None else {name: _Array.of(values) for name, values in said.items()}


def _values(said: Mapping[str, _Array] | None) -> Said:
    return None if said is None else {name: array.values for name, array in said.items()}


def _digest(document: object) -> str:
    return hashlib.sha256(_text(document)).hexdigest()


def _text(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
