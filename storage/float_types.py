"""The types that outputs are kept in, and how their numbers lie in arrays.

NumPy, Zarr and HDF5 know no bfloat16. Its numbers are the upper halves of float32 numbers: they are kept as such, in
uint16, and the manifest says which outputs they are. Outputs are floats or int32, so wherever an array of theirs is
uint16, it holds bfloat16.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

NARROW_TYPES = ("float16", "bfloat16")
FLOAT_TYPES = (*NARROW_TYPES, "float32")
# Of ids of classes.
INTEGER_TYPE = "int32"
StoredType = Annotated[
    str, Meta(pattern=r"\A(b?float16|float32|int32)\Z", description="float16, bfloat16, float32 or int32")
]

_BITS = np.dtype(np.uint16)
_NOT_A_NUMBER = 0x7FC0


def stored_type(name: str) -> np.dtype:
    """In which an output of a type lies in arrays."""
    return _BITS if name == "bfloat16" else np.dtype(name)


def is_integer(dtype: np.dtype) -> bool:
    """Whether an array of outputs holds ids, and no numbers that may be rounded."""
    return dtype.kind == "i"


def type_of(values: np.ndarray) -> str:
    """Of which type an array of outputs is."""
    return "bfloat16" if values.dtype == _BITS else values.dtype.name


def as_float32(values: np.ndarray) -> np.ndarray:
    """The numbers of an array of outputs, all of which float32 holds."""
    if values.dtype == _BITS:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def converted(values: np.ndarray, name: str) -> np.ndarray:
    """The same outputs in another type, rounded to the nearest number as torch does, in C order; ids stay ids."""
    if stored_type(name) == values.dtype:
        return np.ascontiguousarray(values)
    assert is_integer(values.dtype) == (name == INTEGER_TYPE), "ids are never floats"
    if name == INTEGER_TYPE:
        return values.astype(np.int32)
    numbers = np.ascontiguousarray(as_float32(values))
    return _upper_halves(numbers) if name == "bfloat16" else numbers.astype(name, copy=False)


def exactly(values: np.ndarray, name: str) -> np.ndarray | None:
    """The same numbers in a narrower type; None where it does not hold all of them.

    Args:
        values: float32.
    """
    with np.errstate(over="ignore"):
        narrow = converted(values, name)
    return narrow if np.array_equal(as_float32(narrow), values) else None


def _upper_halves(numbers: np.ndarray) -> np.ndarray:
    """float32 as bfloat16: to the nearest, ties to even; what is too large becomes infinite."""
    bits = numbers.view(np.uint32)
    # Without a carry from the lower half: NaN would become infinite, or a zero.
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(numbers), _NOT_A_NUMBER, rounded).astype(_BITS)
