"""What the ledger knows of calls, and of who makes them."""

from __future__ import annotations

from dataclasses import dataclass

from storage.schema import DIGEST_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Who calls, and how: constant during one run of a builder.

    Args:
        teacher: fingerprint, 64 hex digits.
        teacher_name: architecture, for people.
        store: id of the store that keeps the outputs.
        location: absolute folder of that store, so that other builds can copy from it.
        purpose: what the calls are for, for people.
        device, precision: where and in which number format the teacher runs.
        outputs: names of what is kept of each call.
        host: the machine, and the file that builders of the store lock there: text of a `teacher_cache.place.Place`, or
            of another shape in sessions of earlier releases.
    """

    teacher: str
    teacher_name: str
    store: str
    location: str
    purpose: str
    device: str
    precision: str
    outputs: tuple[str, ...]
    host: str


@dataclass(frozen=True, slots=True)
class CallRequest:
    """One call about to be made: which input, and where its outputs will go."""

    input_digest: bytes
    sample: int
    row: int
    view: int


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """What the ledger knows of a call; `output_digest` holds 16 bytes for each of `outputs`."""

    id: int
    session: int
    store: str
    location: str
    precision: str
    outputs: tuple[str, ...]
    input_digest: bytes
    repeat: int
    row: int
    view: int
    status: str
    output_digest: bytes | None

    def digest_of(self, output: str) -> bytes | None:
        """What the call's outputs must digest to, or None for one that was not kept."""
        if self.output_digest is None or output not in self.outputs:
            return None
        first = self.outputs.index(output) * DIGEST_BYTES
        return self.output_digest[first : first + DIGEST_BYTES]


@dataclass(frozen=True, slots=True)
class Reservation:
    """What became of requests: ids of those that are charged, and the calls that already answer the others."""

    ids: dict[bytes, int]
    known: dict[bytes, list[RecordedCall]]


@dataclass(frozen=True, slots=True)
class Lease:
    """A living session's: `beat` grows for as long as it lives."""

    session: int
    store: str
    location: str
    host: str
    beat: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals of one teacher, or of all: every count is in teacher calls, every amount in micros.

    Args:
        spent: committed + reserved + lost.
        budget, budget_micros: the most that may ever be spent; None where there is no limit, or several teachers.
        remaining, remaining_micros: what is left of them; less than 0 where a provider charged more than its bound.
        returned: charged, and given back, since nobody billed them; not among `spent`.
        cost_micros: what settled calls cost.
        reserved_micros: upper bounds of the reserved ones.
    """

    committed: int
    reserved: int
    lost: int
    spent: int
    budget: int | None
    remaining: int | None
    head: str
    returned: int = 0
    cost_micros: int = 0
    reserved_micros: int = 0
    budget_micros: int | None = None
    remaining_micros: int | None = None
