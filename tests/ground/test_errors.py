"""Errors answer an unknown name with the nearest known one, and suggest commands that a shell takes as they are."""

from __future__ import annotations

import pickle
import shlex
from pathlib import Path

import pytest

from ground.errors import CKDError, TooNarrow, UnknownName, store_command


@pytest.mark.parametrize(
    ("name", "hint"),
    [("zar", "did you mean zarr?"), ("qqqq", "known: hdf5, zarr")],
)
def test_an_unknown_name_is_answered_with_the_nearest_or_with_all(name, hint):
    assert str(UnknownName("format", name, ("zarr", "hdf5"))) == f"no format is called {name!r}; {hint}"


def test_names_that_are_far_are_listed_nearest_first_and_many_are_cut():
    said = str(UnknownName("loss", "zz-b", [f"x{number:02}" for number in range(30)] + ["abc"], listed_by="list them"))
    assert "; known: abc, x00, x01, " in said
    assert said.endswith("x22 and 7 more; see all with: list them")


def test_what_counts_in_a_spelling_is_said_by_who_knows():
    said = str(UnknownName("network", "WRN-40-3", ["wrn_40_2", "vgg8"], lambda text: text.lower().replace("-", "_")))
    assert said == "no network is called 'WRN-40-3'; did you mean wrn_40_2?"


def test_a_suggested_command_is_read_by_a_shell_as_it_was_meant():
    command = store_command("extend", Path("my store"), features="a b", weights="FILE")
    words = ["ckd-cache", "extend", "--store", "my store", "--features", "a b", "--weights", "FILE"]
    assert shlex.split(command) == words


def subclasses(kind: type) -> set[type]:
    return {kind, *(below for child in kind.__subclasses__() for below in subclasses(child))}


def test_every_error_has_an_exit_code_and_a_sentence_of_its_own():
    for kind in subclasses(CKDError):
        assert kind.exit_code in (1, 2, 3, 130, 141)
        assert kind.__doc__


@pytest.mark.parametrize(
    "error",
    [
        UnknownName("format", "zar", ("zarr", "hdf5")),
        TooNarrow("it does not fit", "why", Path("store")),
        CKDError("so"),
    ],
)
def test_an_error_is_the_same_in_another_process(error):
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
