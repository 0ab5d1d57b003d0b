"""From a grid to its runs: which students, in which folders, from which stores. Nothing is called or written.

A run's folder is named by a digest of all its settings. A grid that was changed therefore trains anew what it changed,
and never takes a result of other settings for its own.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch

from experiments.grid import Grid, MethodEntry, StoreSettings, TeacherStudent, slug
from experiments.layers import student_layers, teacher_layers
from experiments.rests import rest_of_run
from experiments.rules import RANDOM, ends_behind, ends_of, labelled_by, usual_text
from experiments.weights import Form
from ground.errors import CKDError, InvalidInput
from models import model_names
from storage.manifest import FILE_NAME, Manifest
from student_train.method_spec import MethodSpec
from student_train.sampling import Sampling
from student_train.schedule import AtPlateaus
from student_train.student_views import require_drawn
from student_train.train_config import TrainConfig

_DIGEST_DIGITS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One student to train.

    Args:
        folder: below the grid's folder, with forward slashes.
        store: the same for the store it learns from.
        sample_seed: of the images in that store.
        select, base: the rule by which they were bought, and what the method is called whatever the rule.
        text: the method as the grid writes it, with its own weights.
        weights: texts of those losses whose weight validation chooses, with this run's.
        images_per_step: the work of a step, without what comes of the rest.
        beyond: images of the store beyond the n, where it is known.
        recipe: what the method is made of, as run.json says it.
    """

    folder: str
    store: str
    teacher: str
    student: str
    dataset: str
    label: str
    text: str
    spec: MethodSpec
    n: int
    sample_seed: int
    config: TrainConfig
    images_per_step: int
    beyond: int = field(compare=False)
    precision: str
    recipe: dict[str, Any] = field(compare=False, repr=False)
    select: str = RANDOM
    base: str = ""
    weights: tuple[str, ...] = ()

    @property
    def work(self) -> int:
        """Images the student sees between two evaluations; a measure of its time."""
        size, given = self.config.batch_size, self.config.protocol.steps_per_eval
        if not self.n:
            return given * size if given else max(size, self.beyond)
        batches = [max(2, round(spec.make().ratio * size)) for spec in self.spec.rest]
        epoch = max(ceil(self.n / size), *(ceil(self.beyond / batch) for batch in batches), 1)
        return (given or epoch) * (self.images_per_step + sum(batches))

    @property
    def draws_on_calls(self) -> bool:
        """Whether answers of the teacher are behind what it learns, a proxy's included."""
        return self.spec.asks_teacher or any(spec.drew_on_calls for spec in self.spec.rest)

    def describe(self) -> dict[str, Any]:
        """What grid.json says of it."""
        config = _as_given(self.config)
        settings = {"method": self.text, **config, **config.pop("protocol")}
        for name in ("student", "seed", "protocol"):
            settings.pop(name, None)
        settings |= {"precision": self.precision, "recipe": self.recipe}
        names = ("teacher", "student", "dataset", "store", "label", "n", "sample_seed")
        facts = {name: getattr(self, name) for name in names}
        # Plans of earlier releases do not say.
        bought = {"select": self.select, "base": self.base} if self.base and self.select != RANDOM else {}
        weights = {"weights": self.weights} if self.weights else {}
        return {"run": self.folder, **facts, "seed": self.config.seed, **bought, **weights, "settings": settings}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreNeed:
    """The store of one teacher and one sample.

    Args:
        folder: below the grid's folder.
        name: of the teacher and the data set, for what all samples share.
        sample_seed: of the images in it.
        weights, teacher_epochs: as in the pair.
        features: outputs beside the logits that its students need, in the network's order.
        select: the rule by which its rows are bought.
        is_asked: whether any row of it is bought; from one of which none is, labels alone are learned.
    """

    folder: str
    name: str
    sample_seed: int
    teacher: str
    weights: Path | None
    teacher_epochs: int | None
    features: tuple[str, ...]
    select: str = RANDOM
    is_asked: bool = True

    @property
    def folder_of_tests(self) -> str:
        """Where the teacher's answers on test images are kept, below the grid's folder; test images are not sampled."""
        return f"stores/{self.name}-test"


def plan_stores(grid: Grid) -> list[StoreNeed]:
    """One store for each teacher and sample, with what all methods together need.

    Raises:
        InvalidInput: a method needs layers that a network lacks; the message names the method's line.
    """
    pairs = {pair.teacher: pair for pair in grid.pairs}
    wanted: dict[str, set[str]] = {teacher: set() for teacher in pairs}
    for pair in grid.pairs:
        wanted[pair.teacher].update(name for entry in grid.methods for name in _teacher_outputs(grid, pair, entry))
    return [
        StoreNeed(
            folder=store_folder(grid, pair, sample_seed, rule),
            name=_store_name(grid, pair),
            sample_seed=sample_seed,
            teacher=teacher,
            weights=pair.weights,
            teacher_epochs=pair.teacher_epochs,
            features=tuple(name for name in teacher_layers(teacher) if name in wanted[teacher]),
            select=rule,
            is_asked=rule in grid.rules,
        )
        for teacher, pair in pairs.items()
        for sample_seed in grid.samples
        for rule in grid.orders
    ]


def one_a_teacher(needs: Iterable[StoreNeed]) -> list[StoreNeed]:
    """For what does not depend on the sample."""
    return list({need.name: need for need in needs}.values())


def plan_runs(grid: Grid, precision: str, out: Path = Path(), images: int = 0) -> list[PlannedRun]:
    """Every run; those of one seed, then of the next, so that what is finished early covers all methods, sizes and
    samples.

    Args:
        precision: what the runs will be computed in; part of what they are.
        out: the grid's folder, where paths of proxies begin.
        images: of each store, for what runs take.

    Raises:
        InvalidInput: an n is too small for a method, a proxy is missing, or two methods would share a folder; the
            message names the line.
    """
    runs = list(_runs(grid, precision, out, images))
    labels: dict[str, str] = {}
    for run in runs:
        if labels.setdefault(run.folder, run.label) != run.label:
            raise grid.refused(
                "methods", f"{labels[run.folder]!r} and {run.label!r} name the same folder; give one another label"
            )
    return runs


def _runs(grid: Grid, precision: str, out: Path, images: int) -> Iterator[PlannedRun]:
    steps = {entry.label: _images_of_steps(grid, entry) for entry in grid.entries}
    for seed, sample_seed in itertools.product(grid.seeds, grid.samples):
        points = [(n, entry) for n in grid.sizes for entry in grid.methods]
        points += [] if grid.labels_only is None else [(0, grid.labels_only)]
        learned = {
            (n, entry.label): [_learned(grid, entry, form, out, n, seed, sample_seed) for form in entry.forms]
            for n, entry in points
        }
        for pair, (n, entry) in itertools.product(grid.pairs, points):
            for form, given in itertools.product(learned[n, entry.label], entry.configs(pair.student, seed)):
                config = replace(given, student_size=grid.size_of(pair))
                yield _run(
                    grid,
                    pair,
                    entry,
                    form,
                    n,
                    sample_seed,
                    config,
                    precision,
                    out,
                    images_per_step=steps[entry.label].get((n, config.batch_size), config.batch_size),
                    beyond=max(0, images - n),
                )


def _images_of_steps(grid: Grid, entry: MethodEntry) -> dict[tuple[int, int], int]:
    """(n, batch size) -> images of the sample in a step; nothing for n = 0, which has none."""
    if entry is grid.labels_only:
        return {}
    try:
        sampling = entry.spec.sampling_of(grid.store.views)
        sampling.check(grid.sizes[0])
    except CKDError as error:
        raise grid.refused("n", f"{entry.label}: {error}") from error
    configs = entry.configs(grid.pairs[0].student, 0)
    _require_drawn(grid, entry, configs)
    batch_sizes = {config.batch_size for config in configs}
    return {(n, size): _images_per_step(sampling, n, size) for n in grid.sizes for size in batch_sizes}


@dataclass(frozen=True, slots=True)
class _Learned:
    """A method, with one weight for each loss, and with what one run of it learns from the rest."""

    form: Form
    spec: MethodSpec
    recipe: dict[str, Any]


def _learned(grid: Grid, entry: MethodEntry, form: Form, out: Path, n: int, seed: int, sample_seed: int) -> _Learned:
    try:
        rest = rest_of_run(form.rest, out, n=n, seed=seed, sample=sample_seed)
    except CKDError as error:
        raise refused_of(grid, entry, error) from error
    spec = replace(form.spec, rest=rest)
    return _Learned(form, spec, spec.describe(n))


def _require_drawn(grid: Grid, entry: MethodEntry, configs: Iterable[TrainConfig]) -> None:
    try:
        for config in configs:
            require_drawn(config.student_view, entry.spec, grid.store.views)
    except CKDError as error:
        raise refused_of(grid, entry, error) from error


def _images_per_step(sampling: Sampling, n: int, batch_size: int) -> int:
    labels = torch.arange(min(n, 4 * batch_size)) % 100
    return len(sampling.batch(0, labels=labels, batch_size=batch_size, seed=0).rows)


def _run(
    grid: Grid,
    pair: TeacherStudent,
    entry: MethodEntry,
    learned: _Learned,
    n: int,
    sample_seed: int,
    config: TrainConfig,
    precision: str,
    out: Path,
    *,
    images_per_step: int,
    beyond: int,
) -> PlannedRun:
    identity: dict[str, Any] = {
        "teacher": pair.teacher,
        "dataset": grid.dataset,
        "image_size": grid.image_size,
        "store": _as_seen(replace(grid.store, seed=sample_seed)),
        "recipe": learned.recipe,
        # The method is told by its recipe; its name was here once, blank, and digests stay what they were.
        "training": {**_as_given(config), "method": ""},
        "n": n,
        "precision": precision,
    }
    # Digests of grids from before there was one stay what they were.
    if grid.split is not None:
        identity |= {"split": grid.split, "split_seed": grid.split_seed}
    store = store_folder(grid, pair, sample_seed, entry.select)
    # Which rows were bought by an n depends on those that were chosen together.
    if entry.select != RANDOM:
        ends = ends_behind(ends_of(out / store, grid.sizes), n)
        identity["select"] = {"rule": entry.select, "rounds": ends}
    if entry.rest:
        identity["rest"] = _kept_rest(grid, out / store)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:_DIGEST_DIGITS]
    name = f"{slug(entry.label)}-n{n}{_of_sample(grid, sample_seed)}-seed{config.seed}-{digest}"
    return PlannedRun(
        folder=f"runs/{slug(pair.teacher)}-{slug(pair.student)}-{_dataset_slug(grid)}/{name}",
        store=store,
        teacher=pair.teacher,
        student=pair.student,
        dataset=_dataset_slug(grid),
        label=entry.label,
        text=learned.form.text,
        weights=learned.form.weights,
        spec=learned.spec,
        n=n,
        sample_seed=sample_seed,
        select=entry.select,
        base=entry.base,
        config=config,
        images_per_step=images_per_step,
        beyond=beyond,
        precision=precision,
        recipe=learned.recipe,
    )


def _kept_rest(grid: Grid, folder: Path) -> dict[str, int | None]:
    """What of a store decides which images are beyond an n, and how many validation images go with their labels: what
    the grid asks for, or what is there already where that is more, since nothing is taken from a store.
    """
    before = Manifest.load(folder) if (folder / FILE_NAME).exists() else None
    n = max(grid.sizes[-1], grid.room or 0, 0 if before is None else before.n)
    images = None if grid.store.rest is None else max(n + grid.store.rest, 0 if before is None else before.num_images)
    return {"images": images, "largest_n": n}


def _as_given(config: TrainConfig) -> dict[str, Any]:
    """A training's settings. What came later is left out where it is not given, or is as the zoo has it: plans, results
    and digests of earlier releases lack it.
    """
    settings = asdict(config)
    # What a user allows is no setting, a grid cannot begin with weights, and what is measured for curves alone changes
    # no result.
    for name in ("code", "init", "test_every"):
        del settings[name]
    if config.student_size is None:
        del settings["student_size"]
    if not config.stream:
        del settings["stream"]
    if config.stream_rows is None:
        del settings["stream_rows"]
    if not config.average:
        del settings["average"]
    if config.protocol.schedule == AtPlateaus.name:
        del settings["protocol"]["schedule"]
    if config.protocol.steps_per_eval is None:
        del settings["protocol"]["steps_per_eval"]
    if config.student in model_names():
        del settings["student_preprocessing"]
    return settings


# What a store is told that students do not see.
_NOT_SEEN = ("budget", "array_format", "trust_teacher", "rest")


def _as_seen(settings: StoreSettings) -> dict[str, Any]:
    """What a store is told that students see. A type that is left to the store was float16 once, and stands as that."""
    settings = replace(settings, feature_dtype=settings.feature_dtype or "float16")
    return {name: value for name, value in asdict(settings).items() if name not in _NOT_SEEN}


def _teacher_outputs(grid: Grid, pair: TeacherStudent, entry: MethodEntry) -> tuple[str, ...]:
    try:
        return entry.spec.wanted(student_layers(grid, pair), teacher_layers(pair.teacher)).teacher
    except CKDError as error:
        raise refused_of(grid, entry, error) from error


def refused_of(grid: Grid, entry: MethodEntry, reason: object) -> InvalidInput:
    """An error to raise that names the line of a method."""
    return replace(grid, lines={"method": entry.line}).refused("method", f"{entry.label}: {reason}")


def as_bought(grid: Grid, out: Path) -> Grid:
    """A grid whose rules are written as they usually are, so that a rule has one store and the same runs however the
    grid writes it; but a rule of which there is a store by the text that the grid has for it keeps that text.

    Args:
        out: the grid's folder.
    """
    texts = {rule: rule if _is_bought(grid, out, rule) else usual_text(rule) for rule in grid.orders}
    alone = None if grid.labels_only is None else replace(grid.labels_only, select=texts[grid.labels_only.select])
    return replace(grid, methods=tuple(_spelled(entry, texts) for entry in grid.methods), labels_only=alone)


def _is_bought(grid: Grid, out: Path, rule: str) -> bool:
    folders = (store_folder(grid, pair, seed, rule) for pair, seed in itertools.product(grid.pairs, grid.samples))
    return any((out / folder).exists() for folder in folders)


def _spelled(entry: MethodEntry, texts: Mapping[str, str]) -> MethodEntry:
    is_told_by_rule = entry.label == labelled_by(entry.base, entry.select, texts)
    rule = texts[entry.select]
    label = labelled_by(entry.base, rule, texts.values()) if is_told_by_rule else entry.label
    return replace(entry, select=rule, label=label)


def store_folder(grid: Grid, pair: TeacherStudent, sample_seed: int, rule: str) -> str:
    """Of the store of one teacher, sample and rule, below the grid's folder."""
    name, colon, _ = rule.partition(":")
    # Names of rules of other settings look alike once they are names of folders.
    digest = f"-{hashlib.sha256(rule.encode()).hexdigest()[:_DIGEST_DIGITS]}" if colon else ""
    by = "" if rule == RANDOM else f"-{slug(name)}{digest}"
    return f"stores/{_store_name(grid, pair)}{_of_sample(grid, sample_seed)}{by}"


def _store_name(grid: Grid, pair: TeacherStudent) -> str:
    return f"{slug(pair.teacher)}-{_dataset_slug(grid)}"


def _of_sample(grid: Grid, sample_seed: int) -> str:
    """What names of folders say of the sample. Sample 0 lies where a grid of one sample has it by default, so that such
    a grid can be given more.
    """
    return f"-sample{sample_seed}" if grid.sample_seeds and sample_seed else ""


def _dataset_slug(grid: Grid) -> str:
    """A name for the data set, without the path to it."""
    return slug(Path(grid.dataset.partition(":")[2] or grid.dataset).name or grid.dataset)
