"""What of a data set's classes may not be meant: said to its user, who may go on."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from ground.listing import listed
from teacher_cache.datasets.base import ImageDataset

# A list of classes that some archives have beside their splits.
CLASS_LIST = "classes.txt"
_MOST_LIST_BYTES = 1 << 20


def _listed_classes(root: Path) -> list[str]:
    """The classes that a list beside the splits names, in its order; none where there is no such list."""
    path = root / CLASS_LIST
    if not path.is_file() or path.stat().st_size > _MOST_LIST_BYTES:
        return []
    return [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]


def doubts(dataset: ImageDataset, root: Path) -> list[str]:
    """What of a data set in the folder `root` may not be meant, though it can be used as it is."""
    found, classes, names = [], dataset.classes, _listed_classes(root)
    if names and names != list(classes):
        how = "in another order than" if sorted(names) == sorted(classes) else "that are not"
        found.append(
            f"{CLASS_LIST} names classes {how} the folders' ({', '.join(names[:4])}, ... there, "
            f"{', '.join(classes[:4])}, ... here); labels follow the folders, and a teacher that was trained by that "
            "list answers for others"
        )
    if all(name.isdecimal() for name in classes) and list(classes) != sorted(classes, key=int):
        found.append(
            f"class names are numbers and are taken as text: {', '.join(classes[:4])}, ...; a teacher that was trained "
            "with them in the order of their values needs names of one width (01, 02, 10)"
        )
    absent = [name for label, name in enumerate(classes) if not (dataset.test.labels == label).any()]
    if absent:
        found.append(f"no test images of {listed(absent)}: accuracy says nothing of them")
    same: dict[str, list[str]] = {}
    for name in classes:
        same.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    found += [
        f"classes {', '.join(map(ascii, alike))} differ only by case or by how letters are composed; are they one?"
        for alike in same.values()
        if len(alike) > 1
    ]
    return found
