"""Digests that tie a call's input and output to the ledger: the first 16 bytes of SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ground.geometry import ViewGeometry
from ground.threads import WORTH_A_THREAD_BYTES, in_threads
from storage.float_types import NARROW_TYPES, exactly
from storage.schema import DIGEST_BYTES, OutputSpec

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK, _BLOCK_BYTES = 256, 4 << 20


def input_digests(images: np.ndarray, views: np.ndarray, geometry: ViewGeometry) -> list[list[bytes]]:
    """Digest of the exact uint8 pixels, (h, w, 3), of every view that the teacher is shown.

    Args:
        images: (n, H, W, 3) uint8.
        views: (n, V, 3), or (n, V, 5) of boxes, which are digested before they are resized for anybody.

    Returns:
        n lists of V digests.

    Raises:
        IndexError: a box does not lie inside its image.
    """
    # Only here are views cut. Who opens a store, or computes digests of outputs, does without torch, which takes two
    # seconds to load.
    import torch

    from ground.boxes import cut_boxes
    from ground.views import apply_views

    def digests_of(block: Tensor, views: Tensor) -> list[bytes]:
        if views.shape[1] == 3:
            pixels: np.ndarray = apply_views(block, views, geometry).permute(0, 2, 3, 1).contiguous().numpy()
            return _digests(_header(pixels.shape[1:]), pixels)
        boxes = (box.permute(1, 2, 0).numpy() for box in cut_boxes(block, views))
        return [digest for box in boxes for digest in _digests(_header(box.shape), box[None])]

    image_bytes = max(1, images[:1].nbytes)
    step = max(1, min(_BLOCK, _BLOCK_BYTES // image_bytes))

    def digests_from(first: int) -> list[list[bytes]]:
        block = torch.from_numpy(images[first : first + step])
        seen = torch.from_numpy(views[first : first + step])
        columns = [digests_of(block, seen[:, view]) for view in range(views.shape[1])]
        return [list(row) for row in zip(*columns, strict=True)]

    spread = in_threads if image_bytes >= WORTH_A_THREAD_BYTES else map
    return [digests for part in spread(digests_from, range(0, len(images), step)) for digests in part]


def output_digests(outputs: Sequence[OutputSpec], values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Digest of each output of each call.

    Args:
        outputs: which ones; name, shape and type are part of the digest.
        values: name -> (C, ...) array as stored, one row a call.

    Returns:
        (C, O, 16) uint8.
    """
    digests = np.empty((len(values[outputs[0].name]), len(outputs), DIGEST_BYTES), dtype=np.uint8)
    for place, output in enumerate(outputs):
        header = repr((output.name, output.shape, output.dtype)).encode()
        found = b"".join(_digests(header, values[output.name]))
        digests[:, place] = np.frombuffer(found, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    return digests


def vouches(recorded: bytes | None, output: OutputSpec, value: np.ndarray, digest: bytes) -> bool:
    """Whether a digest that the ledger recorded is that of an output as it is stored here.

    Where features were widened, it may be the digest of the same numbers in a narrower type.

    Args:
        value: (1, ...), as stored.
        digest: of it.
    """
    if recorded is None or recorded == digest or output.dtype != "float32":
        return recorded == digest
    return any(_digest_in(narrow, output, value) == recorded for narrow in NARROW_TYPES)


def _digest_in(narrow: str, output: OutputSpec, value: np.ndarray) -> bytes | None:
    """What an output digests to in a narrower type; None where that does not hold it."""
    kept = exactly(value, narrow)
    if kept is None:
        return None
    return bytes(output_digests((replace(output, dtype=narrow),), {output.name: kept})[0, 0].tobytes())


@cache
def _header(shape: tuple[int, ...]) -> bytes:
    return repr(shape).encode()


def _digests(header: bytes, array: np.ndarray) -> list[bytes]:
    """Of each row of an array: of the header, and the row's bytes."""
    begun, digests = hashlib.sha256(header), []
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    size = len(content) // max(1, len(array))
    for first in range(0, len(content), max(1, size)):
        hasher = begun.copy()
        hasher.update(content[first : first + size])
        digests.append(hasher.digest()[:DIGEST_BYTES])
    return digests
