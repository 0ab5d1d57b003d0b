"""From an image file to the RGB pixels that a viewer shows, or to the reason why it is refused.

The first frame, turned as its orientation mark says, on white where it is transparent. 16-bit grey is scaled by 1/257
and float values between 0 and 1 by 255; of 16-bit colour Pillow keeps the high byte. CMYK goes through its own colour
profile where it has one; RGB and grey are taken as sRGB, as torchvision takes them. Modes without a rule are refused by
name. What a header says is bounded before anything is allocated for it.
"""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.Image import Transpose

# Decoded, such an image takes 200 MB; a camera's largest ordinary photographs have 50 million pixels.
MOST_PIXELS = 1 << 26
# Larger ones than these are decoded one at a time, whatever the number of threads.
LARGE_PIXELS = 1 << 22
_one_large = threading.Lock()

_PLAIN = frozenset({"1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "CMYK"})
_WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_GREY16_FORMATS = frozenset({"PNG", "TIFF", "PPM", "JPEG2000"})
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 0x0112
# Without these a JPEG has neither an orientation nor a colour profile.
_JPEG_MARKS = (b"Exif", b"/xap/", b"ICC_PROFILE")
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


class Undecodable(Exception):
    """A file could not be turned into pixels; the text says why."""


def decode(path: Path) -> Image.Image:
    """The image in `path` as RGB.

    Raises:
        Undecodable: it is damaged, too large, or of a mode that has no rule.
    """
    try:
        with path.open("rb") as file:
            return _decode(file)
    except (MemoryError, Undecodable):
        raise
    except Exception as error:  # damaged bytes make Pillow raise OSError, SyntaxError, struct.error, ...
        raise Undecodable(reason(error)) from error


def reads_anew(data: bytes) -> bool:
    """Whether the pixels of a file are others than those that releases before these rules read, or are refused.

    They took Pillow's `convert("RGB")` for everything. Stores are bound to what was read, so such a file counts as
    another file; one that is damaged does not, as it was never read.
    """
    # Most files: opening them would take three times as long as their digest.
    if data.startswith(b"\xff\xd8") and not any(mark in data for mark in _JPEG_MARKS):
        return False
    try:
        with Image.open(io.BytesIO(data)) as image:
            if _is_as_ever(image):
                return False
            before = np.asarray(image.convert("RGB"))
    except Exception:  # as above: whatever Pillow raises, it was refused then
        return False
    try:
        return not np.array_equal(before, np.asarray(_decode(io.BytesIO(data))))
    except Exception:  # refused now
        return True


def require_pixels(width: int, height: int) -> None:
    """Refuse what would take too much memory; raises `Undecodable`."""
    if width * height > MOST_PIXELS:
        raise Undecodable(f"{width} x {height} pixels, above the most of {MOST_PIXELS}")


def reason(error: Exception) -> str:
    """An error's text without the machine's path, which the message names in its own way."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more pixels than the most of {MOST_PIXELS}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _decode(file: BinaryIO) -> Image.Image:
    with Image.open(file) as image:
        width, height = image.size
        require_pixels(width, height)
        with _one_large if width * height > LARGE_PIXELS else nullcontext():
            # Asked before loading: what is refused by its header is not decoded.
            grey16 = _is_grey16(image)
            if not grey16 and image.mode != "F" and image.mode not in _PLAIN | _WITH_ALPHA:
                raise Undecodable(f"mode {image.mode} of {image.format}, which has no defined look as 8-bit RGB")
            inverted = grey16 and image.format == "TIFF" and _tag(image, _PHOTOMETRIC) == 0
            image.load()
            turn = _TURNS.get(_orientation(image))
            shown = image if turn is None else image.transpose(turn)
            if grey16:
                return _from_grey16(shown, inverted)
            return _from_float(shown) if image.mode == "F" else _as_rgb(shown, dict(image.info))


def _as_rgb(image: Image.Image, info: dict[Any, Any]) -> Image.Image:
    if image.mode in _WITH_ALPHA or "transparency" in info:
        image.info = info
        # La has no way to RGBA but through LA.
        over = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    profile = info.get("icc_profile")
    if image.mode == "CMYK" and isinstance(profile, bytes) and profile:
        return _through_profile(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError) as error:
        raise Undecodable("its CMYK colour profile cannot be used") from error
    assert converted is not None
    return converted


def _is_grey16(image: Image.Image) -> bool:
    """Whether values run from 0 to 65535; Pillow opens some such files as 32-bit integers."""
    if "transparency" in image.info or image.format not in _GREY16_FORMATS:
        return False
    if image.mode.startswith("I;16"):
        return image.format != "TIFF" or _tag(image, _BITS_PER_SAMPLE) == (16,)
    return image.mode == "I" and image.format in ("PNG", "PPM")


def _from_grey16(image: Image.Image, inverted: bool) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    scaled = ((values + 128) // 257).astype(np.uint8)
    return Image.fromarray(255 - scaled if inverted else scaled).convert("RGB")


def _from_float(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise Undecodable(f"float values from {low:g} to {high:g}, which show as grey only between 0 and 1")
    return Image.fromarray(np.rint(values * np.float32(255)).astype(np.uint8)).convert("RGB")


def _is_as_ever(image: Image.Image) -> bool:
    """Whether the header alone says that these rules change nothing."""
    width, height = image.size
    return (
        image.mode in _PLAIN
        and width * height <= MOST_PIXELS
        and "transparency" not in image.info
        and not (image.mode == "CMYK" and image.info.get("icc_profile"))
        and (image.format == "TIFF" or _orientation(image) not in _TURNS)
    )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged mark is none, for viewers as well; Pillow raises many kinds
        return 1


def _tag(image: Image.Image, number: int) -> object:
    """The value of a TIFF tag."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(number)
