"""The user's own image folders: what is read, what identifies them, and what is refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from ground.errors import DatasetMissing, InvalidInput
from ground.fitting import fit_to_square, fitted, for_margin
from ground.geometry import Fit, ViewGeometry
from ground.listing import IMG_EXTENSIONS
from teacher_cache.datasets import base, open_dataset


def noise(seed, width=32, height=32):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def with_second_class(root):
    """`root` with a class b of one image besides what it has."""
    for split in ("train", "val" if (root / "val").exists() else "test"):
        save(root / split / "b" / "other.png", noise(50))
    return root


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
    images = opened(with_second_class(tmp_path)).train.read(np.array([0]))
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, expected[None])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_colour_mode_is_read_as_rgb(tmp_path, mode):
    image = noise(2).convert(mode)
    for split in ("train", "test"):
        save(tmp_path / split / "a" / "x.tif", image)
    np.testing.assert_array_equal(
        all_images(opened(with_second_class(tmp_path)).train)[0], np.asarray(image.convert("RGB"))
    )


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_fit_matches_torchvision_resize_and_centre_crop(width, height, size):
    image = noise(width * 100 + height, width, height)
    resized = Resize(size, interpolation=InterpolationMode.BILINEAR, antialias=True)(image)
    expected = CenterCrop(size)(resized)
    np.testing.assert_array_equal(np.asarray(fit_to_square(image, size)), np.asarray(expected))


@pytest.mark.parametrize(("margin", "shape"), [(0, "centre-low"), (8, "centre-low"), (11, "centre-high")])
def test_half_a_pixel_beside_the_square_is_rounded_so_that_its_own_centre_is_that_of_the_image(margin, shape):
    for longer in (64, 65, 66, 67):
        image = noise(longer, longer, 40)
        base = np.asarray(fitted(image, 40, Fit(shape=shape)))
        crop, inner, whole = 40 - margin, margin // 2, (longer - (40 - margin)) // 2
        expected = np.asarray(image)[inner : inner + crop, whole : whole + crop]
        np.testing.assert_array_equal(base[inner : inner + crop, inner : inner + crop], expected)


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(8, 60), margin=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_plain_view_of_a_base_image_is_the_crop_that_torchvision_makes_at_once(width, height, size, margin):
    image = noise(width * 100 + height, width, height)
    resized = Resize(size, interpolation=InterpolationMode.BILINEAR, antialias=True)(image)
    expected = np.asarray(CenterCrop(size - margin)(resized))
    base = np.asarray(fitted(image, size, Fit(shape=for_margin("centre", margin))))
    assert base.shape == (size, size, 3)
    top, left, _ = ViewGeometry(image_size=size, crop_size=size - margin, padding=0).plain_view
    np.testing.assert_array_equal(base[top : top + size - margin, left : left + size - margin], expected)


def test_image_size_sets_base_images_and_geometry(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split / "a" / "x.png", noise(3, 100, 70))
    data = opened(with_second_class(tmp_path), image_size=48)
    assert all_images(data.train).shape == (2, 48, 48, 3)
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
    np.testing.assert_array_equal(opened(with_second_class(tmp_path)).train.read(order), np.stack(expected)[order])


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
    shifted = replace(data, labels=data.labels * 2)
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
        all_images(opened(with_second_class(tmp_path)).train)


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


# Layouts that people have


@pytest.mark.parametrize(("train", "test"), [("Train", "valid"), ("training", "validation"), ("TRAIN", "Test")])
def test_other_spellings_of_the_splits_are_read(folder, train, test):
    (folder / "train").rename(folder / train)
    (folder / "test").rename(folder / test)
    data = opened(folder)
    assert (len(data.train), len(data.test)) == (6, 2)
    assert data.train.files[0] == f"{train}/cat/0.png"


def test_one_more_level_is_read_under_its_own_name(folder, tmp_path):
    outer = tmp_path / "data"
    (outer / "__MACOSX").mkdir(parents=True)
    folder.rename(outer / "pets")
    data = opened(outer)
    assert data.name == "imagefolder:pets"
    assert data.train.files[0] == "train/cat/0.png"


def tiny_imagenet(root):
    for number, name in enumerate(["n01", "n02"]):
        save(root / "train" / name / "images" / f"{name}_0.JPEG", noise(number))
        (root / "train" / name / f"{name}_boxes.txt").write_text("x")
        save(root / "val" / "images" / f"val_{number}.JPEG", noise(9 + number))
    save(root / "test" / "images" / "test_0.JPEG", noise(20))
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")
    return root


def test_tiny_imagenet_is_read_as_it_unpacks(tmp_path):
    data = opened(tiny_imagenet(tmp_path))
    assert data.classes == ("n01", "n02")
    assert list(data.train.files) == ["train/n01/images/n01_0.JPEG", "train/n02/images/n02_0.JPEG"]
    assert list(data.test.files) == ["val/images/val_0.JPEG", "val/images/val_1.JPEG"]
    assert data.test.labels.tolist() == [1, 0]


@pytest.mark.parametrize("line", ["val_0.JPEG", "../../secret\tn01", "absent.JPEG\tn01"])
def test_tiny_imagenets_list_must_name_its_images(tmp_path, line):
    (tiny_imagenet(tmp_path) / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(InvalidInput, match=r"line 1 of .* names no image of its own"):
        opened(tmp_path)


def test_one_folder_too_many_is_refused(folder, tmp_path):
    for split in ("train", "test"):
        (folder / split).rename(folder / "images")
        (folder / split).mkdir()
        (folder / "images").rename(folder / split / "images")
    with pytest.raises(InvalidInput, match=r"train has one class folder, images, and a data set has at least two"):
        opened(folder)


# What is left out, and said


@pytest.fixture
def said(caplog):
    caplog.set_level("INFO", logger="teacher_cache.datasets")
    return lambda: "\n".join(caplog.messages)


def test_what_was_listed_is_one_line(folder, said):
    (folder / "train" / "cat" / "2.png").unlink()
    opened(folder)
    assert said() == (
        "imagefolder:pets: 5 training and 2 test images in train/ and test/, 2 classes of 2 to 3 training images"
    )


def test_hidden_and_system_files_are_left_out_and_named(folder, said):
    before = opened(folder).digest
    for name in (".ipynb_checkpoints", ".git", "@eaDir", "__MACOSX"):
        for split in ("train", "test"):
            save(folder / split / name / "x.png", noise(1))
            save(folder / split / "cat" / name / "x.png", noise(1))
    (folder / "train" / "cat" / "._0.jpg").write_bytes(b"resource fork")
    data = opened(folder)
    assert data.classes == ("cat", "dog")
    assert data.digest == before
    assert "17 hidden or a system's (test/.git, test/.ipynb_checkpoints, test/@eaDir, ...)" in said()


def test_files_left_out_for_their_suffix_are_counted(folder, said):
    (folder / "train" / "cat" / "a.gif").write_bytes(b"")
    (folder / "train" / "cat" / "noext").write_bytes(b"")
    opened(folder)
    assert "left out: 2 no image by their suffix (train/cat/a.gif, train/cat/noext)" in said()


def test_files_in_no_class_folder_are_counted(folder, said):
    before = opened(folder).digest
    save(folder / "train" / "stray.png", noise(1))
    (folder / "test" / ".DS_Store").write_bytes(b"")
    assert opened(folder).digest == before
    assert "left out: 1 hidden or a system's (test/.DS_Store); 1 in no class folder (train/stray.png)" in said()


def test_images_that_tiny_imagenets_list_does_not_name_are_counted(tmp_path, said):
    root = tiny_imagenet(tmp_path)
    save(root / "val" / "images" / "val_9.JPEG", noise(9))
    assert len(opened(root).test) == 2
    assert "; 1 not in val_annotations.txt (val/images/val_9.JPEG)" in said()


def test_what_opens_it_again_has_the_full_path_and_the_listing_is_kept(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    data = open_dataset("imagefolder:pets", image_size=24)
    assert data.options == {"dataset": f"imagefolder:{folder}", "image_size": "24"}
    assert data.listing.startswith("imagefolder:pets: 6 training and 2 test images")


def test_names_that_terminals_obey_are_said_as_text(folder, said):
    (folder / "train" / "cat" / "a\x1b[31m.gif").write_bytes(b"")
    (folder / "train" / "cat" / "b\udce9.gif").write_bytes(b"")
    opened(folder)
    assert r"(train/cat/a\x1b[31m.gif, train/cat/b\udce9.gif)" in said()


def test_links_inside_class_folders_are_left_out_and_named(folder, said):
    before = opened(folder).digest
    (folder / "train" / "cat" / "up").symlink_to("..")
    (folder / "train" / "cat" / "dogs").symlink_to("../dog")
    (folder / "train" / "cat" / "9.png").symlink_to("../dog/0.png")
    (folder / "train" / "pup").symlink_to("dog")
    (folder / "train" / "all").symlink_to("..")
    data = opened(folder)
    assert data.digest == before
    assert "left out: 5 links (train/all, train/cat/9.png, train/cat/dogs, ...)" in said()


def test_class_folders_elsewhere_are_followed_once(folder, tmp_path):
    before = opened(folder).digest
    (folder / "train" / "dog").rename(tmp_path / "dogs")
    (folder / "train" / "dog").symlink_to(tmp_path / "dogs")
    assert opened(folder).digest == before
    (folder / "train" / "pup").symlink_to(tmp_path / "dogs")
    with pytest.raises(InvalidInput, match=r"train/dog and train/pup of .* are links to the same folder"):
        opened(folder)


@pytest.mark.parametrize("name", ["a\x1b[31m", "two\nlines", "\u202egnp", "caf\udce9"])
def test_class_name_that_no_store_could_be_read_with_is_refused(folder, name):
    save(folder / "train" / name / "0.png", noise(1))
    with pytest.raises(InvalidInput, match=r"the name '.*' is not a line of printable text; rename the folder"):
        opened(folder)


def test_data_set_name_that_no_store_could_be_read_with_is_refused(folder):
    with pytest.raises(InvalidInput, match=r"the name 'imagefolder:pe\\x07ts' is not a line"):
        opened(folder.rename(folder.with_name("pe\x07ts")))


def test_numbers_as_class_names_are_said_where_text_order_differs(folder, said):
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "2")
        (folder / split / "dog").rename(folder / split / "10")
    assert opened(folder).classes == ("10", "2")
    assert "class names are numbers and are taken as text: 10, 2" in said()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cat\ndog\n", None),
        ("dog\r\ncat\r\n\r\n", "classes.txt names classes in another order than the folders' (dog, cat, ..."),
        ("cat\nowl\n", "classes.txt names classes that are not the folders' (cat, owl, ..."),
        (b"\xff\xfe", "classes.txt names classes that are not the folders'"),
    ],
)
def test_a_list_of_classes_beside_the_splits_is_compared(folder, said, text, says):
    (folder / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert opened(folder).classes == ("cat", "dog")
    assert ("classes.txt" in said()) == (says is not None)
    assert says is None or says in said()


def test_class_without_test_images_is_said(folder, said):
    shutil.rmtree(folder / "test" / "cat")
    opened(folder)
    assert "no test images of cat" in said()


@pytest.mark.parametrize("names", [("cat", "Cat"), ("caf\u00e9", "cafe\u0301")])
def test_class_names_that_look_alike_are_said(folder, said, names):
    for number, name in enumerate(names):
        save(folder / "train" / name / "0.png", noise(number))
    opened(folder)
    assert "differ only by case or by how letters are composed" in said()


def test_same_image_in_train_and_test_is_said(folder, said):
    shutil.copy(folder / "train" / "cat" / "0.png", folder / "test" / "cat" / "leak.png")
    _ = opened(folder).digest
    assert "1 test images are training images too, the first test/cat/leak.png" in said()


def test_strip_that_would_grow_without_bound_is_refused(folder):
    save(folder / "train" / "cat" / "0.png", Image.new("L", (3_000_000, 1)))
    with pytest.raises(InvalidInput, match=r"train/cat/0\.png: 32 x 96000000 pixels, above the most of"):
        all_images(opened(folder).train)


def test_files_are_images_by_the_suffixes_that_torchvision_takes():
    from torchvision.datasets import folder

    assert IMG_EXTENSIONS == folder.IMG_EXTENSIONS
