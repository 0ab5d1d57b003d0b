"""Mix: shares of a round by several rules, one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import numpy as np

from ground.errors import InvalidInput
from ground.spec import joined_spec, spelled_value, split_spec, to_float
from teacher_cache.selection.contract import Pool, Selector, require_labelled, require_left


class Mix(Selector):
    """Each rule chooses its share of what those before it left, and takes what they chose as bought.

    It is written `mix:RULE=SHARE,RULE=SHARE`, and a setting of one of the rules `RULE.key=value`:
    `mix:uncertain=0.5,random=0.5,uncertain.run=runs/a`. Shares add up to 1; the numbers of images are those of the sums
    of shares, rounded, so that they add up to the round.

    Args:
        parts: rules with their shares, in their order.
    """

    name: ClassVar[str] = "mix"
    source: ClassVar[str] = "of no paper: rules that look for hard images are held to some of another kind"

    def __init__(self, parts: Sequence[tuple[Selector, float]]) -> None:
        if not math.isclose(sum(share for _, share in parts), 1):
            shares = " + ".join(f"{share:g}" for _, share in parts)
            raise ValueError(f"shares must add up to 1, got {shares or 'none'}; write mix:kcenter=0.5,random=0.5")
        if not all(share > 0 for _, share in parts):
            raise ValueError("shares must be above 0; leave out a rule that chooses nothing")
        self.parts = tuple(parts)
        self.needs_labels = any(rule.needs_labels for rule, _ in parts)
        self.makes = any(rule.makes for rule, _ in parts)

    @classmethod
    def made_of(cls, name: str, values: Mapping[str, str], make: Callable[[str], Selector]) -> Selector:
        """See `Selector.made_of`."""
        shares, settings = _divided(values)
        for rule in settings:
            if rule not in shares:
                raise InvalidInput(f"rule {name}: {rule} has a setting and no share; write {rule}=SHARE too")
        if name in shares:
            raise InvalidInput(f"rule {name}: a mix is no part of one; give the shares of its rules")
        parts = [(make(joined_spec(rule, settings.get(rule, {}))), _share(name, rule, shares[rule])) for rule in shares]
        try:
            return cls(parts)
        except ValueError as error:
            raise InvalidInput(f"rule {name}: {error}") from error

    @classmethod
    def spelled(cls, values: Mapping[str, str], spell: Callable[[str], str]) -> dict[str, str]:
        """See `Selector.spelled`: shares, whose order is that of the rules, and then the settings of each."""
        shares, settings = _divided(values)
        usual = {rule: split_spec(spell(joined_spec(rule, settings.get(rule, {}))))[1] for rule in shares}
        numbers = {rule: spelled_value(_share(cls.name, rule, share)) for rule, share in shares.items()}
        return numbers | {f"{rule}.{key}": value for rule, found in usual.items() for key, value in found.items()}

    def num_images(self, count: int) -> int:
        """See `Selector.num_images`."""
        numbers = self._numbers(count)
        return sum(rule.num_images(number) for (rule, _), number in zip(self.parts, numbers, strict=True))

    def require(self, pool: Pool, count: int) -> None:
        """See `Selector.require`."""
        require_left(pool, self.num_images(count))
        for (rule, _), number in zip(self.parts, self._numbers(count), strict=True):
            if number:
                require_labelled(rule, pool)
                rule.require(pool, number)

    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
        """See `Selector.choose`."""
        chosen = np.empty(0, dtype=np.int64)
        for (rule, _), number in zip(self.parts, self._numbers(count), strict=True):
            if not number:
                continue
            left = pool.left[~np.isin(pool.left, chosen)]
            after = replace(pool, left=left, bought=np.concatenate([pool.bought, chosen]))
            chosen = np.concatenate([chosen, rule.choose(after, number, rng)])
        return chosen

    def looked_at(self) -> Mapping[str, str]:
        """See `Selector.looked_at`: what each rule looked at, after its name."""
        return {f"{rule.name}.{name}": value for rule, _ in self.parts for name, value in rule.looked_at().items()}

    def _numbers(self, count: int) -> list[int]:
        """Of each rule in a round, which add up to it."""
        sums = np.cumsum([0.0, *(share for _, share in self.parts)])
        return [round(count * high) - round(count * low) for low, high in pairwise(sums)]


def _divided(values: Mapping[str, str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Shares of rules, and settings of each rule."""
    shares, settings = dict[str, str](), dict[str, dict[str, str]]()
    for key, value in values.items():
        rule, dot, setting = key.partition(".")
        if not dot:
            shares[rule] = value
        else:
            settings.setdefault(rule, {})[setting] = value
    return shares, settings


def _share(name: str, rule: str, text: str) -> float:
    try:
        return to_float(text)
    except ValueError:
        raise InvalidInput(f"rule {name} takes a number as the share of {rule}, got {text!r}") from None
