"""What a network was trained on, as its file of weights says it: both stages write it, and stage one holds files to it.

Files that others made say nothing of it, and those of earlier releases only some.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from ground.documents import Line, shown, typed
from ground.errors import InvalidInput
from ground.geometry import Normalisation, Rendering, ViewGeometry

_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedOn:
    """What a network has seen; None where its file does not say.

    Args:
        network: name of the architecture.
        dataset: canonical name of the data.
        dataset_digest: of both splits, as `ImageDataset.digest`.
        classes: the name of each label, in order.
        geometry: how views were cut for it.
        input_size: height and width of what it was given, to which views may have been resized.
        normalisation: of its pixels.
    """

    network: str | None = None
    dataset: str | None = None
    dataset_digest: str | None = None
    classes: tuple[str, ...] | None = None
    geometry: ViewGeometry | None = None
    input_size: int | None = None
    normalisation: Normalisation | None = None

    @classmethod
    def of(
        cls, network: str, *, dataset: str, dataset_digest: str, classes: tuple[str, ...], rendering: Rendering
    ) -> Self:
        """All of it."""
        return cls(
            network=network,
            dataset=dataset,
            dataset_digest=dataset_digest,
            classes=classes,
            geometry=rendering.geometry,
            input_size=rendering.size,
            normalisation=rendering.normalisation,
        )

    def metadata(self) -> dict[str, str]:
        """As text beside the weights: names as they are, the rest as JSON."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}

    @classmethod
    def read(cls, metadata: Mapping[str, str], path: Path) -> Self:
        """What a file says.

        Args:
            metadata: all of its text; what is of something else is left alone.
            path: of the file, for messages.

        Raises:
            InvalidInput: it says something that cannot be.
        """
        return cls(
            # Earlier releases have the name of a teacher, or of a student, only.
            network=next((metadata[key] for key in ("network", "teacher", "student") if key in metadata), None),
            dataset=metadata.get("dataset"),
            dataset_digest=metadata.get("dataset_digest"),
            classes=_read(metadata, "classes", tuple[Line, ...], path),
            geometry=_read(metadata, "geometry", ViewGeometry, path),
            input_size=_read(metadata, "input_size", int, path),
            normalisation=_read(metadata, "normalisation", Normalisation, path),
        )

    @property
    def is_known(self) -> bool:
        """Whether the file says anything of it."""
        return self != type(self)()


def _read(metadata: Mapping[str, str], name: str, kind: type[_Kind], path: Path) -> Any:
    if name not in metadata:
        return None
    try:
        return typed(json.loads(metadata[name]), kind)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{path} says in its metadata that it was trained with the {name} {shown(metadata[name])}, which cannot be "
            f"({error}); correct it, or remove it there"
        ) from error
