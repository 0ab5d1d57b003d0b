"""Rows without a label: which methods can learn from them, and the refusal of those that cannot."""

from __future__ import annotations

import torch
from torch import Tensor

from ground.errors import InvalidInput
from storage.schema import UNLABELLED
from student_train.losses import LOSSES
from student_train.method_spec import MethodSpec
from student_train.sampling import ClassSampling


def require_labels(method: MethodSpec, labels: Tensor, source: object) -> None:
    """Refuse rows without a label where a method reads labels.

    Args:
        labels: (n,) int64, of the rows that are to be trained on.
        source: what they are from, for the message.

    Raises:
        InvalidInput: the message names what reads labels, and the losses that do not.
    """
    unlabelled = int(torch.count_nonzero(labels == UNLABELLED))
    readers = label_readers(method)
    if not unlabelled or not readers:
        return
    fitting = ", ".join(name for name, kind in LOSSES.items() if not kind().needs.reads_labels)
    raise InvalidInput(
        f"{unlabelled} of {len(labels)} rows of {source} have no label, and {' and '.join(readers)} of {method.name} "
        f"cannot do without; give a sum of losses that can, as --loss kd: {fitting}"
    )


def label_readers(method: MethodSpec) -> list[str]:
    """What of a method reads labels: losses by name, and how batches are drawn."""
    readers = [name for name, needs in zip(method.term_names, method.needs, strict=True) if needs.reads_labels]
    return [*readers, "batches by class"] if isinstance(method.sampling, ClassSampling) else readers
