"""Images as a viewer shows them, against pixels computed with NumPy alone, or refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from ground import decoding
from ground.decoding import Undecodable, decode, reads_anew

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


@pytest.fixture(autouse=True, params=["whole", "in strips"])
def strips(request, monkeypatch):
    """An image of 5 rows is converted in one piece, or two rows at a time: the pixels are the same."""
    monkeypatch.setattr(decoding, "STRIP_PIXELS", {"whole": 1 << 20, "in strips": 14}[request.param])


def grey_rgb(values):
    return np.repeat(np.asarray(values, dtype=np.uint8)[:, :, None], 3, axis=2)


def on_white(colour, alpha):
    share = alpha[:, :, None] / 255
    return np.rint(colour * share + 255 * (1 - share))


def rgba():
    return Image.fromarray(np.dstack([COLOUR, ALPHA]))


def written(path, image, **options):
    image.save(path, **options)
    return path


def pixels(path):
    image = decode(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_bytes(width, height, depth, colour_type, rows):
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# The table of modes and formats


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif", "webp"])
def test_8_bit_colour_is_what_the_file_says(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = written(tmp_path / f"x.{suffix}", Image.fromarray(COLOUR), **options)
    np.testing.assert_array_equal(pixels(path), COLOUR)


@pytest.mark.parametrize("suffix", ["png", "bmp", "pgm", "tif"])
def test_8_bit_grey_is_the_same_in_three_channels(tmp_path, suffix):
    np.testing.assert_array_equal(pixels(written(tmp_path / f"x.{suffix}", Image.fromarray(GREY))), grey_rgb(GREY))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_bits_are_black_and_white(tmp_path, suffix):
    path = written(tmp_path / f"x.{suffix}", Image.fromarray(GREY > 127))
    np.testing.assert_array_equal(pixels(path), grey_rgb((GREY > 127) * 255))


@pytest.mark.parametrize("suffix", ["png", "pgm", "tif", "jp2"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    options = {"irreversible": False} if suffix == "jp2" else {}
    path = written(tmp_path / f"x.{suffix}", Image.fromarray(GREY16), **options)
    np.testing.assert_array_equal(pixels(path), grey_rgb(np.rint(GREY16 / 257)))
    assert reads_anew(path.read_bytes())


def test_16_bit_grey_tiff_whose_zero_is_white_is_inverted(tmp_path):
    path = written(tmp_path / "x.tif", Image.fromarray(GREY16), tiffinfo={262: 0})
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0
        stored = np.asarray(image)
    np.testing.assert_array_equal(pixels(path), grey_rgb(255 - np.rint(stored / 257)))


def test_16_bit_colour_png_keeps_the_high_bytes(tmp_path):
    values = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path = tmp_path / "x.png"
    path.write_bytes(png_bytes(7, 5, 16, 2, rows))
    np.testing.assert_array_equal(pixels(path), values >> 8)


def test_float_between_0_and_1_is_scaled(tmp_path):
    values = RNG.random((5, 7)).astype(np.float32)
    path = written(tmp_path / "x.tif", Image.fromarray(values))
    np.testing.assert_array_equal(pixels(path), grey_rgb(np.rint(values * 255)))


@pytest.mark.parametrize("value", [-0.5, 3.0, np.nan, np.inf])
def test_float_outside_0_and_1_is_refused_by_its_range(tmp_path, value):
    values = np.full((5, 7), 0.5, dtype=np.float32)
    values[2, 3] = value
    path = written(tmp_path / "x.tif", Image.fromarray(values))
    with pytest.raises(Undecodable, match=r"^float values from .* to .*, which show as grey only between 0 and 1$"):
        decode(path)


def test_32_bit_integers_and_lab_are_refused_by_name(tmp_path):
    integers = written(tmp_path / "i.tif", Image.fromarray(GREY16.astype(np.int32)))
    lab = written(tmp_path / "lab.tif", Image.frombytes("LAB", (7, 5), COLOUR.tobytes()))
    for path, mode in [(integers, "I"), (lab, "LAB")]:
        with pytest.raises(Undecodable, match=rf"^mode {mode} of TIFF, which has no defined look as 8-bit RGB$"):
            decode(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_transparency_is_shown_on_white(tmp_path, suffix):
    path = written(tmp_path / f"x.{suffix}", rgba())
    assert np.abs(pixels(path).astype(int) - on_white(COLOUR, ALPHA)).max() <= 1
    assert reads_anew(path.read_bytes())


def test_grey_with_transparency_is_shown_on_white(tmp_path):
    path = written(tmp_path / "x.png", Image.fromarray(np.dstack([GREY, ALPHA]), "LA"))
    assert np.abs(pixels(path).astype(int) - on_white(grey_rgb(GREY), ALPHA)).max() <= 1


def test_premultiplied_alpha_is_shown_on_white(tmp_path):
    premultiplied = (COLOUR.astype(int) * ALPHA[:, :, None]) // 255
    image = Image.fromarray(np.dstack([premultiplied.astype(np.uint8), ALPHA]))
    path = written(tmp_path / "x.tif", image)
    unassociated, associated = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1))
    path.write_bytes(path.read_bytes().replace(unassociated, associated))
    with Image.open(path) as stored:
        assert stored.tag_v2[338] == (1,)
    # Dividing by a small alpha and multiplying again may lose a level.
    assert np.abs(pixels(path).astype(int) - (premultiplied + 255 - ALPHA[:, :, None])).max() <= 2


def test_palette_with_alpha_is_shown_on_white(tmp_path):
    image = Image.fromarray((GREY % 2).astype(np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 0, 90])
    path = written(tmp_path / "x.png", image, transparency=bytes([0, 255]))
    expected = np.where((GREY % 2 == 1)[:, :, None], [0, 0, 90], [255, 255, 255])
    np.testing.assert_array_equal(pixels(path), expected)


def test_one_transparent_colour_is_shown_white(tmp_path):
    path = written(tmp_path / "x.png", Image.fromarray(COLOUR), transparency=tuple(COLOUR[0, 0].tolist()))
    expected = COLOUR.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(pixels(path), expected)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_first_frame_of_an_animation_is_read(tmp_path, suffix):
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    options = {"lossless": True} if suffix == "webp" else {}
    path = written(tmp_path / f"x.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(pixels(path), COLOUR)


def test_cmyk_without_a_profile_is_subtracted(tmp_path):
    inks = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8).astype(int)
    path = written(tmp_path / "x.tif", Image.frombytes("CMYK", (7, 5), inks.astype(np.uint8).tobytes()))
    expected = (255 - inks[:, :, :3]) * (255 - inks[:, :, 3:]) / 255
    assert np.abs(pixels(path) - expected).max() <= 1


def test_cmyk_with_a_profile_that_does_not_fit_is_refused(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = written(tmp_path / "x.tif", Image.new("CMYK", (7, 5)), icc_profile=profile)
    with pytest.raises(Undecodable, match=r"^its CMYK colour profile cannot be used$"):
        decode(path)


# Orientation


TURNED = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("mark", TURNED)
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_orientation_mark_is_applied_once(tmp_path, mark, suffix):
    exif = Image.Exif()
    exif[0x0112] = mark
    options = {"lossless": True} if suffix == "webp" else {}
    path = written(tmp_path / f"x.{suffix}", Image.fromarray(COLOUR), exif=exif, **options)
    np.testing.assert_array_equal(pixels(path), TURNED[mark](COLOUR))
    # Pillow turns TIFF by itself, as it always did.
    assert reads_anew(path.read_bytes()) == (mark != 1 and suffix != "tif")


def test_orientation_of_a_photograph_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(COLOUR)
    flat = pixels(written(tmp_path / "flat.jpg", image))
    turned = written(tmp_path / "x.jpg", image, exif=exif)
    np.testing.assert_array_equal(pixels(turned), np.rot90(flat, -1))
    assert reads_anew(turned.read_bytes())
    assert not reads_anew((tmp_path / "flat.jpg").read_bytes())


def test_damaged_orientation_is_none(tmp_path):
    path = written(tmp_path / "x.png", Image.fromarray(COLOUR), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels(path), COLOUR)
    assert not reads_anew(path.read_bytes())


# What stores are bound to


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(COLOUR),
        Image.fromarray(GREY),
        Image.fromarray(COLOUR).quantize(8),
        Image.fromarray(np.dstack([COLOUR, np.full_like(ALPHA, 255)])),
    ],
    ids=["RGB", "L", "P", "opaque RGBA"],
)
def test_file_read_rightly_before_counts_as_the_same(tmp_path, image):
    path = written(tmp_path / "x.png", image)
    np.testing.assert_array_equal(pixels(path), np.asarray(image.convert("RGB")))
    assert not reads_anew(path.read_bytes())


def test_damaged_file_counts_as_the_same():
    assert not reads_anew(b"")
    assert not reads_anew(b"no image")


# Bounds


@pytest.mark.parametrize("side", [9000, 40000])
def test_header_that_promises_too_much_is_refused_before_decoding(tmp_path, monkeypatch, side):
    path = tmp_path / "x.png"
    path.write_bytes(png_bytes(side, side, 8, 2, b""))

    def loaded(_):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", loaded)
    with pytest.raises(Undecodable, match=r"the most of 67108864$"):
        decode(path)
    # Pillow itself refuses the larger one, and so it was never read.
    assert reads_anew(path.read_bytes()) is (side == 9000)


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 1)
    path = written(tmp_path / "x.png", Image.fromarray(COLOUR))
    np.testing.assert_array_equal(pixels(path), COLOUR)
    np.testing.assert_array_equal(pixels(path), COLOUR)


def test_gif_under_another_name_is_its_first_frame(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(GREY % 4).save(buffer, "GIF")
    path = tmp_path / "x.png"
    path.write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(pixels(path), grey_rgb(GREY % 4))
