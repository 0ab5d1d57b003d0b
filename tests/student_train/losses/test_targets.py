"""Labels as masks, and the warm-up of released training loops."""

from __future__ import annotations

import pytest
import torch

from student_train.losses.targets import epoch_number, require_epochs, target_mask, warmed_up
from student_train.signals import Moment


def test_the_mask_is_true_at_the_class_of_each_sample():
    assert target_mask(torch.tensor([2, 0]), torch.zeros(2, 3)).tolist() == [[False, False, True], [True, False, False]]


@pytest.mark.parametrize("labels", [torch.zeros(1, dtype=torch.int64), torch.zeros(2), torch.zeros(2, 3)])
def test_labels_that_are_no_classes_of_the_samples_are_refused(labels):
    with pytest.raises(
        ValueError, match=r"labels are .*logits \(2, 3\); give the class of each sample, \(2,\) integers"
    ):
        target_mask(labels, torch.zeros(2, 3))


def test_epochs_are_counted_from_one():
    assert [epoch_number(Moment(epoch=epoch)) for epoch in (0.0, 0.99, 1.0, 7.5)] == [1, 1, 2, 8]


def test_warm_up_rises_to_one_in_steps_of_an_epoch():
    shares = [warmed_up(Moment(epoch=epoch), 4) for epoch in (0.0, 0.9, 1.0, 2.5, 3.0, 100.0)]
    assert shares == [0.25, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert warmed_up(Moment(), 0) == 1.0
    with pytest.raises(ValueError, match="warmup must be 0 or more epochs, got -1"):
        require_epochs(-1)
