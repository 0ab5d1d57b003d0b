"""A plan is data: it can be sent elsewhere, and says what a paid call must have kept."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ground.errors import InvalidInput
from models.compute import Compute
from teacher_cache.datasets import open_dataset
from teacher_cache.plan import BuildPlan
from teacher_cache.prepare import prepare_build
from teacher_cache.teachers import TeacherSource, untrained_teacher
from tests.teacher_cache.damage import config_of


def answered(*kept: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(outputs=kept)]


def plan_of(tmp_path, weights, **changes) -> BuildPlan:
    return prepare_build(config_of(tmp_path / "store", weights, n=12, features="pooled", views=2, **changes)).plan


def test_a_plan_survives_the_way_to_another_process(tmp_path, weights):
    plan = plan_of(tmp_path, weights)
    again = pickle.loads(pickle.dumps(plan))  # noqa: S301 - our own bytes
    assert (again.identity, again.config, again.rows) == (plan.identity, plan.config, plan.rows)
    assert again.input_digests == plan.input_digests
    np.testing.assert_array_equal(again.missing_cells, plan.missing_cells)


def test_a_plan_counts_every_view_of_every_row(tmp_path, weights):
    plan = plan_of(tmp_path, weights)
    assert (plan.n, plan.total_calls, plan.needed_calls, plan.paid_calls) == (12, 24, 24, 0)
    assert plan.missing_cells.tolist() == list(range(24))
    assert plan.input_of(7) == plan.input_digests[3][1]


def test_any_call_answers_for_a_build_and_only_one_with_the_new_outputs_for_an_extension(tmp_path, weights):
    plan = plan_of(tmp_path, weights)
    assert not plan.answered_by([])
    assert plan.answered_by(answered("logits"))
    wanting = replace(plan, required=frozenset({"layer1"}))
    assert not wanting.answered_by(answered("logits", "pooled"))
    assert wanting.answered_by([*answered("logits"), *answered("logits", "layer1")])


@pytest.mark.parametrize("field", ["name", "precision"])
@pytest.mark.parametrize("text", ["res\x1b[31mnet", "res\nnet", "res\u202enet", "res\udc80net"])
def test_a_teacher_whose_name_no_store_could_be_read_with_is_refused_before_any_call(tmp_path, weights, field, text):
    digits = open_dataset("digits")
    card = untrained_teacher(TeacherSource(name="resnet8"), digits, Compute.choose("cpu", "fp32")).card
    named = SimpleNamespace(card=replace(card, identity=replace(card.identity, **{field: text})))
    with pytest.raises(InvalidInput, match="a store of this teacher and data set could not be read again") as refused:
        prepare_build(config_of(tmp_path / "store", weights, n=12), digits, named)
    assert str(refused.value).isprintable()
    assert not (tmp_path / "store").exists()
