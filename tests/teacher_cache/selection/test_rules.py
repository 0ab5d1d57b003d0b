"""Rules by name, with their settings, ours and others'."""

from __future__ import annotations

import importlib.metadata

import pytest

from ground.errors import InvalidInput, UnknownName
from teacher_cache.selection import SELECTORS, SelectorSpec
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


@pytest.fixture
def registered(monkeypatch):
    """Have packages register things as rules."""

    def register(**named: str) -> None:
        points = [importlib.metadata.EntryPoint(name, value, "ckd.selectors") for name, value in named.items()]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
        rules_module._registered.cache_clear()

    yield register
    rules_module._registered.cache_clear()


def test_a_package_adds_a_rule_and_takes_no_name_of_ours(registered):
    registered(mine="teacher_cache.selection.balanced:Balanced", random="tests.nowhere:Nothing")
    assert isinstance(SelectorSpec.read("mine").make(), Balanced)
    assert SelectorSpec.read("random").is_random


@pytest.mark.parametrize("address", ["teacher_cache.sample:draw_sample", "teacher_cache.selection:Selector"])
def test_what_a_package_registers_is_checked(registered, address):
    registered(mine=address)
    with pytest.raises(InvalidInput, match="mine is no rule; make it a subclass of"):
        SelectorSpec.read("mine")
