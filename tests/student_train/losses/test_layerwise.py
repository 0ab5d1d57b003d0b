"""A loss that is a sum over outputs: what it needs, what it requires, what it adds up."""

from __future__ import annotations

import pytest
import torch

from ground.errors import InvalidInput
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_maps
from tests.student_train.losses.checks import binding_for, signals_for


class Gap(LayerwiseLoss):
    """Difference of the means of two maps."""

    name = "gap"
    source = "a test"
    requires = (are_maps,)

    def __init__(self, layers="layer1+layer2"):
        super().__init__(layers)
        self.layers = layers

    def summands(self, signals):
        for student, teacher in self.outputs(signals):
            yield student.mean() - teacher.mean()


def test_it_adds_up_its_outputs_in_order():
    binding = binding_for({"layer1": (2, 4, 4), "layer2": (3, 2, 2)}, {"layer1": (5, 4, 4), "layer2": (1, 2, 2)})
    loss, signals = Gap(), signals_for(binding)
    loss.bind(binding)
    means = [
        signals.student.features[name].mean() - signals.teacher.features[name].mean() for name in ("layer1", "layer2")
    ]
    assert loss.needs.outputs == "layer1+layer2"
    assert torch.equal(loss(signals), means[0] + means[1])
    assert loss.settings == {"layers": "layer1+layer2"}


def test_what_it_requires_is_checked_before_anything_is_built():
    class Built(Gap):
        def build(self, binding):
            raise AssertionError("built for outputs that do not fit")

    with pytest.raises(InvalidInput, match="gap: both must be maps"):
        Built("pooled").bind(binding_for({"pooled": (4,)}, {"pooled": (4,)}))
