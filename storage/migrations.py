"""Older formats, brought forward one version at a time.

A step takes a store's manifest, as a plain document, from one format version to the next, and changes nothing else: the
arrays of both must be read alike. `Manifest.load` applies the steps in memory, so that an older store opens as it is,
to be read; `ckd-cache upgrade` writes the outcome, and records that it did. Steps are history: what one does never
changes, whatever later releases do, so it states as data what was true of its version and imports nothing that moves.

Ledgers have schemas and steps of their own, in `storage/ledger_migrations.py`. Stores of format 2 have ledgers of
schema 2; those of format 3 of schema 2 or 3, and those of format 4 of schema 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ground.errors import StoreUnreadable

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OlderManifest:
    """A manifest of an older format, as it is on the disk.

    Args:
        version: of its format.
        digest: what the release that wrote it recorded of the store in the ledger; see `Manifest.digest`.
    """

    version: int
    digest: str

    @property
    def keeps_no_parameters(self) -> bool:
        """Whether its format had no place for what is the teacher's own."""
        return self.version < 3


def require_readable(path: object, version: object, current: int, what: str = "format version") -> None:
    """Refuse what no steps lead on from; raises `StoreUnreadable` that says whose it is.

    Args:
        path: of the manifest, for the message.
        version: what it says it is.
        current: what this release writes.
    """
    if type(version) is int and version > current:
        raise StoreUnreadable(
            f"{path} is of {what} {version}, written by a newer release than this one, which reads "
            f"{_OLDEST} to {current}; upgrade this one, with: pip install --upgrade teacher-cache"
        )
    if type(version) is not int or version < _OLDEST:
        raise StoreUnreadable(
            f"{path} is of {what} {str(version)[:20]!a}, this release reads {_OLDEST} to {current}; use the "
            "release that wrote it, or build the store again in a new folder and with a ledger of its own"
        )


def brought_forward(document: Document, version: int, current: int) -> Document:
    """A manifest of format `version` as one of format `current`.

    Args:
        document: without `format_version` and `digest`; not changed.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: no release wrote such a document.
    """
    for step in range(version, current):
        document = _STEPS[step](document)
    return document


def _name_layers_and_parameters(document: Document) -> Document:
    """2 to 3: the identity names every layer the teacher can give, and what is kept of the teacher itself.

    Format 2 kept nothing of the teacher itself, so there are no parameters, no arrays for them, and no digests. Which
    layers its teachers had, it left to their names.
    """
    identity = document["identity"]
    teacher = identity["teacher"]
    if "layers" in teacher or "parameters" in identity:
        raise ValueError("it says that it is of format 2, and holds what only format 3 does")
    return {
        **document,
        "identity": {**identity, "teacher": {**teacher, "layers": _layers_of(teacher["name"])}, "parameters": []},
    }


def _leave_digests_of_whole_arrays(document: Document) -> Document:
    """3 to 4: sample arrays have a digest for each block of rows, which nobody knows without reading the arrays.

    In format 3 each has one, of all its rows: whoever reads a manifest brought forward takes it for that of one block.
    """
    return dict(document)


# Teachers of format 2 that had four stages; all others had three.
_FOUR_STAGES = ("ResNet50", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19", "MobileNetV2")


def _layers_of(teacher: str) -> list[str]:
    stages = [f"layer{number}" for number in range(1, 5 if teacher in _FOUR_STAGES else 4)]
    return ["stem", *stages, "pooled", *(f"{stage}.pre" for stage in stages), "last"]


# Format version -> how a manifest of it becomes one of the next.
_STEPS: Mapping[int, Callable[[Document], Document]] = {
    2: _name_layers_and_parameters,
    3: _leave_digests_of_whole_arrays,
}
_OLDEST = min(_STEPS)
