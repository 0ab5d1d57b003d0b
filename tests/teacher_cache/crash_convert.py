"""A conversion that kills itself before it is published: python -m tests.teacher_cache.crash_convert STORE OUT."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from storage.store import Store
from teacher_cache.convert import convert

if __name__ == "__main__":
    Store.publish = lambda self, cells: os.kill(os.getpid(), signal.SIGKILL)
    convert(Path(sys.argv[1]), "hdf5", Path(sys.argv[2]))
