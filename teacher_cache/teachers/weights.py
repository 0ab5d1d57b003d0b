"""Where a teacher's weights lie, and what their file says of its training."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from ground.errors import InvalidInput, suggested
from ground.geometry import Rendering
from ground.terminal import plain
from models import Loaded, canonical_name, locate, model_names
from models.trained_on import TrainedOn
from teacher_cache.datasets.registry import takes_path

_DIGITS = 8


class DatasetFacts(Protocol):
    """What has to be known of a data set to open a teacher for it: an `ImageDataset`, or what a store says of one."""

    @property
    def name(self) -> str:
        """Canonical name."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label."""

    @property
    def digest(self) -> str:
        """Of the content of both splits."""

    @property
    def rendering(self) -> Rendering:
        """How networks trained on it are shown its images."""

    @property
    def options(self) -> Mapping[str, str]:
        """Of a command, that open it, as far as they are known."""


def default_weights(name: str, dataset: DatasetFacts) -> Path:
    """Where `train-teacher` puts a teacher, and `build` looks for one: under `CKD_TEACHERS` or ./teachers.

    Folders of one name are told apart by where they lie.
    """
    _, _, path = dataset.options.get("dataset", "").partition(":")
    place = dataset.name.replace(":", "-")
    if path:
        place += f"-{hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:_DIGITS]}"
    return _teachers() / place / _file_name(name)


def find_weights(name: str, dataset: DatasetFacts, weights: Path | None) -> Path:
    """The weights to use, as FILE or FILE#key; raises `InvalidInput` that says how to get some."""
    path = default_weights(name, dataset) if weights is None else weights
    if locate(path)[0].exists():
        return path
    where = {"dataset": dataset.name, **dataset.options}
    # Weights that were asked for by name are looked for there the next time too.
    out = weights if weights is not None and weights.suffix == ".safetensors" else None
    train = suggested("ckd-cache train-teacher", teacher=name, **where, out=out)
    # Networks of other libraries are trained with these.
    or_train = f", or train a teacher with: {train}" if canonical_name(name) in model_names() else ""
    reason = "there are no weights at" if weights is not None else "no --weights given and no teacher at"
    # Until folders were told apart, it was put here: perhaps the teacher of another folder of this name.
    older = _teachers() / dataset.name.replace(":", "-") / _file_name(name)
    perhaps = ""
    if weights is None and older.is_file():
        perhaps = f" (if the one at {older} was trained on this data set, --weights {shlex.quote(str(older))})"
    raise InvalidInput(f"{reason} {path}; give --weights FILE{perhaps}{or_train}")


def _teachers() -> Path:
    return Path(os.environ.get("CKD_TEACHERS") or "teachers")


def _file_name(network: str) -> str:
    return f"{canonical_name(network).replace(':', '-')}.safetensors"


def require_trained_for(said: TrainedOn, name: str, dataset: DatasetFacts, rendering: Rendering, weights: Path) -> None:
    """Hold a teacher's file to what it says of its training.

    Args:
        said: by the file.
        name: of the network that it is to be.
        dataset: whose images it is to be shown.
        rendering: how it is to be shown them.

    Raises:
        InvalidInput: it is of another network, of other classes, or of images of another size.
    """
    network = plain(said.network or "")
    if (network in model_names() or ":" in network) and network != canonical_name(name):
        raise InvalidInput(f"{weights} is of a {network}; give --teacher {network}, or other --weights")
    if said.classes is not None and said.classes != tuple(dataset.classes):
        raise InvalidInput(
            f"{weights} was trained on {plain(said.dataset or 'other data')}, whose classes are not those of "
            f"{dataset.name} ({_difference(said.classes, tuple(dataset.classes))}); give that data set, or other "
            "--weights"
        )
    if said.geometry is not None:
        before, now = said.geometry, dataset.rendering.geometry
        if before.crop_size != now.crop_size:
            # Only of their own images can users choose the size.
            remedy = (
                f"give --image-size {before.image_size}" if takes_path(dataset.name) else "give images of that size"
            )
            raise InvalidInput(
                f"{weights} was trained on views of {before.crop_size} pixels, and those of {dataset.name} have "
                f"{now.crop_size}; {remedy}, or other --weights"
            )
    if said.input_size is not None and said.input_size != rendering.size:
        raise InvalidInput(
            f"{weights} was trained on inputs of {said.input_size} pixels, and would be given {rendering.size}; give "
            f"--input-size {said.input_size}, or other --weights"
        )


def remarks(
    said: TrainedOn, loaded: Loaded, dataset: DatasetFacts, rendering: Rendering, weights: Path
) -> Iterator[str]:
    """What the user has to know of weights that can be used, a line each: what is taken at their word above all.

    Args:
        rendering: how the teacher is shown images where its file does not say.
    """
    normalisation = rendering.normalisation
    taken = {
        "classes": f"{len(dataset.classes)} classes in the order of {dataset.name}",
        "pixel size": f"views of {rendering.size} pixels",
        "normalisation": f"mean {_numbers(normalisation.mean)} and std {_numbers(normalisation.std)}",
    }
    known = dict(zip(taken, (said.classes, said.geometry, said.normalisation), strict=True))
    unsaid = [what for what, value in known.items() if value is None]
    if unsaid:
        says = (
            "what it was trained on" if len(unsaid) == len(known) else f"the {' and the '.join(unsaid)} of its training"
        )
        yield f"{weights} does not say {says}; it is taken to be {', '.join(taken[what] for what in unsaid)}"
    # A store of test calls says "/test" after the name, and has a digest of its own.
    if said.dataset is not None and said.dataset != dataset.name.removesuffix("/test"):
        yield f"{weights} was trained on {plain(said.dataset)} and not on {dataset.name}; its classes are the same"
    elif said.dataset == dataset.name and said.dataset_digest not in (None, dataset.digest):
        yield f"{weights} was trained on other images called {dataset.name} too; its classes are the same"
    if loaded.low_precision:
        yield f"{weights} keeps its weights as {' and '.join(loaded.low_precision)}; they are used as float32"


def _difference(before: tuple[str, ...], now: tuple[str, ...]) -> str:
    if len(before) != len(now):
        return f"{len(before)} there, {len(now)} here"
    if sorted(before) == sorted(now):
        return "the same in another order"
    place = next(place for place, names in enumerate(zip(before, now, strict=True)) if names[0] != names[1])
    return f"label {place} is {plain(before[place])} there, {plain(now[place])} here"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
