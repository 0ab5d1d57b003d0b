"""Teachers of the faulty server, asked directly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stand_ins.faulty_server import Behaviour
from ground.geometry import Normalisation, Rendering, ViewGeometry
from teacher_cache.teachers.attempts import Answer, Failure, RemoteTeacher
from teacher_cache.teachers.classes import ClassChoice
from teacher_cache.teachers.elsewhere import RemoteAsked, RemoteOptions, open_remote

GEOMETRY = ViewGeometry(image_size=8, crop_size=8, padding=0)
NORMALISATION = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 0.2))
CARD = {"answer": "probabilities", "scores_at": "scores", "model_at": "model.version", "request_id_at": "id"}


@dataclass(frozen=True)
class Images:
    """A data set, as far as a teacher is opened for it."""

    classes: tuple[str, ...] = Behaviour().classes
    name: str = "imagefolder:photos"
    digest: str = "0" * 64
    rendering: Rendering = field(default_factory=lambda: Rendering(geometry=GEOMETRY, normalisation=NORMALISATION))
    options: Mapping[str, str] = field(default_factory=dict)


def opened(
    name: str, options: RemoteOptions | None = None, images: Images | None = None, class_map: Any = None
) -> RemoteTeacher:
    """A teacher as a build opens it."""
    shown = images or Images()
    return open_remote(
        RemoteAsked(
            name=name,
            dataset=shown,
            rendering=shown.rendering,
            classes=ClassChoice(class_map),
            options=options or RemoteOptions(),
        )
    )


def teacher_of(protocol: str, url: str, folder: Path, **card: Any) -> RemoteTeacher:
    """One of the three, at a server."""
    if protocol == "http":
        card = CARD | card
    path = folder / "card.json"
    path.write_text(json.dumps(card))
    given = path if card else None
    names = {"v2": f"v2:{url}/any", "openai": "openai:seer", "http": f"http:{url}/scores"}
    base = f"{url}/v1" if protocol == "openai" else None
    return opened(names[protocol], RemoteOptions(card=given, base_url=base))


def noise(count: int = 1, seed: int = 0) -> np.ndarray:
    """(C, 3, 8, 8) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8)).astype(np.uint8)


def said_by(teacher: RemoteTeacher, images: np.ndarray, deadline: float = 20.0) -> list[Answer | Failure]:
    """What one request gives."""

    async def ask() -> list[Answer | Failure]:
        try:
            return list(await teacher.ask(images, deadline))
        finally:
            await teacher.close()

    return asyncio.run(ask())


def log_softmax(values: np.ndarray) -> np.ndarray:
    return values - np.logaddexp.reduce(values)
