"""Mix: shares of a round by several rules, one after another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput, UnknownName
from teacher_cache.selection import SelectorSpec
from teacher_cache.selection.contract import require_labelled
from teacher_cache.selection.kcenter import KCenter
from tests.teacher_cache.selection.pools import pool_of


def test_each_rule_chooses_of_what_those_before_it_left_and_knows_what_they_chose():
    pool = pool_of([0, 1, 2, 3] * 10, bought=5)
    chosen = SelectorSpec.read("mix:random=0.4,kcenter=0.6").make().choose(pool, 10, np.random.default_rng(0))
    after = replace(pool, left=pool.left[4:], bought=np.concatenate([pool.bought, pool.left[:4]]))
    by_distance = KCenter().choose(after, 6, np.random.default_rng(0))
    assert chosen.tolist() == [*pool.left[:4].tolist(), *by_distance.tolist()]


@given(st.integers(1, 35), st.integers(1, 9))
def test_shares_are_of_the_whole_round_and_nothing_comes_twice(count, tenths):
    pool = pool_of([0, 1, 2, 3] * 10, bought=5)
    rule = SelectorSpec.read(f"mix:balanced={tenths / 10},random={1 - tenths / 10}").make()
    chosen = rule.choose(pool, count, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == count
    balanced = SelectorSpec.read("balanced").make().choose(pool, count, np.random.default_rng(0)).tolist()
    number = round(count * tenths / 10)
    assert chosen.tolist()[:number] == balanced[:number]


def test_settings_of_its_rules_are_theirs():
    rule = SelectorSpec.read("mix:kcenter=0.5,random=0.5,kcenter.subset=9").make()
    assert [getattr(part, "subset", None) for part, _ in rule.parts] == [9, None]
    pool = pool_of([0] * 40)
    assert set(rule.choose(pool, 4, np.random.default_rng(0))[:2]) <= set(pool.left[:9])
    assert list(rule.looked_at()) == ["kcenter.encoder"]
    with pytest.raises(InvalidInput, match="give a subset of 10 at least"):
        rule.require(pool, 20)


def test_it_looks_at_labels_where_one_of_its_rules_does():
    assert SelectorSpec.read("mix:balanced=0.5,random=0.5").make().needs_labels
    assert not SelectorSpec.read("mix:kcenter=0.5,random=0.5").make().needs_labels
    unlabelled = pool_of([0, 1, 2, -1] * 5)
    rule = SelectorSpec.read("mix:random=0.5,balanced=0.5").make()
    for refuse in (lambda: require_labelled(rule, unlabelled), lambda: rule.require(unlabelled, 4)):
        with pytest.raises(InvalidInput, match="images that may be bought have none"):
            refuse()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mix", "shares must add up to 1, got none"),
        ("mix:random=0.5,balanced=0.4", r"got 0\.5 \+ 0\.4"),
        ("mix:random=1.5,balanced=-0.5", "shares must be above 0"),
        ("mix:random=much,balanced=0.5", "takes a number as the share of random"),
        ("mix:nothing=0.5,random=0.5", "no rule is called 'nothing'"),
        ("mix:random=1,kcenter.subset=5", "kcenter has a setting and no share"),
        ("mix:random=1,random.subset=5", "no setting of rule random"),
        ("mix:mix=1", "a mix is no part of one"),
    ],
)
def test_what_is_no_mix_is_refused(text, said):
    with pytest.raises((InvalidInput, UnknownName), match=said):
        SelectorSpec.read(text)
