"""What rules that compute something have in common: which images they choose among, how a network of the user's own is
shown those, and whether memory holds what they compute.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ground.errors import InvalidInput
from ground.main_memory import free_main_memory
from ground.views import EVALUATED_AT_ONCE
from teacher_cache.selection.contract import Pool

# Of base images that are decoded at once.
DECODED_BYTES = 64 << 20
_GB = 1e9
# Share of what is free now that may still be free later, for the subset that is advised.
_COUNTED_ON = 0.8


def require_subset(subset: int | None) -> None:
    """Raise `ValueError` for a number of candidates that none is."""
    if subset is not None and subset < 1:
        raise ValueError(f"subset must be at least 1, got {subset}")


def candidates(pool: Pool, subset: int | None) -> np.ndarray:
    """The images that a rule chooses among: all that are left, or the first so many, which are a random sample."""
    return pool.left[:subset]


def require_candidates(rule: str, pool: Pool, count: int, subset: int | None) -> None:
    """Raise `InvalidInput` where a rule would have to choose more images than it may choose among."""
    if subset is not None and count > min(subset, len(pool.left)):
        raise InvalidInput(
            f"--select {rule} is to choose {count} images among {subset}; give a subset of {count} at least, better of "
            "several times as many"
        )


def require_memory(rule: str, pool: Pool, count: int, subset: int | None, bytes_for: Callable[[int], int]) -> None:
    """Refuse to compute what memory does not hold.

    Args:
        bytes_for: what the rule takes for a number of candidates; it does not fall with them.

    Raises:
        InvalidInput: it takes more than is free; the message says how many candidates would fit.
    """
    number = len(candidates(pool, subset))
    needed, free = bytes_for(number), free_main_memory()
    if needed <= free:
        return
    fitting = bisect_right(range(number), _COUNTED_ON * free, key=bytes_for) - 1
    advice = f"give subset={fitting}" if fitting >= count else "free some, or choose a rule that needs less, as random"
    raise InvalidInput(
        f"--select {rule} needs {needed / _GB:.1f} GB of memory for {number} candidates and the {len(pool.bought)} "
        f"images that were bought, and {free / _GB:.1f} GB are free; {advice}"
    )


def images_at_once(pool: Pool) -> int:
    """How many base images are decoded and shown at once."""
    return max(1, min(EVALUATED_AT_ONCE, DECODED_BYTES // (3 * pool.identity.geometry.image_size**2)))


def block_bytes(pool: Pool, input_size: int) -> int:
    """What images that are shown at once take, as they are decoded and as a network's input."""
    return images_at_once(pool) * 3 * (pool.identity.geometry.image_size**2 + 5 * input_size**2)


def images_of(pool: Pool, index: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
    """Base images by their index, some at a time, on the device: places in `index`, and (B, S, S, 3) uint8."""
    step = images_at_once(pool)
    for first in range(0, len(index), step):
        places = slice(first, min(first + step, len(index)))
        yield places, pool.compute.to_device(torch.from_numpy(pool.images.read(index[places])))
