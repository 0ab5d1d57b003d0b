"""The images of a store as one page to look at: round by round and class by class, with what the teacher said of each.

What comes from a store is text that is escaped; the page has no script and asks nothing of the network.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from analysis.purchases import first_answers, rule_of
from ground.terminal import plain
from storage.answers import NO_CLASS
from storage.rows import Rows
from storage.schema import IMAGES, UNLABELLED
from storage.store import Store

_TEMPLATE = files("analysis") / "report_page" / "sheet.html.jinja"
_SIDE = 64
_NO_LABEL = "without a label"


@dataclass(frozen=True, slots=True)
class Shot:
    """One image: its row, a PNG as base64, and what the teacher said, None where there is no answer.

    Args:
        is_right: whether that is its label; None where one of them is not there.
    """

    row: int
    png: str
    said: str | None
    is_right: bool | None


@dataclass(frozen=True, slots=True)
class Shelf:
    """Images of one class, and how many of it were bought in the round, those that are not shown included."""

    name: str
    count: int
    shots: list[Shot]


@dataclass(frozen=True, slots=True)
class Band:
    """A round: its rule, its rows, and a shelf for each class, the fullest first."""

    rule: str
    first: int
    end: int
    shelves: list[Shelf]


def contact_sheet(store: Store, each: int) -> str:
    """The page, as HTML.

    Args:
        each: images of a class that are shown of a round, the first that were bought.

    Raises:
        StoreUnreadable: images that are shown are not what was written.
    """
    labels, said = store.read_sample("train/labels", Rows.first(store.manifest.n)), first_answers(store)
    bands = [_band(store, first, end, labels, said, each) for first, end in pairwise(_ends(store))]
    identity = store.manifest.identity
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TEMPLATE.read_text()).render(
        place=plain(str(store.place)),
        teacher=plain(identity.teacher.name),
        dataset=plain(identity.dataset.name),
        n=store.manifest.n,
        bands=bands,
        side=_SIDE,
    )


def _ends(store: Store) -> list[int]:
    manifest = store.manifest
    return sorted({0, manifest.n} | {row for made in manifest.rounds for row in (made.first, made.end)})


def _band(store: Store, first: int, end: int, labels: np.ndarray, said: np.ndarray, each: int) -> Band:
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row in range(first, end):
        rows_of[int(labels[row])].append(row)
    fullest = sorted(rows_of.items(), key=lambda item: (item[0] == UNLABELLED, -len(item[1]), item[0]))
    shelves = [
        Shelf(_name(store, label), len(rows), _shots(store, rows[:each], label, said)) for label, rows in fullest
    ]
    return Band(plain(rule_of(store, first)), first, end, shelves)


def _shots(store: Store, rows: list[int], label: int, said: np.ndarray) -> list[Shot]:
    images = store.read_sample(IMAGES, Rows.of(np.array(rows)))
    shots = []
    for row, image in zip(rows, images, strict=True):
        answer = int(said[row])
        has_answer = answer != NO_CLASS
        is_right = answer == label if has_answer and label != UNLABELLED else None
        shots.append(Shot(row, _png(image), _name(store, answer) if has_answer else None, is_right))
    return shots


def _name(store: Store, label: int) -> str:
    classes = store.manifest.identity.dataset.classes
    if label == UNLABELLED:
        return _NO_LABEL
    # A store may come from anybody.
    return plain(classes[label]) if 0 <= label < len(classes) else f"class {label}, which there is not"


def _png(image: np.ndarray) -> str:
    """Of one base image (S, S, 3), made smaller where it is large."""
    picture, content = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((_SIDE, _SIDE))
    picture.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
