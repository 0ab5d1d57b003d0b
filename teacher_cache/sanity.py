"""Whether a teacher's first answers make sense beside the labels: the gate after the first 64 calls of a store.

A teacher with zero weights, another order of classes or the wrong normalisation answers as readily as a good one. So
the first 64 inputs of a store, one view each of its first images, are answered before any other. Every builder does
this by itself, from the answers that the store holds: there is nothing to agree on, and a build that is run again
comes to the same verdict before it makes a call.

The verdict is one of statistics, in favour of the teacher:

- *constant*: 95 % of the answers are one class, while the labels vary.
- *permuted*: classes are answered for one another around a cycle, at significance 0.01 against a teacher that confuses
  its classes one time in three, over all cycles of that length. Or the best assignment of classes is right more than
  four times as often as the classes as they are, and by five standard deviations more often than the best ones of
  shuffled labels.
- *at chance*: as many right answers have a probability above 0.15 when answers and labels are paired at random. Of
  100 classes 2 of 64 pass, of ten classes 10. A teacher that is right on a tenth of 100 classes is stopped about twice
  in a hundred times, one that is right on three tenths of ten classes less than once; one that guesses passes about
  once in ten. Two of ten classes swapped are seen about nine times in ten.

Who is right on 80 % of the labels is only looked at for cycles. With fewer than 44 labels chance is not judged: a
teacher that is right on a tenth could be right on none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ground.errors import TeacherDoubted
from storage.answers import NO_CLASS, top1
from storage.identity import Identity
from storage.rows import Rows
from storage.store import Store
from teacher_cache.plan import BuildPlan

GATE_CALLS = 64

_CONSTANT_SHARE = 0.95
_GOOD_SHARE = 0.8
_CHANCE_LEVEL = 0.15
_FEWEST_LABELS = 44
_CYCLE_LEVEL = 0.01
_HONEST_CONFUSION = 1 / 3
_SHUFFLES = 50
_FAR = 5
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Doubt:
    """What is wrong with a teacher's answers.

    Args:
        kind: "at chance", "constant" or "permuted".
        num_right, num_labelled: answers that agree with their labels, of those that have one.
        num_guessed: how many would, were answers and labels paired at random.
        constant: the class that is answered, for "constant".
        moved: pairs (label, class that is answered for it), for "permuted"; most answers first.
        num_right_moved: answers that agree with their labels once classes are assigned so.
    """

    kind: str
    num_right: int
    num_labelled: int
    num_guessed: float
    constant: int | None = None
    moved: tuple[tuple[int, int], ...] = ()
    num_right_moved: int = 0


def judge(top1: np.ndarray, labels: np.ndarray, num_classes: int) -> Doubt | None:
    """What is wrong with a teacher's answers; None if nothing can be said against them.

    Args:
        top1: (C,) the class answered for each input.
        labels: (C,) its label; -1 for none.
        num_classes: K.
    """
    labelled = labels >= 0
    answers, truth = top1[labelled].astype(np.int64), labels[labelled].astype(np.int64)
    right, total = int((answers == truth).sum()), len(truth)
    guess = _agreement_of_strangers(answers, truth, num_classes)
    seen = (right, total, guess * total)
    classes, counts = np.unique(top1, return_counts=True)
    is_good = total > 0 and right >= _GOOD_SHARE * total
    is_varied = total == 0 or np.unique(truth, return_counts=True)[1].max() < _CONSTANT_SHARE * total
    if not is_good and is_varied and len(top1) and counts.max() >= _CONSTANT_SHARE * len(top1):
        return Doubt("constant", *seen, constant=int(classes[counts.argmax()]))
    if total == 0:
        return None
    confusion, present = _confusion(answers, truth)
    columns = _best_assignment(confusion)
    at_chance = total >= _FEWEST_LABELS and not is_good and _is_likely(right, total, guess)
    is_moved = np.zeros(len(present), dtype=bool)
    for cycle in _cycles(columns):
        if _is_swapped(confusion, columns, cycle, num_classes):
            is_moved[cycle] = True
    best = int(confusion[np.arange(len(present)), columns].sum())
    if not is_moved.any() and right < best / 4 and _explains(best, answers, truth):
        is_moved = columns != np.arange(len(present))
    if is_moved.any():
        moved = [(row, columns[row]) for row in np.flatnonzero(is_moved) if confusion[row, columns[row]]]
        moved.sort(key=lambda pair: -confusion[pair])
        pairs = tuple((int(present[row]), int(present[column])) for row, column in moved)
        gained = sum(int(confusion[pair]) for pair in moved) - int(confusion.diagonal()[is_moved].sum())
        return Doubt("permuted", *seen, moved=pairs, num_right_moved=right + gained)
    return Doubt("at chance", *seen) if at_chance else None


def gate_cells(input_digests: Sequence[Sequence[bytes]], identity: Identity) -> tuple[int, ...]:
    """The cells that are answered and judged first: the first view of rows, for 64 inputs that differ.

    None where a store has no answers over its data set's classes, or fewer images: fewer answers would stop honest
    teachers.
    """
    if not identity.keeps_answers:
        return ()
    first: dict[bytes, int] = {}
    for row, views in enumerate(input_digests):
        if len(first) == GATE_CALLS:
            break
        first.setdefault(views[0], row * len(views))
    return tuple(first.values()) if len(first) == GATE_CALLS else ()


def is_past_gate(plan: BuildPlan, store: Store) -> bool:
    """Whether a plan has no gate, or a store holds answers for rows behind it: somebody has let it pass."""
    return not plan.gate or bool(store.valid(plan.gate[-1] // plan.identity.views + 1).any())


def require_sane(plan: BuildPlan, store: Store) -> None:
    """Raise `TeacherDoubted` if what a store holds of the gate's cells, which are whole, speaks against the teacher.

    A refusal is neither right nor wrong: it is left out, and so is what is no class at all.
    """
    identity = plan.identity
    assert identity.answer_form is not None, "without answers there is no gate"
    cells = [store.read_cell(cell, identity.answers)[0] for cell in plan.gate]
    said = {output.name: np.concatenate([values[output.name] for values in cells]) for output in identity.answers}
    answered = top1(identity.answer_form, said)
    rows = [cell // identity.views for cell in plan.gate]
    labels = store.read_sample("train/labels", Rows.first(rows[-1] + 1))[rows]
    classes = identity.dataset.classes
    has_content = (answered > NO_CLASS) & (answered < len(classes))
    doubt = judge(answered[has_content], labels[has_content], len(classes))
    if doubt is not None:
        raise TeacherDoubted(
            f"the teacher's first {int(has_content.sum())} answers look wrong: {_described(doubt, classes)}; they are "
            "kept, and nothing more was called: check its weights, the order of its classes (--class-map) and its "
            "normalisation, or go on with --trust-teacher"
        )


def _described(doubt: Doubt, classes: Sequence[str]) -> str:
    said = []
    if doubt.num_labelled:
        said.append(f"{doubt.num_right} of {doubt.num_labelled} are right, and guessing gives {doubt.num_guessed:.1f}")
    if doubt.constant is not None:
        said.append(f"nearly all are {classes[doubt.constant]!r}")
    if doubt.moved:
        pairs = [f"{classes[answer]!r} for {classes[label]!r}" for label, answer in doubt.moved[:_MOST_NAMED]]
        more = len(doubt.moved) - len(pairs)
        said.append(
            f"as if classes were permuted: it says {', '.join(pairs)}{f' and {more} more' if more else ''}, and put "
            f"right, {doubt.num_right_moved} would be right"
        )
    return ", ".join(said)


def _agreement_of_strangers(answers: np.ndarray, truth: np.ndarray, num_classes: int) -> float:
    """Share of right answers where answers and labels are paired at random; guessing a constant is no skill."""
    if not len(truth):
        return 0.0
    shares = [np.bincount(values, minlength=num_classes) / len(truth) for values in (answers, truth)]
    return float(shares[0] @ shares[1])


def _is_likely(right: int, total: int, guess: float) -> bool:
    """Whether who guesses is right so often, or more often, with a probability above the level of chance."""
    from scipy.stats import binom  # a second to load, for who judges

    return bool(binom.sf(right - 1, total, guess) > _CHANCE_LEVEL)


def _confusion(answers: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts (P, P), label by answer, of the P classes that occur; and these classes, (P,)."""
    present, places = np.unique(np.concatenate([truth, answers]), return_inverse=True)
    confusion = np.zeros((len(present), len(present)), dtype=np.int64)
    np.add.at(confusion, (places[: len(truth)], places[len(truth) :]), 1)
    return confusion, present


def _best_assignment(confusion: np.ndarray) -> np.ndarray:
    """(P,) the answer that stands for each label in the assignment that is right most often, itself where equal."""
    size = len(confusion)
    from scipy.optimize import linear_sum_assignment  # as above

    best: np.ndarray = linear_sum_assignment(confusion * (size + 1) + np.eye(size, dtype=np.int64), maximize=True)[1]
    return best


def _cycles(columns: np.ndarray) -> list[list[int]]:
    """The cycles of a permutation that move something."""
    found, seen = [], set()
    for start in range(len(columns)):
        cycle, place = [], start
        while place not in seen:
            seen.add(place)
            cycle.append(place)
            place = int(columns[place])
        if len(cycle) > 1:
            found.append(cycle)
    return found


def _is_swapped(confusion: np.ndarray, columns: np.ndarray, cycle: list[int], num_classes: int) -> bool:
    from scipy.stats import binom  # as above

    moved, kept = int(confusion[cycle, columns[cycle]].sum()), int(confusion[cycle, cycle].sum())
    log_cycles = len(cycle) * np.log(num_classes) - np.log(len(cycle))
    log_p = binom.logsf(moved - 1, moved + kept, _HONEST_CONFUSION)
    return bool(log_p + log_cycles <= np.log(_CYCLE_LEVEL))


def _explains(best: int, answers: np.ndarray, truth: np.ndarray) -> bool:
    """Whether an assignment is right far more often than the best ones are for shuffled labels; seeded."""
    random, totals = np.random.default_rng(0), []
    for _ in range(_SHUFFLES):
        shuffled, _present = _confusion(answers, random.permutation(truth))
        totals.append(shuffled[np.arange(len(shuffled)), _best_assignment(shuffled)].sum())
    return bool(best > np.mean(totals) + _FAR * np.std(totals))
