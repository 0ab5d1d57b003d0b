"""Where a teacher's weights lie, and what their file says of its training."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from ground.errors import InvalidInput, suggested
from ground.geometry import Normalisation, Rendering, ViewGeometry
from ground.terminal import plain
from models import Loaded, canonical_name, locate, model_names
from models.names import identity_name, is_file
from models.trained_on import TrainedOn
from teacher_cache.datasets.registry import takes_path
from teacher_cache.rendering import RenderingOverrides

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


def is_published(name: str, dataset: DatasetFacts) -> bool:
    """Whether its origin is asked for the weights of a network: it is of one, and no file of it is here."""
    return is_file(name) or (":" in name and not locate(default_weights(name, dataset))[0].exists())


def _teachers() -> Path:
    return Path(os.environ.get("CKD_TEACHERS") or "teachers")


def _file_name(network: str) -> str:
    return f"{identity_name(network).replace(':', '-')}.safetensors"


def require_trained_for(said: TrainedOn, name: str, dataset: DatasetFacts, rendering: Rendering, weights: Path) -> None:
    """Hold a teacher's file to what it says of its training.

    Args:
        said: by the file.
        name: of the network that it is to be.
        dataset: whose images it is to be shown.
        rendering: how it is to be shown them.

    Raises:
        InvalidInput: it is of another network, or of images of another size.
    """
    network = plain(said.network or "")
    if (network in model_names() or ":" in network) and network != identity_name(name):
        raise InvalidInput(f"{weights} is of a {network}; give --teacher {network}, or other --weights")
    if said.geometry is not None:
        before, now = said.geometry, dataset.rendering.geometry
        if before.crop_size != now.crop_size:
            # Only of their own images can users choose the size.
            remedy = f"give {_sizes(before, now)}" if takes_path(dataset.name) else "give images of that size"
            raise InvalidInput(
                f"{weights} was trained on views of {before.crop_size} pixels, and those of {dataset.name} have "
                f"{now.crop_size}; {remedy}, or other --weights"
            )
    if said.input_size is not None and said.input_size != rendering.size:
        raise InvalidInput(
            f"{weights} was trained on inputs of {said.input_size} pixels, and would be given {rendering.size}; give "
            f"--input-size {said.input_size}, or other --weights"
        )


def _sizes(before: ViewGeometry, now: ViewGeometry) -> str:
    """The options that give views as they were before."""
    share, other = (geometry.crop_size / geometry.image_size for geometry in (before, now))
    return f"--image-size {before.image_size}" + ("" if share == other else f" --crop-pct {share:.6g}")


def require_normalisation(said: TrainedOn, overrides: RenderingOverrides, weights: Path) -> None:
    """Raise `InvalidInput` if the user says another mean or deviation than a teacher's file."""
    trained = said.normalisation
    if trained is not None and (asked := overrides.normalisation(trained)) != trained:
        raise InvalidInput(
            f"{weights} was trained with {_constants(trained)}, and would be given {_constants(asked)}; leave out "
            "--mean and --std, or give other --weights"
        )


def remarks(
    said: TrainedOn, loaded: Loaded, dataset: DatasetFacts, rendering: Rendering, weights: Path, classes: str | None
) -> Iterator[str]:
    """What the user has to know of weights that can be used, a line each: what is taken at their word above all.

    Args:
        rendering: how the teacher is shown images where its file does not say.
        classes: what its classes are taken to be; None where that is known.
    """
    taken = {
        "classes": classes,
        "pixel size": f"views of {rendering.size} pixels",
        "normalisation": _constants(rendering.normalisation),
    }
    is_known = dict(
        zip(taken, (classes is None, said.geometry is not None, said.normalisation is not None), strict=True)
    )
    unsaid = [what for what, known in is_known.items() if not known]
    if unsaid:
        says = (
            "what it was trained on" if len(unsaid) == len(taken) else f"the {' and the '.join(unsaid)} of its training"
        )
        yield f"{weights} does not say {says}; it is taken to be {', '.join(str(taken[what]) for what in unsaid)}"
    same = "; its classes are the same" if said.classes in (None, tuple(dataset.classes)) else ""
    # A store of test calls says "/test" after the name, and has a digest of its own.
    if said.dataset is not None and said.dataset != dataset.name.removesuffix("/test"):
        yield f"{weights} was trained on {plain(said.dataset)} and not on {dataset.name}{same}"
    elif said.dataset == dataset.name and said.dataset_digest not in (None, dataset.digest):
        yield f"{weights} was trained on other images called {dataset.name} too{same}"
    if loaded.low_precision:
        yield f"{weights} keeps its weights as {' and '.join(loaded.low_precision)}; they are used as float32"


def _constants(normalisation: Normalisation) -> str:
    return f"mean {_numbers(normalisation.mean)} and std {_numbers(normalisation.std)}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
