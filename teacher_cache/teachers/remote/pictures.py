"""Images as servers take them: PNG, which loses nothing, and its base64."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

# Between size and seconds; what is sent is read once.
_LEVEL = 1


def png(image: np.ndarray) -> bytes:
    """A PNG file of an image (3, h, w) uint8."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, "PNG", compress_level=_LEVEL)
    return file.getvalue()


def png_base64(image: np.ndarray) -> bytes:
    """The same in base64, ASCII."""
    return base64.b64encode(png(image))


def data_url(image: np.ndarray) -> str:
    """The same as a URL that holds it, RFC 2397."""
    return f"data:image/png;base64,{png_base64(image).decode('ascii')}"
