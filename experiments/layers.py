"""Which layers the networks of a grid have, at the sizes of their inputs, without any of its images."""

from __future__ import annotations

from experiments.grid import Grid, TeacherStudent
from models import network_shape
from models.origins import preprocessing_of
from teacher_cache.datasets.registry import takes_path

# Of the named data sets, and of folders without another size. The zoo's networks have the same layers at any.
_USUAL_SIZE = 32


def teacher_layers(teacher: str) -> list[str]:
    """Outputs that a teacher has beside its logits, in its order, at the size that its library shows it."""
    own = preprocessing_of(teacher)
    return list(network_shape(teacher, image_size=_USUAL_SIZE if own is None else own.input_size).layers)


def student_layers(grid: Grid, pair: TeacherStudent) -> list[str]:
    """The same of a pair's student, at its size."""
    return list(network_shape(pair.student, image_size=grid.size_of(pair) or _view_size(grid, pair.teacher)).layers)


def _view_size(grid: Grid, teacher: str) -> int:
    """Of a store's views: of a folder what the teacher's library crops of its images, or all of them."""
    if not takes_path(grid.dataset):
        return _USUAL_SIZE
    own = preprocessing_of(teacher)
    if own is None:
        return grid.image_size or _USUAL_SIZE
    return round((grid.image_size or own.resize_size) * own.input_size / own.resize_size)
