"""A student before its first step: its network, the weights it begins with, and how it is shown images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ground.errors import InvalidInput
from ground.geometry import Rendering
from ground.terminal import plain
from models import Network, canonical_name, create_model, read_metadata
from models.checkpoint import Begun, begin_with
from models.origins import Asked, Preprocessing, preprocessing_of
from models.trained_on import TrainedOn
from storage.identity import Identity
from student_train.train_config import TrainConfig

log = logging.getLogger(__name__)

_MOST_DIGITS = 15


@dataclass(frozen=True, slots=True, eq=False)
class InitialStudent:
    """A student to train.

    Args:
        digest: of the weights from a file that it begins with; None where the seed alone makes them.
        calls: of a teacher, that are behind those weights, as their file says.
    """

    network: Network
    digest: str | None
    calls: int = 0

    @classmethod
    def make(cls, config: TrainConfig, classes: tuple[str, ...], rendering: Rendering) -> InitialStudent:
        """The network of a training, and its weights; what of a file is not used is said in the log.

        Raises:
            CheckpointMismatch, CheckpointError: the file that it is to begin with does not fit.
            InvalidInput: the network has classes of its own.
        """
        size, num_classes = rendering.size, len(classes)
        network = create_model(config.student, num_classes, config.seed, size, code=config.code)
        if network.num_classes != num_classes:
            raise InvalidInput(
                f"the student {config.student} answers for {network.num_classes} classes, and the store has "
                f"{num_classes}; give a network of any number of classes"
            )
        if config.init is None:
            return cls(network, None)
        metadata = read_metadata(config.init)
        said = TrainedOn.read(metadata, config.init)
        # Another order of the same classes is another head.
        of_others = said.classes is not None and said.classes != classes
        head = _keys_of_classes(config, network, size)
        begun = begin_with(network, config.init, head, keep_head=of_others)
        for line in _remarks(config.init, begun, said, rendering):
            log.info("%s", plain(line))
        calls = _calls_behind(metadata)
        if calls:
            name = plain(str(config.init))
            log.warning("%d teacher calls are behind %s; the run says so, beside its own", calls, name)
        return cls(network, begun.digest, calls)


def _calls_behind(metadata: Mapping[str, str]) -> int:
    """Calls that a student's file says it drew on, and those behind the weights that it began with itself."""
    counts = (metadata.get(name, "") for name in ("teacher_calls", "init_calls"))
    return sum(int(count) for count in counts if count.isdecimal() and len(count) < _MOST_DIGITS)


def own_preprocessing(config: TrainConfig) -> Preprocessing | None:
    """How the student's origin shows it images; None for the zoo, where nobody says, and where the configuration has it
    as the teacher.

    Raises:
        UnknownName, InvalidInput: the library has no such network, or is not installed.
    """
    if config.student_preprocessing != "own":
        return None
    name = canonical_name(config.student)
    asked = Asked(name=name.partition(":")[2], image_size=config.student_size or 0, code=config.code)
    return preprocessing_of(name, asked)


def student_rendering(config: TrainConfig, identity: Identity) -> Rendering:
    """How a student is shown a store's images: its views, at its size, with pixels as its own library has them.

    Without a size it takes the views as they are: enlarged, they would cost more and show no more.
    """
    shown, own = replace(identity.teacher_rendering, input_size=config.student_size), own_preprocessing(config)
    if own is None:
        return shown
    return replace(shown, normalisation=own.normalisation or shown.normalisation, interpolation=own.interpolation)


def _keys_of_classes(config: TrainConfig, network: Network, size: int) -> frozenset[str]:
    """Keys of a network whose shapes follow from the number of its classes."""
    other = create_model(config.student, network.num_classes + 1, 0, size, code=config.code).state_dict()
    return frozenset(key for key, tensor in network.state_dict().items() if tensor.shape != other[key].shape)


def _remarks(init: Path, begun: Begun, said: TrainedOn, rendering: Rendering) -> Iterator[str]:
    if begun.left:
        yield f"{init} has a head of other classes, or none: {', '.join(begun.left)} begin as the seed makes them"
    if begun.low_precision:
        yield f"{init} keeps its weights as {' and '.join(begun.low_precision)}; they are used as float32"
    if said.normalisation not in (None, rendering.normalisation):
        yield f"{init} was trained on pixels of another mean or deviation than the student is shown: {rendering}"
