"""Before paying for calls: train on labels alone, then buy a pilot, and say what more calls are expected to bring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.advice import Advice, Measured, advice_of
from analysis.labels_only import of_labels_alone
from analysis.results import chosen, collect
from analysis.which_method import Suggestion, suggest
from experiments.estimate import Estimate, estimate
from experiments.execution import ExecutionConfig, execute_whole
from experiments.grid import Grid, MethodEntry, labels_alone, single_grid
from experiments.images import FEWEST_IMAGES, GridImages, open_images
from experiments.plan import plan_stores
from experiments.weights import Forms
from ground.durable import write_json
from ground.errors import InvalidInput
from storage.manifest import FILE_NAME, Manifest
from storage.store import Store
from storage.store_ledger import own_ledger
from student_train.methods import parse_losses
from student_train.rest.labels import Labels
from student_train.rest.spec import parse_rest
from teacher_cache.answered_rows import AnsweredRows
from teacher_cache.datasets import ImageDataset
from teacher_cache.sample import draw_sample

CALLS_ALONE, CALLS_AND_LABELS = "calls alone", "calls and labels"
ADVICE_FILE = "advice.json"
LABELS = Labels.name
# Students are trained on a quarter, a half and all of the pilot.
FEWEST = 8
# Where none is asked for yet, what is done is of use to a pilot of so many.
_USUAL_PILOT = 200
# Pilots that the store has room for, so that it need not grow, and has so many validation images, when more is bought.
_ROOM = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked.

    Args:
        n: calls that one thinks of buying.
        pilot: calls to find out with; 0 for none.
        worth: what they have to bring, as a difference of accuracies.
    """

    n: int
    pilot: int
    worth: float

    def __post_init__(self) -> None:
        if 0 < self.pilot < FEWEST:
            raise InvalidInput(f"--pilot {self.pilot} is too small to learn from a quarter of; give 0, or {FEWEST}")
        if self.n <= self.pilot:
            raise InvalidInput(f"--n {self.n} is no more than --pilot {self.pilot} buys anyway; give a larger --n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The advice, and what it took.

    Args:
        facts: teacher, student, dataset and method.
        suggestion: which method to try first; None without a pilot, and where nothing was measured: of answers that are
            no logits, or of images of which some have no label.
        calls_made: that are spent on this teacher in the ledger of the folder, lost ones included.
        new_calls: of those, made now.
    """

    facts: dict[str, str]
    advice: Advice
    suggestion: Suggestion | None
    calls_made: int
    new_calls: int

    def document(self) -> dict[str, Any]:
        """For --json, and `ADVICE_FILE`."""
        return {
            **self.facts,
            **self.advice.document(),
            "sentences": self.sentences(),
            "suggestion": None if self.suggestion is None else self.suggestion.document(),
            "calls_made": self.calls_made,
            "new_calls": self.new_calls,
        }

    def sentences(self) -> list[str]:
        """For people: the verdict, what it rests on, and what to try first."""
        return [*self.advice.sentences(), *([] if self.suggestion is None else [self.suggestion.sentence()])]


def advice_grid(
    *,
    image_size: int | None = None,
    split: str | None = None,
    split_seed: int = 0,
    student_size: int | None = None,
    losses: Sequence[str] = (),
    method: str = "kd",
    rest: str = LABELS,
    **asked: Any,
) -> Grid:
    """A grid of one pair that compares labels alone, calls alone, and calls with labels; as yet without sizes.

    Args:
        losses: a sum of them in the place of the method.
        rest: how the labels of the other images are learned from beside calls, as a grid writes it.
        asked: as `single_grid` takes it.

    Raises:
        CKDError: a name is not known, or a setting is refused.
    """
    if rest.partition(":")[0] != LABELS:
        raise InvalidInput(
            f"--rest {rest!a} is not about labels, which calls are compared with; give {LABELS}, or {LABELS}:weight=4"
        )
    grid = single_grid(method=method, **asked)
    [entry] = grid.methods

    def learning(label: str, *rests: str) -> MethodEntry:
        forms = Forms.of_losses(losses, rests, parse_losses) if losses else Forms.of_method(method, rests)
        text = "+".join(losses) if losses else method
        return MethodEntry.of(forms, label=label, text=text, candidates=entry.candidates, line=0, base=method)

    alone, beside = learning(CALLS_ALONE), learning(CALLS_AND_LABELS, rest)
    parse_rest(beside.rest)
    if not alone.spec.asks_teacher:
        raise InvalidInput(f"{alone.text} asks no teacher, so no call brings it anything; give another --method")
    return replace(
        grid,
        name="advice",
        image_size=image_size,
        split=split,
        split_seed=split_seed,
        student_size=student_size,
        methods=(alone, beside),
        labels_only=labels_alone(entry.candidates),
        store=replace(grid.store, rest=None),
    )


def advise(
    grid: Grid,
    config: ExecutionConfig,
    question: Question,
    on_labels: Callable[[Measured], None] = lambda measured: None,
) -> Answer:
    """Train on labels alone, before any call; then buy the pilot, train on it, and look ahead.

    The answer is kept in the grid's folder. The same call again does what is left.

    Args:
        grid: of `advice_grid`.
        on_labels: told what labels alone give.

    Raises:
        InvalidInput: the data set has too few images.
        CKDError: a run failed, or anything that `execute` refuses.
        Interrupted: the user asked to stop; the same call goes on.
    """
    grid, dataset = _fitted(grid, config, question)
    if grid.labels_only is not None:
        execute_whole(grid, replace(config, asks=False), dataset)
        measured = Measured.of(of_labels_alone(chosen(collect(config.out))))
        assert measured is not None, "a run that did not fail has a result"
        on_labels(measured)
    new_calls = 0
    if question.pilot:
        new_calls = execute_whole(grid, config, dataset).new_calls
    [pair], method = grid.pairs, grid.methods[0].text
    advice = advice_of(collect(config.out), n=question.n, pilot=question.pilot, worth=question.worth)
    answer = Answer(
        facts={"teacher": pair.teacher, "student": pair.student, "dataset": grid.dataset, "method": method},
        advice=advice,
        suggestion=_suggested(grid, config.out, advice) if question.pilot else None,
        calls_made=_spent(grid, config.out),
        new_calls=new_calls,
    )
    write_json(config.out / ADVICE_FILE, answer.document())
    return answer


def foresee(grid: Grid, config: ExecutionConfig, question: Question) -> Estimate:
    """What `advise` would take; nothing is called, trained or written."""
    grid, dataset = _fitted(grid, config, question)
    return estimate(grid, replace(config, asks=question.pilot > 0), dataset)


def _fitted(grid: Grid, config: ExecutionConfig, question: Question) -> tuple[Grid, ImageDataset]:
    """The grid with its sizes, and without what takes labels where there are too few."""
    dataset = open_images(grid)
    pilot = question.pilot
    # Refused before any call if there are fewer images than one thinks of; without a pilot nothing is said of those.
    sample = draw_sample(len(dataset.train), question.n if pilot else 2, grid.store.seed, dataset.is_labelled)
    # By a quarter of a pilot, students that know all labels are chosen badly; validation images cost no call.
    room = _laid_out(grid, config.out) or min(_ROOM * (pilot or _USUAL_PILOT), len(sample.images))
    # Nested in each other, so that all three are one purchase.
    sizes = (pilot // 4, pilot // 2, pilot) if pilot else (min(_USUAL_PILOT, question.n, len(sample.images)),)
    budget = pilot * grid.store.views if pilot else None
    grid = replace(grid, sizes=sizes, room=room, store=replace(grid.store, budget=budget))
    if not pilot:
        return replace(grid, methods=grid.methods[:1]), dataset
    if GridImages(grid, dataset).num_labelled_beyond(pilot) < FEWEST_IMAGES:
        return replace(grid, methods=grid.methods[:1], labels_only=None, room=None), dataset
    return grid, dataset


def _laid_out(grid: Grid, out: Path) -> int:
    """Images that a store of an earlier advice has room for answers to; 0 where there is none."""
    [need] = plan_stores(grid)
    folder = out / need.folder
    return Manifest.load(folder).n if (folder / FILE_NAME).exists() else 0


def _suggested(grid: Grid, out: Path, advice: Advice) -> Suggestion | None:
    [need] = plan_stores(grid)
    store = Store.open(out / need.folder)
    if not store.manifest.identity.keeps_logits:
        return None
    rows = AnsweredRows.of(store)
    # The methods that were measured read the label of every image that is asked about.
    if rows.unlabelled:
        return None
    has_labels = advice.labels_alone is not None
    return suggest(n=advice.n, accuracy=rows.accuracy, judged=rows.judged, has_labels=has_labels)


def _spent(grid: Grid, out: Path) -> int:
    [need] = plan_stores(grid)
    with closing(own_ledger(out / need.folder)) as ledger:
        return ledger.summary().spent
