"""Cells that spreadsheets do not compute."""

from __future__ import annotations

import pytest

from ground.cells import neutral


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_a_text_that_begins_a_formula_gets_an_apostrophe(begin):
    assert str(neutral(f"{begin}SUM(A1)")).startswith("'")


@pytest.mark.parametrize("formula", ["-1+cmd|'/c calc'!A0", "-1 ± =2", "+1;2", "--1", "-"])
def test_a_formula_that_begins_as_a_number_is_one(formula):
    assert neutral(formula) == f"'{formula}"


@pytest.mark.parametrize(
    "cell",
    [-1, -0.5, None, True, "-0.5", "+1.25", "-3,200", "+0.12 to -0.30", "-1.5 ± 0.25", "1e-05", "12%", "ckd", ""],
)
def test_numbers_and_plain_text_are_left_as_they_are(cell):
    assert neutral(cell) is cell or neutral(cell) == cell


def test_what_cannot_be_printed_is_spelled_out():
    assert neutral("a\x1b[2J\u202e") == "a\\x1b[2J\\u202e"
