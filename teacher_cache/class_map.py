"""Which of a teacher's classes mean a class of the data, and what becomes of its logits and its head.

A map is a tuple: for each class of the data, in their order, the teacher's classes that mean it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ClassMap = tuple[tuple[int, ...], ...]


def is_one_to_one(class_map: ClassMap) -> bool:
    """Whether no class of the data has several of the teacher's."""
    return all(len(group) == 1 for group in class_map)


def mapped_logits(logits: Tensor, class_map: ClassMap) -> Tensor:
    """Logits over the data's classes.

    Where several classes mean one, their probabilities are added: the log of the sum of the exponentials of their
    logits. So softmax gives the teacher's probabilities of the data's classes, divided by their sum; those of all other
    classes are left out.

    Args:
        logits: (B, K) of the teacher's classes.

    Returns:
        (B, len(class_map)); one to one these are the same numbers.
    """
    mapped = logits[:, [group[0] for group in class_map]]
    for place, group in enumerate(class_map):
        if len(group) > 1:
            several = logits[:, list(group)]
            # Half precision would round the sum.
            exact = several.float() if several.itemsize < 4 else several
            mapped = mapped.to(exact.dtype)
            mapped[:, place] = exact.logsumexp(dim=1)
    return mapped


def rows_of_head(num_classes: int, class_map: ClassMap | None) -> list[int]:
    """Rows of a head, in the order in which they give mapped logits; none where several classes mean one."""
    if class_map is None:
        return list(range(num_classes))
    return [group[0] for group in class_map] if is_one_to_one(class_map) else []


def described(class_map: ClassMap, num_classes: int) -> str:
    """For people."""
    if is_one_to_one(class_map):
        return f"{len(class_map)} of the teacher's {num_classes}, by a class map, one to one"
    used = sum(map(len, class_map))
    return f"{len(class_map)} from {used} of the teacher's {num_classes}, by a class map, probabilities added"
