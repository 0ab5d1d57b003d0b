"""An image folder of three classes, with photographs of many shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")
SIZES = ((80, 60), (64, 100), (72, 72), (300, 40), (60, 61), (96, 70))


def write_photographs(root: Path) -> None:
    """Six of each class in each split: coarse noise, enlarged."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for place, (width, height) in enumerate(SIZES):
                coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{place}.png")
