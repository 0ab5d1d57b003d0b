"""What a report is about: everything that is read from a grid's folder, and what follows from it, computed once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.answer import Answer, answer
from analysis.brought import brought
from analysis.curves import CURVE, accuracy_by_n, averaged_over
from analysis.figures import Pair, pairs_of
from analysis.grid_plan import GridPlan
from analysis.labels_only import beyond_labels, of_labels_alone
from analysis.ledgers import StoreLedger, read_ledgers
from analysis.logits import described
from analysis.palette import Look, looks_of
from analysis.purchases import purchases
from analysis.results import CELL, chosen, collect, states
from analysis.table import Table
from analysis.tables import all_tables, published
from ground.errors import InvalidInput

# More would hide what else is missing; all of them are in a table.
_MOST_FAILURES = 5
_NO_LABELS_ALONE = (
    "No run says what labels alone give, so this report cannot say what the calls brought beyond them. A grid with "
    "store: {rest: all}, and without labels_only: false, trains it at no call."
)
_STATES = ("finished", "failed", "begun", "waiting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """All that the sections draw on, read and computed once."""

    plan: GridPlan
    results: pd.DataFrame
    states: pd.DataFrame
    curves: pd.DataFrame
    descriptions: pd.DataFrame
    answer: Answer
    brought: list[str]
    pairs: list[Pair]
    looks: list[Look]
    ledgers: list[StoreLedger]
    purchases: pd.DataFrame
    tables: list[Table]
    published: tuple[Table, ...]

    @classmethod
    def read(cls, folder: Path) -> Content:
        """Read a grid; raises `InvalidInput` when there is none, it is damaged, or nothing of it can be shown yet."""
        plan, results, found = GridPlan.load(folder), collect(folder), states(folder)
        if chosen(results).empty:
            why = (
                "finished" if results.empty else "chosen by validation yet, for others are still to be compared with it"
            )
            raise InvalidInput(
                f"no run of the grid in {folder} is {why} ({_counted(found)}); run it, then report again"
            )
        answered = answer(results, plan.targets)
        asking = set(results.loc[results["teacher_calls"] > 0, "label"])
        labels = list(dict.fromkeys(results["label"]))
        descriptions, pairs, curves = described(folder, results), pairs_of(chosen(results)), accuracy_by_n(results)
        return cls(
            plan=plan,
            results=results,
            states=found,
            curves=curves,
            descriptions=descriptions,
            answer=answered,
            brought=brought(beyond_labels(results), pairs),
            pairs=pairs,
            looks=looks_of(labels, set(labels) - asking),
            ledgers=read_ledgers(folder, plan, results),
            purchases=purchases(folder, plan),
            tables=all_tables(results, curves, answered.targets, descriptions, answered.method, plan),
            published=published(),
        )

    def missing(self) -> list[str]:
        """A sentence for everything that a whole grid would have and this one has not."""
        sentences = []
        unfinished = self.states[self.states["state"] != "finished"]
        if len(unfinished):
            sentences.append(f"Of {len(self.states):,} planned runs: {_counted(self.states)}.")
        failed = unfinished[unfinished["state"] == "failed"]
        sentences += [f"Failed: {row.run}: {row.error}" for row in failed.itertuples(index=False)][:_MOST_FAILURES]
        if len(failed) > _MOST_FAILURES:
            sentences.append(f"And {len(failed) - _MOST_FAILURES:,} runs more failed; they are in the table below.")
        undecided = len(self.results) - len(self._decided())
        if undecided:
            sentences.append(
                f"{undecided:,} finished runs are left out of every mean: of what is chosen by validation among them, "
                "not all is finished."
            )
        fewer = self._points_of_fewer_runs()
        if fewer:
            sentences.append(
                f"{fewer:,} mean(s) are over fewer {averaged_over(self.curves)} than planned, and so may be off the "
                "others."
            )
        sentences += [f"Ledger: {ledger.problem}" for ledger in self.ledgers if ledger.problem]
        for ledger in self.ledgers:
            lost = [head for head, number in ledger.entries.items() if number is None]
            if lost:
                sentences.append(
                    f"Ledger: {len(lost)} state(s) of it that runs have noted are not in the ledger of {ledger.store}: "
                    "it was replaced or rolled back, or is not the one they were trained from."
                )
        return sentences

    def not_planned(self) -> list[str]:
        """What no run of the grid is meant to say, though it is the first thing to compare calls with."""
        if len(of_labels_alone(self.states)) or self.plan.labelled is False:
            return []
        return [_NO_LABELS_ALONE]

    def _points_of_fewer_runs(self) -> int:
        point = [*CURVE, "n"]
        planned = self.states.drop_duplicates(list(CELL)).groupby(point).size()
        found = chosen(self.results).groupby(point).size()
        return int((found < planned.reindex(found.index)).sum())

    def _decided(self) -> pd.DataFrame:
        """Finished runs of which one was chosen, or which are that one."""
        return self.results[self.results.groupby(list(CELL), sort=False, dropna=False)["chosen"].transform("any")]


def _counted(found: pd.DataFrame) -> str:
    """How many runs are in which state."""
    counts = Counter(found["state"])
    parts = [f"{counts[state]:,} {state}" for state in _STATES if counts[state]]
    return ", ".join(parts) if parts else "none is planned"
