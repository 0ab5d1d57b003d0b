"""What an attempt is owed for: its bill, from what came of it and from the price."""

from __future__ import annotations

from dataclasses import dataclass

from ground.errors import InvalidInput
from storage.bill import Bill, Billed, FailureKind
from storage.price import Price
from teacher_cache.teachers import Teacher
from teacher_cache.teachers.attempts import Answer, Failure, RemoteTeacher, Usage

_MOST_TOKENS = 1 << 40


@dataclass(frozen=True, slots=True)
class Rates:
    """What attempts cost.

    Args:
        price: None where they cost nothing.
        max_tokens_in, max_tokens_out: of one attempt.
    """

    price: Price | None
    max_tokens_in: int = 0
    max_tokens_out: int = 0

    @property
    def upper_micros(self) -> int:
        """The most that one attempt can cost."""
        return 0 if self.price is None else self.price.upper(self.max_tokens_in, self.max_tokens_out)

    def cost_micros(self, usage: Usage) -> int:
        """What an attempt cost; tokens that the provider did not count are the most there can be."""
        if self.price is None:
            return 0
        tokens_in, tokens_out = _counted(usage.tokens_in), _counted(usage.tokens_out)
        return self.price.cost(
            self.max_tokens_in if tokens_in is None else tokens_in,
            self.max_tokens_out if tokens_out is None else tokens_out,
        )


def rates_of(teacher: Teacher | RemoteTeacher, price: Price | None) -> Rates:
    """A teacher's, at the price that the user says, or else at its own."""
    if not isinstance(teacher, RemoteTeacher):
        return Rates(price)
    return Rates(teacher.price if price is None else price, teacher.max_tokens_in, teacher.max_tokens_out)


def require_bounded(rates: Rates, name: str, budget_micros: int | None) -> None:
    """Refuse to make calls of which nobody says what they cost at most: no budget in money would hold them back.

    Args:
        name: of the teacher.
        budget_micros: None where there is none; then what costs nothing needs no price.

    Raises:
        InvalidInput: there is a budget and no price; or a price by tokens, and no limit of these.
    """
    price = rates.price
    if price is None:
        if budget_micros is not None:
            raise InvalidInput(
                f"{name} has a budget in money, and nobody says what its calls cost, so that it would hold nothing "
                "back; say it, with --price-call, --price-input or --price-output, or as price in its card"
            )
        return
    for what, amount, most in (
        ("input", price.input_tokens, rates.max_tokens_in),
        ("output", price.output_tokens, rates.max_tokens_out),
    ):
        if amount and not most:
            raise InvalidInput(
                f"{name} has a price for {what} tokens, and nothing says how many one call can have; say it in the "
                f"card of an http: teacher, as max_tokens_{what.removesuffix('put')}, or give --price-call instead"
            )


def is_refusal(said: Answer | Failure) -> bool:
    """Whether the teacher answered that it will not answer, which is paid for and not asked again."""
    return not said.values if isinstance(said, Answer) else said.kind is FailureKind.REFUSED


def bill_of(said: Answer | Failure, rates: Rates) -> Bill:
    """What an attempt is owed for; a failure that may have been billed is owed its upper bound."""
    failure = FailureKind.REFUSED if is_refusal(said) else None
    if isinstance(said, Answer):
        billed, cost = Billed.YES, rates.cost_micros(said.usage)
    else:
        billed, failure = said.billed, said.kind
        costs = {Billed.NO: 0, Billed.YES: rates.cost_micros(said.usage), Billed.UNKNOWN: rates.upper_micros}
        cost = costs[billed]
    return Bill(
        billed=billed,
        cost_micros=cost,
        tokens_in=_counted(said.usage.tokens_in),
        tokens_out=_counted(said.usage.tokens_out),
        model=said.model,
        request_id=said.request_id,
        failure=failure,
    )


def _counted(tokens: int | None) -> int | None:
    """As a provider counts them; a count that is none is no count."""
    return tokens if tokens is not None and 0 <= tokens <= _MOST_TOKENS else None
