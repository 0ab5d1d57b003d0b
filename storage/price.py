"""What a call costs, exactly: decimal texts, whole micros, and prices as providers state them.

Money is counted in whole micros, millionths of whatever currency a price is in, so that sums and budgets are exact.
What is not a whole number of them is rounded up, so that nothing is ever counted for less than it cost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil

from ground.errors import InvalidInput

MICROS = 1_000_000
# As large as what a database's integers still hold, summed over any ledger.
MOST_MICROS = 10**15
_DECIMAL = re.compile(r"[0-9]{1,18}(\.[0-9]{0,18})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_PER_TOKENS = 1_000_000


def parse_decimal(text: str, what: str) -> Decimal:
    """A decimal number of 0 or more; `what` names it in the message.

    Raises:
        InvalidInput: it is none: negative, not a number, infinite, or of a form that providers do not write.
    """
    if not _DECIMAL.fullmatch(text.strip()):
        raise InvalidInput(f"{what} must be a decimal number of 0 or more, as 0.25, got {text[:40]!r}")
    return Decimal(text.strip())


def parse_micros(text: str, what: str) -> int:
    """An amount of money in micros.

    Raises:
        InvalidInput: it is no decimal number of 0 or more, is huge, or has digits below a micro, which would be lost.
    """
    micros = Fraction(parse_decimal(text, what)) * MICROS
    if micros.denominator != 1:
        raise InvalidInput(f"{what} is counted in millionths, and {text.strip()} is finer; give at most 6 decimals")
    return _bounded(micros.numerator, what)


def rounded_up(amount: Decimal, what: str) -> int:
    """An amount of money in micros, rounded up; raises `InvalidInput` for a huge one."""
    return _bounded(ceil(Fraction(amount) * MICROS), what)


def shown_micros(micros: int) -> str:
    """An amount for people: two decimals, or as many more as it has."""
    sign, (whole, rest) = "-" if micros < 0 else "", divmod(abs(micros), MICROS)
    decimals = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{decimals}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a provider charges, in units of its currency.

    Args:
        call: for each call.
        input_tokens, output_tokens: for a million of each.

    Raises:
        InvalidInput: one of them is negative, no number, or huge.
    """

    call: Decimal = Decimal(0)
    input_tokens: Decimal = Decimal(0)
    output_tokens: Decimal = Decimal(0)

    def __post_init__(self) -> None:
        for name in ("call", "input_tokens", "output_tokens"):
            value, what = getattr(self, name), f"the price of {name.replace('_', ' ')}"
            if not value.is_finite() or (value.is_signed() and value):
                raise InvalidInput(f"{what} must be a decimal number of 0 or more, as 0.25, got {value}")
            # Bounded in both directions, before anything is computed with it.
            if value and not -18 <= value.adjusted() <= 9:
                raise InvalidInput(f"{what} is {value}, which nobody charges; give it in units of the currency")

    @classmethod
    def parse(cls, *, call: str = "0", input_tokens: str = "0", output_tokens: str = "0") -> Price:
        """From texts that a user gave; raises `InvalidInput`."""
        return cls(
            call=parse_decimal(call, "the price of a call"),
            input_tokens=parse_decimal(input_tokens, "the price of input tokens"),
            output_tokens=parse_decimal(output_tokens, "the price of output tokens"),
        )

    def __bool__(self) -> bool:
        """Whether anything costs something."""
        return bool(self.call or self.input_tokens or self.output_tokens)

    def cost(self, tokens_in: int, tokens_out: int) -> int:
        """Micros that a call of so many tokens costs, rounded up.

        Raises:
            ValueError: fewer than 0 tokens.
        """
        if tokens_in < 0 or tokens_out < 0:
            raise ValueError(f"a call of {tokens_in} tokens in and {tokens_out} out is none")
        tokens = tokens_in * Fraction(self.input_tokens) + tokens_out * Fraction(self.output_tokens)
        return ceil((Fraction(self.call) + tokens / _PER_TOKENS) * MICROS)

    def upper(self, max_in: int, max_out: int) -> int:
        """Micros that a call costs at most, given the most tokens that it may take and give."""
        return self.cost(max_in, max_out)


def _bounded(micros: int, what: str) -> int:
    if micros > MOST_MICROS:
        raise InvalidInput(f"{what} is more than {MOST_MICROS // MICROS}; give less")
    return micros
