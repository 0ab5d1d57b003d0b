"""The user's own image folders: what is read, what identifies them, and what is refused."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from ground.errors import DatasetMissing, InvalidInput
from teacher_cache.datasets import base, open_dataset
from teacher_cache.datasets.image_folder import fit_to_square


def noise(seed, width=32, height=32):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes; three training images each, one test image each."""
    root = tmp_path / "pets"
    for label, name in enumerate(["cat", "dog"]):
        for number in range(3):
            save(root / "train" / name / f"{number}.png", noise(10 * label + number))
        save(root / "test" / name / "0.png", noise(100 + label))
    return root


def opened(root, **kwargs):
    return open_dataset(f"imagefolder:{root}", **kwargs)


def all_images(split):
    return split.read(np.arange(len(split)))


def test_folder_has_sorted_classes_and_a_name_without_the_machine_path(folder):
    data = opened(folder)
    assert data.name == "imagefolder:pets"
    assert data.classes == ("cat", "dog")
    assert data.num_classes == 2
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.labels.dtype == np.int64
    assert (len(data.train), len(data.test)) == (6, 2)


def test_name_and_path_resolve_dots_and_tilde(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert opened(".").name == "imagefolder:pets"
    monkeypatch.setenv("HOME", str(folder.parent))
    assert opened("~/pets").name == "imagefolder:pets"


def test_image_of_the_right_size_is_the_decoded_pixels(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split / "a" / "x.jpg", noise(1))
    with Image.open(tmp_path / "train" / "a" / "x.jpg") as image:
        expected = np.asarray(image.convert("RGB"))
    images = opened(tmp_path).train.read(np.array([0]))
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, expected[None])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_colour_mode_is_read_as_rgb(tmp_path, mode):
    image = noise(2).convert(mode)
    for split in ("train", "test"):
        save(tmp_path / split / "a" / "x.tif", image)
    np.testing.assert_array_equal(all_images(opened(tmp_path).train)[0], np.asarray(image.convert("RGB")))


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_fit_matches_torchvision_resize_and_centre_crop(width, height, size):
    image = noise(width * 100 + height, width, height)
    resized = Resize(size, interpolation=InterpolationMode.BILINEAR, antialias=True)(image)
    expected = CenterCrop(size)(resized)
    np.testing.assert_array_equal(np.asarray(fit_to_square(image, size)), np.asarray(expected))


def test_image_size_sets_base_images_and_geometry(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split / "a" / "x.png", noise(3, 100, 70))
    data = opened(tmp_path, image_size=48)
    assert all_images(data.train).shape == (1, 48, 48, 3)
    assert (data.geometry.image_size, data.geometry.crop_size, data.geometry.padding) == (48, 48, 6)
    default = opened(tmp_path).geometry
    assert (default.image_size, default.crop_size, default.padding) == (32, 32, 4)


def test_read_keeps_the_order_asked_for_and_repeats(folder):
    split = opened(folder).train
    everything = all_images(split)
    np.testing.assert_array_equal(split.read(np.array([5, 0, 5, 2])), everything[[5, 0, 5, 2]])
    assert split.read(np.array([], dtype=np.int64)).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("fast_file_seconds", [0.0, 1e9])
def test_threads_and_plain_reading_agree(tmp_path, monkeypatch, fast_file_seconds):
    monkeypatch.setattr(base, "FAST_FILE_SECONDS", fast_file_seconds)
    expected = [np.asarray(noise(number)) for number in range(50)]
    for number, pixels in enumerate(expected):
        save(tmp_path / "train" / "a" / f"{number:02}.png", Image.fromarray(pixels))
    save(tmp_path / "test" / "a" / "x.png", noise(0))
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(opened(tmp_path).train.read(order), np.stack(expected)[order])


def test_reading_outside_the_split_is_an_index_error(folder):
    with pytest.raises(IndexError):
        opened(folder).train.read(np.array([6]))


def test_files_that_are_not_images_by_name_are_ignored(folder):
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / "readme.md").write_text("no class")
    save(folder / "train" / "cat" / "deeper" / "LOUD.PNG", noise(7))
    data = opened(folder)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_test_is_preferred_to_val(folder):
    shutil.copytree(folder / "train", folder / "val")
    assert len(opened(folder).test) == 2


def test_train_class_may_be_missing_from_test(folder):
    shutil.rmtree(folder / "test" / "cat")
    data = opened(folder)
    assert data.num_classes == 2
    assert data.test.labels.tolist() == [1]


# Digest


def test_digest_stays_when_the_folder_moves(folder, tmp_path):
    before = opened(folder).digest
    assert len(before) == 64
    moved = folder.rename(tmp_path / "elsewhere")
    assert opened(moved).digest == before


def test_digest_is_the_same_with_and_without_threads(folder, monkeypatch):
    monkeypatch.setattr(base, "FILES_PER_TASK", 1)
    digests = set()
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(base, "FAST_FILE_SECONDS", seconds)
        digests.add(opened(folder).digest)
    assert len(digests) == 1


def flip_a_byte(root):
    file = root / "train" / "dog" / "1.png"
    damaged = bytearray(file.read_bytes())
    damaged[-20] ^= 1
    file.write_bytes(damaged)


def rename_a_class(root):
    for split in ("train", "test"):
        (root / split / "dog").rename(root / split / "wolf")


def swap_two_files(root):
    first, second, aside = (root / "train" / "cat" / name for name in ("0.png", "1.png", "aside"))
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


@pytest.mark.parametrize(
    "change",
    [
        flip_a_byte,
        rename_a_class,
        swap_two_files,
        lambda root: (root / "test" / "cat" / "0.png").unlink(),
        lambda root: save(root / "train" / "cat" / "9.png", noise(1)),
        lambda root: (root / "train" / "cat" / "0.png").rename(root / "train" / "dog" / "9.png"),
    ],
    ids=["byte", "class renamed", "files swapped", "test file removed", "file added", "file moved"],
)
def test_digest_changes_with_the_content(folder, change):
    before = opened(folder).digest
    change(folder)
    assert opened(folder).digest != before


def test_digest_changes_when_an_empty_class_shifts_the_labels(folder):
    # The files and their paths in dog/ stay as they are; only their label moves from 1 to 2.
    before = opened(folder).train.content_digest()
    data = opened(folder).train
    shifted = base.FileSplit(data.root, data.files, data.labels * 2, data.image_size, data.fit, data.remedy)
    assert shifted.content_digest() != before


def test_digest_names_a_file_that_vanished(folder):
    data = opened(folder)
    (folder / "train" / "cat" / "1.png").unlink()
    with pytest.raises(InvalidInput, match=r"cannot read train/cat/1\.png: No such file"):
        _ = data.digest


# Damage


def test_file_that_is_no_image_is_named(folder):
    (folder / "train" / "cat" / "1.png").write_bytes(b"not a picture")
    message = r"^cannot decode train/cat/1\.png: not an image; replace or delete it$"
    with pytest.raises(InvalidInput, match=message):
        all_images(opened(folder).train)


def test_only_the_images_asked_for_are_decoded(folder):
    (folder / "train" / "cat" / "1.png").write_bytes(b"not a picture")
    assert opened(folder).train.read(np.array([0, 2])).shape == (2, 32, 32, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_truncated_file_is_named(tmp_path, suffix, share):
    for split in ("train", "test"):
        save(tmp_path / split / "a" / f"x.{suffix}", noise(4))
    file = tmp_path / "train" / "a" / f"x.{suffix}"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InvalidInput, match=rf"cannot decode train/a/x\.{suffix}: .+; replace or delete it"):
        all_images(opened(tmp_path).train)


def test_several_bad_files_are_reported_together(folder):
    for file in (folder / "train").rglob("*.png"):
        file.write_bytes(b"")
    named = r"train/cat/0\.png, train/cat/1\.png, train/cat/2\.png and others"
    message = rf"cannot decode 6 files, {named} \(the first: not an image\); replace or delete them$"
    with pytest.raises(InvalidInput, match=message):
        all_images(opened(folder).train)


def test_file_that_vanished_is_named_on_reading(folder):
    split = opened(folder).test
    (folder / "test" / "dog" / "0.png").unlink()
    with pytest.raises(InvalidInput, match=r"cannot decode test/dog/0\.png: No such file or directory"):
        all_images(split)


# Layout


def test_missing_path_is_refused(tmp_path):
    with pytest.raises(DatasetMissing, match=r"nowhere is not a folder; an image folder has train/CLASS"):
        opened(tmp_path / "nowhere")


def test_folder_without_train_is_refused(folder):
    shutil.rmtree(folder / "train")
    with pytest.raises(DatasetMissing, match=r"pets has no train/"):
        opened(folder)


def test_folder_without_test_or_val_is_refused(folder):
    shutil.rmtree(folder / "test")
    with pytest.raises(DatasetMissing, match=r"pets has neither test/ nor val/"):
        opened(folder)


def test_train_without_classes_is_refused(folder):
    shutil.rmtree(folder / "train")
    shutil.rmtree(folder / "test")
    save(folder / "train" / "x.png", noise(1))
    (folder / "test").mkdir()
    with pytest.raises(InvalidInput, match=r"train has no class folders"):
        opened(folder)


def test_empty_class_folder_in_train_is_named(folder):
    (folder / "train" / "bird").mkdir()
    with pytest.raises(InvalidInput, match=r"no images in train/bird of .*pets; add some or remove it"):
        opened(folder)


def test_test_class_that_train_lacks_is_named(folder):
    save(folder / "test" / "wolf" / "0.png", noise(1))
    with pytest.raises(InvalidInput, match=r"test has wolf, which train/ lacks"):
        opened(folder)


def test_test_folder_without_images_is_refused(folder):
    for file in (folder / "test").rglob("*.png"):
        file.unlink()
    with pytest.raises(InvalidInput, match=r"no images in .*pets/test"):
        opened(folder)


def test_image_size_below_one_is_refused(folder):
    with pytest.raises(InvalidInput, match=r"image size 0 is not positive"):
        opened(folder, image_size=0)
