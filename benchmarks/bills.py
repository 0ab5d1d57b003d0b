"""What a provider billed against what the ledger says: many builders, faults of all kinds, budgets in calls and money.

    python -m benchmarks.bills [--n 800] [--builders 8] [--share 0.2]

The server is `stand_ins/faulty_server.py` on loopback, in a process of its own: it counts by itself what it bills. The
builders ask it for chat completions over HTTP, share one store and its ledger, and are forked from here. Every build is
made three times: without a budget, with one in calls that is too small, and with one in money that is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import click
import sqlalchemy as sa
import torch

from benchmarks.stand_ins.faulty_server import FAULTS, Behaviour, Counts, running_apart
from ground.errors import CKDError
from ground.terminal import print_table
from storage.bill import Billed, FailureKind
from storage.ledger import Ledger
from storage.ledger_records import Summary
from storage.ledger_tables import bills, calls
from storage.price import Price, parse_micros, shown_micros
from storage.store_folder import LEDGER_FILE
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build
from teacher_cache.remote.canaries import NUM_CANARIES
from teacher_cache.remote.policy import AskingConfig, BreakerPolicy, RetryPolicy
from teacher_cache.teachers.elsewhere import RemoteOptions

# These end a build at once, as asking again does not help.
_FINAL = ("400", "redirect")
_DIGITS = tuple(str(digit) for digit in range(10))
_ASKING = AskingConfig(
    in_flight=4,
    deadline_seconds=2.0,
    price=Price.parse(call="0.001", input_tokens="2", output_tokens="8"),
    # Faults are so many here that an input meets several; in earnest one that may be billed is repeated once.
    retry=RetryPolicy(attempts=40, unknowns=40, base_seconds=0.01, cap_seconds=0.1),
    breaker=BreakerPolicy(failures=50, pause_seconds=0.1),
)


@dataclass(frozen=True)
class Case:
    """A budget, and how it is shown."""

    label: str
    budgets: Mapping[str, int]


@dataclass(frozen=True)
class Outcome:
    """What was seen of one build."""

    served: Counts
    total: Summary
    repeated: int
    ended: list[str]

    def row(self, label: str) -> tuple[object, ...]:
        """For the table."""
        total, billed = self.total, self.served.total_billed
        attempts = total.spent + total.returned
        cost = shown_micros(total.cost_micros)
        counts = (self.served.requests, billed, attempts, total.returned, total.committed, total.lost, total.spent)
        return (label, *counts, total.spent - billed, self.repeated, cost, self.ended.count("done"))


@click.command()
@click.option("--n", default=800, show_default=True, help="Images of each build.")
@click.option("--builders", default=8, show_default=True)
@click.option("--share", default=0.2, show_default=True, help="Of the attempts that meet a fault.")
@click.option("--spare", default=20, show_default=True, help="Calls that the budget in calls allows for faults.")
@click.option("--budget-cost", default="5.00", show_default=True, help="Money, of the build that has such a budget.")
def main(n: int, builders: int, share: float, spare: int, budget_cost: str) -> None:
    """Print the server's own counts beside the ledger's, and end with 1 where a promise is broken."""
    torch.set_num_threads(1)
    money = parse_micros(budget_cost, "--budget-cost")
    # Less would be refused before the first call.
    budget = n + NUM_CANARIES * builders + spare
    cases = [
        Case("no budget", {}),
        Case(f"{budget} calls", {"budget": budget}),
        Case(f"{budget_cost} of money", {"budget_micros": money}),
    ]
    kinds = [kind for kind in FAULTS if kind not in _FINAL]
    faults, rows, broken = dict.fromkeys(kinds, share / len(kinds)), [], []
    for case in cases:
        outcome = observed(n, builders, faults, case.budgets)
        rows.append(outcome.row(case.label))
        broken += [f"{case.label}: {promise}" for promise in broken_promises(outcome, case.budgets)]
        met = sum(outcome.served.faults.values())
        click.echo(f"{case.label}: {met} faults were met; the builders ended: {', '.join(outcome.ended)}", err=True)
    print_table(
        ("budget", "requests", "billed", "attempts", "returned", "committed", "lost", "spent", "over", "twice", "cost",
         "builders done"),
        rows,
    )  # fmt: skip
    for line in broken:
        click.echo(f"BROKEN {line}")
    raise SystemExit(bool(broken))


def observed(n: int, builders: int, faults: Mapping[str, float], budgets: Mapping[str, int]) -> Outcome:
    """One build by several builders, from a fresh server into a fresh store."""
    behaviour = Behaviour(classes=_DIGITS, faults=faults, hang=3.0, latency=0.02)
    with tempfile.TemporaryDirectory() as name, running_apart(behaviour, seconds=540) as server:
        folder = Path(name)
        config = BuildConfig(
            store=folder / "store",
            teacher="openai:seer",
            dataset="digits",
            n=n,
            device="cpu",
            trust_teacher=True,
            lease_seconds=10.0,
            asking=_ASKING,
            remote=RemoteOptions(base_url=f"{server.url}/v1"),
            **budgets,
        )
        ended = list(forked(config, builders, folder))
        ledger = Ledger(config.store / LEDGER_FILE)
        try:
            return Outcome(server.counts(), ledger.summary(), len(billed_twice(ledger)), ended)
        finally:
            ledger.close()


def forked(config: BuildConfig, builders: int, folder: Path) -> Iterator[str]:
    """How each of several builders ended, which run at the same time."""
    children = []
    for place in range(builders):
        child = os.fork()
        if child == 0:
            outcome = "error"
            try:
                build(*prepare_build(config))
                outcome = "done"
            except CKDError as error:
                outcome = type(error).__name__
            finally:
                (folder / f"ended-{place}").write_text(outcome)
                os._exit(0)
        children.append(child)
    for place, child in enumerate(children):
        os.waitpid(child, 0)
        yield (folder / f"ended-{place}").read_text()


def billed_twice(ledger: Ledger) -> list[bytes]:
    """Inputs that were billed again, with no attempt in between of which nobody knows whether, or for what, it was."""
    order = (calls.c.input_digest, calls.c.id)
    query = sa.select(calls.c.input_digest, bills.c.billed, bills.c.failure).join(bills, bills.c.call == calls.c.id)
    with ledger.reading() as connection:
        found = connection.execute(query.where(bills.c.replaced_in.is_(None)).order_by(*order)).all()
    repeated = []
    for digest, attempts in groupby(found, key=lambda row: row.input_digest):
        charged = [row for row in attempts if row.billed != Billed.NO]
        if any(row.billed == Billed.YES and row.failure != FailureKind.UNKNOWN for row in charged[:-1]):
            repeated.append(digest)
    return repeated


def broken_promises(outcome: Outcome, budgets: Mapping[str, int]) -> Iterator[str]:
    """Each as a sentence."""
    total, billed = outcome.total, outcome.served.total_billed
    if total.spent < billed:
        yield f"{billed} were billed and the ledger has {total.spent}"
    if total.spent > billed + total.lost:
        yield f"the ledger has {total.spent}, more than the {billed} billed and the {total.lost} lost"
    if total.reserved:
        yield f"{total.reserved} calls were never settled"
    if outcome.repeated:
        yield f"{outcome.repeated} inputs were billed again though their answer was known"
    if "budget" in budgets and total.spent > budgets["budget"]:
        yield f"{total.spent} calls were spent, of a budget of {budgets['budget']}"
    if "budget_micros" in budgets and total.cost_micros > budgets["budget_micros"]:
        yield f"{total.cost_micros} micros were spent, of a budget of {budgets['budget_micros']}"
    if "error" in outcome.ended:
        yield f"a builder ended with a bug: {outcome.ended}"


if __name__ == "__main__":
    main()
