"""What a teacher behind a network is known by: endpoint, model, version, prompt, parameters, card and rendering.

Nobody can hash its weights, so its fingerprint is worth what the server and the user declare; canaries do the rest.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from ground.geometry import Rendering
from models.names import identity_name
from storage.identity import TeacherIdentity
from teacher_cache.class_map import ClassMap
from teacher_cache.class_map_file import Classes
from teacher_cache.teachers.classes import TeacherClasses, agree
from teacher_cache.teachers.contract import Card
from teacher_cache.teachers.elsewhere import RemoteAsked
from teacher_cache.teachers.remote.saying import Saying

log = logging.getLogger(__name__)

_PRECISION = "fp32"


def settled_map(asked: RemoteAsked, num_classes: int, names: tuple[str, ...] | None) -> ClassMap | None:
    """How a teacher's classes become the data's; None where they are those.

    Args:
        names: of its classes; None where nobody says them.

    Raises:
        InvalidInput: see `teacher_cache.teachers.classes.agree`.
    """
    if not asked.dataset.classes:
        # It is only described.
        return None
    own = identity_name(asked.name)
    classes = Classes("teacher", num_classes, None if names is None else tuple((name,) for name in names))
    known = TeacherClasses(classes, f"the classes of {own}", is_certain=names is not None)
    settled = agree(known, asked.dataset.name, asked.dataset.classes, asked.classes)
    if settled.taken is not None:
        log.info("%s does not say what its classes are called; they are taken to be %s", own, settled.taken)
    return settled.class_map


def declared_card(
    asked: RemoteAsked, rendering: Rendering, saying: Saying, declared: Mapping[str, Any], *, sees_numbers: bool
) -> Card:
    """The card of a teacher behind a network.

    Args:
        declared: what the server and the user say of it, as JSON takes it.
        sees_numbers: whether it is sent normalised pixels; otherwise the normalisation is the data set's, for students,
            and no part of the fingerprint.
    """
    parts: dict[str, Any] = {**declared, "input_size": rendering.input_size, "interpolation": rendering.interpolation}
    if sees_numbers:
        parts["normalisation"] = [rendering.normalisation.mean, rendering.normalisation.std]
    if saying.class_map is not None:
        parts["class_map"] = saying.class_map
    document = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return Card(
        identity=TeacherIdentity(
            name=identity_name(asked.name),
            fingerprint=hashlib.sha256(document.encode()).hexdigest(),
            num_classes=saying.num_classes,
            normalisation=rendering.normalisation,
            precision=_PRECISION,
            layers=(),
            input_size=rendering.input_size,
            interpolation=None if rendering.input_size is None else rendering.interpolation,
            class_map=saying.class_map,
        ),
        rendering=rendering,
        outputs=saying.outputs,
        parameters={},
        device="a server",
        answer=saying.form,
        strength="declared",
    )
