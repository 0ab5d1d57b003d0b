"""The images of a store as one page to look at: round by round and class by class, with what the teacher said of each,
and beside each the images that are most like it, where somebody finds those.

What comes from a store is text that is escaped; the page has no script and asks nothing of the network.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import pairwise

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from analysis.purchases import first_answers, rule_of
from ground.errors import InvalidInput
from ground.terminal import plain
from storage.answers import NO_CLASS
from storage.rows import Rows
from storage.schema import IMAGES, UNLABELLED
from storage.store import Store

_TEMPLATE = files("analysis") / "report_page" / "sheet.html.jinja"
_SIDE = 64
_NO_LABEL = "without a label"
# On one page with neighbours: some hundreds of megabytes, which browsers still open.
_MOST_PICTURES = 20_000
# Images that are read together: 40 MB of 224 pixels.
AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What finds the images that are most like others.

    Args:
        encoder: what compares them, for people.
        count: of each image.
        find: rows (q,), increasing -> the nearest others of each, (q, k), the nearest first, and how far they are,
            (q, k), where two rows at random are about 1 apart; k may be less than count.
    """

    encoder: str
    count: int
    find: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Shot:
    """One image: its row, its label, a PNG as base64, and what the teacher said, None where there is no answer.

    Args:
        is_right: whether that is its label; None where one of them is not there.
        near: those that are most like it, the nearest first.
        distance: to the image beside which it stands.
    """

    row: int
    label: str
    png: str
    said: str | None
    is_right: bool | None
    near: Sequence[Shot] = ()
    distance: float | None = None


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

    @property
    def nearest(self) -> float | None:
        """How far the nearest other image is, the median of those that are shown."""
        found = [shot.near[0].distance for shelf in self.shelves for shot in shelf.shots if shot.near]
        return float(np.median(np.array(found, dtype=np.float64))) if found else None


def contact_sheet(store: Store, each: int, neighbours: Neighbours | None = None) -> str:
    """The page, as HTML.

    Args:
        each: images of a class that are shown of a round, the first that were bought.
        neighbours: what finds images that are like those; None shows none.

    Raises:
        StoreUnreadable: images that are shown are not what was written.
        InvalidInput: with neighbours, the page would be too large.
    """
    shown = _Shown(store, each)
    if neighbours is not None:
        _require_small(shown.rows, neighbours.count)
        rows, distances = neighbours.find(shown.rows)
        shown.near = dict(zip(shown.rows.tolist(), zip(rows, distances, strict=True), strict=True))
    bands = [_band(shown, first, end) for first, end in pairwise(_ends(store))]
    identity = store.manifest.identity
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TEMPLATE.read_text()).render(
        place=plain(str(store.place)),
        teacher=plain(identity.teacher.name),
        dataset=plain(identity.dataset.name),
        n=store.manifest.n,
        bands=bands,
        side=_SIDE,
        encoder=None if neighbours is None else plain(neighbours.encoder),
    )


def _ends(store: Store) -> list[int]:
    manifest = store.manifest
    return sorted({0, manifest.n} | {row for made in manifest.rounds for row in (made.first, made.end)})


def _require_small(rows: np.ndarray, count: int) -> None:
    pictures = len(rows) * (1 + count)
    if pictures > _MOST_PICTURES:
        raise InvalidInput(
            f"the page would show {len(rows)} images and {count} beside each, and {_MOST_PICTURES} pictures are the "
            "most; give a smaller --each or --nearest"
        )


@dataclass(slots=True)
class _Shown:
    """What is shown of a store.

    Args:
        near: row -> rows that are like it, (k,), and how far they are, (k,).
    """

    store: Store
    each: int
    near: Mapping[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    labels: np.ndarray = field(init=False)
    said: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.labels = self.store.read_sample("train/labels", Rows.first(self.store.manifest.n))
        self.said = first_answers(self.store)

    @property
    def rows(self) -> np.ndarray:
        """All that stand on a shelf, (q,) int64, increasing."""
        bands = [self.rows_of(first, end) for first, end in pairwise(_ends(self.store))]
        return np.array(sorted(row for band in bands for _, rows in band for row in rows[: self.each]), np.int64)

    def rows_of(self, first: int, end: int) -> list[tuple[int, list[int]]]:
        """Labels with their rows from first to end, the fullest first, shown or not."""
        rows_of: dict[int, list[int]] = defaultdict(list)
        for row in range(first, end):
            rows_of[int(self.labels[row])].append(row)
        return sorted(rows_of.items(), key=lambda item: (item[0] == UNLABELLED, -len(item[1]), item[0]))

    def shots(self, rows: Sequence[int]) -> list[Shot]:
        """Rows, each with those that are like it."""
        near = {row: self.near[row] for row in rows if row in self.near}
        wanted = np.unique(np.concatenate([np.array(rows, np.int64), *(others for others, _ in near.values())]))
        shot_of = dict[int, Shot]()
        for first in range(0, len(wanted), AT_ONCE):
            some = wanted[first : first + AT_ONCE]
            images = self.store.read_sample(IMAGES, Rows.of(some))
            shot_of |= {row: self._shot(row, image) for row, image in zip(some.tolist(), images, strict=True)}
        return [
            replace(shot_of[row], near=[replace(shot_of[other], distance=far) for other, far in _pairs(near.get(row))])
            for row in rows
        ]

    def _shot(self, row: int, image: np.ndarray) -> Shot:
        label, answer = int(self.labels[row]), int(self.said[row])
        has_answer = answer != NO_CLASS
        is_right = answer == label if has_answer and label != UNLABELLED else None
        said = _name(self.store, answer) if has_answer else None
        return Shot(row, _name(self.store, label), _png(image), said, is_right)


def _pairs(near: tuple[np.ndarray, np.ndarray] | None) -> list[tuple[int, float]]:
    return [] if near is None else list(zip(near[0].tolist(), near[1].tolist(), strict=True))


def _band(shown: _Shown, first: int, end: int) -> Band:
    shelves = [
        Shelf(_name(shown.store, label), len(rows), shown.shots(rows[: shown.each]))
        for label, rows in shown.rows_of(first, end)
    ]
    return Band(plain(rule_of(shown.store, first)), first, end, shelves)


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
