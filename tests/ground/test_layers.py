"""What a layer may be called, and what its name means."""

from __future__ import annotations

import pytest

from ground.layers import is_before, is_layer_name, is_stage, layer_of


@pytest.mark.parametrize("name", ["layer1", "layer1.pre", "blocks.3.mlp", "features.0-conv", "stem", "a" * 128])
def test_names_of_any_network_are_taken(name):
    assert is_layer_name(name)


@pytest.mark.parametrize(
    "name", ["", "logits", ".", "..", "a..b", ".a", "a.", "a/b", "../a", "a b", "é", "a" * 129, None]
)
def test_what_could_be_a_path_or_the_logits_is_no_layer(name):
    assert not is_layer_name(name)


def test_a_stage_is_any_layer_without_a_meaning_of_its_own():
    names = ["stem", "layer1", "blocks.0", "layer1.pre", "last", "pooled", "logits"]
    assert [name for name in names if is_stage(name)] == ["layer1", "blocks.0"]
    assert [name for name in names if is_before(name)] == ["layer1.pre"]
    assert [layer_of(name) for name in names[:4]] == ["stem", "layer1", "blocks.0", "layer1"]
