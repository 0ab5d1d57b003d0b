"""What a finished run's student says of photographs that it has never seen.

They are decoded, fitted and rendered exactly as a store's images are, so a test image gets the logits that its
evaluation gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ground.decoding import Undecodable, decode
from ground.errors import InvalidInput
from ground.fitting import fitted
from ground.listing import LeftOut, images_below
from ground.views import evaluation_batches
from models.compute import Compute
from student_train.finished_student import FinishedStudent

# As many as an evaluation shows at once.
_BATCH = 256


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What was said of one photograph.

    Args:
        logits: (K,) float32 on the CPU; None where the file is no image that can be read.
        problem: why it is not, or None.
    """

    image: Path
    logits: Tensor | None
    problem: str | None = None

    def best(self, count: int) -> list[tuple[int, float]]:
        """(class, probability) of the likeliest classes, the likeliest first; none where there are no logits."""
        if self.logits is None:
            return []
        likeliest = torch.softmax(self.logits, dim=0).topk(min(count, len(self.logits)))
        return list(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))


def find_images(paths: Iterable[Path], left_out: LeftOut) -> list[Path]:
    """Files as they are given, and the images in folders, at any depth and in the order of their names.

    Args:
        left_out: gets what is left out of folders, and why.

    Raises:
        InvalidInput: one of the paths is not there, or a folder holds no images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = [path / name for name in images_below(path, "", left_out)]
            if not below:
                raise InvalidInput(f"there are no images in {path}; give files, or folders with some")
            found += below
        elif path.is_file():
            found.append(path)
        else:
            raise InvalidInput(f"there is no file or folder {path}; give images, or folders of them")
    return found


def predict(
    student: FinishedStudent,
    images: Sequence[Path],
    compute: Compute,
    advance: Callable[[int], None] = lambda steps: None,
) -> Iterator[Prediction]:
    """A prediction for each image, in their order; one that cannot be read stops no other.

    Args:
        advance: told how many more are done.
    """
    compute.place(student.network)
    for first in range(0, len(images), _BATCH):
        part = images[first : first + _BATCH]
        pixels, problems = _read(part, student)
        logits = iter(_logits(pixels, student, compute) if len(pixels) else ())
        for image in part:
            problem = problems.get(image)
            yield Prediction(image, None, problem) if problem is not None else Prediction(image, next(logits))
        advance(len(part))


def _read(images: Sequence[Path], student: FinishedStudent) -> tuple[Tensor, dict[Path, str]]:
    """Base images (C, S, S, 3) uint8 of the files that can be read, and why the others cannot."""
    size, found, problems = student.rendering.geometry.image_size, [], {}
    for image in images:
        try:
            found.append(np.asarray(fitted(decode(image), size, student.fit)))
        except Undecodable as error:
            problems[image] = str(error)
    return torch.from_numpy(np.stack(found) if found else np.empty((0, size, size, 3), np.uint8)), problems


def _logits(pixels: Tensor, student: FinishedStudent, compute: Compute) -> Tensor:
    """(C, K) float32 on the CPU, computed as an evaluation computes them."""
    ((inputs, _),) = evaluation_batches(
        compute.to_device(pixels), torch.zeros(len(pixels)), student.rendering, batch_size=_BATCH
    )
    with torch.inference_mode(), compute.exact(), compute.autocast():
        logits: Tensor = student.network(inputs)
    return logits.float().cpu()
