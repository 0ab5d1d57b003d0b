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
# Of torchvision.datasets.folder, which takes a second to load; a test compares them.
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
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
    images: dict[str, list[str]] = {}
    waiting = [folder]
    while waiting:
        inside = waiting.pop()
        images[inside] = []
        for entry in _entries(root / inside):
            name, is_folder = f"{inside}/{entry.name}" if inside else entry.name, entry.is_dir(follow_symlinks=False)
            if reason := _reason(entry, is_folder):
                left_out.add(reason, name)
            elif is_folder:
                waiting.append(name)
            else:
                images[inside].append(name)
    return [name for place in sorted(images) for name in images[place]]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; nothing where it cannot be read.

    Entries know what they are, and a `Path` for each of a million files would take a minute.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:
        return []


def _reason(entry: os.DirEntry[str], is_folder: bool) -> str | None:
    """Why a file or folder is left out."""
    if is_hidden(entry.name):
        return _HIDDEN
    if entry.is_symlink():
        return _LINKS
    return None if is_folder or entry.name.lower().endswith(IMG_EXTENSIONS) else _SUFFIX


def unlabelled_images(root: Path, left_out: LeftOut) -> list[str]:
    """The images in the folders of `root` that are for images without a label."""
    return [file for folder in UNLABELLED_FOLDERS for file in images_below(root, folder, left_out)]


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
