"""What rules have in common that spend calls on images made of those that were bought: other views, or mixes of two."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np

from ground.errors import InvalidInput
from ground.main_memory import free_main_memory
from ground.spec import Settings, joined_spec, spelled_settings, split_spec
from storage.made_images import MOST_IMAGES, is_made
from teacher_cache.selection.contract import Pool, Selector
from teacher_cache.selection.random_order import Random

_MOST_AMONG = 1000
# Of a candidate, of which four are drawn for one: its index, its parts, and what tells it from others.
_BYTES_EACH = 4 * 10 * 8


class MadeRule(Selector):
    """Makes `among` candidates for each row that is to be bought, and has another rule choose among them.

    It is written `NAME` or `NAME:by=RULE,among=8`, and a setting of that rule `RULE.key=value`. Nothing that was bought
    is made again.

    Attributes:
        fewest_images: of which anything can be made.

    Args:
        by: the rule that chooses; the one that takes the first ones as they are drawn, at random, where it is `random`.
        among: candidates for each.
    """

    makes = True
    fewest_images: ClassVar[int] = 1

    def __init__(self, by: Selector | None = None, among: int | None = None) -> None:
        self.by = Random() if by is None else by
        self.among = _usual_among(self.by.name) if among is None else among
        if not 1 <= self.among <= _MOST_AMONG:
            raise ValueError(f"among must be 1 to {_MOST_AMONG}, got {self.among}")
        if self.by.makes or self.by.needs_labels:
            raise ValueError(f"{self.by.name} cannot choose among images that are made; give by=random, or uncertain")

    @classmethod
    def made_of(cls, name: str, values: Mapping[str, str], make: Callable[[str], Selector]) -> Selector:
        """See `Selector.made_of`."""
        own, by, inner = _divided(name, values)
        settings = Settings("rule", name, own)
        arguments = settings.arguments(cls)
        settings.finish()
        if by is not None:
            arguments["by"] = make(joined_spec(by, inner))
        return settings.call(cls, arguments)

    @classmethod
    def spelled(cls, values: Mapping[str, str], spell: Callable[[str], str]) -> dict[str, str]:
        """See `Selector.spelled`: by which rule, where it is not random, and then that rule's settings."""
        own, by, inner = _divided(cls.name, values)
        rule, settings = split_spec(spell(joined_spec(by or Random.name, inner)))
        usual = spelled_settings(cls, own)
        if usual.get("among") == str(_usual_among(rule)):
            del usual["among"]
        chooses = {} if rule == Random.name else {"by": rule}
        return chooses | usual | {f"{rule}.{key}": value for key, value in settings.items()}

    @abstractmethod
    def candidates(self, pool: Pool, images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Recipes, (c,) int64, distinct and none of them bought; fewer than count where there are no more.

        Args:
            images: (b,) int64, those of the pool that were bought as they are, in order of purchase.
        """

    def num_images(self, count: int) -> int:
        """See `Selector.num_images`."""
        return 0

    def require(self, pool: Pool, count: int) -> None:
        """See `Selector.require`."""
        if len(pool.images) > MOST_IMAGES:
            raise InvalidInput(
                f"--select {self.name} is for pools of at most {MOST_IMAGES} images, and this one has "
                f"{len(pool.images)}; choose images instead"
            )
        needed, free = _BYTES_EACH * count * self.among, free_main_memory()
        if needed > free:
            raise InvalidInput(
                f"--select {self.name} needs {needed / 1e9:.1f} GB of memory to make {self.among} candidates for each "
                f"of {count} rows, and {free / 1e9:.1f} GB are free; give a smaller among, or buy in rounds"
            )

    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
        """See `Selector.choose`."""
        images = pool.bought[~is_made(pool.bought)]
        if len(images) < self.fewest_images:
            raise InvalidInput(
                f"--select {self.name} makes images of those that were bought, and {len(images)} were; buy some first, "
                f"or together, as mix:random=0.5,{self.name}=0.5"
            )
        made = self.candidates(pool, images, count * self.among, rng)
        if len(made) < count:
            raise InvalidInput(
                f"--select {self.name} is to make {count} images, and of the {len(images)} that were bought it found "
                f"{len(made)} that were not made before; lower --n, or buy more images first"
            )
        among = replace(pool, left=made)
        self.by.require(among, count)
        return self.by.choose(among, count, rng)

    def looked_at(self) -> Mapping[str, str]:
        """See `Selector.looked_at`: what the rule looked at that chose."""
        return self.by.looked_at()


def _divided(name: str, values: Mapping[str, str]) -> tuple[dict[str, str], str | None, dict[str, str]]:
    """Settings of a rule itself, the rule that chooses, and settings of that, in the order of their names."""
    own = {key: value for key, value in values.items() if "." not in key}
    by, inner = own.pop("by", None), dict[str, str]()
    for key in sorted(key for key in values if "." in key):
        rule, _, setting = key.partition(".")
        if rule != by:
            raise InvalidInput(f"rule {name}: {rule} has a setting and chooses nothing; write by={rule} too")
        inner[setting] = values[key]
    return own, by, inner


def _usual_among(by: str) -> int:
    return 1 if by == Random.name else 8
