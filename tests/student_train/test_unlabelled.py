"""Which methods can learn from rows without a label; that the others are refused, tests/test_own_images.py shows."""

from __future__ import annotations

import pytest
import torch

from ground.errors import InvalidInput
from student_train.method_spec import LossSpec, MethodSpec
from student_train.methods import parse_losses, parse_method
from student_train.sampling import ClassSampling
from student_train.unlabelled import label_readers, require_labels


def test_what_reads_labels_of_a_method_is_named():
    assert label_readers(parse_method("ckd")) == ["match_labels"]
    assert label_readers(parse_method("kd:ce=0")) == []
    by_class = MethodSpec("kd", (LossSpec("kd"),), ClassSampling())
    assert label_readers(by_class) == ["batches by class"]


def test_rows_that_all_have_a_label_are_for_every_method_and_one_without_is_not(tmp_path):
    labels = torch.tensor([0, 1, 1, 0])
    require_labels(parse_method("ckd"), labels, tmp_path)
    labels[2] = -1
    require_labels(parse_losses(["kd", "match_logits:compared=true"]), labels, tmp_path)
    with pytest.raises(
        InvalidInput, match="1 of 4 rows of .* have no label, and match_labels of ckd cannot do without"
    ):
        require_labels(parse_method("ckd"), labels, tmp_path)
