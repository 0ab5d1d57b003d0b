"""From an image file to the RGB pixels that a viewer shows, or to the reason why it is refused.

The first frame, turned as its orientation mark says, on white where it is transparent. 16-bit grey is scaled by 1/257
and float values between 0 and 1 by 255; of 16-bit colour Pillow keeps the high byte. CMYK goes through its own colour
profile where it has one; RGB and grey are taken as sRGB, as torchvision takes them. Modes without a rule are refused by
name. What a header says is bounded before anything is allocated for it, and a large image is converted strip by strip:
it takes a few times the room of its pixels, one at a time. JPEGs are not decoded at a smaller scale, which would make
other pixels of them.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.Image import Transpose

# Decoded, such an image takes 270 MB; a camera's largest ordinary photographs have 50 million pixels.
MOST_PIXELS = 1 << 26
STRIP_PIXELS = 1 << 20
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
    with _undecodable(), path.open("rb") as file:
        return _decode(file)


def decode_bytes(data: bytes) -> Image.Image:
    """The same of a file's bytes, which lie in an archive or a table."""
    with _undecodable():
        return _decode(io.BytesIO(data))


@contextmanager
def _undecodable() -> Iterator[None]:
    try:
        yield
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
            if _pixels(image) > MOST_PIXELS:
                return True
            with _alone_if_large(image):
                return _differs(image)
    except Exception:  # as above: whatever Pillow raises, it was refused then
        return False


def _differs(image: Image.Image) -> bool:
    """Whether an image is shown as others than the pixels that `convert("RGB")` makes of it, or is refused."""
    image.load()
    # What has no conversion at all was refused then.
    image.crop((0, 0, 1, 1)).convert("RGB")
    try:
        shown = _shown(image)
    except Exception:  # refused now
        return True
    return shown.size != image.size or any(
        not np.array_equal(np.asarray(image.crop(box).convert("RGB")), np.asarray(shown.crop(box)))
        for box in _strips(image)
    )


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
        require_pixels(*image.size)
        with _alone_if_large(image):
            # Asked before loading: what is refused by its header is not decoded.
            _require_rule(image)
            image.load()
            return _shown(image)


def _pixels(image: Image.Image) -> int:
    return image.size[0] * image.size[1]


def _alone_if_large(image: Image.Image) -> AbstractContextManager[object]:
    return _one_large if _pixels(image) > LARGE_PIXELS else nullcontext()


def _require_rule(image: Image.Image) -> None:
    if image.mode not in {"F"} | _PLAIN | _WITH_ALPHA and not _is_grey16(image):
        raise Undecodable(f"mode {image.mode} of {image.format}, which has no defined look as 8-bit RGB")


def _shown(image: Image.Image) -> Image.Image:
    """A loaded image as RGB, turned."""
    _require_rule(image)
    convert = _conversion(image)
    rgb = image if convert is None else _in_strips(image, convert)
    turn = _TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """What makes RGB of any part of an image; None where it is that."""
    if _is_grey16(image):
        inverted = image.format == "TIFF" and _tag(image, _PHOTOMETRIC) == 0
        return lambda part: _from_grey16(part, inverted)
    if image.mode == "F":
        _require_share(image)
        return _from_float
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return _over_white
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK" and isinstance(profile, bytes) and profile:
        return lambda part: _through_profile(part, profile)
    return None if image.mode == "RGB" else lambda part: part.convert("RGB")


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The whole of an image, converted; steps in between take the room of a strip."""
    strips = list(_strips(image))
    if len(strips) == 1:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for box in strips:
        whole.paste(convert(image.crop(box)), box)
    return whole


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole rows that make up an image."""
    width, height = image.size
    rows = max(1, STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _over_white(image: Image.Image) -> Image.Image:
    # La has no way to RGBA but through LA.
    over = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGBA", over.size, "white")
    return Image.alpha_composite(white, over).convert("RGB")


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


def _require_share(image: Image.Image) -> None:
    ends = [(float(values.min()), float(values.max())) for values in map(np.asarray, map(image.crop, _strips(image)))]
    # numpy's, as these do not lose what is no number.
    low, high = (float(choose(end)) for choose, end in zip((np.min, np.max), zip(*ends, strict=True), strict=True))
    if not (low >= 0 and high <= 1):
        raise Undecodable(f"float values from {low:g} to {high:g}, which show as grey only between 0 and 1")


def _from_float(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.rint(np.asarray(image) * np.float32(255)).astype(np.uint8)).convert("RGB")


def _is_as_ever(image: Image.Image) -> bool:
    """Whether the header alone says that these rules change nothing."""
    return (
        image.mode in _PLAIN
        and _pixels(image) <= MOST_PIXELS
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
