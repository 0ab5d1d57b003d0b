"""Advice says what was measured, what is expected, and a verdict in words, from the runs of a pilot."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.advice import advice_of, signed
from analysis.expectation import Line, Verdict
from tests.analysis.grids import PlannedRun, results_of

ALONE = "vanilla, all labels"
SIZES = (50, 100, 200)
# Labels alone, by seed: far apart, as seeds are; gains are paired.
LABELS = (0.50, 0.54, 0.52)
LEARNED = {"rest": ["ce"], "recipe": {"losses": [], "rest": [{"loss": "ce"}]}}
NOISE = np.random.default_rng(0).normal(0, 0.001, (3, 3))


def runs_of(*, gain: float, doubling: float, labels: bool = True) -> list[PlannedRun]:
    """Three seeds; with 50 calls `gain` beyond labels alone, and `doubling` more for each doubling."""
    runs = []
    for seed, alone in enumerate(LABELS):
        for place, n in enumerate(SIZES):
            noise = NOISE[seed, place]
            asked = PlannedRun(label="calls alone", n=n, seed=seed, accuracy=0.1 + 0.03 * place + noise)
            more = LEARNED | {"answered_rows": n, "labelled_rows": 900 - n, "unlabelled_rows": 0}
            reached = alone + gain + doubling * place + noise
            both = PlannedRun(label="calls and labels", n=n, seed=seed, accuracy=reached, more=more)
            runs += [asked, both] if labels else [asked]
        more = LEARNED | {"answered_rows": 0, "labelled_rows": 900, "unlabelled_rows": 0}
        runs += [PlannedRun(label=ALONE, n=0, seed=seed, accuracy=alone, more=more)] if labels else []
    return runs


def advise(tmp_path, runs, *, n: int = 400, pilot: int = 200, worth: float = 0.01):
    return advice_of(results_of(tmp_path, runs), n=n, pilot=pilot, worth=worth)


def test_gains_are_paired_by_seed_and_expected_from_their_line(tmp_path):
    advice = advise(tmp_path, runs_of(gain=0.01, doubling=0.02))
    assert advice.labels_alone.mean == pytest.approx(0.52)
    assert advice.labels_alone.std == pytest.approx(0.02)
    assert advice.labelled == 900
    assert advice.measured[200].gain == pytest.approx(0.05 + NOISE[:, 2].mean())
    assert list(advice.expected) == [200, 400]
    gains = (0.01 + 0.02 * np.arange(3) + NOISE).ravel()
    found, wanted = advice.expected[400], Line.through(SIZES * 3, gains).expected(400)
    assert (found.gain.mean, found.gain.low, found.gain.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert found.calls_and_labels.mean == pytest.approx(0.52 + wanted.mean)
    assert found.calls_alone.mean == pytest.approx(0.1 + 3 * 0.03, abs=0.004)


@pytest.mark.parametrize(
    ("gain", "doubling", "verdict", "n", "said"),
    [
        (0.01, 0.02, Verdict.BUY, 400, "Buy about 400: 400 calls and labels are expected to bring"),
        (0.0, 0.005, Verdict.BUY, 400, "Buy about 400: 400 calls and labels are expected to bring"),
        (0.05, 0.0, Verdict.BUY, 200, "Buy no more than the 200 of the pilot: 200 calls and labels are expected"),
        (-0.05, 0.005, Verdict.DO_NOT_BUY, None, "Do not buy: 400 calls and labels are expected to bring -"),
        (0.01, 0.0, Verdict.CANNOT_TELL, None, "Cannot tell yet: 400 calls and labels are expected to bring +"),
    ],
)
def test_the_verdict_is_said_in_a_sentence_with_its_interval(tmp_path, gain, doubling, verdict, n, said):
    advice = advise(tmp_path, runs_of(gain=gain, doubling=doubling))
    assert (advice.decision.verdict, advice.decision.n) == (verdict, n)
    sentence, caveat = advice.sentences()
    assert caveat.startswith("All students learned at one rate, 0.05, and another may be worth more")
    assert sentence.startswith(said)
    assert "beyond labels alone (95 % interval " in sentence
    assert advice.document()["buy"] == n


def test_a_far_n_is_expected_with_a_warning_and_decides_nothing(tmp_path):
    advice = advise(tmp_path, runs_of(gain=0.01, doubling=0.02), n=800)
    assert list(advice.expected) == [200, 400, 800]
    assert advice.decision.n == 400
    assert advice.document()["uncertain"]
    assert "800 is more than 2 times the pilot" in advice.sentences()[1]
    assert "a --pilot of at least 400 would say more" in advice.sentences()[1]


def test_what_near_ones_do_not_bring_a_far_n_may(tmp_path):
    assert advise(tmp_path, runs_of(gain=-0.05, doubling=0.005), n=401).decision.verdict is Verdict.CANNOT_TELL


def test_without_labels_calls_are_compared_with_the_pilot(tmp_path):
    advice = advise(tmp_path, runs_of(gain=0, doubling=0, labels=False))
    assert advice.labels_alone is None
    assert advice.measured[200].calls_and_labels is None
    assert advice.expected[200].gain.mean == pytest.approx(0)
    assert advice.expected[400].gain.mean == pytest.approx(0.03, abs=0.002)
    assert (advice.decision.verdict, advice.decision.n) == (Verdict.BUY, 400)
    assert "Buy about 400: 400 calls are expected to bring +3.0 points beyond the pilot" in advice.sentences()[0]
    assert "nothing says what labels alone give" in advice.sentences()[1]
    assert advice.document()["beyond"] == "pilot"


def test_labels_alone_say_what_they_give_and_no_more(tmp_path):
    runs = [run for run in runs_of(gain=0, doubling=0) if run.n == 0]
    advice = advise(tmp_path, runs, pilot=0)
    assert advice.labels_alone.mean == pytest.approx(0.52)
    assert (advice.measured, advice.expected) == ({}, {})
    assert advice.decision.verdict is Verdict.CANNOT_TELL
    assert "a --pilot of 200 calls would say more" in advice.sentences()[0]


def test_an_expected_accuracy_stays_within_what_there_is(tmp_path):
    advice = advise(tmp_path, runs_of(gain=0.2, doubling=0.1), n=1600)
    found = advice.expected[1600]
    assert found.calls_and_labels.high == pytest.approx(1)
    assert found.gain.high == pytest.approx(1 - 0.52)


def test_points_have_a_sign_and_nothing_is_not_less_than_nothing():
    assert [signed(value) for value in (0.0123, -0.0123, -0.0002, 0.0)] == ["+1.2", "-1.2", "+0.0", "+0.0"]
