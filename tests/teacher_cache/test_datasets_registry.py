"""Names of data sets, and the digits that need no download."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from ground.errors import DatasetMissing, InvalidInput, UnknownName
from teacher_cache.datasets import ArraySplit, ImageDataset, open_dataset
from teacher_cache.datasets.digits import enlarge, open_digits
from teacher_cache.datasets.registry import may_be


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits")


def test_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownName, match=r"no dataset is called 'cifar-100'; did you mean cifar100"):
        open_dataset("cifar-100")


def test_unknown_name_far_from_all_lists_every_name():
    known = r"known: cifar10, cifar100, csv:FILE, digits, imagefolder:PATH, parquet:FOLDER, stanford_cars, tar:FOLDER"
    with pytest.raises(UnknownName, match=known):
        open_dataset("/x")


@pytest.mark.parametrize("spec", ["imagefolder", "imagefolder:"])
def test_image_folder_needs_a_path(spec):
    with pytest.raises(InvalidInput, match=r"imagefolder needs a folder; write imagefolder:PATH"):
        open_dataset(spec)


def test_named_set_takes_no_path():
    with pytest.raises(InvalidInput, match=r"cifar10 takes no path, got 'cifar10:/data'.*--data-root"):
        open_dataset("cifar10:/data")


@pytest.mark.parametrize("spec", ["cifar10", "cifar100", "stanford_cars", "digits"])
def test_image_size_is_refused_where_it_is_fixed(spec):
    with pytest.raises(InvalidInput, match=rf"{spec} has images of a fixed size, got image size 64"):
        open_dataset(spec, image_size=64)


def test_data_root_comes_from_the_environment_else_is_data(tmp_path, monkeypatch):
    monkeypatch.setenv("CKD_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DatasetMissing, match=r"cifar10 is not in .*elsewhere"):
        open_dataset("cifar10")
    with pytest.raises(DatasetMissing, match=r"cifar10 is not in .*given"):
        open_dataset("cifar10", data_root=tmp_path / "given")
    monkeypatch.chdir(tmp_path)
    for empty in (True, False):
        monkeypatch.setenv("CKD_DATA", "") if empty else monkeypatch.delenv("CKD_DATA")
        with pytest.raises(DatasetMissing, match=r"cifar10 is not in data:"):
            open_dataset("cifar10")


# Digits


def test_digits_are_split_with_each_digits_share_kept(digits):
    assert digits.name == "digits"
    assert digits.classes == tuple("0123456789")
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    whole = np.bincount(load_digits().target)
    held_out = np.bincount(digits.test.labels)
    np.testing.assert_array_equal(np.bincount(digits.train.labels) + held_out, whole)
    assert np.abs(held_out - whole * 360 / 1797).max() < 1


def test_digits_split_and_pixels_stay_what_they_are(digits):
    # A change of scikit-learn's shuffling or of Pillow's filter would make old stores foreign: notice it.
    assert digits.digest == "dab1cb8baf2214f474f534244db7a89d905381729a4b3c0382691bd5b2db6bfd"
    assert open_dataset("digits").digest == digits.digest


def test_digits_are_the_same_where_scikit_learn_keeps_its_file_elsewhere(digits, monkeypatch):
    monkeypatch.setattr("teacher_cache.datasets.digits.find_spec", lambda name: None)
    assert open_digits.__wrapped__().digest == digits.digest


def test_digit_pixels_are_the_scaled_values_resized():
    # Independent of Pillow: torch's bilinear filter, which rounds nothing on the way: one grey level apart.
    source = load_digits().images[::7]
    values = torch.from_numpy(np.round(source * 255 / 16)).float()[:, None]
    expected = interpolate(values, size=(32, 32), mode="bilinear", align_corners=False)[:, 0].numpy()
    for image, grey in zip(enlarge(source), expected, strict=True):
        assert image.shape == (32, 32, 3)
        assert (image == image[:, :, :1]).all()
        assert np.abs(image[:, :, 0] - grey).max() <= 1


def test_digits_are_enlarged_together_as_each_would_be_by_itself():
    source = load_digits().images[::7]
    for digit, image in zip(source, enlarge(source), strict=True):
        grey = Image.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8))
        alone = np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(image, np.repeat(alone[:, :, None], 3, axis=2))


def test_digits_are_read_once_and_nobody_changes_them_for_others(digits):
    assert open_dataset("digits") is digits
    with pytest.raises(ValueError, match="read-only"):
        digits.train.images[0] = 0


def test_every_digit_is_in_one_split_with_its_label(digits):
    source = load_digits()
    expected = Counter((i.tobytes(), int(d)) for i, d in zip(enlarge(source.images), source.target, strict=True))
    splits = (digits.train, digits.test)
    found = Counter(
        (image.tobytes(), int(label))
        for split in splits
        for image, label in zip(split.read(np.arange(len(split))), split.labels, strict=True)
    )
    assert found == expected


def test_digits_constants_are_those_of_the_training_pixels(digits):
    pixels = digits.train.images.astype(np.float64) / 255
    assert digits.normalisation.mean == (round(pixels.mean(), 4),) * 3
    assert digits.normalisation.std == (round(pixels.std(), 4),) * 3


def test_digits_are_read_by_index(digits):
    images = digits.test.read(np.array([3, 1]))
    assert images.shape == (2, 32, 32, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, digits.test.images[[3, 1]])
    assert digits.geometry.image_size == digits.geometry.crop_size == 32


def test_array_digest_changes_with_a_pixel_a_label_and_between_splits(digits):
    def digest_of(train, test):
        return ImageDataset(
            name="x",
            classes=digits.classes,
            train=train,
            test=test,
            geometry=digits.geometry,
            normalisation=digits.normalisation,
        ).digest

    images, labels = digits.test.images[:4].copy(), digits.test.labels[:4].copy()
    one, other = ArraySplit(images[:2], labels[:2]), ArraySplit(images[2:], labels[2:])
    before = digest_of(one, other)
    assert digest_of(other, one) != before
    brighter = images[:2].copy()
    brighter[0, 5, 5, 0] ^= 1
    assert digest_of(ArraySplit(brighter, labels[:2]), other) != before
    assert digest_of(ArraySplit(images[:2], labels[:2] + np.array([0, 1])), other) != before
    assert digest_of(ArraySplit(np.asfortranarray(images[:2]), labels[:2]), other) == before


@pytest.mark.parametrize(
    ("spec", "own", "may"),
    [
        ("cifar100", "cifar100", True),
        ("cifar10", "cifar100", False),
        ("imagefolder:/data/cifar100", "cifar100", False),
        ("digits", "imagefolder:photos", False),
        ("imagefolder:/elsewhere/renamed", "imagefolder:photos", True),
        ("csv:/data/photos.csv", "imagefolder:photos", True),
        ("cifr100", "cifar100", True),  # it is no data set, which is said where it is opened
    ],
)
def test_what_cannot_be_a_stores_own_is_known_by_name(spec, own, may):
    assert may_be(spec, own) is may
