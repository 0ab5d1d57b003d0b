"""Distributions over classes from tokens, by hand."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest

from ground.errors import InvalidInput
from storage.answers import AnswerForm, Kind
from teacher_cache.teachers.remote.class_prompt import Codes, numbers, written
from teacher_cache.teachers.remote.faults import retry_after
from teacher_cache.teachers.remote.saying import Saying, Unfit, best_form, numbers_of
from teacher_cache.teachers.remote.token_masses import Position, masses


def test_spellings_of_one_class_add_up():
    found = masses(
        [Position("7", math.log(0.6), {"7": math.log(0.6), " 7": math.log(0.3), "The": -5.0})], Codes(numbers(10))
    )
    assert found.seen == pytest.approx({7: 0.9})
    assert found.missing == pytest.approx(0.1)


def test_later_tokens_tell_apart_what_the_first_leaves_open():
    listed = [
        Position("1", math.log(0.7), {"1": math.log(0.7), "0": math.log(0.3)}),
        Position("2", math.log(0.5), {"2": math.log(0.5), "4": math.log(0.4), "9": math.log(0.1)}),
    ]
    found = masses(listed, Codes(numbers(20)))
    assert found.seen == pytest.approx({12: 0.35, 14: 0.28, 19: 0.07})
    # Ten classes begin with 0.
    assert found.shared == pytest.approx(0.3)


def test_the_missing_mass_is_spread_and_no_class_gets_more_than_the_least_that_is_listed():
    found = masses([Position("0", math.log(0.5), {"0": math.log(0.5), "1": math.log(0.02)})], Codes(numbers(4)))
    # 0.48 is missing; of an unlisted token at most 0.02 can be.
    np.testing.assert_allclose(found.distribution(4), np.array([0.5, 0.02, 0.02, 0.02]) / 0.56)


def test_words_that_name_no_class_say_nothing():
    assert masses([Position("The", -0.1, {"The": -0.1, "A": -3.0})], Codes(numbers(4))).distribution(4) is None


def test_numbers_have_one_width_and_names_may_not_begin_one_another():
    assert numbers(10)[7] == "7"
    assert numbers(101)[7] == "007"
    with pytest.raises(InvalidInput, match="'cat' begins 'caterpillar'"):
        written("Which of {names}?", ("dog", "caterpillar", "cat"))
    text, codes = written("Which of {count}: {names}?", ("dog", "cat"))
    assert text == "Which of 2: dog\ncat?"
    assert codes.named(" Cat.\n") == 1
    assert codes.named("catalogue") is None
    _, odd = written("{names}", (" cat ", "d'og\t", "Stra\xdfe"))
    assert [odd.named(said) for said in ("cat", "D'OG.", "strasse", "do", "")] == [0, 1, 2, None, None]
    with pytest.raises(InvalidInput, match="could mean 'cat' and 'Cat '"):
        written("{names}", ("cat", "ant", "Cat "))
    assert [codes.named("do", is_cut=cut) for cut in (False, True)] == [None, 0]
    assert codes.named("", is_cut=True) is None
    with pytest.raises(InvalidInput, match="stands for nothing"):
        written("{classes} {code}", ("dog",))


def test_what_a_server_asks_to_wait_is_seconds_or_a_date():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after("1.5") == 1.5
    assert retry_after("Thu, 01 Jan 2026 00:00:30 GMT", now) == 30.0
    assert retry_after("Wed, 31 Dec 2025 00:00:00 GMT", now) == 0.0
    assert retry_after("1e9") == 86400.0
    far = "Thu, 01 Jan 2026 00:00:30 +99999999999999999999"
    assert [retry_after(text) for text in ("nan", "soon", "", None, far)] == [None] * 5


def test_numbers_that_no_answer_can_have_are_refused():
    with pytest.raises(Unfit, match="no finite numbers"):
        numbers_of([1, 10**400])
    for best in ([0.0, 0.0], [-0.1, 0.3], [0.7, 0.5]):
        with pytest.raises(Unfit, match="no probabilities"):
            Saying(best_form(2), 3).of_best([0, 2], np.array(best), Kind.PROBABILITIES)
    with pytest.raises(Unfit, match="no probabilities"):
        Saying(best_form(2), 3).of_best([0, 2], np.array([800.0, 0.0]), Kind.LOG_PROBS)
    with pytest.raises(Unfit, match="none of its 3"):
        Saying(AnswerForm(kind=Kind.LABEL), 3).of_label(10**5000)
