"""The images of a grid: those of every sample, as each teacher's store keeps them, and whether there are enough."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import torch

from experiments.grid import Grid, MethodEntry
from experiments.plan import refused_of
from experiments.rests import reads_labels
from ground.errors import CKDError, InvalidInput
from models.origins import Preprocessing, preprocessing_of
from storage.schema import UNLABELLED
from student_train.unlabelled import require_labels
from teacher_cache.config import BuildConfig
from teacher_cache.datasets import ImageDataset
from teacher_cache.datasets.registry import takes_path
from teacher_cache.prepare import images_of_build
from teacher_cache.sample import draw_sample

# Images that a student learns from, by any loss.
FEWEST_IMAGES = 2


class GridImages:
    """The images that a grid names, opened once for each preparation.

    Args:
        dataset: as `open_images` gives them, where they are open already: every file is read, once, for the digest.

    Attributes:
        dataset: as the first teacher's library prepares them.

    Raises:
        InvalidInput: they cannot be opened, or a sample is larger than they are many; the message names the line.
    """

    def __init__(self, grid: Grid, dataset: ImageDataset | None = None) -> None:
        self.grid, self.dataset = grid, open_images(grid) if dataset is None else dataset
        self._check_sizes()
        self._prepared = {_preparation(grid, grid.pairs[0].teacher): self.dataset}

    def of(self, teacher: str) -> ImageDataset:
        """The images as a teacher's store keeps them: those of a folder as its library prepares them."""
        preparation = _preparation(self.grid, teacher)
        if preparation not in self._prepared:
            self._prepared[preparation] = open_images(self.grid, teacher)
        return self._prepared[preparation]

    def _check_sizes(self) -> None:
        try:
            # One sample is as large as another.
            draw_sample(len(self.dataset.train), self.grid.sizes[-1], self.grid.samples[0], self.dataset.is_labelled)
        except InvalidInput as error:
            raise self.grid.refused("n", error) from error
        kept, room = self.grid.store.rest, min(map(len, self._labels(whole=True))) - self.grid.sizes[-1]
        if kept is not None and kept > room:
            raise self.grid.refused(
                "store",
                f"rest is {kept}, and {self.dataset.name} has {room} images beside the largest n and those for "
                "validation; give that, or all",
            )
        if self.grid.test_images > len(self.dataset.test):
            raise self.grid.refused("test_images", f"{self.dataset.name} has {len(self.dataset.test)} test images")

    @property
    def has_labels(self) -> bool:
        """Whether students could learn from labels alone, were all images kept."""
        return all(num >= FEWEST_IMAGES for num in map(_num_labelled, self._labels(whole=True)))

    @property
    def keeps_labels(self) -> bool:
        """Whether they can learn from the labels of those that stores keep."""
        return all(num >= FEWEST_IMAGES for num in map(_num_labelled, self._labels()))

    @property
    def num_images(self) -> int:
        """Training images that each store keeps, answered or not."""
        return min(map(len, self._labels()))

    def num_labelled_beyond(self, n: int) -> int:
        """Images with a label that each store keeps beside the first n."""
        return min(_num_labelled(labels[n:]) for labels in self._labels())

    def _labels(self, whole: bool = False) -> list[torch.Tensor]:
        """Of each sample's images, those of the rest that is kept last; or of all that could be kept."""
        grid, train, is_labelled = self.grid, self.dataset.train, self.dataset.is_labelled
        samples = [draw_sample(len(train), grid.sizes[-1], seed, is_labelled) for seed in grid.samples]
        most = None if whole or grid.store.rest is None else max(grid.sizes[-1] + grid.store.rest, grid.room or 0)
        return [torch.from_numpy(train.labels[sample.images[:most]]) for sample in samples]

    def check_labels(self) -> None:
        """Raise `InvalidInput` with the line if a method reads labels that rows of a sample do not have, or learns from
        a rest that has none.
        """
        grid = self.grid
        for labels, entry, n in product(self._labels(), grid.methods, grid.sizes):
            try:
                require_labels(entry.spec, labels[:n], self.dataset.name)
                self._require_rest(entry, labels[n:], n)
            except InvalidInput as error:
                raise refused_of(grid, entry, error) from error

    def _require_rest(self, entry: MethodEntry, labels: torch.Tensor, n: int) -> None:
        if entry.rest and len(labels) < FEWEST_IMAGES:
            raise InvalidInput(
                f"{self.dataset.name} has {len(labels)} images beside the {n} that are asked about and those for "
                "validation, and a rest is learned from at least 2; lower n"
            )
        labelled = _num_labelled(labels)
        if labelled < FEWEST_IMAGES and any(reads_labels(text) for text in entry.rest):
            raise InvalidInput(
                f"{labelled} of the {len(labels)} images beside the {n} that are asked about have a "
                "label, and a loss of the rest learns from those; give rest: pseudo, mean_teacher or a proxy, which "
                "need none"
            )


def open_images(grid: Grid, teacher: str | None = None) -> ImageDataset:
    """The images that a grid names, prepared for a teacher, its first one by default.

    Raises:
        InvalidInput: they are not there; with the line.
    """
    try:
        return images_of_build(
            BuildConfig(
                teacher=teacher or grid.pairs[0].teacher,
                n=grid.sizes[-1] if grid.sizes else 1,
                store=Path(),
                dataset=grid.dataset,
                data_root=grid.data_root,
                image_size=grid.image_size,
                split=grid.split,
                split_seed=grid.split_seed,
            )
        )
    except CKDError as error:
        raise grid.refused("dataset", error) from error


def _preparation(grid: Grid, teacher: str) -> Preprocessing | None:
    return preprocessing_of(teacher) if takes_path(grid.dataset) else None


def _num_labelled(labels: torch.Tensor) -> int:
    return int(torch.count_nonzero(labels != UNLABELLED))
