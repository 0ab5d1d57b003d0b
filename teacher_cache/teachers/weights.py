"""Where a teacher's weights lie, and what their file says of its training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ground.errors import InvalidInput
from ground.geometry import Normalisation, Rendering
from models import canonical_name


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


def default_weights(name: str, dataset: DatasetFacts) -> Path:
    """Where `train-teacher` puts a teacher, and `build` looks for one: under `CKD_TEACHERS` or ./teachers."""
    folder = Path(os.environ.get("CKD_TEACHERS", "teachers"))
    return folder / dataset.name.replace(":", "-") / f"{canonical_name(name)}.safetensors"


def find_weights(name: str, dataset: DatasetFacts, weights: Path | None) -> Path:
    """The weights to use; raises `InvalidInput` that says how to get some."""
    path = default_weights(name, dataset) if weights is None else weights
    if not path.is_file():
        how = f"ckd-cache train-teacher --teacher {name} --dataset {dataset.name}"
        reason = "there are no weights at" if weights is not None else "no --weights given and no teacher at"
        raise InvalidInput(f"{reason} {path}; give --weights FILE, or train a teacher with: {how}")
    return path


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
