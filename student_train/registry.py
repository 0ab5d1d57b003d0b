"""Losses by name: ours, those that installed packages register, and a user's own class.

Packages register under the entry-point group `ckd.losses`, and are imported when one of their losses is asked for. A
class may also be given as `package.module:Class`, where the user allows it (`ground.user_code`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ground.errors import InvalidInput, UnknownName
from ground.user_code import UserCode, import_address, import_user_code
from student_train.losses import LOSSES, DistillationLoss
from student_train.signals import Signals

ENTRY_POINTS = "ckd.losses"


class UnseenLoss(DistillationLoss):
    """In the place of a user's loss that a dry run does not import; it is taken to need the logits of both networks.

    Args:
        settings: whatever was given.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._given = settings

    @property
    def settings(self) -> dict[str, Any]:
        """As they were given, not checked."""
        return dict(self._given)

    def forward(self, signals: Signals) -> Tensor:
        """It is only planned with."""
        raise AssertionError("nothing is trained in a dry run")


def loss_names() -> list[str]:
    """Every name that `--loss` takes."""
    return [*LOSSES, *_registered()]


def find_loss(name: str, code: UserCode = UserCode.REFUSED) -> type[DistillationLoss]:
    """The class of a loss.

    Args:
        name: one of `loss_names`, or "package.module:Class".
        code: whether the latter is imported; where it is to stay unseen, an `UnseenLoss` stands in its place.

    Raises:
        UnknownName: there is no such loss.
        InvalidInput: a class of the user's is not allowed, cannot be imported, or is no loss.
    """
    if name in LOSSES:
        return LOSSES[name]
    what = f"the loss {name}"
    if name in _registered():
        return _checked(name, import_address(what, _registered()[name].value))
    if ":" not in name:
        raise UnknownName("loss", name, loss_names(), listed_by="ckd-train losses")
    if name.partition(":")[0].partition(".")[0] in _installed():
        return _checked(name, import_address(what, name))
    return UnseenLoss if code is UserCode.UNSEEN else _checked(name, import_user_code(what, name, code))


def loss_name(loss: DistillationLoss | type[DistillationLoss]) -> str:
    """What a run records: the name, or "package.module:Class" for a class that has none in the table."""
    kind = loss if isinstance(loss, type) else type(loss)
    return kind.name if LOSSES.get(kind.name) is kind else f"{kind.__module__}:{kind.__qualname__}"


def own_code(loss: type[DistillationLoss]) -> dict[str, str]:
    """For a class that is not ours, a digest of its module: no run is resumed with other code under the same name."""
    if loss is UnseenLoss or loss_name(loss) == loss.name:
        return {}
    path = getattr(sys.modules[loss.__module__], "__file__", None)
    return {} if path is None else {"code": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


@cache
def _registered() -> Mapping[str, importlib.metadata.EntryPoint]:
    # Ours come first: a package cannot change what a known name means.
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in points if point.name not in LOSSES}


@cache
def _installed() -> frozenset[str]:
    """Packages whose losses are run without being allowed: ours, and what registers some."""
    return frozenset({"student_train", *(point.module.partition(".")[0] for point in _registered().values())})


def _checked(name: str, found: object) -> type[DistillationLoss]:
    if not (isinstance(found, type) and issubclass(found, DistillationLoss)):
        raise InvalidInput(f"{name} is no loss; make it a subclass of student_train.losses.DistillationLoss")
    if inspect.isabstract(found):
        raise InvalidInput(f"{name} has no forward; define forward(self, signals), which returns a scalar tensor")
    return found
