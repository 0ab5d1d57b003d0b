"""Importing what takes seconds, torch above all, without looking for garbage meanwhile."""

from __future__ import annotations

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
        if gc.get_freeze_count() == 0:
            gc.freeze()
        gc.enable()
