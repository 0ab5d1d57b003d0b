"""Docstrings taken apart."""

from __future__ import annotations

from student_train import docstrings


def documented(one, other, third=None):
    """What it does: in short.

    More of it.

    And more:
    still prose, since nothing is indented.

    Args:
        one, other: two things, of which this is said
            on two lines.
        third: another: with a colon.

    Note:
        a remark.
    """


def bare():
    """One line."""


def test_summary_and_prose_end_at_the_first_section():
    summary, prose = docstrings.summary_and_prose(documented)
    assert summary == "What it does: in short."
    assert prose == "More of it.\n\nAnd more:\nstill prose, since nothing is indented."
    assert docstrings.summary_and_prose(bare) == ("One line.", "")


def test_sections_are_found_by_their_titles():
    assert list(docstrings.sections(documented)) == ["Args", "Note"]
    assert docstrings.sections(documented)["Note"] == "a remark."
    assert docstrings.sections(bare) == {}


def test_arguments_that_are_described_together_stay_together():
    assert docstrings.arguments(documented) == {
        ("one", "other"): "two things, of which this is said on two lines.",
        ("third",): "another: with a colon.",
    }
    assert docstrings.arguments(bare) == {}
