"""Rules by name, with their settings, ours and others'."""

from __future__ import annotations

import importlib.metadata

import pytest

from ground.errors import InvalidInput, UnknownName
from teacher_cache.selection import SELECTORS, Selector, SelectorSpec, spelled
from teacher_cache.selection import rules as rules_module
from teacher_cache.selection.balanced import Balanced


def test_a_rule_is_made_of_its_text():
    assert isinstance(SelectorSpec.read("balanced").make(), Balanced)
    assert SelectorSpec.read("random:") == SelectorSpec("random")
    assert SelectorSpec.read("random").is_random
    assert not SelectorSpec.read("balanced").is_random


@pytest.mark.parametrize("name", SELECTORS)
def test_every_rule_says_where_it_is_from_and_is_called_what_it_is_listed_as(name):
    assert (SELECTORS[name].name, bool(SELECTORS[name].source)) == (name, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("balancd", "no rule is called 'balancd'; did you mean balanced"),
        ("balanced:by=class", "no setting of rule balanced is called 'by'"),
        ("balanced:by", "cannot read 'by'"),
    ],
)
def test_what_is_no_rule_is_refused(text, said):
    with pytest.raises((InvalidInput, UnknownName), match=said):
        SelectorSpec.read(text)


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        ("random:", "random"),
        ("kcenter:encoder=pixels", "kcenter"),
        ("kcenter:subset=none", "kcenter"),
        ("kcenter:subset=0040,encoder=runs/a", "kcenter:encoder=runs/a,subset=40"),
        ("typical:clusters=500,encoder=pixels,subset=7", "typical:subset=7"),
        ("committee:by=disagreement,run=a+b", "committee:run=a+b"),
        ("mixup:by=random,among=1,alpha=1.0", "mixup"),
        ("mixup:alpha=.50,among=8", "mixup:among=8,alpha=0.5"),
        ("cutmix:uncertain.subset=none,uncertain.run=a,among=8,by=uncertain", "cutmix:by=uncertain,uncertain.run=a"),
        ("views:by=uncertain,uncertain.run=a,among=1", "views:by=uncertain,among=1,uncertain.run=a"),
        ("mix:random=0.50,kcenter=.5,kcenter.encoder=pixels", "mix:random=0.5,kcenter=0.5"),
        ("mix:kcenter.subset=9,mixup.alpha=1,random=5e-1,mixup=0.25,kcenter=0.25",
         "mix:random=0.5,mixup=0.25,kcenter=0.25,kcenter.subset=9"),
        ("mixup:mix.random=0.50,mix.kcenter=0.5,mix.kcenter.encoder=pixels,by=mix",
         "mixup:by=mix,mix.kcenter=0.5,mix.random=0.5"),
    ],
)  # fmt: skip
def test_what_means_the_same_rule_is_written_in_one_way(text, usual):
    assert spelled(text) == spelled(usual) == usual
    assert SelectorSpec.read(text) == SelectorSpec.read(usual)
    assert settings_of(SelectorSpec(text).make()) == settings_of(SelectorSpec.read(text).make())


def settings_of(rule: Selector) -> object:
    """Everything that a rule was made of, with its class."""
    return type(rule), {
        name: settings_of(value)
        if isinstance(value, Selector)
        else [(settings_of(part), share) for part, share in value]
        if name == "parts"
        else value
        for name, value in vars(rule).items()
    }


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("mix:random=0.5,kcenter=0.5", "mix:kcenter=0.5,random=0.5"),
        ("kcenter", "kcenter:subset=500"),
        ("mixup:by=uncertain,uncertain.run=a", "mixup:by=uncertain,uncertain.run=b"),
    ],
)
def test_rules_that_choose_differently_are_written_differently(text, other):
    assert spelled(text) != spelled(other)
    assert not SelectorSpec.read(text).is_recorded_as(other)


def test_a_record_may_be_of_any_spelling_and_of_rules_that_are_not_here():
    rule = SelectorSpec.read("kcenter")
    assert all(map(rule.is_recorded_as, ["kcenter", "kcenter:encoder=pixels"]))
    assert not any(map(rule.is_recorded_as, ["gone:by=else", "kcenter:subset=3", "kcenter:kcenter", ""]))
    completed = SelectorSpec("kcenter:encoder=runs/a", written="kcenter:encoder={kd}")
    assert completed.is_recorded_as("kcenter:encoder={kd},subset=none")


@pytest.fixture
def registered(monkeypatch):
    """Have packages register things as rules."""

    def register(**named: str) -> None:
        points = [importlib.metadata.EntryPoint(name, value, "ckd.selectors") for name, value in named.items()]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
        rules_module._registered.cache_clear()

    yield register
    rules_module._registered.cache_clear()


class Flagged(Selector):
    """A rule of a user's own, with settings of every type and one that nobody can read."""

    name = "flagged"
    source = "these tests"

    def __init__(self, first: bool = False, share: float = 0.25, most: int | None = 9, *, by: str = "a") -> None:
        self.first, self.share, self.most, self.by = first, share, most, by

    def choose(self, pool, count, rng):
        return pool.left[:count]


def test_a_rule_of_a_package_is_written_in_one_way_too(registered):
    registered(flagged=f"{__name__}:Flagged")
    assert spelled("flagged:by=a,most=9,share=0.250,first=no") == "flagged"
    assert spelled("flagged:by=b,most=none,share=1,first=yes") == "flagged:first=true,share=1,most=none,by=b"
    assert spelled("flagged:kwargs=1,most=many") == "flagged:most=many,kwargs=1"  # which nobody can make


class Own(Flagged):
    """One that reads its settings itself, and has other defaults than its arguments."""

    @classmethod
    def made_of(cls, name, values, make):
        return cls(share=float(values.get("share", 0.5)))


def test_settings_that_a_rule_reads_itself_stay_as_they_are(registered):
    registered(own=f"{__name__}:Own")
    for text, share in (("own:share=0.25", 0.25), ("own:share=0.5", 0.5), ("own", 0.5)):
        assert SelectorSpec.read(text).text == text
        assert SelectorSpec.read(text).make().share == share


def test_a_package_adds_a_rule_and_takes_no_name_of_ours(registered):
    registered(mine="teacher_cache.selection.balanced:Balanced", random="tests.nowhere:Nothing")
    assert isinstance(SelectorSpec.read("mine").make(), Balanced)
    assert SelectorSpec.read("random").is_random


@pytest.mark.parametrize("address", ["teacher_cache.sample:draw_sample", "teacher_cache.selection:Selector"])
def test_what_a_package_registers_is_checked(registered, address):
    registered(mine=address)
    with pytest.raises(InvalidInput, match="mine is no rule; make it a subclass of"):
        SelectorSpec.read("mine")
