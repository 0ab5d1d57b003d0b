"""What the calls brought beyond labels alone, in a sentence that says so plainly where they brought nothing."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.brought import brought
from analysis.figures import Pair

PAIR, OTHER = Pair("t", "s", "d", "t → s"), Pair("t", "u", "d", "t → u")


def row(label: str, *, calls: int = 1600, uses_labels: bool = False, student: str = "s", **values: float):
    means = {
        "validation": 0.5,
        "accuracy": 0.612,
        "alone": 0.55,
        "mean": 0.062,
        "low": 0.049,
        "high": 0.075,
        "pairs": 3,
    }
    place = {"teacher": "t", "student": student, "dataset": "d", "label": label, "n": 1600, "calls": calls}
    return {**place, "uses_labels": uses_labels, "teaches_more": False, **means, **values}


def test_the_best_by_validation_at_the_most_calls_speaks():
    rows = [
        row("kd", validation=0.6),
        row("dist", validation=0.5, accuracy=0.9, mean=0.35),
        row("kd", calls=800, validation=0.7),
        row("vanilla", calls=0, validation=0.8),
    ]
    [sentence] = brought(pd.DataFrame(rows), [PAIR])
    assert sentence == (
        "At 1,600 calls, kd is at 61.2 %; labels alone, at no call, at 55.0 %: the calls brought +6.2 points "
        "(95 % interval +4.9 to +7.5, 3 pairs of runs)."
    )


def test_methods_with_the_rests_labels_have_a_sentence_of_their_own():
    rows = [row("kd", mean=-0.1, low=-0.2, high=-0.05, accuracy=0.45), row("kd + labels", uses_labels=True)]
    without, with_labels = brought(pd.DataFrame(rows), [PAIR])
    assert without == (
        "At 1,600 calls, kd is at 45.0 %; labels alone, at no call, at 55.0 %: labels alone are ahead, and the calls "
        "in their place brought -10.0 points (95 % interval -20.0 to -5.0, 3 pairs of runs)."
    )
    assert "kd + labels is at 61.2 %" in with_labels


@pytest.mark.parametrize(
    ("low", "high", "pairs", "said"),
    [
        (-0.01, 0.02, 3, "the calls brought +0.4 points (95 % interval -1.0 to +2.0, 3 pairs of runs), which may be"),
        (0.003, 0.005, 2, "a difference of +0.4 points (95 % interval +0.3 to +0.5, 2 pairs of runs), too few runs to"),
        (float("nan"), float("nan"), 1, "a difference of +0.4 points, of one pair of runs, which has no interval"),
    ],
)
def test_what_is_not_known_is_not_claimed(low, high, pairs, said):
    [sentence] = brought(pd.DataFrame([row("kd", mean=0.004, low=low, high=high, pairs=pairs)]), [PAIR])
    assert said in sentence


def test_every_pair_is_told_by_name():
    sentences = brought(pd.DataFrame([row("kd"), row("kd", student="u")]), [PAIR, OTHER])
    assert [sentence.split(":")[0] for sentence in sentences] == ["t → s", "t → u"]


def test_nothing_is_said_where_nothing_is_compared():
    assert brought(pd.DataFrame([row("vanilla", calls=0)]), [PAIR]) == []
    assert brought(pd.DataFrame([row("kd")]).iloc[:0], [PAIR]) == []
