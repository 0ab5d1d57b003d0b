"""What a loss is bound to, once, before training: the shapes of both networks and the facts of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ground.errors import InvalidInput
from student_train.needs import LayerPair, Needs

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Facts about this training; shapes are those of one sample, without the batch axis.

    Args:
        student: output name -> shape, "logits" and every layer the student can give.
        teacher: output name -> shape of what was loaded from the store.
        teacher_layers: every layer the teacher can give, stored or not.
        labels: (n,) int64 on the CPU, the class of each row.
        num_classes: K, of the data.
        num_views: V, stored views of each image.
        parameters: the teacher's, if asked for: "head/weight" (K, D), "head/bias" (K,), "norm/layer1/scale" (C,), ...
        student_head: the student's last layer, for losses that go through it; not theirs to train or save.
    """

    student: Mapping[str, Shape]
    teacher: Mapping[str, Shape]
    teacher_layers: Sequence[str]
    labels: Tensor
    num_classes: int
    num_views: int = 1
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    student_head: nn.Linear | None = None

    @property
    def num_rows(self) -> int:
        """n, rows of the store that are trained on."""
        return len(self.labels)

    def pairs(self, needs: Needs) -> tuple[LayerPair, ...]:
        """See `Needs.pairs`."""
        # Each once: stages of networks that share no name are paired by their places.
        return needs.pairs(list(self.student), list(dict.fromkeys([*self.teacher_layers, *self.teacher])))

    def shapes(self, pairs: Sequence[LayerPair]) -> list[tuple[Shape, Shape]]:
        """(student's, teacher's) shape of each pair."""
        return [(self.student[ours], self.teacher[theirs]) for ours, theirs in pairs]

    def misfit(self, loss: str, reason: str, pairs: Sequence[LayerPair]) -> InvalidInput:
        """An error to raise: why a loss cannot bind these layers, with a table of them.

        Args:
            reason: one sentence, what is wrong and what to do.
        """
        rows = [("student layer", "shape", "teacher layer", "shape")]
        rows += [(ours, _shown(self.student[ours]), theirs, _shown(self.teacher[theirs])) for ours, theirs in pairs]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )
        return InvalidInput(f"{loss}: {reason}\n" + "\n".join(f"  {line}" for line in lines))


def _shown(shape: Shape) -> str:
    return " x ".join(map(str, shape))
