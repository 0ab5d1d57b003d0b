"""What an attempt's fault means: one table from what happened to a `Failure`, for all protocols.

| what happened | kind | billed | final |
|---|---|---|---|
| no connection: refused, no such host, a time-out before the request was sent | NOT_SENT | no | no |
| a time-out, or a broken connection, once any of the request was sent | UNKNOWN | unknown | no |
| 429 | RATE_LIMITED | no | no |
| 400, 401, 403, 404, 422 and other 4xx, and redirects, which are not followed | REJECTED | no | yes |
| 408, 409, 425 | REJECTED | no | no |
| 500 and other 5xx | REJECTED | unknown, unless the card says that errors cost nothing | no |
| 200 with what cannot be read, or not with what was asked for | UNKNOWN | yes | no |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from storage.bill import Billed, FailureKind
from teacher_cache.teachers.attempts import Failure, Usage

_MOST_WAIT_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class _Fault:
    kind: FailureKind
    billed: Billed
    is_final: bool = False


_RATE_LIMITED = _Fault(FailureKind.RATE_LIMITED, Billed.NO)
_FINAL = _Fault(FailureKind.REJECTED, Billed.NO, is_final=True)
_PASSING = _Fault(FailureKind.REJECTED, Billed.NO)
_BROKEN = _Fault(FailureKind.REJECTED, Billed.UNKNOWN)
_UNREADABLE = _Fault(FailureKind.UNKNOWN, Billed.YES)

_BY_STATUS = {429: _RATE_LIMITED, 408: _PASSING, 409: _PASSING, 425: _PASSING}
_BY_HUNDRED = {2: _UNREADABLE, 3: _FINAL, 4: _FINAL, 5: _BROKEN}
_CLAUSES = {
    401: "the server does not take the key, or wants one",
    403: "the key does not allow it",
    404: "the server has no such model or path",
    413: "the image is too large for the server",
    429: "the server has had too many requests",
}


def not_sent(why: str, seconds: float) -> Failure:
    """Nothing left this machine, so nobody can bill it."""
    return Failure(kind=FailureKind.NOT_SENT, billed=Billed.NO, why=why, seconds=seconds)


def broken_off(why: str, seconds: float) -> Failure:
    """It was sent, wholly or in part, and no whole answer came."""
    return Failure(kind=FailureKind.UNKNOWN, billed=Billed.UNKNOWN, why=why, seconds=seconds)


def unreadable(
    why: str, seconds: float, *, usage: Usage | None = None, model: str | None = None, request_id: str | None = None
) -> Failure:
    """An answer came, and is paid, and is none that can be kept."""
    return Failure(
        kind=_UNREADABLE.kind,
        billed=_UNREADABLE.billed,
        why=why,
        usage=usage or Usage(),
        model=model,
        request_id=request_id,
        seconds=seconds,
    )


def of_status(
    status: int,
    headers: Mapping[str, str],
    seconds: float,
    *,
    request_id: str | None = None,
    errors_cost: bool = True,
    is_final: bool = False,
) -> Failure:
    """What an answer other than 200 means.

    Args:
        errors_cost: whether the server may bill for errors of its own.
        is_final: whether its body says that asking again cannot help.
    """
    fault = _BY_STATUS.get(status) or _BY_HUNDRED.get(status // 100, _UNREADABLE)
    billed = Billed.NO if fault is _BROKEN and not errors_cost else fault.billed
    clause = _CLAUSES.get(status) or ("the server redirects elsewhere" if status // 100 == 3 else None)
    return Failure(
        kind=fault.kind,
        billed=billed,
        why=f"the server answered {status}" + ("" if clause is None else f": {clause}"),
        retry_after=retry_after(headers.get("retry-after")),
        is_final=fault.is_final or is_final,
        request_id=request_id,
        seconds=seconds,
    )


def retry_after(text: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a server asks to be left alone, of a number of them or a date (RFC 9110, Sec. 10.2.3); at most a
    day, and None for what is neither.
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
            # A date without a zone is of Greenwich.
            date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
            seconds = (date - (now or datetime.now(UTC))).total_seconds()
        except (ValueError, OverflowError):  # a zone is any number of digits
            return None
    return min(max(seconds, 0.0), _MOST_WAIT_SECONDS) if math.isfinite(seconds) else None
