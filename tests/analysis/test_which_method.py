"""A method is named by pools whose teachers are like the user's, at the nearest n, with its evidence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.which_method import FEWEST_JUDGED, FINDINGS, HEDGES, LIKE, Finding, Hedge, suggest
from student_train.methods import parse_method
from student_train.rest.spec import parse_rest

DOCS = Path(__file__).parents[2] / "docs"


def finding(pool: str, right: float, n: int, method: str, rest: str | None = None) -> Finding:
    return Finding(pool, right, n, rest, method, 0.4, "kd", rest, 0.3, 0.2)


SURE, UNSURE = (0.99, 0.6)
MADE = (
    finding("a", SURE, 100, "kd"),
    finding("a", SURE, 1000, "dist"),
    finding("b", UNSURE, 100, "ckd"),
    finding("b", UNSURE, 1000, "crd", "ce"),
)


@pytest.mark.parametrize(
    ("n", "accuracy", "has_labels", "options", "is_like"),
    [
        (100, 0.95, False, ["--method kd"], True),
        (310, 0.95, False, ["--method kd"], True),
        (320, 0.95, False, ["--method dist"], True),
        (5000, UNSURE - LIKE + 0.01, False, ["--method ckd"], True),
        (100, UNSURE, True, ["--method crd --rest ce"], True),
        (100, 0.3, False, ["--method ckd", "--method kd"], False),
        (100, 0.8, False, ["--method kd", "--method ckd"], False),
    ],
)
def test_the_pool_whose_teacher_is_as_often_right_decides_at_the_nearest_n(n, accuracy, has_labels, options, is_like):
    suggestion = suggest(n=n, accuracy=accuracy, judged=200, has_labels=has_labels, findings=MADE)
    assert suggestion.document()["try"] == options
    assert suggestion.is_like == is_like
    assert f"right in {100 * accuracy:.1f} % of its 200 answers about labelled images" in suggestion.sentence()
    assert ("nothing was measured with one like it" in suggestion.sentence()) != is_like


def test_without_a_label_all_that_was_measured_is_named_and_none_is_said_to_be_like_it():
    suggestion = suggest(n=100, accuracy=None, judged=0, has_labels=False, findings=MADE)
    assert suggestion.document()["try"] == ["--method kd", "--method ckd"]
    assert "No label says how good the teacher is" in suggestion.sentence()
    assert suggestion.document()["teacher_accuracy"] is None


def test_of_few_answers_nothing_is_said_to_be_like_the_teacher():
    few, enough = (
        suggest(n=100, accuracy=UNSURE, judged=judged, has_labels=False, findings=MADE)
        for judged in (FEWEST_JUDGED - 1, FEWEST_JUDGED)
    )
    # What 1.96 deviations of a share reach is then no farther than what counts as like.
    assert 1.96 * (0.25 / FEWEST_JUDGED) ** 0.5 <= LIKE < 1.96 * (0.25 / (FEWEST_JUDGED - 1)) ** 0.5
    assert (few.is_like, enough.is_like) == (False, True)
    assert few.options == ["--method ckd", "--method kd"]
    assert "42 answers about labelled images, which are too few to know" in few.sentence()
    assert "first, each at several --lr" in few.sentence()
    assert "whoever buys tries --method ckd first, at several --lr" in enough.sentence()


def test_what_two_pools_agree_on_is_named_once():
    found = suggest(
        n=100, accuracy=None, judged=0, has_labels=False, findings=(MADE[0], finding("b", UNSURE, 90, "kd"))
    )
    assert found.document()["try"] == ["--method kd"]
    assert len(found.document()["evidence"]) == 2


@pytest.mark.parametrize(
    ("its", "options"), [(0.391, ["--method crd --rest ce", "--method kd --rest ce:weight=4"]), (0.389, None)]
)
def test_methods_that_are_about_equal_are_both_named(its, options):
    found = Finding("a", SURE, 100, "ce", "crd", 0.4, "kd", "ce:weight=4", its, 0.2)
    suggestion = suggest(n=100, accuracy=SURE, judged=100, has_labels=True, findings=[found])
    assert suggestion.options == (options or ["--method crd --rest ce"])


def test_evidence_is_said_with_what_came_second_and_with_labels_alone():
    sentence = suggest(n=100, accuracy=UNSURE, judged=200, has_labels=True, findings=MADE).sentence()
    assert "1000 calls brought 40.0 % by crd with labels of the rest, 30.0 by kd, and labels alone 20.0" in sentence


HELD = tuple(Hedge(pool, n, "ce", "kd+ckd", 0.35) for pool in "ab" for n in (100, 1000))


@pytest.mark.parametrize(
    ("accuracy", "judged", "has_labels", "holds"),
    [
        (0.8, 200, True, True),
        (SURE, 10, True, True),
        (None, 0, True, True),
        (SURE, 200, True, False),
        (0.8, 200, False, False),
    ],
)
def test_what_held_on_all_pools_comes_first_where_none_is_like_the_users(accuracy, judged, has_labels, holds):
    found = [finding("a", SURE, 900, "dist", "ce"), finding("b", UNSURE, 900, "ckd", "ce"), *MADE[:1]]
    suggestion = suggest(n=800, accuracy=accuracy, judged=judged, has_labels=has_labels, findings=found, hedges=HELD)
    assert (suggestion.options[0] == "--method kd+ckd --rest ce") == holds
    assert [hedge["n"] for hedge in suggestion.document()["held_on_all"]] == ([1000, 1000] if holds else [])
    told = "by kd, and labels alone 20.0, and kd+ckd with labels of the rest brought 35.0 % there with 1000 calls"
    assert suggestion.sentence().count(told) == (2 if holds else 0)


@pytest.mark.parametrize("hedge", HEDGES, ids=lambda hedge: f"{hedge.pool}-{hedge.n}")
def test_every_hedge_is_on_its_page_and_is_a_method(hedge):
    parse_method(hedge.method)
    parse_rest([hedge.rest])
    [section] = re.findall(r"## One that holds on both\n(.*?)\n## ", (DOCS / "study.md").read_text(), re.DOTALL)
    reached = f"{100 * hedge.reached:.1f}"
    if "Tiny ImageNet" in hedge.pool:
        [row] = [line for line in section.splitlines() if f"**`{hedge.method}`**" in line]
        assert row.split("|")[2 if hedge.n == 200 else 3].split(", ")[1].strip() == reached
    else:
        assert (
            f"with {hedge.n:,} calls and labels {reached} (" in section
            or f"with {hedge.n:,} calls {reached} (" in section
        )


@pytest.mark.parametrize("found", FINDINGS, ids=lambda found: f"{found.pool}-{found.n}-{found.rest}")
def test_every_finding_is_in_the_tables_and_is_a_method(found):
    parse_method(found.method)
    if found.rest is not None:
        parse_rest([found.rest])
    page = (DOCS / "results.md").read_text()
    tables = [
        text for text in re.split(r"\n\n(?=100 classes of Tiny|Photographs \(101)", page) if "Labels alone: " in text
    ]
    [table] = [text for text in tables if f"Labels alone: {100 * found.alone:.1f}." in text]
    headings = next(line for line in table.splitlines() if line.startswith("| | ")).split("|")
    column = next(place for place, text in enumerate(headings) if text.strip() == f"{found.n:,} calls")
    best, other = (found.method, found.rest, found.reached), (found.runner_up, found.its_rest, found.its)
    for method, rest, reached in (best, other):
        name = f"| `{method}`{', labels of the rest' if rest else ''} |"
        cell = next(line for line in table.splitlines() if line.startswith(name)).split("|")[column]
        assert cell.split()[0] == f"{100 * reached:.1f}"
        weight = re.search(r", x(\d)", cell)
        assert rest == (f"ce:weight={weight[1] if weight else 1}" if rest else None)
