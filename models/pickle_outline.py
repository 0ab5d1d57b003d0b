"""What a pickle of torch.save would make, looked at without making any of it.

A pickle is a program, and reading one can run anything. Here every name that it asks for becomes an inert class of
ours, so that calls, states and items are only noted down. What the notes say is checked before torch reads the file:
which objects lie where, whether tensors lie within the bytes that are there, and that the program is not one that
grows out of a small file. Limits are on what a program makes, not on the bytes of the weights.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

MOST_BYTES = 32 << 20
# Of everything that a program makes, in units of about 64 bytes.
_MOST_UNITS = 1 << 20
_MOST_NAMES = 1 << 10
_UNITS = {"EMPTY_SET": 4, "EMPTY_DICT": 2, "MARK": 2, "REDUCE": 8, "NEWOBJ": 8, "BUILD": 4, "INST": 8, "OBJ": 8}
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_STORAGE = re.compile(r"torch\.(?:storage\.|cuda\.)?(\w+)Storage")
_ITEM_BYTES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "Untyped", "QInt8", "QUInt8"), 1),
    **dict.fromkeys(("Short", "Half", "BFloat16"), 2),
    **dict.fromkeys(("Int", "Float", "QInt32"), 4),
    **dict.fromkeys(("Long", "Double", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_PLAIN = (str, bytes, int, float, bool, complex, type(None))
_MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")


class Unsound(Exception):
    """A program that no honest file holds; says why."""


class Made:
    """What a name of a pickle would have made; one class a name.

    Attributes:
        name: module and name, as "argparse.Namespace".
        args: what it would have been called with.
        state: what it would have been given.
        parts: key and value of items that were set; None and value of those that were appended.
    """

    name: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: Any
    parts: list[tuple[Any, Any]]

    def __new__(cls, *args: Any, **_: Any) -> Made:
        """Note down what it is called with."""
        made = super().__new__(cls)
        made.args, made.state, made.parts = args, None, []
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        """Nothing: all is noted when it is made."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.parts.append((key, value))

    def append(self, value: Any) -> None:
        """Note down an item of a list."""
        self.parts.append((None, value))

    def extend(self, values: list[Any]) -> None:
        """Note down several."""
        self.parts.extend((None, value) for value in values)

    def add(self, value: Any) -> None:
        """Note down an item of a set."""
        self.parts.append((None, value))

    @property
    def is_tensor(self) -> bool:
        """Whether it is a plain tensor or parameter."""
        return self.name in _TENSORS or self.name in _PARAMETERS

    @property
    def is_module(self) -> bool:
        """Whether it is a network, or a part of one, with its code's name."""
        return isinstance(self.state, Mapping) and {"_parameters", "_modules"} <= self.state.keys()


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a tensor's numbers lie.

    Args:
        key: by which the file knows them.
        num_items: how many there should be.
        item_bytes: of each.
    """

    key: str
    num_items: int
    item_bytes: int

    @property
    def num_bytes(self) -> int:
        """Of all."""
        return self.num_items * self.item_bytes


@dataclass(frozen=True, slots=True)
class Outline:
    """A program that is sound.

    Args:
        root: plain values, `Made`, and `Storage`.
        protocol: of the pickle.
        storages: all that it names.
    """

    root: Any
    protocol: int
    storages: Mapping[str, Storage] = field(default_factory=dict)

    def walk(self) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Every value once, with the keys that lead to it."""
        seen: set[int] = set()
        ahead: list[tuple[tuple[str, ...], Any]] = [((), self.root)]
        while ahead:
            path, value = ahead.pop()
            if id(value) in seen:
                continue
            yield path, value
            below = list(_below(value))
            if below or isinstance(value, Made):
                seen.add(id(value))
            # A path is for people; in a deep nest its first steps are enough.
            ahead += [((*path, key) if key and len(path) < 8 else path, part) for key, part in reversed(below)]


def read_outline(file: io.BytesIO) -> Outline:
    """Look at the next pickle of a file, and leave the file behind it.

    Raises:
        Unsound: it is damaged, or makes more than a checkpoint needs.
    """
    start = file.tell()
    protocol = _measure(file)
    program = file.getvalue()[start : file.tell()]
    reader = _Reader(program)
    try:
        root = reader.load()
    except Exception as error:  # a damaged pickle fails in too many ways to list; nothing of it is run
        raise Unsound(f"{type(error).__name__}: {error}") from None
    outline = Outline(root, protocol, reader.storages)
    _require_small_calls(outline)
    return outline


def items_of(value: Any) -> list[tuple[Any, Any]] | None:
    """Key and value of what is, or would have been, a mapping; None for anything else."""
    if isinstance(value, dict):
        return list(value.items())
    return list(value.parts) if isinstance(value, Made) and value.name in _MAPPINGS else None


def name_of(value: Any) -> str | None:
    """The name of what a value would have been, or of a class or function that lies there itself."""
    is_named = isinstance(value, Made) or (isinstance(value, type) and issubclass(value, Made))
    return value.name if is_named else None


def is_within_storage(tensor: Made) -> bool:
    """Whether a tensor asks for no more than its storage has; of a parameter, the tensor in it."""
    if tensor.name in _PARAMETERS:
        data = tensor.args[0] if tensor.args else None
        return isinstance(data, Made) and data.name in _TENSORS and is_within_storage(data)
    if len(tensor.args) < 4:
        return False
    storage, offset, sizes, strides = tensor.args[:4]
    if not isinstance(storage, Storage) or not isinstance(sizes, tuple) or not isinstance(strides, tuple):
        return False
    numbers = (offset, *sizes, *strides)
    if len(sizes) != len(strides) or any(type(number) is not int or number < 0 for number in numbers):
        return False
    item_bytes = storage.item_bytes
    if tensor.name == _TENSORS[2]:  # its numbers have a type of their own, over a storage of bytes
        kind = (name_of(tensor.args[6]) or "") if len(tensor.args) > 6 else ""
        item_bytes = getattr(getattr(torch, kind.removeprefix("torch."), None), "itemsize", 16)
    if math.prod(sizes) == 0:
        return True
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return bool((last + 1) * item_bytes <= storage.num_bytes)


class _Reader(pickle.Unpickler):
    """Makes nothing but `Made`, plain values and `Storage`."""

    def __init__(self, program: bytes) -> None:
        # Text of Python 2 is of no known encoding; this one takes every byte.
        super().__init__(io.BytesIO(program), encoding="latin1")
        self.storages: dict[str, Storage] = {}
        self._classes: dict[str, type[Made]] = {}

    def find_class(self, module: str, name: str) -> type[Made]:
        """An inert class in the place of whatever is named."""
        full = f"{_PYTHON_2.get(module, module)}.{name}"
        if full not in self._classes:
            if len(self._classes) == _MOST_NAMES:
                raise Unsound(f"it names more than {_MOST_NAMES} things")
            self._classes[full] = type("Made", (Made,), {"name": full})
        return self._classes[full]

    def persistent_load(self, pid: Any) -> Storage:
        """A tensor's storage, as torch.save names it."""
        _, kind, key, _, count = pid[:5]
        known = _STORAGE.fullmatch(name_of(kind) or "")
        item_bytes = _ITEM_BYTES.get(known[1]) if known else None
        if item_bytes is None or type(count) is not int or count < 0 or not isinstance(key, str):
            raise Unsound("it names weights in no way that torch.save does")
        storage = Storage(key, count, item_bytes)
        if self.storages.setdefault(key, storage) != storage:
            raise Unsound(f"it says two things of the weights {key}")
        return storage


def _measure(file: io.BytesIO) -> int:
    """Go through a program without following it; returns its protocol.

    Raises:
        Unsound: it would make more than any checkpoint needs, or remember it at places that it has not reached.
    """
    units, protocol = 0, 0
    try:
        for opcode, argument, _ in pickletools.genops(file):
            units += _UNITS.get(opcode.name, 1)
            number = argument if isinstance(argument, int) else 0
            if opcode.name == "PROTO":
                protocol = number
            # Python's own reader makes room for as many as the number says.
            if units > _MOST_UNITS or (opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and number > _MOST_UNITS):
                raise Unsound("it would make a million objects beside the weights")
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise Unsound(str(error)) from None
    return protocol


def _require_small_calls(outline: Outline) -> None:
    """Refuse calls that copy a long list again and again."""
    units = 0
    for _, value in outline.walk():
        if isinstance(value, Made):
            units += sum(len(part) for part in value.args if isinstance(part, list | tuple | dict | set | frozenset))
            if units > _MOST_UNITS:
                raise Unsound("it would copy the same objects a million times")


def _below(value: Any) -> Iterator[tuple[str, Any]]:
    """What lies in a value, with its key where it has one; plain numbers and text are left out."""
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        parts = [*((None, key) for key in value), *value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = [(None, part) for part in value if not isinstance(part, _PLAIN)]
    elif isinstance(value, Made):
        parts = [(None, part) for part in (*value.args, value.state, *(key for key, _ in value.parts))] + value.parts
    for key, part in parts:
        if not isinstance(part, _PLAIN):
            yield str(key)[:80] if isinstance(key, str | int) else "", part
