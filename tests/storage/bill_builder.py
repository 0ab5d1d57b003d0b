"""Calls in money under a budget that others spend too: python -m tests.storage.bill_builder LEDGER WORKER."""

from __future__ import annotations

import sys
from contextlib import closing

from storage.ledger import Ledger
from tests.storage.test_ledger_bills import SESSION, UPPER, BudgetRefused, commit, paid, reserve


def main(url: str, worker: int) -> None:
    """Print how many were made."""
    made = 0
    with closing(Ledger(url)) as ledger:
        session = ledger.start_session(SESSION)
        for batch in range(30):
            try:
                ids = reserve(ledger, session, 1000 * worker + batch, 1)
            except BudgetRefused:
                break
            commit(ledger, ids, {ids[0]: paid(UPPER)})
            made += 1
    print(made)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
