"""Stand-in until the ledger's is merged."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Per call, and per million tokens."""

    call: Decimal = Decimal(0)
    input_tokens: Decimal = Decimal(0)
    output_tokens: Decimal = Decimal(0)

    def cost(self, tokens_in: int, tokens_out: int) -> int:
        """Micros, rounded up."""
        micros = self.call * 1_000_000 + self.input_tokens * tokens_in + self.output_tokens * tokens_out
        return int(micros.to_integral_value(ROUND_CEILING))

    def upper(self, max_in: int, max_out: int) -> int:
        """Micros."""
        return self.cost(max_in, max_out)
