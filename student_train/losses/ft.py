"""Factor transfer (FT): a paraphraser condenses the teacher's map to factors, a translator makes the student's.

The paraphraser is learned first, from the stored maps alone, and stays as it is from then on.
Source: Kim et al. 2018, arXiv:1802.04977; the layers and the factors' form are the CRD benchmark's.
"""

from __future__ import annotations

import logging
import math
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ground.errors import Diverged
from student_train.binding import Binding
from student_train.losses.attention import attention
from student_train.losses.base import DistillationLoss, Recipe, TeacherRows
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.requirements import are_maps, is_one_output
from student_train.losses.tensors import flat, maps_of_one_size, raised, require_positive, unit
from student_train.needs import Needs
from student_train.signals import Moment, Signals

log = logging.getLogger(__name__)


def factor_transfer(student: Tensor, teacher: Tensor, whole: bool = False) -> Tensor:
    """Mean absolute difference of two factors' L2-normalised channel means of squares.

    Source: Kim et al. 2018, arXiv:1802.04977, L_FT with p = 1, on the attention maps of the factors as in the CRD
    benchmark's code.

    Args:
        student: (B, C, H, W) factors, made by the translator.
        teacher: (B, C', H', W') factors, made by the paraphraser; the larger is average-pooled to the smaller.
        whole: compare the factors themselves, L2-normalised, as in the paper and its authors' code; C' must be C.

    Raises:
        ValueError: they are no maps of one batch, or whole and of other channels.
    """
    student, teacher = maps_of_one_size(student, teacher)
    if not whole:
        return (attention(student) - attention(teacher)).abs().mean()
    if student.shape != teacher.shape:
        raise ValueError(f"factors have {student.shape[1]} and {teacher.shape[1]} channels; whole, they must be equal")
    return (unit(flat(student)) - unit(flat(teacher))).abs().mean()


class FactorTransfer(DistillationLoss):
    """Mean of |q(u(s)) - q(p(t))|; q = channel mean of f^2, L2-normalised; u is learned, p learned first.

    Args:
        on: which maps; the benchmark takes each network's last stage, so layer4 where there are four.
        k: factors per channel of the teacher.
        whole: compare the factors themselves, as in the paper, in place of their channel means of squares.
        epochs: over the stored maps, for the paraphraser.
        lr: the paraphraser's learning rate.
        batch_size: the paraphraser's.

    Note:
        maps are divided by their size and the paraphraser starts with weights that keep it: with the released ones it
        knew less of a small sample than channel means.

    Recipe:
        the CRD benchmark's run; the authors' code, which compares whole factors, has 500.

    Checked:
        the paraphraser learns to make stored maps again, stays as it is afterwards, and is not trained again by a
        resumed run.
    """

    name: ClassVar[str] = "ft"
    source: ClassVar[str] = "Kim et al. 2018, arXiv:1802.04977, L_rec and L_FT with p = 1"
    recipe: ClassVar[Recipe] = Recipe(weight=200.0, ce=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (is_one_output("it takes one layer, as on=layer3"), are_maps)

    paraphraser: Paraphraser
    translator: nn.Sequential

    def __init__(
        self,
        on: str = "layer3",
        k: float = 0.5,
        whole: bool = False,
        epochs: int = 30,
        lr: float = 0.01,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        require_positive(k=k, epochs=epochs, lr=lr, batch_size=batch_size)
        self.on, self.k, self.whole = on, k, whole
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.num_rows = 0

    @property
    def needs(self) -> Needs:
        """One map."""
        return Needs(outputs=self.on)

    def build(self, binding: Binding) -> None:
        """Paraphraser and translator."""
        ((student, teacher),) = binding.shapes(self.pairs)
        factors = max(1, int(self.k * teacher[0]))
        self.num_rows = binding.num_rows
        self.paraphraser = Paraphraser(teacher[0], factors)
        self.translator = _condenser(student[0], factors, norm=True)

    def prepare(self, teacher: TeacherRows, moment: Moment) -> None:
        """Learn the paraphraser: mean squared error of the maps that its decoder makes of its factors.

        Raises:
            Diverged: the error is not finite.
        """
        # The benchmark's for residual networks. 30 epochs of a stored sample are far fewer steps than its 23,000; that
        # they suffice, for maps of any size, takes weights that keep the size and maps divided by it (both ours).
        optimizer = torch.optim.SGD(self.paraphraser.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
        generator = moment.generator("ft paraphraser")
        self.paraphraser.measure(self._maps(teacher, torch.randperm(self.num_rows, generator=generator)))
        self.paraphraser.requires_grad_(True)
        for epoch in range(1, self.epochs + 1):
            rows = torch.randperm(self.num_rows, generator=generator).split(self.batch_size)
            steps = [self._paraphrase(self._maps(teacher, batch), optimizer) for batch in rows]
            error, plain = torch.stack(steps).mean(dim=0).tolist()
            log.info(
                "ft: paraphraser epoch %d of %d, error %.4f (channel means: %.4f)", epoch, self.epochs, error, plain
            )
            if not math.isfinite(error):
                raise Diverged(f"ft: the paraphraser's error is {error} in epoch {epoch}; lower ft's lr ({self.lr})")
        if error >= plain:
            log.warning("ft: the paraphraser knows no more of the maps than channel means; raise ft's epochs or lr")
        # Without gradients too: the student's optimizer passes over parameters that have none.
        self.paraphraser.requires_grad_(False).zero_grad(set_to_none=True)

    def _maps(self, teacher: TeacherRows, rows: Tensor) -> Tensor:
        """The teacher's of at most a batch of rows."""
        (maps,) = raised(teacher(rows[: self.batch_size]).features[self.pairs[0][1]])
        return maps

    def _paraphrase(self, maps: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step on a batch: (2,) its error before the step, and that of answering with channel means."""
        error = self.paraphraser.error(maps)
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
        plain = maps.var(dim=(0, 2, 3), correction=0).mean() / self.paraphraser.scale**2
        return torch.stack([error.detach(), plain])

    def forward(self, signals: Signals) -> Tensor:
        """Single samples or comparisons; the paraphraser has only ever seen single samples."""
        ((student, teacher),) = self.outputs(signals)
        with torch.no_grad():
            factors = self.paraphraser(teacher)
        return factor_transfer(self.translator(student), factors, self.whole)


class Paraphraser(nn.Module):
    """A convolutional autoencoder of maps (B, C, H, W); always in evaluation mode, frozen but while it learns.

    Args:
        channels: C.
        factors: channels of what it condenses them to.
    """

    scale: Tensor

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _condenser(channels, factors, norm=False)
        widths = [(factors, factors), (factors, channels), (channels, channels)]
        layers = [nn.Sequential(nn.ConvTranspose2d(*both, 3, padding=1), nn.LeakyReLU(0.1)) for both in widths]
        self.decoder = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                _keep_variance_(module)
        self.register_buffer("scale", torch.ones(()))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def measure(self, maps: Tensor) -> None:
        """From now on, divide maps by the root mean square of these; by 1 if they are zero."""
        size = maps.square().mean().sqrt()
        self.scale.copy_(torch.where(size > 0, size, 1.0))

    def forward(self, maps: Tensor) -> Tensor:
        """Factors (B, F, H, W)."""
        factors: Tensor = self.encoder(maps / self.scale)
        return factors

    def error(self, maps: Tensor) -> Tensor:
        """Mean squared error of the divided maps, made again from their factors: the paper's L_rec, as a mean."""
        return F.mse_loss(self.decoder(self(maps)), maps / self.scale)


def _keep_variance_(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """He et al. 2015 for a leaky ReLU of slope 0.1: with torch's weights, six such layers nearly ignore their input."""
    # A transposed convolution's weights are (inputs, outputs, 3, 3), so that what comes in is its fan-out.
    mode: Literal["fan_in", "fan_out"] = "fan_out" if isinstance(layer, nn.ConvTranspose2d) else "fan_in"
    nn.init.kaiming_normal_(layer.weight, a=0.1, mode=mode)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _condenser(channels: int, factors: int, *, norm: bool) -> nn.Sequential:
    """Three 3x3 convolutions, each with a leaky ReLU of slope 0.1 and, for the translator, batch norm before it."""
    layers = []
    for inputs, outputs in [(channels, channels), (channels, factors), (factors, factors)]:
        norms = [nn.BatchNorm2d(outputs)] if norm else []
        layers.append(nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), *norms, nn.LeakyReLU(0.1)))
    return nn.Sequential(*layers)
