"""Real images for the teacher: named data sets and the user's own folders, opened by `open_dataset`."""

from teacher_cache.datasets.base import ArraySplit, FileSplit, ImageDataset, Split
from teacher_cache.datasets.registry import DATASETS, open_dataset

__all__ = ["DATASETS", "ArraySplit", "FileSplit", "ImageDataset", "Split", "open_dataset"]
