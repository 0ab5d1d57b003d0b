"""Importing what takes seconds, torch above all, without looking for garbage meanwhile."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import in this block; what it makes stays, and Python would walk over all of it again and again to see that.

    What is there after the first such block of a process is left out of every later collection as well; what is made
    later is collected as ever.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        _leave_out_what_is_there()
        gc.enable()


@functools.cache
def _leave_out_what_is_there() -> None:
    """Once in a process: later there is more than imports made. Counting what is left out would walk over all of it."""
    gc.freeze()
