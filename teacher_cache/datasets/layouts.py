"""Where the splits of an image folder are: the spellings and depths that people and archives use."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ground.errors import DatasetMissing, InvalidInput
from ground.listing import is_hidden

LAYOUT = "an image folder has train/CLASS/*.jpg and test/CLASS/*.jpg (or val/)"
FLAT = (
    "one that has only CLASS/*.jpg is divided by --split 0.8/0.2, or by lists train.txt and test.txt beside the classes"
)
_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")
_ANNOTATIONS = "val_annotations.txt"


class Layout(NamedTuple):
    """The folders of a data set.

    Args:
        root: what holds both splits.
        train: name of the training split in `root`.
        test: name of the split that accuracy is reported on.
        is_annotated: that split is Tiny ImageNet's: images/ and val_annotations.txt.
    """

    root: Path
    train: str
    test: str
    is_annotated: bool


def find_layout(given: Path) -> Layout:
    """The splits in `given`, or in its only folder that has them.

    Raises:
        DatasetMissing: there are none.
    """
    if not given.is_dir():
        raise DatasetMissing(f"{given} is not a folder; {LAYOUT}")
    root = given
    if _split(given, _TRAIN) is None:
        holders = _holders(given)
        if len(holders) != 1:
            raise DatasetMissing(f"{given} has no train/; {LAYOUT}; {FLAT}")
        root = holders[0]
    train, test = _split(root, _TRAIN), _split(root, _TEST)
    if test is None:
        raise DatasetMissing(f"{root} has neither test/ nor val/; {LAYOUT}; {FLAT}")
    assert train is not None
    annotated = _split(root, _TEST[2:])
    if annotated is not None and _is_tiny_imagenet(root / annotated):
        # Its test/ has no labels.
        return Layout(root, train, annotated, is_annotated=True)
    return Layout(root, train, test, is_annotated=False)


def has_splits(given: Path) -> bool:
    """Whether `given`, or its only folder that has them, has folders for both splits."""
    return given.is_dir() and (_holds_both(given) or len(_holders(given)) == 1)


def _holds_both(folder: Path) -> bool:
    return all(_split(folder, spellings) is not None for spellings in (_TRAIN, _TEST))


def _holders(given: Path) -> list[Path]:
    inner = [entry for entry in given.iterdir() if entry.is_dir() and not is_hidden(entry.name)]
    return [entry for entry in inner if _holds_both(entry)]


def annotated_images(root: Path, split: str) -> list[tuple[str, str]]:
    """(path relative to `root`, class) of each image that Tiny ImageNet's list names, in the order of names.

    Raises:
        InvalidInput: a line is not a name and a class, or names a file that is not there or twice.
    """
    path = root / split / _ANNOTATIONS
    class_of: dict[str, str] = {}
    for number, line in enumerate(path.read_text(errors="surrogateescape").splitlines(), 1):
        name, _, rest = line.partition("\t")
        file = root / split / "images" / name
        is_name = bool(rest) and name == Path(name).name and name not in class_of
        if not is_name or file.is_symlink() or not file.is_file():
            raise InvalidInput(f"line {number} of {path} names no image of its own; unpack the archive again")
        class_of[name] = rest.partition("\t")[0]
    return [(f"{split}/images/{name}", class_of[name]) for name in sorted(class_of)]


def _split(root: Path, spellings: tuple[str, ...]) -> str | None:
    """The folder in `root` that is spelled so, exactly before in other cases, earlier spellings first."""
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    for spelling in spellings:
        if spelling in names:
            return spelling
        if other := next((name for name in names if name.lower() == spelling), None):
            return other
    return None


def _is_tiny_imagenet(split: Path) -> bool:
    if not (split / _ANNOTATIONS).is_file() or not (split / "images").is_dir():
        return False
    # Where the images were sorted into class folders, the list is only left over.
    folders = [entry.name for entry in split.iterdir() if entry.is_dir() and not is_hidden(entry.name)]
    return folders == ["images"]
