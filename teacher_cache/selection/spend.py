"""What calls are spent on, said beside a rule for images: it becomes one rule, which is what is recorded."""

from __future__ import annotations

from ground.errors import InvalidInput, UnknownName
from ground.spec import split_spec, to_float
from teacher_cache.selection.mix import Mix
from teacher_cache.selection.mixes import BoughtCutMix, BoughtMixup
from teacher_cache.selection.random_order import Random
from teacher_cache.selection.views import Views

IMAGES = "images"
SPENT_ON = (IMAGES, Views.name, BoughtMixup.name, BoughtCutMix.name)


def spending_rule(rule: str, spend: str) -> str:
    """The rule that spends calls on more than images, or on other things.

    Args:
        rule: that chooses images, "kcenter:encoder=pixels".
        spend: "mixup", or shares as "images=0.5,mixup=0.5".

    Raises:
        UnknownName: calls cannot be spent on that.
        InvalidInput: shares cannot be read, or the rule is a mix already.
    """
    shares = split_spec(f"spend:{spend}")[1] if "=" in spend else {spend: "1"}
    for name in shares:
        if name not in SPENT_ON:
            raise UnknownName("thing to spend calls on", name, SPENT_ON)
    if len(shares) == 1 and not _is_all(*shares.values()):
        raise InvalidInput(f"--spend {spend} leaves the other calls open; shares must add up to 1")
    if list(shares) == [IMAGES]:
        return rule
    name, settings = split_spec(rule)
    if name == Mix.name or name in SPENT_ON:
        raise InvalidInput(f"--select {rule} says already what calls are spent on; leave out --spend")
    if IMAGES not in shares and name != Random.name:
        raise InvalidInput(
            f"--select {rule} chooses images, and --spend {spend} buys none; leave out --select, or have it choose "
            f"what is made, as --select mixup:by={name}"
        )
    if len(shares) == 1:
        return next(iter(shares))
    # Images first: the others are made of them.
    ordered = sorted(shares, key=SPENT_ON.index)
    parts = [f"{name if each == IMAGES else each}={shares[each]}" for each in ordered]
    inner = [f"{name}.{key}={value}" for key, value in settings.items()]
    return f"{Mix.name}:{','.join([*parts, *inner])}"


def _is_all(share: str) -> bool:
    try:
        return to_float(share) == 1
    except ValueError:
        return False
