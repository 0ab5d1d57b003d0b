"""Methods from text: what `--method`, and `--loss` with `--comparison`, stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ground.errors import InvalidInput, UnknownName
from ground.spec import Settings, argument_names, split_spec
from ground.user_code import UserCode
from student_train.auto_weights import LOSS_WEIGHTS, METHOD_WEIGHTS, refuse_auto
from student_train.method_spec import TERM_SETTINGS, USUAL_WEIGHT, LossSpec, MethodSpec
from student_train.pairing import PAIRINGS
from student_train.recipes import METHODS, published
from student_train.registry import UnseenLoss, find_loss, loss_names


def method_names() -> list[str]:
    """What `--method` takes: the paper's methods, and every loss by its recipe."""
    return list(dict.fromkeys([*METHODS, *loss_names()]))


def parse_method(text: str) -> MethodSpec:
    """A named method with its settings, for instance "ckd:pairs=all".

    Raises:
        UnknownName, InvalidInput: there is no such method or setting, or a value is refused.
    """
    refuse_auto(text, METHOD_WEIGHTS)
    return _method(text)[0]


def default_of_method(text: str, setting: str) -> Any:
    """What a named method has for a setting that is not given.

    Args:
        text: it with any value of that setting.

    Raises:
        UnknownName, InvalidInput: as `parse_method`.
    """
    return _method(text)[1].defaults[setting]


def _method(text: str) -> tuple[MethodSpec, Settings]:
    name, values = split_spec(text)
    settings = Settings("method", name, values)
    if name in METHODS:
        make = METHODS[name]
    elif name in loss_names():
        make = published(name, find_loss(name))
    else:
        raise UnknownName("method", name, method_names(), listed_by="ckd-train methods")
    method = make(settings)
    settings.finish()
    return method, settings


def parse_losses(specs: Sequence[str], pairing: str | None = None, code: UserCode = UserCode.REFUSED) -> MethodSpec:
    """The user's own sum of losses.

    Args:
        specs: as "kd:temperature=4,weight=0.9"; `weight`, `compared` and `standardised` are understood for every loss,
            and "package.module:Class:key=value" is a loss of the user's own.
        pairing: how compared losses pair samples, as "sampled:positives=2" or "all"; None is "sampled".
        code: whether classes of the user's are imported.
    """
    losses = tuple(_parse_loss(spec, code) for spec in specs)
    name = "+".join(specs)
    if not any(loss.compared for loss in losses):
        if pairing is not None:
            raise InvalidInput("--comparison is for losses with compared=true, and there is none; leave it out")
        return MethodSpec(name, losses)
    kind, values = split_spec(pairing or "sampled")
    if kind not in PAIRINGS:
        raise UnknownName("comparison", kind, PAIRINGS)
    settings = Settings("comparison", kind, values)
    chosen = settings.build(PAIRINGS[kind])
    settings.finish()
    return MethodSpec(name, losses, chosen.sampling, chosen.comparison, anchor=chosen.anchor)


def _parse_loss(spec: str, code: UserCode) -> LossSpec:
    refuse_auto(spec, LOSS_WEIGHTS)
    name, values = split_spec(spec)
    settings = Settings("loss", name, values)
    weight = settings.take("weight", USUAL_WEIGHT)
    flags = {flag: settings.take(flag, False) for flag in ("compared", "standardised")}
    kind = find_loss(name, code)
    if kind is UnseenLoss:
        return LossSpec(name, settings.rest(), weight, **flags, code=code)
    taken = set(TERM_SETTINGS).intersection(argument_names(kind))
    if taken:
        raise InvalidInput(
            f"the loss {name} has an argument {taken.pop()}, which every loss takes with another meaning; rename it"
        )
    loss = LossSpec.from_settings(kind, settings, weight, **flags, code=code)
    settings.finish()
    return loss
