"""Dividing images that come without splits into training and test images, the same ones wherever they are listed.

Within each class, images are ordered by a hash of a seed and their path within the data set, and the first share of
them is for training. So neither the order of a listing nor the machine matters, and each class keeps its share.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ground.errors import InvalidInput

_SHARES = re.compile(r"(0?\.[0-9]{1,9})/(0?\.[0-9]{1,9})")
MOST_SEED = 2**40


@dataclass(frozen=True, slots=True)
class Division:
    """Shares of training and test images, and the seed that decides which they are.

    Args:
        split: the two shares, which make 1 together, as "0.8/0.2".
        seed: 0 to 2**40.

    Raises:
        InvalidInput: the shares are not such.
    """

    split: str
    seed: int = 0

    def __post_init__(self) -> None:
        shares = _SHARES.fullmatch(self.split)
        if shares is None or sum(map(Fraction, shares.groups())) != 1 or not 0 < self._test_share < 1:
            raise InvalidInput(
                f"--split takes the shares of training and test images, which make 1 together, as 0.8/0.2; "
                f"got {self.split!r}"
            )
        if not 0 <= self.seed <= MOST_SEED:
            raise InvalidInput(f"--split-seed must be 0 to {MOST_SEED}, got {self.seed}")

    @property
    def _test_share(self) -> Fraction:
        return Fraction(self.split.partition("/")[2])

    @property
    def options(self) -> dict[str, str]:
        """Of a command, that divide in the same way again."""
        return {"split": self.split, "split_seed": str(self.seed)}

    def is_test(self, names: Sequence[str], labels: np.ndarray) -> np.ndarray:
        """Which images are test images: (N,) bool.

        A class's number of test images is its share, rounded; of a single image there is none to spare.

        Args:
            names: paths within the data set, each once.
            labels: (N,) int64, at least 0.
        """
        chosen = np.zeros(len(names), dtype=np.bool_)
        hashes = [hashlib.sha256(b"%d\0" % self.seed + os.fsencode(name)).digest() for name in names]
        for label in np.unique(labels):
            rows = sorted(np.flatnonzero(labels == label).tolist(), key=hashes.__getitem__)
            count = min(int(len(rows) * self._test_share + Fraction(1, 2)), len(rows) - 1)
            chosen[rows[len(rows) - count :]] = True
        return chosen
