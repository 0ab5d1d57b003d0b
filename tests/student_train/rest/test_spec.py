"""Losses of the rest are data: read from text, compared, sent elsewhere, recorded."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from ground.errors import InvalidInput, UnknownName
from storage.store import Store
from student_train.methods import parse_method
from student_train.rest.spec import REST_LOSSES, RestSpec, parse_rest, require_rest


def test_text_is_read_with_its_settings_and_recorded_whole():
    labels, pseudo = parse_rest(["ce:weight=2", "pseudo:confidence=0.8,ratio=3"])
    assert labels.describe() == {"loss": "ce", "weight": 2.0, "ratio": labels.make().ratio, "ramp": 0.0}
    assert pseudo.describe()["confidence"] == 0.8
    assert (pseudo.make().confidence, pseudo.make().ratio) == (0.8, 3.0)
    assert pickle.loads(pickle.dumps(pseudo)) == pseudo  # noqa: S301 - its own
    assert {pseudo: 1}[RestSpec.read("pseudo:ratio=3,confidence=0.8")] == 1
    assert parse_rest([]) == ()


def test_what_is_no_loss_of_the_rest_or_is_given_twice_is_refused():
    with pytest.raises(UnknownName, match="no loss of the rest is called 'kd'; known: .*ce"):
        parse_rest(["kd"])
    with pytest.raises(InvalidInput, match="--rest ce is given twice"):
        parse_rest(["ce", "pseudo", "ce:weight=2"])


@pytest.mark.parametrize("name", sorted(set(REST_LOSSES) - {"proxy"}))
def test_every_loss_has_defaults_and_a_source(name):
    (spec,) = parse_rest([name])
    assert spec.make().source
    assert spec.make().ratio > 0


def test_labels_alone_are_learned_by_no_method_that_needs_answers_and_without_weights(rest_store):
    store, labels = Store.open(rest_store), parse_rest(["ce"])
    require_rest(labels, store, 0, asks_teacher=False)
    require_rest(parse_rest(["ce", "pseudo:ratio=2"]), store, 0, asks_teacher=False)
    with pytest.raises(InvalidInput, match="--n 0 learns from no answer of the teacher, and this method needs some"):
        require_rest(labels, store, 0, asks_teacher=True)
    with pytest.raises(InvalidInput, match="whose views nobody saw; give another --student-view"):
        require_rest(labels, store, 0, asks_teacher=False, student_view="teacher")
    with pytest.raises(InvalidInput, match="--n 0 draws all labelled rows alike"):
        require_rest(parse_rest(["ce:weight=3"]), store, 0, asks_teacher=False)
    require_rest(parse_rest(["ce:weight=none"]), store, 0, asks_teacher=False)


def test_a_recipe_names_its_rest_only_where_there_is_one():
    method = parse_method("ckd")
    assert "rest" not in method.describe()
    with_labels = replace(method, rest=parse_rest(["ce"]))
    assert [loss["loss"] for loss in with_labels.describe()["rest"]] == ["ce"]
    # Labels set the level that comparisons leave open; what the student says itself does not.
    assert method.is_anchored
    assert not with_labels.is_anchored
    assert replace(method, rest=parse_rest(["pseudo"])).is_anchored
