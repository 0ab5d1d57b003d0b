"""The shapes that docstrings of loss functions give, held against what the functions take and return.

`labels: (B,) int64, the class of each sample.` is read as `Int[Tensor, "B"]`, and one letter is one number throughout a
call. A prime marks what may differ (`(B, C', H', W')`), a subscript what differs from one element of a list to the next
(`C_l`), `...` any further dimensions. Alternatives have `or` between them; `and` stands between what several arguments,
or the members of a tuple, are. The type is floating unless it says `int64`, or `numbers` for any.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num, jaxtyped
from torch import Tensor

from student_train import docstrings, losses
from student_train.losses import functional

_SHAPE = r"\([^()]*\)"
_SHAPES = re.compile(rf"{_SHAPE}(?: (?:or|and) {_SHAPE})*(?: int64| numbers)?")


class WrongShape(AssertionError):
    """A call that works has other shapes than the docstring says."""


@dataclass(frozen=True)
class Shapes:
    """What one argument is, as the docstring says it."""

    text: str

    @property
    def members(self) -> list[Shapes]:
        """Each of what stands between `and`."""
        return [Shapes(part) for part in self.text.split(" and ")]

    def fits(self, value: Any, sizes: Mapping[str, int]) -> bool:
        """Whether a tensor, every tensor of a list, or the members of a tuple are of these shapes.

        Args:
            sizes: axes that are arguments too.
        """
        if isinstance(value, Tensor | np.ndarray):
            return any(isinstance(value, hint) for hint in _hints(self.text, type(value), *sizes.items()))
        if len(self.members) > 1:
            return len(value) == len(self.members) and all(
                member.fits(one, sizes) for member, one in zip(self.members, value, strict=True)
            )
        return all(self.fits(one, sizes) for one in value)


@functools.cache
def _hints(text: str, array: type, *sizes: tuple[str, int]) -> list[Any]:
    """What `or` stands between, as jaxtyping's types of such arrays."""
    kind = {"int64": Int, "numbers": Num}.get(text.rpartition(" ")[2], Float)
    shapes = ([axis.strip() for axis in shape[1:-1].split(",") if axis.strip()] for shape in re.findall(_SHAPE, text))
    return [kind[array, " ".join(_axis(axis, dict(sizes)) for axis in shape)] for shape in shapes]


def _axis(text: str, sizes: Mapping[str, int]) -> str:
    if "_" in text:
        return "_"
    if text in sizes:
        return str(sizes[text])
    name = re.sub(r"\W+", "_times_", text.removesuffix("'").replace("...", "rest"))
    return ("*" if text.startswith("...") else "") + name + ("_prime" if text.endswith("'") else "")


def documented(function: Callable[..., Any]) -> dict[str, Shapes]:
    """Argument -> what its docstring says, for those that begin with a shape; "return" for the result.

    What `functional` re-exports returns a scalar unless its docstring says otherwise.
    """
    found: dict[str, Shapes] = {}
    for names, text in docstrings.arguments(function).items():
        if match := _SHAPES.match(text):
            shapes = Shapes(match[0])
            apart = len(names) > 1 and len(shapes.members) > 1
            found |= dict(zip(names, shapes.members, strict=True)) if apart else dict.fromkeys(names, shapes)
    if match := _SHAPES.match(" ".join(docstrings.sections(function).get("Returns", "").split())):
        found["return"] = Shapes(match[0])
    elif function.__name__ in functional.__all__:
        found["return"] = Shapes("()")
    return found


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which raises `WrongShape` for a call that it accepts and its docstring does not."""
    shapes, signature = documented(function), inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # A refusal of its own comes first.
        result = function(*args, **kwargs)
        values = signature.bind(*args, **kwargs).arguments
        _check(function.__name__, shapes, {**values, "return": result})
        return result

    return call


def _check(name: str, shapes: Mapping[str, Shapes], values: Mapping[str, Any]) -> None:
    sizes = {key: value for key, value in values.items() if isinstance(value, int)}
    with jaxtyped("context"):
        for key, said in shapes.items():
            value = values.get(key)
            if value is not None and not said.fits(value, sizes):
                found = {key: _shown(values[key]) for key in shapes if values.get(key) is not None}
                raise WrongShape(f"the docstring of {name} says {key}: {said.text}, and a call had {found}")


def _shown(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return f"{tuple(value.shape)} {value.dtype}"
    return [_shown(one) for one in value]


def loss_functions() -> Iterable[FunctionType]:
    """All functions in the modules of losses, as they were written."""
    for module in pkgutil.iter_modules(losses.__path__):
        for value in vars(importlib.import_module(f"{losses.__name__}.{module.name}")).values():
            if inspect.isfunction(value) and value.__module__ == f"{losses.__name__}.{module.name}":
                yield inspect.unwrap(value)


def enforce() -> None:
    """From now on check every call of a loss function that documents a shape, in all of this process."""
    wrapped = {function: checked(function) for function in loss_functions() if documented(function)}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "student_train":
            for key, value in list(vars(module).items()):
                if inspect.isfunction(value) and value in wrapped:
                    setattr(module, key, wrapped[value])
