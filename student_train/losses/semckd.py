"""SemCKD: every student layer against every teacher layer, by an association that is learned.

Source: Chen et al. 2021, Cross-Layer Distillation with Semantic Calibration, AAAI, arXiv:2012.03236.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student_train.binding import Binding
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.batch_norm import LenientBatchNorm2d
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.requirements import are_maps
from student_train.losses.tensors import MAPS, flat, pooled_to, raised, same_shape, smaller_size, sum_of_squares, unit
from student_train.needs import Needs
from student_train.signals import Signals

Maps = Sequence[Tensor]


def semckd(projected: Sequence[Maps], targets: Sequence[Maps], weights: Tensor) -> Tensor:
    """Weighted mean squared error of each student layer to all teacher layers, mean over samples and student layers.

    Source: Chen et al. 2021, arXiv:2012.03236, section on semantic calibration (the loss); mean over student layers
    as in the released code.

    Args:
        projected: (B, C_j, H_ij, W_ij) at [i][j]: student layer i of S, brought to teacher layer j of T.
        targets: (B, C_j, H_ij, W_ij) at [i][j]: teacher layer j, at the size that student layer i is compared in.
        weights: (B, S, T), of the teacher layers for each sample and student layer; from `association`.

    Raises:
        ValueError: shapes or numbers of layers do not fit.
    """
    (weights,) = raised(weights)
    if [len(row) for row in projected] != [len(row) for row in targets] or not (projected and projected[0]):
        raise ValueError("every student layer needs as many targets as projections, and at least one")
    errors = torch.stack([_errors(ours, theirs) for ours, theirs in zip(projected, targets, strict=True)], dim=1)
    if errors.shape != weights.shape:
        raise ValueError(
            f"weights are {tuple(weights.shape)}; these maps need {tuple(errors.shape)}, samples x student layers x "
            "teacher layers"
        )
    return (weights * errors).sum() / errors[..., 0].numel()


def association(queries: Tensor, keys: Tensor) -> Tensor:
    """Softmax over teacher layers of query . key, for each sample and student layer: (B, S, T).

    Source: Chen et al. 2021, arXiv:2012.03236, section on layer association.

    Args:
        queries: (B, S, D), of student layers.
        keys: (B, T, D), of teacher layers.
    """
    return torch.softmax(queries @ keys.mT, dim=2)


def similarities(maps: Tensor, others: int) -> Tensor:
    """Inner products of each sample's map with those of the first `others` samples; zero where there are fewer.

    Source: Chen et al. 2021, arXiv:2012.03236, section on layer association.

    Args:
        maps: (B, ...).

    Returns:
        (B, others).
    """
    (vectors,) = raised(flat(maps))
    products = vectors @ vectors[:others].mT
    return F.pad(products, (0, others - products.shape[1]))


class SemCKD(DistillationLoss):
    """Mean over samples, student layers i of sum_j a_ij * MSE(p_ij(s_i), t_j); a_ij: softmax over j of query_i . key_j.

    Args:
        layers: pairs, as in `Needs.outputs`; all student layers in them are matched with all teacher layers in them,
            the larger map average-pooled to the smaller.
        batch: with how many samples of the batch each one is compared to find the association. The released code
            takes the batch size, 64, and can do no other; here missing ones count as zero, and further ones not at all.

    Recipe:
        the released scripts: -r 1 -a 1 -b 400, where -a weighs KD at temperature 4.

    Checked:
        similarities, association and errors by loops.
    """

    name: ClassVar[str] = "semckd"
    source: ClassVar[str] = "Chen et al. 2021 (SemCKD), arXiv:2012.03236, layer association and its loss"
    recipe: ClassVar[Recipe] = Recipe(weight=400.0, ce=1.0, kd=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (are_maps,)

    def __init__(self, layers: str = "stages", batch: int = 64) -> None:
        super().__init__()
        if batch < 4:
            raise ValueError(f"batch must be at least 4, got {batch}")
        self.layers, self.batch = layers, batch
        self.student_layers: list[str] = []
        self.teacher_layers: list[str] = []
        self.queries, self.keys = nn.ModuleList(), nn.ModuleList()
        self.projections = nn.ModuleList()

    @property
    def needs(self) -> Needs:
        """The maps."""
        return Needs(outputs=self.layers)

    def build(self, binding: Binding) -> None:
        """A query for each student layer, a key for each of the teacher's, a projection from each to each."""
        self.student_layers, self.teacher_layers = (
            list(dict.fromkeys(names)) for names in zip(*self.pairs, strict=True)
        )
        self.queries.extend(_Embedding(self.batch) for _ in self.student_layers)
        self.keys.extend(_Embedding(self.batch) for _ in self.teacher_layers)
        for ours in self.student_layers:
            for theirs in self.teacher_layers:
                self.projections.append(_projection(binding.student[ours][0], binding.teacher[theirs][0]))

    def forward(self, signals: Signals) -> Tensor:
        """All student layers against all teacher layers."""
        students = [signals.pair(ours, self.teacher_layers[0])[0] for ours in self.student_layers]
        teachers = [signals.pair(self.student_layers[0], theirs)[1] for theirs in self.teacher_layers]
        weights = association(self._embedded(self.queries, students), self._embedded(self.keys, teachers))
        projections = iter(self.projections)
        projected: list[Maps] = []
        targets: list[Maps] = []
        for student in students:
            sizes = [smaller_size(student, teacher) for teacher in teachers]
            projected.append([next(projections)(pooled_to(student, size)) for size in sizes])
            targets.append([pooled_to(teacher, size) for teacher, size in zip(teachers, sizes, strict=True)])
        return semckd(projected, targets, weights)

    def _embedded(self, embeddings: nn.ModuleList, maps: Maps) -> Tensor:
        """(B, layers, D)."""
        pairs = zip(embeddings, maps, strict=True)
        return torch.stack([embedding(similarities(layer, self.batch)) for embedding, layer in pairs], dim=1)


class _Embedding(nn.Module):
    """Two linear layers with a ReLU between, to a unit vector of a quarter of the width, as in the released code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        dims = width // 4
        self.layers = nn.Sequential(nn.Linear(width, 2 * dims), nn.ReLU(), nn.Linear(2 * dims, dims))

    def forward(self, rows: Tensor) -> Tensor:
        """(B, width) to (B, width // 4)."""
        return unit(self.layers(rows))


def _projection(inputs: int, outputs: int) -> nn.Module:
    """1x1, 3x3 and 1x1 convolutions with batch norm and ReLU between, as in the released code."""
    mid = 2 * outputs
    return nn.Sequential(
        nn.Conv2d(inputs, mid, 1, bias=False),
        LenientBatchNorm2d(mid),
        nn.ReLU(),
        nn.Conv2d(mid, mid, 3, padding=1, bias=False),
        LenientBatchNorm2d(mid),
        nn.ReLU(),
        nn.Conv2d(mid, outputs, 1, bias=False),
    )


def _errors(projected: Maps, targets: Maps) -> Tensor:
    """(B, T), mean squared error of each sample to each teacher layer."""
    pairs = [same_shape(ours, theirs, MAPS, 4) for ours, theirs in zip(projected, targets, strict=True)]
    return torch.stack(
        [sum_of_squares(ours - theirs, dim=(1, 2, 3)) / theirs[0].numel() for ours, theirs in pairs], dim=1
    )
