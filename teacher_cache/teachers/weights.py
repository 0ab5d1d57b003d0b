"""Where a teacher's weights lie, and what their file says of its training."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ground.errors import InvalidInput, suggested
from ground.geometry import Normalisation, Rendering
from models import canonical_name

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
    """The weights to use; raises `InvalidInput` that says how to get some."""
    path = default_weights(name, dataset) if weights is None else weights
    if path.is_file():
        return path
    where = {"dataset": dataset.name, **dataset.options}
    # Weights that were asked for by name are looked for there the next time too.
    out = weights if weights is not None and weights.suffix == ".safetensors" else None
    train = suggested("ckd-cache train-teacher", teacher=name, **where, out=out)
    reason = "there are no weights at" if weights is not None else "no --weights given and no teacher at"
    # Until folders were told apart, it was put here: perhaps the teacher of another folder of this name.
    older = _teachers() / dataset.name.replace(":", "-") / _file_name(name)
    perhaps = ""
    if weights is None and older.is_file():
        perhaps = f" (if the one at {older} was trained on this data set, --weights {shlex.quote(str(older))})"
    raise InvalidInput(f"{reason} {path}; give --weights FILE{perhaps}, or train a teacher with: {train}")


def _teachers() -> Path:
    return Path(os.environ.get("CKD_TEACHERS") or "teachers")


def _file_name(network: str) -> str:
    return f"{canonical_name(network)}.safetensors"


def require_classes(metadata: Mapping[str, str], dataset: DatasetFacts, weights: Path) -> None:
    """Raise `InvalidInput` where a file says that its teacher was trained on other classes than the data set's."""
    classes = _from_metadata(metadata, "classes", weights)
    if classes is not None and classes != list(dataset.classes):
        raise InvalidInput(
            f"{weights} was trained on {metadata.get('dataset', 'other data')}, whose classes are not those of "
            f"{dataset.name}; give that data set, or other --weights"
        )


def normalisation_of(metadata: Mapping[str, str], dataset: DatasetFacts, weights: Path) -> Normalisation:
    """What a teacher was trained with: as its file says, or as is usual for the data set."""
    constants = _from_metadata(metadata, "normalisation", weights)
    if constants is None:
        return dataset.rendering.normalisation
    try:
        return Normalisation(mean=tuple(constants["mean"]), std=tuple(constants["std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"{weights} says in its metadata that it was trained with the normalisation {constants}, which cannot be; "
            "correct it, or remove it there"
        ) from error


def _from_metadata(metadata: Mapping[str, str], name: str, weights: Path) -> Any:
    try:
        return json.loads(metadata[name]) if name in metadata else None
    except ValueError as error:
        raise InvalidInput(
            f"{weights} has {name} in its metadata that is not JSON; correct it, or remove it"
        ) from error
