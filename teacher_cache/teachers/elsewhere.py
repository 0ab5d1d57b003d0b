"""Teachers that answer over a network, by ORIGIN:NAME; one module an origin, loaded when one of its teachers is asked.

Each module has `open_remote(asked: RemoteAsked) -> RemoteTeacher` and `preprocessing(name, options, input_size)`. Both
may ask the server for metadata, and make no call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ground.errors import InvalidInput, UnknownName
from ground.geometry import Rendering
from models.names import canonical_name
from models.origins import Preprocessing
from models.remote_names import is_remote
from teacher_cache.teachers.attempts import RemoteTeacher
from teacher_cache.teachers.classes import ClassChoice
from teacher_cache.teachers.weights import DatasetFacts

# Origin -> module of `teacher_cache.teachers.remote`.
_MODULES = {"http": "http_scores", "openai": "openai_chat", "v2": "open_inference"}
_PACKAGES = ("httpx", "httpcore", "certifi")
# Of an image, in chat completions; "auto" leaves it to the server.
IMAGE_DETAILS = ("auto", "low", "high")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """What the user says of a teacher that answers over a network. No key is among it: keys come from the environment.

    Args:
        card: file that says what the server itself does not.
        base_url: of a server that speaks a known protocol, where the name does not say it.
        prompt: file of what a model is asked, where that is not the usual prompt.
        image_detail: of `IMAGE_DETAILS`; None is the first.
    """

    card: Path | None = None
    base_url: str | None = None
    prompt: Path | None = None
    image_detail: str | None = None

    def __post_init__(self) -> None:
        if self.image_detail not in (None, *IMAGE_DETAILS):
            raise UnknownName("image detail", str(self.image_detail), IMAGE_DETAILS)

    def require_none(self, name: str) -> None:
        """Raise `InvalidInput` for options that a network which runs here has no use for."""
        given = [f"--{field.replace('_', '-')}" for field in self.__slots__ if getattr(self, field) is not None]
        if given:
            raise InvalidInput(
                f"{given[0]} is for teachers that answer over a network, and {name} runs here; leave it out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAsked:
    """What an origin is asked for.

    Args:
        name: ORIGIN:NAME, as the user wrote it.
        dataset: whose images it is shown; one without classes where the teacher is only described.
        rendering: how it is shown images; what it says of itself is in it already, see `preprocessing`.
        classes: how its classes become those of the data set.
    """

    name: str
    dataset: DatasetFacts
    rendering: Rendering
    classes: ClassChoice = field(default_factory=ClassChoice)
    options: RemoteOptions = field(default_factory=RemoteOptions)


def open_remote(asked: RemoteAsked) -> RemoteTeacher:
    """A teacher that answers over a network; no call is made.

    Raises:
        CKDError: as its origin; it is not there, is refused, or what is said of it cannot be used.
    """
    if asked.classes.features_only:
        raise InvalidInput(f"{asked.name} says nothing but its answers; leave out --features-only")
    teacher: RemoteTeacher = _module(asked.name).open_remote(asked)
    return teacher


def preprocessing(name: str, options: RemoteOptions, input_size: int | None) -> Preprocessing | None:
    """How such a teacher is shown images, by its card or its server; None where neither says it.

    Args:
        input_size: that the user says.

    Raises:
        CKDError: as `open_remote`.
    """
    found: Preprocessing | None = _module(name).preprocessing(name, options, input_size)
    return found


def _module(name: str) -> Any:
    assert is_remote(canonical_name(name)), "whoever asks looked at the name"
    require_client(name)
    return import_module(f"teacher_cache.teachers.remote.{_MODULES[name.partition(':')[0]]}")


def require_client(name: str) -> None:
    """Raise `InvalidInput` where what sends requests is not installed."""
    try:
        import_module("httpx")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise InvalidInput(
            f"{name} needs the package {error.name}; install it with: pip install 'teacher-cache[remote]'"
        ) from error
