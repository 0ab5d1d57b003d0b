"""The benchmark of rules runs each of them, and draws the line that it says."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from benchmarks.selection import IMAGENET, RULES, extended, main
from teacher_cache.selection import SELECTORS


@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_measured_alone(name):
    given = ["--rule", name, "--candidates", "300", "--bought", "7", "--count", "5", "--width", "4", "--cpu-time"]
    result = CliRunner().invoke(main, given, catch_exceptions=False)
    seconds, peak = map(float, result.stdout.split())
    assert seconds >= 0
    assert peak > 1e6


def test_all_rules_are_measured_but_the_one_that_is_made_of_others():
    assert {*RULES} == {*SELECTORS, "nothing"} - {"mix"}


def test_the_line_goes_through_both_measurements_and_does_not_fall():
    assert extended((100, 200), [3.0, 5.0]) == 5.0 + 0.02 * (IMAGENET - 200)
    assert extended((100, 200), [5.0, 4.0]) == 4.0
