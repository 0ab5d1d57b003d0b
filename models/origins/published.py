"""Weights that an origin fetches itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ground.errors import InvalidInput

_Result = TypeVar("_Result")


def published(name: str, fetch: Callable[[], _Result]) -> _Result:
    """What a library fetches from where it was published, or finds where it was put before.

    Args:
        name: ORIGIN:NAME, for messages.

    Raises:
        InvalidInput: it cannot be had here.
    """
    try:
        return fetch()
    except ImportError:
        raise
    except Exception as error:
        # Each library fails in its own ways without a network, without a licence, or without such weights.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InvalidInput(
            f"the published weights of {name} cannot be had ({reason[:200]}); give --weights FILE, or fetch them where "
            "there is a network"
        ) from error
