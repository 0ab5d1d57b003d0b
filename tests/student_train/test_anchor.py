"""Anchoring needs a bias to set; what it does to one is tested with the trainer it serves (test_trainer.py)."""

from __future__ import annotations

import pytest

from ground.errors import InvalidInput
from models import create_model
from models.staged import StagedNetwork
from student_train.anchor import require_head
from student_train.methods import parse_method


@pytest.fixture
def headless(monkeypatch):
    network = create_model("resnet8", 10, seed=0)
    monkeypatch.setattr(type(network), "head", None)
    assert isinstance(network, StagedNetwork)
    return network


def test_a_method_that_leaves_the_level_open_is_refused_for_a_student_without_a_head(headless):
    with pytest.raises(InvalidInput, match="no linear head whose bias could set it; give anchor=false"):
        require_head(headless, parse_method("ckd"))


@pytest.mark.parametrize("method", ["kd", "ckd:anchor=false"])
def test_methods_that_set_no_bias_need_no_head(headless, method):
    require_head(headless, parse_method(method))
