"""Memory that a network on the CPU frees and asks for again in its next step.

glibc gives large blocks back to the system at once and gets them again as new pages, each of which is zeroed when it is
first touched: a third of the time of a step here went into that (docs/results.md). A process that was told so keeps
them; what it holds at most stays about the same, since the next step takes as much as the last.
"""

from __future__ import annotations

import ctypes
import os
import sys

# From malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = (1 << 31) - 1
# The largest blocks that are kept; some releases of glibc take no more than the latter.
_LARGEST_BYTES = (1 << 30, 1 << 25)
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, up to 2 GB; whether it does.

    Nothing is done where there is no glibc, or where the user has settings of his own for it.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    set_option = library.mallopt
    keeps = any(set_option(_MMAP_THRESHOLD, size) for size in _LARGEST_BYTES)
    return bool(set_option(_TRIM_THRESHOLD, _KEPT_BYTES)) and keeps
