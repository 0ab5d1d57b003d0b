"""Anchoring: determine the one thing that comparisons leave open.

A difference between samples stays the same when one vector is added to the logits of every sample. A method whose
terms are all comparisons therefore never learns that vector: the head's bias gets no gradient, and which class wins
is decided by where the bias happens to be. The paper does not mention it. Here the bias is set, before each
evaluation, so that the mean logits over training rows are those that the method's losses pull single samples to.
No gradient of another weight depends on the bias, so all of them train as they would without; no call is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ground.errors import InvalidInput
from ground.views import evaluation_batches
from models import Network
from student_train.bound_method import BoundMethod
from student_train.data import StudentData
from student_train.method_spec import MethodSpec
from student_train.signals import Signals

_MAX_ROWS = 1024
_BATCH = 256


def require_head(student: Network, method: MethodSpec) -> None:
    """Raise `InvalidInput` for a student without a bias to set, where the method leaves the level open."""
    if method.is_anchored and student.head is None:
        raise InvalidInput(
            f"{method.name} learns from differences between samples, which leave the level of the logits open, and "
            "this student has no linear head whose bias could set it; give anchor=false, or another student"
        )


def leaves_level_open(student: Network, method: MethodSpec) -> bool:
    """Whether a trained student's bias is to be set; in the teacher's own layer (SimKD) it is the teacher's."""
    return method.is_anchored and student.head is not None and student.head.bias.requires_grad


def anchor(student: Network, data: StudentData, method: BoundMethod) -> None:
    """Set the head's bias from the first rows of the sample; the student is left in the mode it was in.

    Args:
        student: what is trained, or the average of its weights.
    """
    head = student.head
    assert head is not None, "refused by require_head before training"
    was_training = student.training
    student.eval()
    gaps = []
    rows = torch.arange(min(data.n, _MAX_ROWS))
    with torch.inference_mode():
        for part in rows.split(_BATCH):
            images, labels = data.images(part), data.train.labels[data.compute.to_device(part)]
            ((inputs, classes),) = evaluation_batches(images, labels, data.rendering, _BATCH)
            with data.compute.autocast():
                # Only logits are pulled anywhere, so no feature is kept.
                said = student.represent(inputs).only(())
            said, index = said.map(Tensor.float), data.compute.to_device(part)
            for view in range(data.manifest.identity.views):
                which = torch.full_like(part, view)
                ids = data.named_classes(part, which)
                mixed = None if data.train.mixed is None else data.train.mixed.of(index)
                answers = data.teacher(part, which, features=False)
                signals = Signals(said, answers, classes, index, ids=ids, mixed=mixed)
                target = method.logit_target(signals)
                if target is not None:
                    gaps.append(target - said.logits)
    if gaps:
        with torch.no_grad():
            head.bias.add_(torch.cat(gaps).mean(dim=0))
    student.train(was_training)
