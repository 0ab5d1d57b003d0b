"""Makes a ledger at a moment of the clock: python -m tests.teacher_cache.ledger_maker LEDGER SECONDS."""

from __future__ import annotations

import sys
import time

from storage.ledger import Ledger

if __name__ == "__main__":
    time.sleep(max(0, float(sys.argv[2]) - time.time()))
    Ledger(sys.argv[1], create=True).close()
