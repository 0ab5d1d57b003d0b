"""A ledger against what a provider says it charged: a CSV file with a line a request, known by the provider's id.

Requests are compared, not attempts: one that held several images has one id, and its attempts' costs are summed, each
of which was rounded up to whole micros. Lines of the file with the same id are summed too.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from ground.errors import InvalidInput, UnknownName
from storage.bill import Bill, Billed, FailureKind
from storage.ledger import Ledger
from storage.ledger_bills import kept_text
from storage.ledger_report import CallFilter, list_calls
from storage.price import parse_decimal, rounded_up

_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ProviderBill:
    """What a provider charged.

    Args:
        costs: request id -> micros, rounded up.
        without_id: micros of lines that name no request.
        digest: SHA-256 of the file.
    """

    costs: Mapping[str, int]
    without_id: int
    digest: str


@dataclass(frozen=True, slots=True)
class Compared:
    """One request, where the two do not say the same; None where one of them does not know it."""

    request_id: str
    calls: tuple[int, ...]
    ledger_micros: int | None
    bill_micros: int | None


@dataclass(slots=True)
class Reconciliation:
    """How a ledger and a provider's bill agree: requests, by their ids.

    Args:
        matched: requests that both know, at the same cost.
        differs: that both know, at another cost; 0 is what the ledger says of one that is not billed.
        not_in_ledger, not_in_bill: that one of them charged, and the other does not know.
        billed, not_billed: calls of which that was unknown, with what the bill decides.
        undecided: request ids of calls that the bill decides nothing about, since it may not cover them.
        unknown_without_id: calls of which nothing says what request they were.
        without_id: calls that are billed, and whose request has no id.
        settled: calls that were decided in the ledger.
    """

    ledger_micros: int = 0
    bill_micros: int = 0
    matched: int = 0
    differs: list[Compared] = field(default_factory=list)
    not_in_ledger: list[Compared] = field(default_factory=list)
    not_in_bill: list[Compared] = field(default_factory=list)
    billed: dict[int, Bill] = field(default_factory=dict)
    not_billed: dict[int, Bill] = field(default_factory=dict)
    undecided: list[str] = field(default_factory=list)
    unknown_without_id: int = 0
    without_id: int = 0
    settled: int = 0

    @property
    def agrees(self) -> bool:
        """Whether the two contradict each other nowhere; what is unknown contradicts nothing."""
        return not (self.differs or self.not_in_ledger or self.not_in_bill)


def read_bill(path: Path, *, id_column: str, cost_column: str) -> ProviderBill:
    """A provider's export.

    Raises:
        InvalidInput: it cannot be read, lacks a column, or a cost in it is none; with the line's number.
    """
    text, digest = _text_of(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    costs: dict[str, Decimal] = {}
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        for column in (id_column, cost_column):
            if column not in names:
                raise UnknownName(f"column of {path}", column, names)
        for row in reader:
            id_, cost = row[id_column], row[cost_column]
            if id_ is None or cost is None or None in row:
                raise InvalidInput(f"{path}, line {reader.line_num}: it has not {len(names)} cells; mend the line")
            amount = parse_decimal(cost, f"{path}, line {reader.line_num}: {cost_column}")
            key = kept_text(id_.strip()) or ""
            costs[key] = costs.get(key, Decimal(0)) + amount
    except csv.Error as error:
        raise InvalidInput(f"{path}, line {reader.line_num}: {error}; give a CSV file") from error
    micros = {
        id_: rounded_up(cost, f"{path}: the cost of {id_ or 'requests without an id'}") for id_, cost in costs.items()
    }
    without_id = micros.pop("", 0)
    return ProviderBill(micros, without_id, digest)


def reconcile(ledger: Ledger, bill: ProviderBill, where: CallFilter, *, settle: bool = False) -> Reconciliation:
    """Compare them; with `settle`, record in the ledger what the bill decides of calls that were unknown.

    A call that is not in the bill was not billed only if the bill covers it: it has every other call that was billed,
    and the call was charged before `where.until`, or not after the last one that the bill has.

    Args:
        where: the ledger's calls that the bill is about: a teacher, a time.

    Raises:
        OlderFormat, StoreUnreadable, InvalidInput: nothing can be recorded in the ledger.
    """
    if settle:
        ledger.require_recordable()
    found = Reconciliation(bill_micros=sum(bill.costs.values()) + bill.without_id)
    requests = _requests(list_calls(ledger, where), found)
    for id_ in bill.costs.keys() - requests.keys():
        found.not_in_ledger.append(Compared(id_, (), None, bill.costs[id_]))
    last, absent = "", []
    for id_, calls in requests.items():
        if id_ in bill.costs:
            last = max(last, *(call["reserved_at"] for call in calls))
            _compare(found, id_, calls, bill.costs[id_])
        else:
            absent += _unknown(calls)
            charged = [call for call in calls if call["billed"] == Billed.YES]
            if charged:
                found.not_in_bill.append(_compared(id_, charged, None))
    for call in absent:
        if not found.not_in_bill and (where.until is not None or call["reserved_at"] <= last):
            found.not_billed[call["id"]] = _decided(call, Billed.NO, 0)
        else:
            found.undecided.append(call["request_id"])
    found.not_in_ledger.sort(key=lambda request: request.request_id)
    if settle:
        found.settled = ledger.settle_unknown({**found.billed, **found.not_billed}, bill.digest)
    return found


def _text_of(path: Path) -> tuple[str, str]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidInput(f"{path} has more than {_MOST_BYTES >> 20} MiB; give the provider's export in parts")
        content = path.read_bytes()
        return content.decode("utf-8-sig"), hashlib.sha256(content).hexdigest()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read ({error}); give the provider's export as CSV in UTF-8") from error


def _requests(rows: Iterable[dict[str, Any]], found: Reconciliation) -> dict[str, list[dict[str, Any]]]:
    """Request id -> calls that it held, of those that have a bill; what has no id is only counted."""
    requests: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["billed"] is None:
            continue
        found.ledger_micros += row["cost_micros"]
        if row["request_id"] is not None:
            requests.setdefault(row["request_id"], []).append(row)
        elif row["billed"] == Billed.UNKNOWN:
            found.unknown_without_id += 1
        elif row["billed"] == Billed.YES:
            found.without_id += 1
    return requests


def _compare(found: Reconciliation, id_: str, calls: Sequence[dict[str, Any]], cost: int) -> None:
    charged = [call for call in calls if call["billed"] == Billed.YES]
    known, unknown = sum(call["cost_micros"] for call in charged), _unknown(calls)
    if unknown:
        # The last of them takes what does not divide.
        rest, share = max(cost - known, 0), max(cost - known, 0) // len(unknown)
        for place, call in enumerate(unknown, start=1):
            part = share if place < len(unknown) else rest - share * (len(unknown) - 1)
            found.billed[call["id"]] = _decided(call, Billed.YES, part)
    # Each call's cost was rounded up, and the request's only once.
    elif known - max(len(charged) - 1, 0) <= cost <= known:
        found.matched += 1
    else:
        found.differs.append(_compared(id_, calls, cost))


def _compared(id_: str, calls: Sequence[dict[str, Any]], cost: int | None) -> Compared:
    return Compared(id_, tuple(call["id"] for call in calls), sum(call["cost_micros"] for call in calls), cost)


def _unknown(calls: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [call for call in calls if call["billed"] == Billed.UNKNOWN]


def _decided(call: Mapping[str, Any], billed: Billed, cost: int) -> Bill:
    """A call's bill, with what was known of it before."""
    return Bill(
        billed=billed,
        cost_micros=cost,
        tokens_in=call["tokens_in"],
        tokens_out=call["tokens_out"],
        model=call["model"],
        request_id=call["request_id"],
        failure=None if call["failure"] is None else FailureKind(call["failure"]),
    )
