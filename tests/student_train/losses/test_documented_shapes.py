"""Docstrings of loss functions say what these take: their shapes are read, tried, and held against every call."""

from __future__ import annotations

import inspect
import math
import re
from typing import get_type_hints

import pytest
import torch
from torch import Tensor

from student_train.losses import functional
from student_train.losses.nst import nst
from tests.student_train.losses.documented_shapes import WrongShape, checked, documented, loss_functions

WRITTEN = {name: inspect.unwrap(getattr(functional, name)) for name in functional.__all__}
# Arguments that have no default and no shape.
OTHERS = {"crd": {"num_rows": 10}}


def tensors_of(function):
    """Its arguments that are tensors, or lists of them, and their types."""
    hints = get_type_hints(function)
    return {name: str(hint) for name, hint in hints.items() if "Tensor" in str(hint) and "Callable" not in str(hint)}


class Drawn:
    """Arguments as a docstring gives them: every letter is one number, unless the test makes one larger somewhere."""

    def __init__(self, function, seed: int) -> None:
        self.function, self.shapes = function, documented(function)
        self.random = torch.Generator().manual_seed(seed)
        # V views: the default of what takes some.
        self.sizes = {"S": 2, "T": 2, "V": 2}

    def arguments(self, larger: tuple[str, str] | None = None) -> dict[str, object]:
        """Those without a default.

        Args:
            larger: an argument and an axis of it that has one more than the same axis elsewhere.
        """
        hints = tensors_of(self.function)
        parameters = inspect.signature(self.function).parameters.values()
        wanted = [p.name for p in parameters if p.default is p.empty and p.name in hints]
        axis = {name: larger[1] if larger and larger[0] == name else None for name in wanted}
        made = {name: self.value(hints[name], self.shapes[name].text, axis[name]) for name in wanted}
        return made | OTHERS.get(self.function.__name__, {})

    def value(self, hint: str, text: str, larger: str | None, place: tuple[int, ...] = ()):
        if hint.count("Sequence") > len(place):
            return [self.value(hint, text, larger, (*place, element)) for element in range(2)]
        members = text.split(" and ")
        made = [self.tensor(member, larger, place) for member in members]
        return made[0] if len(members) == 1 else tuple(made)

    def tensor(self, text: str, larger: str | None, place: tuple[int, ...]) -> Tensor:
        axes = axes_of(text)
        shape = [self.size(axis, place) + (axis == larger) for axis in axes]
        if text.endswith("int64"):
            return torch.randint(self.size("K", ()), shape, generator=self.random)
        # Weights among them must be at least 0.
        return torch.rand(shape, generator=self.random, dtype=torch.float64)

    def size(self, axis: str, place: tuple[int, ...]) -> int:
        letters = dict(zip("ij" if len(place) == 2 else "l", map(str, place), strict=False))
        named = re.sub(r"_(\w+)", lambda found: "_" + "".join(letters[letter] for letter in found[1]), axis)
        for factor in named.split(" * "):
            self.sizes.setdefault(factor, int(torch.randint(2, 5, (), generator=self.random)))
        return math.prod(self.sizes[factor] for factor in named.split(" * "))


def axes_of(text: str) -> list[str]:
    """Of the first alternative."""
    inside = re.match(r"\(([^()]*)\)", text)
    assert inside is not None
    return [axis.strip() for axis in inside[1].split(",") if axis.strip()]


def shared_axes():
    """(function, argument, axis) for every axis that an argument must have as an argument before it has."""
    for name, function in WRITTEN.items():
        seen: set[str] = set()
        for argument, shapes in documented(function).items():
            if " or " in shapes.text or " and " in shapes.text or argument == "return":
                continue
            axes = axes_of(shapes.text)
            parameter = inspect.signature(function).parameters[argument]
            if parameter.default is parameter.empty:
                yield from ((name, argument, axis) for axis in axes if axis in seen and "_" not in axis)
            seen |= set(axes)


@pytest.mark.parametrize("name", WRITTEN)
def test_every_tensor_that_a_loss_function_takes_has_its_shape_in_the_docstring(name):
    assert set(tensors_of(WRITTEN[name])) == set(documented(WRITTEN[name]))


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_the_docstring_says_is_taken(name, seed):
    function = WRITTEN[name]
    assert torch.isfinite(checked(function)(**Drawn(function, seed).arguments())).all()


@pytest.mark.parametrize(("name", "argument", "axis"), list(shared_axes()))
def test_an_axis_that_is_not_as_the_docstring_says_is_refused(name, argument, axis):
    function = WRITTEN[name]
    with pytest.raises(ValueError, match=r"\d"):
        function(**Drawn(function, 0).arguments(larger=(argument, axis)))


def test_these_tests_check_every_call():
    assert nst is not WRITTEN["nst"]
    assert all(getattr(functional, name) is not written for name, written in WRITTEN.items())
    # A refusal of the function's own comes first.
    with pytest.raises(ValueError, match="they must be of one shape"):
        functional.kd(torch.zeros(2, 3), torch.zeros(2, 4))


def test_functions_that_are_not_exported_are_read_too():
    read = {function.__name__ for function in loss_functions() if documented(function)}
    assert read > {"local_logits", "leading_vectors", "kd_at", "association", *functional.__all__}


def wrong_length(student, teacher):
    """A loss.

    Args:
        student: (B, K) logits.
        teacher: (B,) logits.
    """
    return (student - teacher).mean()


def wrong_type(student, labels):
    """A loss.

    Args:
        student: (B, K) logits.
        labels: (B,) logits.
    """
    return student[0, labels[0]]


def wrong_result(student, teacher):
    """A loss.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.

    Returns:
        (B, K), no scalar.
    """
    return (student - teacher).mean()


def wrong_letter(student, teacher):
    """A loss.

    Args:
        student: (B, K) logits.
        teacher: (K, B) logits.
    """
    return student.sum() - teacher.sum()


def wrong_list(student, teacher):
    """A loss.

    Args:
        student: (B, C_l) of each layer l.
        teacher: (B, C_l) and (B, D).
    """
    return student[0].mean() - teacher[0].mean()


LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (wrong_length, (LOGITS, LOGITS), r"wrong_length says teacher: \(B,\), and a call had .*'teacher': '\(2, 3\)"),
        (wrong_type, (LOGITS, torch.tensor([1, 2])), r"wrong_type says labels: \(B,\), .*\(2,\) torch.int64"),
        (wrong_result, (LOGITS, LOGITS), r"wrong_result says return: \(B, K\), .*'return': '\(\) torch.float32'"),
        (wrong_letter, (LOGITS, LOGITS), r"wrong_letter says teacher: \(K, B\)"),
        (wrong_list, ([LOGITS, LOGITS[:1]], (LOGITS, LOGITS)), r"wrong_list says student: \(B, C_l\)"),
        (wrong_list, ([LOGITS], (LOGITS, LOGITS, LOGITS)), r"wrong_list says teacher: \(B, C_l\) and \(B, D\)"),
    ],
)
def test_a_docstring_that_is_wrong_about_a_call_is_caught(function, arguments, message):
    with pytest.raises(WrongShape, match=message):
        checked(function)(*arguments)


def right(one, other, many, maps, count):
    """A loss.

    Args:
        one: (B, ...), at least one axis.
        other: (B, C', ...') or (B,).
        many: (B, C_l) of each layer l.
        maps: (V * B, count) numbers.
    """
    return one.sum()


def test_the_notation_of_docstrings_is_understood():
    many = [torch.zeros(2, width) for width in (1, 2, 3)]
    for other in (torch.zeros(2, 5, 1, 1), torch.zeros(2, 5), torch.zeros(2)):
        checked(right)(torch.zeros(2, 3, 3), other, many, torch.zeros(6, 4, dtype=torch.int32), 4)
    with pytest.raises(WrongShape, match=r"maps: \(V \* B, count\) numbers"):
        checked(right)(torch.zeros(2), torch.zeros(2), many, torch.zeros(6, 4), 5)
