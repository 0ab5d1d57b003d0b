"""What rules have in common that choose by what students say."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ground.errors import InvalidInput
from teacher_cache.selection.candidates import (
    block_bytes,
    candidates,
    require_candidates,
    require_memory,
    require_subset,
)
from teacher_cache.selection.contract import Pool, Selector
from teacher_cache.selection.students import Student, folders_of, probabilities

# Of a candidate: its score, its index, and their order.
_BYTES_EACH = 32


class StudentRule(Selector):
    """The images with the highest score of what students say of them; of equals, the first in the sample's order.

    Time is that of showing N images to every student; memory is a few numbers an image.

    Args:
        run: FOLDER of a finished run of this data set, or FOLDER+FOLDER of several.
        subset: how many images to choose among, the first of the sample's order; None is all.
    """

    def __init__(self, run: str, subset: int | None = None) -> None:
        require_subset(subset)
        self.folders, self.subset = folders_of(run), subset
        self._students: tuple[Student, ...] = ()

    @abstractmethod
    def scores(self, said: Tensor) -> Tensor:
        """How much an image is wanted: (B,), of the probabilities (S, B, K) that students give its classes."""

    @property
    def students(self) -> tuple[Student, ...]:
        """Whose word counts; runs are read at the first use."""
        if not self._students:
            found = tuple(Student.of(folder) for folder in self.folders)
            if len({student.digest for student in found}) < len(found):
                raise InvalidInput(f"two of the runs of --select {self.name} have the same student; give each once")
            self._students = found
        return self._students

    def require(self, pool: Pool, count: int) -> None:
        """See `Selector.require`."""
        require_candidates(self.name, pool, count, self.subset)
        for student in self.students:
            student.require_of(pool)
        size = max(student.rendering.size for student in self.students)
        shown = block_bytes(pool, size)
        require_memory(self.name, pool, count, self.subset, lambda number: shown + _BYTES_EACH * number)

    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
        """See `Selector.choose`."""
        for student in self.students:
            student.require_of(pool)
        left = candidates(pool, self.subset)
        scores = np.empty(len(left))
        for places, said in probabilities(self.students, pool, left):
            scores[places] = self.scores(said).numpy()
        return left[np.argsort(-scores, kind="stable")[:count]]

    def looked_at(self) -> Mapping[str, str]:
        """See `Selector.looked_at`: the digests of the students' weights."""
        return {"run": "+".join(student.digest for student in self.students)}


def entropy(probabilities: Tensor) -> Tensor:
    """In nats, over the last axis; 0 log 0 is 0."""
    return -probabilities.xlogy(probabilities).sum(dim=-1)


def difference(probabilities: Tensor) -> Tensor:
    """Of the two largest, over the last axis."""
    if probabilities.shape[-1] == 1:
        return probabilities[..., 0]
    largest = probabilities.topk(2, dim=-1).values
    return largest[..., 0] - largest[..., 1]
