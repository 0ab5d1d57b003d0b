"""Which files of a class folder are its images, and which are left out, with the reason.

Files come in the order of torchvision's `make_dataset`, at any depth, with the suffixes it takes. Left out, and counted
by reason, are hidden files and folders and what systems and tools leave behind, links, and files of other suffixes.
Links are left out because one to another class gives an image two labels, and one that leads up lists every class as
this one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_HIDDEN, _LINKS, _SUFFIX = "hidden or a system's", "links", "no image by their suffix"
_LOOSE, NOT_LISTED = "in no class folder", "not in val_annotations.txt"
_OF_SYSTEMS = frozenset(
    {"@eadir", "#recycle", "__macosx", "__pycache__", "$recycle.bin", "system volume information", "lost+found"}
    | {"thumbs.db", "desktop.ini"}
)
_NUM_NAMED = 3
# Training images without a label lie in one of these, beside the splits or the classes.
UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")


@dataclass(slots=True)
class LeftOut:
    """What a listing left out: reason -> names, relative to the data set's folder."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one file or folder."""
        self.names.setdefault(reason, []).append(name)

    def said(self) -> str:
        """For instance "left out: 2 links (train/a/x.jpg, train/b)"; empty where nothing was."""
        parts = []
        for reason, names in sorted(self.names.items()):
            more = ", ..." if len(names) > _NUM_NAMED else ""
            parts.append(f"{len(names)} {reason} ({', '.join(sorted(names)[:_NUM_NAMED])}{more})")
        return f"left out: {'; '.join(parts)}" if parts else ""


def class_folders(root: Path, split: str, left_out: LeftOut) -> tuple[str, ...]:
    """Names of the class folders in `root`/`split`, sorted; `split` is empty where classes lie in `root` itself.

    A class folder may be a link, as subsets of a data set are made, unless it leads back into the data set.
    """
    classes = []
    for entry in sorted((root / split).iterdir()):
        name = f"{split}/{entry.name}" if split else entry.name
        if is_hidden(entry.name):
            left_out.add(_HIDDEN, name)
        elif not entry.is_dir():
            left_out.add(_LOOSE, name)
        elif entry.is_symlink() and _is_within_each_other(entry.resolve(), root.resolve()):
            left_out.add(_LINKS, name)
        else:
            classes.append(entry.name)
    return tuple(classes)


def images_below(root: Path, folder: str, left_out: LeftOut) -> list[str]:
    """The images in `root`/`folder`, at any depth, as paths relative to `root` with forward slashes."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    images: dict[str, list[str]] = {}
    for place, folders, files in os.walk(root / folder):
        inside = Path(place).relative_to(root).as_posix()
        for name in list(folders):
            if reason := _reason(Path(place, name)):
                left_out.add(reason, f"{inside}/{name}")
                folders.remove(name)
        images[place] = []
        for name in sorted(files):
            reason = _reason(Path(place, name)) or (None if name.lower().endswith(IMG_EXTENSIONS) else _SUFFIX)
            if reason:
                left_out.add(reason, f"{inside}/{name}")
            else:
                images[place].append(f"{inside}/{name}")
    return [name for place in sorted(images) for name in images[place]]


def unlabelled_images(root: Path, left_out: LeftOut) -> list[str]:
    """The images in the folders of `root` that are for images without a label."""
    return [file for folder in UNLABELLED_FOLDERS for file in images_below(root, folder, left_out)]


def _reason(path: Path) -> str | None:
    """Why a file or folder is left out whatever its suffix."""
    if is_hidden(path.name):
        return _HIDDEN
    return _LINKS if path.is_symlink() else None


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or left behind by a system or a tool."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _is_within_each_other(path: Path, root: Path) -> bool:
    return path.is_relative_to(root) or root.is_relative_to(path)


def listed(names: Iterable[str]) -> str:
    """Up to three names, and how many more there are."""
    every = list(names)
    shown = ", ".join(every[:3])
    return shown if len(every) <= 3 else f"{shown} and {len(every) - 3} more"
