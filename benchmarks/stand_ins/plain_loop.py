"""Distillation with the teacher in every step, as RepDistiller trains: written plainly here, after what it does.

Source: Tian et al. 2020, CRD, arXiv:1910.10699, and the loop of its released code (github.com/HobbitLong/RepDistiller,
train_student.py): images are cropped, flipped, made tensors and normalised one at a time by torchvision's transforms of
PIL images, in the loader; student, then teacher without gradient, sees the batch; the loss is
gamma * cross-entropy + alpha * KL at temperature 4 + beta * the method's own; SGD. Its CIFAR images are in memory, as
are these. Nothing of stage two is used here, but for the networks themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ground.geometry import Normalisation
from models import Network

_TEMPERATURE = 4.0
_HINT_LAYER = "layer2"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainMethod:
    """Weights of cross-entropy, of KL and of the hint; its commands are `-r GAMMA -a ALPHA -b BETA`."""

    gamma: float
    alpha: float
    beta: float


METHODS = {
    "kd": PlainMethod(gamma=0.1, alpha=0.9, beta=0.0),
    "hint": PlainMethod(gamma=1.0, alpha=0.0, beta=100.0),
}


class ImagesOneByOne(Dataset[tuple[Tensor, int]]):
    """Images (n, H, W, 3) uint8 in memory, each transformed alone whenever it is asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, normalisation: Normalisation, padding: int) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[1], padding=padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(normalisation.mean, normalisation.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[row])), int(self.labels[row])


class PlainLoop:
    """One student in training.

    Args:
        method: of `METHODS`.
        autocast: the context of both networks' forward.
    """

    def __init__(
        self,
        method: PlainMethod,
        student: Network,
        teacher: Network,
        images: ImagesOneByOne,
        autocast: Callable[[], AbstractContextManager[object]],
        batch_size: int = 64,
    ) -> None:
        self.method, self.student, self.teacher, self.autocast = method, student, teacher, autocast
        # In this process, as processor time is counted here; it would be spent in workers otherwise.
        self.loader = DataLoader(images, batch_size, shuffle=True, num_workers=0)
        self.regressor: nn.Module = nn.Sequential()
        if method.beta:
            self.regressor = _regressor(*(_map_of(network, images.images.shape[1]) for network in (student, teacher)))
        student.train()
        teacher.eval()
        parameters = [*student.parameters(), *self.regressor.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)

    def epoch(self) -> tuple[float, float]:
        """Train on every image once; returns the mean loss and the share of images that were right, in [0, 1]."""
        losses, right = 0.0, 0.0
        for images, labels in self.loader:
            loss, logits = self.loss(images, labels)
            losses += loss.item() * len(labels)
            right += (logits.argmax(dim=1) == labels).sum().item()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        count = len(self.loader.dataset)  # type: ignore[arg-type]
        return losses / count, right / count

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of a batch, (B, 3, H, W) and (B,), with the student's logits (B, K)."""
        method = self.method
        with self.autocast():
            student = self.student.represent(images)
            with torch.no_grad():
                teacher = self.teacher.represent(images)
            regressed = self.regressor(student.features[_HINT_LAYER]) if method.beta else None
        logits = student.logits.float()
        loss = method.gamma * F.cross_entropy(logits, labels)
        # It computes this whatever alpha is.
        loss = loss + method.alpha * softened_kl(logits, teacher.logits.float())
        if regressed is not None:
            loss = loss + method.beta * F.mse_loss(regressed.float(), teacher.features[_HINT_LAYER].float())
        return loss, logits


def softened_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of (B, K) logits at temperature 4, times its square: batch mean."""
    log_probs, targets = F.log_softmax(student / _TEMPERATURE, dim=1), F.softmax(teacher / _TEMPERATURE, dim=1)
    return F.kl_div(log_probs, targets, reduction="sum") * _TEMPERATURE**2 / len(student)


def _map_of(network: Network, size: int) -> tuple[int, ...]:
    """Shape (C, H, W) of the map that the hint is of."""
    with torch.no_grad():
        said = network.eval().represent(torch.zeros(1, 3, size, size))
    return tuple(said.features[_HINT_LAYER].shape[1:])


def _regressor(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
    """A 1x1 convolution, batch norm and ReLU between maps (C, H, W) of one size."""
    if student[1:] != teacher[1:]:
        raise ValueError(f"the hint's maps have {student[1:]} and {teacher[1:]} pixels; take networks of one family")
    return nn.Sequential(nn.Conv2d(student[0], teacher[0], 1), nn.BatchNorm2d(teacher[0]), nn.ReLU(inplace=True))
