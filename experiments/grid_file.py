"""Grids as YAML: each key (docs/pipeline.md) is read, and checked as far as names go; messages name the line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.grid import (
    Grid,
    MethodEntry,
    StoreSettings,
    TeacherStudent,
    candidates_of,
    labels_alone,
    network_called,
    slug,
)
from experiments.rests import read_rest
from experiments.rules import RANDOM, checked, labelled_by, plainest, read_rules, students_of
from experiments.settings_file import Entry, parse_settings, read_bytes
from experiments.weights import Forms
from ground.errors import CKDError, InvalidInput, UnknownName
from ground.geometry import MAX_INPUT_SIZE, VIEW_POLICIES
from ground.user_code import UserCode
from storage.float_types import FLOAT_TYPES
from storage.formats import FORMATS
from storage.identity import MAX_VIEWS
from student_train.methods import parse_losses
from student_train.schedule import SCHEDULES
from student_train.train_config import STUDENT_VIEWS
from teacher_cache.rest import Rest

MAX_RUNS = 100_000
_MAX_SEED = 2**40

_TRAINING: dict[str, Callable[[Entry], Any]] = {
    "lr": Entry.number,
    "momentum": Entry.number,
    "weight_decay": Entry.number,
    "batch_size": lambda entry: entry.integer(4),
    "student_view": lambda entry: _one_of(entry, STUDENT_VIEWS),
    "average": Entry.number,
    "stream": lambda entry: _one_of(entry, ("true", "false")) == "true",
    "stream_rows": lambda entry: entry.integer(2),
    "patience": lambda entry: entry.integer(1),
    "plateaus": lambda entry: entry.integer(1),
    "max_evals": lambda entry: None if entry.is_none else entry.integer(1),
    "schedule": lambda entry: _one_of(entry, SCHEDULES),
    "steps_per_eval": lambda entry: None if entry.is_none else entry.integer(1),
}
# It changes no result, so that validation cannot choose it.
_MEASURED: dict[str, Callable[[Entry], Any]] = {"test_every": lambda entry: entry.integer(1)}
_STORE: dict[str, Callable[[Entry], Any]] = {
    "views": lambda entry: entry.integer(1, MAX_VIEWS),
    "view_policy": lambda entry: _one_of(entry, VIEW_POLICIES),
    "seed": lambda entry: entry.integer(0, _MAX_SEED),
    "sample_seeds": lambda entry: entry.refuse("sample_seeds stands beside seeds, not below store; move it there"),
    "format": lambda entry: _one_of(entry, FORMATS),
    "feature_dtype": lambda entry: _one_of(entry, FLOAT_TYPES),
    "budget": lambda entry: None if entry.is_none else entry.integer(1),
    "trust_teacher": lambda entry: _one_of(entry, ("true", "false")) == "true",
    "rest": lambda entry: _rest(entry),
}
_KEYS = (
    "name",
    "dataset",
    "data_root",
    "image_size",
    "split",
    "split_seed",
    "student_size",
    "pairs",
    "methods",
    "n",
    "seeds",
    "sample_seeds",
    "select",
    "choose",
    "training",
    "store",
    "targets",
    "test_images",
    "labels_only",
)


def read_grid(path: Path, code: UserCode = UserCode.REFUSED) -> Grid:
    """A grid from its file.

    Args:
        code: what becomes of losses that are classes of the user's; a grid cannot allow its own.

    Raises:
        InvalidInput: it cannot be read, or asks for what does not exist; the message names the line.
    """
    source = read_bytes(path)
    top = parse_settings(path, source).fields(_KEYS, required=("dataset", "pairs", "methods", "n", "seeds"))
    training = _training(top.get("training"))
    choose = _choose(top.get("choose"))
    store = _store(top["store"], several="sample_seeds" in top) if "store" in top else StoreSettings()
    rules = read_rules(top["select"]) if "select" in top else (RANDOM,)
    grid = Grid(
        name=_name(top["name"]) if "name" in top else slug(path.stem).strip(".") or "grid",
        dataset=top["dataset"].text(),
        data_root=Path(top["data_root"].text()) if "data_root" in top else None,
        image_size=top["image_size"].integer(8, 1024) if "image_size" in top else None,
        split=top["split"].text() if "split" in top else None,
        split_seed=top["split_seed"].integer(0, _MAX_SEED) if "split_seed" in top else 0,
        student_size=_student_size(top),
        pairs=_unique(top["pairs"], [_pair(entry) for entry in top["pairs"].items()]),
        methods=_methods(top, rules, training, choose, code),
        sizes=_sizes(top["n"]),
        seeds=_seeds(top["seeds"]),
        sample_seeds=_seeds(top["sample_seeds"]) if "sample_seeds" in top else (),
        store=store,
        targets=_targets(top.get("targets")),
        test_images=_test_images(top["test_images"]) if "test_images" in top else 0,
        labels_only=_labels_only(top, store, rules, training, choose),
        path=path,
        source=source,
        lines={key: entry.line for key, entry in top.items()},
    )
    _check_pairs(grid, top["pairs"])
    _check_rests(grid)
    _check_rules(grid)
    if grid.num_runs > MAX_RUNS:
        raise grid.refused("n", f"this asks for {grid.num_runs} runs, and {MAX_RUNS} is the most; divide it")
    return grid


def _name(entry: Entry) -> str:
    name = entry.text()
    if not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
        entry.refuse(f"name {name!r} becomes the name of a folder; use letters, digits, - and _")
    return name


def _one_of(entry: Entry, known: Iterable[str]) -> str:
    name = entry.text()
    if name not in known:
        entry.refuse(UnknownName(entry.name.replace("_", " "), name, known))
    return name


def _network(entry: Entry) -> str:
    try:
        return network_called(entry.text())
    except InvalidInput as error:
        entry.refuse(error)


def _pair(entry: Entry) -> TeacherStudent:
    keys = ("teacher", "student", "weights", "teacher_epochs", "student_size")
    found = entry.fields(keys, required=("teacher", "student"))
    if "weights" in found and "teacher_epochs" in found:
        entry.refuse("weights are of a teacher that is trained, and teacher_epochs trains one; give one of them")
    return TeacherStudent(
        teacher=_network(found["teacher"]),
        student=_network(found["student"]),
        weights=Path(found["weights"].text()) if "weights" in found else None,
        teacher_epochs=found["teacher_epochs"].integer(1) if "teacher_epochs" in found else None,
        student_size=_student_size(found),
    )


def _student_size(found: Mapping[str, Entry]) -> int | None:
    return found["student_size"].integer(1, MAX_INPUT_SIZE) if "student_size" in found else None


def _check_pairs(grid: Grid, entry: Entry) -> None:
    known: dict[str, tuple[Path | None, int | None]] = {}
    for pair in grid.pairs:
        trained = (pair.weights, pair.teacher_epochs)
        if known.setdefault(pair.teacher, trained) != trained:
            entry.refuse(f"two pairs name {pair.teacher} with different weights or epochs; make a grid for each")
    # Tables tell runs apart by teacher and student.
    students = [(pair.teacher, pair.student) for pair in grid.pairs]
    for teacher, student in students:
        if students.count((teacher, student)) > 1:
            entry.refuse(f"two pairs name {teacher} and {student}, at different sizes; make a grid for each")


def _check_rests(grid: Grid) -> None:
    for entry in grid.methods:
        where = replace(grid, lines={"method": entry.line})
        if entry.rest and grid.store.rest == 0:
            raise where.refused(
                "method",
                f"{entry.label} learns from images that the teacher is not asked about, and stores of this grid keep "
                "none; add store: {rest: all}",
            )
        if grid.labels_only is not None and entry.label == grid.labels_only.label:
            raise where.refused(
                "method", f"{entry.label} is the row that a grid with a rest has anyway; give this one another label"
            )


def _check_rules(grid: Grid) -> None:
    labels = {(entry.base, entry.select): entry for entry in grid.methods}
    # Of each label there are so many for a store, which students of all pairs of its teacher learn from.
    students = len(grid.seeds) * min(Counter(pair.teacher for pair in grid.pairs).values())
    for entry in grid.methods:
        where = replace(grid, lines={"select": grid.lines.get("select", entry.line)})
        for label in students_of(entry.select):
            found = labels.get((label, entry.select))
            if found is None:
                raise where.refused("select", UnknownName("method", label, dict.fromkeys(base for base, _ in labels)))
            try:
                checked(entry.select, students)
                found.require_looked_at(entry.select)
            except CKDError as error:
                raise where.refused("select", error) from error


def _labels_only(
    top: Mapping[str, Entry],
    store: StoreSettings,
    rules: Sequence[str],
    training: Mapping[str, Any],
    choose: Mapping[str, Sequence[Any]],
) -> MethodEntry | None:
    """The row of labels alone, where stores keep images for it and the grid does not turn it off."""
    wanted = "labels_only" not in top or _one_of(top["labels_only"], ("true", "false")) == "true"
    if wanted and store.rest == 0 and "labels_only" in top:
        top["labels_only"].refuse("labels_only trains on all labels of a store; add store: {rest: all} to keep them")
    if not wanted or store.rest == 0:
        return None
    try:
        candidates = candidates_of(training, choose)
    except InvalidInput as error:
        top["choose"].refuse(error)
    return labels_alone(candidates, top["store"].line, plainest(rules))


def _methods(
    top: Mapping[str, Entry],
    rules: Sequence[str],
    training: Mapping[str, Any],
    choose: Mapping[str, Sequence[Any]],
    code: UserCode,
) -> tuple[MethodEntry, ...]:
    """Each of them on the rows of each rule."""
    entry = top["methods"]
    methods = [_method(item, training, choose, code) for item in entry.items()]
    found = [
        replace(method, select=rule, label=labelled_by(method.label, rule, rules), base=method.label)
        for rule in rules
        for method in methods
    ]
    labels = [method.label for method in found]
    for method in found:
        if labels.count(method.label) > 1:
            entry.refuse(f"two methods are called {method.label}; give one of them another label")
    return tuple(found)


def _method(
    entry: Entry, training: Mapping[str, Any], choose: Mapping[str, Sequence[Any]], code: UserCode
) -> MethodEntry:
    label: str | None = None
    rest: tuple[str, ...] = ()
    if entry.is_mapping:
        found = entry.fields(("label", "method", "losses", "comparison", "rest", "training", "choose"))
        if ("method" in found) == ("losses" in found):
            entry.refuse("a method is given as method: NAME, or as losses: [SPEC, ...]; give one of them")
        if "comparison" in found and "method" in found:
            found["comparison"].refuse("comparison goes with losses; a method has its own, as ckd:pairs=all")
        rest = read_rest(found["rest"]) if "rest" in found else ()
        read = _written(found, code)
        label = found["label"].text() if "label" in found else None
        training = {**training, **_training(found.get("training"))}
        choose = _choose(found["choose"]) if "choose" in found else choose
    else:
        read = _written({"method": entry}, code)
    try:
        said = {"label": label} if label else {}
        return MethodEntry.of(read(rest), training, choose, line=entry.line, **said)
    except CKDError as error:
        entry.refuse(error)


def _written(found: Mapping[str, Entry], code: UserCode) -> Callable[[Sequence[str]], Forms]:
    """What reads a method as the grid writes it, with what it learns from a rest."""
    if "method" in found:
        return partial(Forms.of_method, found["method"].text())
    losses = [item.text() for item in found["losses"].items()]
    comparison = found["comparison"].text() if "comparison" in found else None
    parse = partial(parse_losses, pairing=comparison, code=code)
    return partial(Forms.of_losses, losses, parse=parse)


def _training(entry: Entry | None) -> dict[str, Any]:
    known = _TRAINING | _MEASURED
    found = {} if entry is None else entry.fields(known)
    return {key: known[key](value) for key, value in found.items()}


def _choose(entry: Entry | None) -> dict[str, tuple[Any, ...]]:
    """Setting of the training -> the values among which validation chooses."""
    found = {} if entry is None or entry.is_none else entry.fields(_TRAINING)
    return {key: _unique(value, [_TRAINING[key](item) for item in value.items()]) for key, value in found.items()}


def _sizes(entry: Entry) -> tuple[int, ...]:
    if entry.is_mapping:
        bounds = entry.fields(("from", "to", "step"), required=("from", "to", "step"))
        first, last, step = bounds["from"].integer(2), bounds["to"].integer(2), bounds["step"].integer(1)
        if last < first:
            entry.refuse(f"n goes from {first} to {last}, which is backwards")
        if (last - first) // step >= MAX_RUNS:
            entry.refuse(
                f"n takes {(last - first) // step + 1} values, and {MAX_RUNS} runs is the most; take larger steps"
            )
        return tuple(range(first, last + 1, step))
    items = entry.items() if entry.is_list else [entry]
    return tuple(sorted(_unique(entry, [item.integer(2) for item in items])))


def _seeds(entry: Entry) -> tuple[int, ...]:
    """A list, or how many."""
    if entry.is_list:
        return _unique(entry, [item.integer(0, _MAX_SEED) for item in entry.items()])
    return tuple(range(entry.integer(1, MAX_RUNS)))


def _targets(entry: Entry | None) -> tuple[float, ...]:
    return () if entry is None else _unique(entry, [item.fraction() for item in entry.items()])


def _test_images(entry: Entry) -> int:
    images = entry.integer(0)
    if images == 1:
        entry.refuse("test_images is 0 or at least 2: one image has no correlations")
    return images


def _store(entry: Entry, *, several: bool) -> StoreSettings:
    given = entry.fields(_STORE)
    if several and "seed" in given:
        given["seed"].refuse("seed draws the one sample of a grid, and sample_seeds draws several; give one of them")
    found = {key: _STORE[key](value) for key, value in given.items()}
    settings = StoreSettings(**{"array_format" if key == "format" else key: value for key, value in found.items()})
    if settings.view_policy == "plain" and settings.views > 1:
        entry.refuse("every plain view of an image is the same; use views: 1, or view_policy: augmented")
    return settings


def _rest(entry: Entry) -> int | None:
    """Images to keep; None for all."""
    if entry.is_none:
        return 0
    try:
        return Rest.read(entry.text()).count
    except InvalidInput:
        entry.refuse("rest is how many images a store keeps beside n without a call: a number, all, or none")


def _unique(entry: Entry, values: Sequence[Any]) -> tuple[Any, ...]:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            entry.refuse(f"{entry.name} has {value} twice; give each once")
        seen.add(value)
    return tuple(values)
