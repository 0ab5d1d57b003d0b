"""Losses by name: ours, those that installed packages register, and a user's own class.

Packages register under the entry-point group `ckd.losses`. A class may also be given as `package.module:Class`; its
module is looked for in the working directory too.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from ground.errors import InvalidInput, UnknownName
from student_train.losses import LOSSES, DistillationLoss

ENTRY_POINTS = "ckd.losses"


def loss_names() -> list[str]:
    """Every name that `--loss` takes."""
    return [*LOSSES, *_registered()]


def find_loss(name: str) -> type[DistillationLoss]:
    """The class of a loss.

    Args:
        name: one of `loss_names`, or "package.module:Class".

    Raises:
        UnknownName: there is no such loss.
        InvalidInput: a class of the user's cannot be imported, or is no loss.
    """
    if name in LOSSES:
        return LOSSES[name]
    if name in _registered():
        return _checked(name, _registered()[name].value)
    if ":" in name:
        return _checked(name, name)
    raise UnknownName("loss", name, loss_names(), listed_by="ckd-train losses")


def loss_name(loss: DistillationLoss | type[DistillationLoss]) -> str:
    """What a run records: the name, or "package.module:Class" for a class that has none in the table."""
    kind = loss if isinstance(loss, type) else type(loss)
    return kind.name if LOSSES.get(kind.name) is kind else f"{kind.__module__}:{kind.__qualname__}"


def own_code(loss: type[DistillationLoss]) -> dict[str, str]:
    """For a class that is not ours, a digest of its module: no run is resumed with other code under the same name."""
    if loss_name(loss) == loss.name:
        return {}
    path = getattr(sys.modules[loss.__module__], "__file__", None)
    return {} if path is None else {"code": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


@cache
def _registered() -> Mapping[str, importlib.metadata.EntryPoint]:
    # Ours come first: a package cannot change what a known name means.
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in points if point.name not in LOSSES}


def _checked(name: str, address: str) -> type[DistillationLoss]:
    module, _, qualname = address.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: object = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception as error:
        # Importing runs code that is not ours, which may fail in any way.
        raise InvalidInput(
            f"the loss {name} cannot be imported ({type(error).__name__}: {error}); give it as package.module:Class, "
            "from a module that Python can find here"
        ) from error
    if not (isinstance(found, type) and issubclass(found, DistillationLoss)):
        raise InvalidInput(f"{name} is no loss; make it a subclass of student_train.losses.DistillationLoss")
    if inspect.isabstract(found):
        raise InvalidInput(f"{name} has no forward; define forward(self, signals), which returns a scalar tensor")
    return found
