"""Rules by name: ours, and those that installed packages register under the entry-point group `ckd.selectors`."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from ground.errors import InvalidInput, UnknownName
from ground.spec import joined_spec, split_spec
from ground.user_code import import_address
from teacher_cache.selection.balanced import Balanced
from teacher_cache.selection.committee import Committee
from teacher_cache.selection.contract import Selector
from teacher_cache.selection.kcenter import KCenter
from teacher_cache.selection.margin import Margin
from teacher_cache.selection.mix import Mix
from teacher_cache.selection.mixes import BoughtCutMix, BoughtMixup
from teacher_cache.selection.random_order import Random
from teacher_cache.selection.typical import Typical
from teacher_cache.selection.uncertain import Uncertain
from teacher_cache.selection.views import Views

ENTRY_POINTS = "ckd.selectors"
SELECTORS: Mapping[str, type[Selector]] = {
    rule.name: rule
    for rule in (
        Random,
        Balanced,
        KCenter,
        Typical,
        Uncertain,
        Margin,
        Committee,
        Views,
        BoughtMixup,
        BoughtCutMix,
        Mix,
    )
}


@dataclass(frozen=True, slots=True)
class SelectorSpec:
    """A rule as a user writes it; it can be compared, hashed and sent to another process.

    Args:
        text: "kcenter:subset=4000", as `spelled` writes it where it was read.
        written: how it was asked for, where whoever asked had it completed; that is what is recorded.
    """

    text: str
    written: str | None = field(default=None, compare=False)

    @classmethod
    def read(cls, text: str) -> SelectorSpec:
        """The rule of a text; raises `UnknownName`, `InvalidInput` for none that there is."""
        cls(text).make()
        return cls(spelled(text))

    def make(self) -> Selector:
        """The rule itself, new."""
        name, values = split_spec(self.text)
        return find_selector(name).made_of(name, values, lambda text: SelectorSpec(text).make())

    @property
    def recorded(self) -> str:
        """What manifest and ledger say of it."""
        return self.written or self.text

    def is_recorded_as(self, text: str) -> bool:
        """Whether a manifest means this rule, which may have been written in another way."""
        return text == self.recorded or _spelled_or_as_it_is(text) == _spelled_or_as_it_is(self.recorded)

    @property
    def is_random(self) -> bool:
        """Whether it buys what the sample's seed gives anyway."""
        return self.text == Random.name


def spelled(text: str) -> str:
    """The one text of all that mean the same rule: settings in their order, as they are read, without defaults.

    Raises:
        UnknownName, InvalidInput: there is no such rule, or the text cannot be read. Settings are not checked.
    """
    name, values = split_spec(text)
    return joined_spec(name, find_selector(name).spelled(values, spelled))


def _spelled_or_as_it_is(text: str) -> str:
    """Of what was recorded, which may be a rule of a package that is not here."""
    try:
        return spelled(text)
    except InvalidInput:
        return text


def selector_names() -> list[str]:
    """Every name that `--select` takes."""
    return [*SELECTORS, *_registered()]


def find_selector(name: str) -> type[Selector]:
    """The class of a rule; raises `UnknownName`, or `InvalidInput` for what is registered as one and is none."""
    if name in SELECTORS:
        return SELECTORS[name]
    if name not in _registered():
        raise UnknownName("rule", name, selector_names())
    found = import_address(f"the rule {name}", _registered()[name].value)
    if not (isinstance(found, type) and issubclass(found, Selector)) or inspect.isabstract(found):
        raise InvalidInput(
            f"{name} is no rule; make it a subclass of teacher_cache.selection.Selector that defines choose"
        )
    return found


@cache
def _registered() -> Mapping[str, importlib.metadata.EntryPoint]:
    # Ours come first: a package cannot change what a known name means.
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in points if point.name not in SELECTORS}
