"""Teachers that answer over a network, by ORIGIN:NAME; one module an origin, loaded when one of its teachers is asked.

Each module has `open_remote(asked: RemoteAsked) -> RemoteTeacher`, which may ask the server for metadata, and makes no
call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from ground.geometry import Rendering
from models.names import canonical_name, is_remote
from teacher_cache.teachers.attempts import RemoteTeacher
from teacher_cache.teachers.classes import ClassChoice
from teacher_cache.teachers.weights import DatasetFacts

# Origin -> module of this package.
_MODULES = {"http": "http_scores", "openai": "openai_chat", "v2": "open_inference"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """What the user says of a teacher that answers over a network. No key is among it: keys come from the environment.

    Args:
        base_url: of a server that speaks a known protocol, where it is not the usual one.
        card: file that says what the server itself does not.
    """

    base_url: str | None = None
    card: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAsked:
    """What an origin is asked for.

    Args:
        name: ORIGIN:NAME, as the user wrote it.
        dataset: whose images it is shown.
        rendering: how it is shown images, unless it says something else of itself.
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
    assert is_remote(canonical_name(asked.name)), "whoever asks looked at the name"
    module = import_module(f"teacher_cache.teachers.{_MODULES[asked.name.partition(':')[0]]}")
    teacher: RemoteTeacher = module.open_remote(asked)
    return teacher
