"""Prices are exact, rounded up, and refused where they are no prices."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from storage.price import MICROS, Price, parse_decimal, parse_micros, rounded_up, shown_micros

PRICES = st.decimals(0, 1000, places=9)
TOKENS = st.integers(0, 10**7)


@pytest.mark.parametrize(
    ("text", "micros"),
    [("0", 0), ("20.00", 20_000_000), ("0.000001", 1), (" 1.5 ", 1_500_000), ("2.5e-3", 2500), ("1.", 1_000_000)],
)
def test_an_amount_is_read_exactly(text, micros):
    assert parse_micros(text, "--budget-cost") == micros


@pytest.mark.parametrize(
    "text", ["", "-1", "-0", "nan", "inf", "1e999", "0x10", "1,5", "1_000", "$3", "1 2", "\u0661", "+1", "1" * 30]
)
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(InvalidInput, match="--budget-cost must be a decimal number of 0 or more"):
        parse_micros(text, "--budget-cost")


def test_what_would_be_lost_or_is_huge_is_refused():
    with pytest.raises(InvalidInput, match=r"counted in millionths, and 0\.0000001 is finer; give at most 6 decimals"):
        parse_micros("0.0000001", "--budget-cost")
    with pytest.raises(InvalidInput, match="is more than 1000000000; give less"):
        parse_micros("1e10", "--budget-cost")
    assert parse_decimal("0.0000001", "a price") == Decimal("1e-7")
    assert rounded_up(Decimal("0.0000001"), "a cost") == 1


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "0.00"), (1, "0.000001"), (4200, "0.0042"), (20_000_000, "20.00"), (1_500_000, "1.50"), (-10_000, "-0.01")],
)
def test_an_amount_is_shown_with_the_decimals_it_has(micros, text):
    assert shown_micros(micros) == text


@given(st.integers(0, 10**15))
def test_an_amount_is_read_as_it_was_shown(micros):
    assert parse_micros(shown_micros(micros), "it") == micros


def test_a_call_costs_its_own_price_and_that_of_its_tokens():
    # By hand: 0.01 + 1000 x 2.50 / 1e6 + 20 x 10 / 1e6 = 0.01 + 0.0025 + 0.0002.
    price = Price.parse(call="0.01", input_tokens="2.50", output_tokens="10")
    assert price.cost(1000, 20) == 12_700
    assert price.upper(1000, 20) == 12_700
    assert Price.parse(input_tokens="0.075").cost(1, 0) == 1, "0.075 of a micro is rounded up"
    assert Price().cost(10**9, 10**9) == 0
    assert not Price()
    assert price


@given(PRICES, PRICES, PRICES, TOKENS, TOKENS)
def test_a_cost_is_the_least_whole_number_of_micros_that_covers_it(call, tokens_in, tokens_out, num_in, num_out):
    exact = Fraction(call) + (num_in * Fraction(tokens_in) + num_out * Fraction(tokens_out)) / 1_000_000
    cost = Price(call=call, input_tokens=tokens_in, output_tokens=tokens_out).cost(num_in, num_out)
    assert 0 <= Fraction(cost, MICROS) - exact < Fraction(1, MICROS)


@pytest.mark.parametrize("value", ["-0.01", "NaN", "sNaN", "Infinity", "1e12", "1e-400"])
def test_what_nobody_charges_is_refused(value):
    for name in ("call", "input_tokens", "output_tokens"):
        with pytest.raises(InvalidInput, match=f"the price of {name.replace('_', ' ')}"):
            Price(**{name: Decimal(value)})
    with pytest.raises(ValueError, match="a call of -1 tokens in"):
        Price().cost(-1, 0)
