"""What a file of a network says of itself: how it is shown images, which output holds its logits, and its classes.

A JSON file beside it, FILE.json or one of the same stem, or texts in the file itself; the first of these is taken, and
the others are not looked at. `ckd-train export` writes such cards, others may write them by hand: none is trusted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from ground.documents import Line, Malformed, read_object, typed, unreadable
from ground.errors import InvalidInput
from ground.geometry import FIT_SHAPES, INTERPOLATIONS, MAX_INPUT_SIZE, Normalisation
from models.origins.contract import Preprocessing

MOST_BYTES = 8 << 20
_MOST_CLASSES = 1 << 20
_ADVICE = "correct it, or put another card beside the file"

Pixels = Annotated[
    int, Meta(ge=1, le=MAX_INPUT_SIZE, description=f"a whole number of pixels from 1 to {MAX_INPUT_SIZE}")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCard:
    """What is said of a network; None where it is not.

    Args:
        size: H and W of its input, in pixels.
        resize: the image's shorter side.
        crop: side of the central square that is taken of it, and resized to `size`.
        fit: of `ground.geometry.FIT_SHAPES`, how a square is made of an image.
        interpolation: of the resizing.
        mean: of pixels on [0, 1], red green blue.
        std: likewise.
        output: name of the output that holds the logits.
        classes: their names.
    """

    size: Pixels | None = None
    resize: Pixels | None = None
    crop: Pixels | None = None
    fit: Line | None = None
    interpolation: Line | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    output: Line | None = None
    classes: Annotated[tuple[Line, ...], Meta(max_length=_MOST_CLASSES)] | None = None

    def __post_init__(self) -> None:
        if self.interpolation not in (None, *INTERPOLATIONS):
            raise ValueError(f"the interpolation {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}")
        if self.fit not in (None, *FIT_SHAPES):
            raise ValueError(f"the fit {self.fit!r} is not one of {', '.join(FIT_SHAPES)}")
        if (self.mean is None) is not (self.std is None):
            raise ValueError("it gives one of mean and std; it has to give both, or none")
        if self.mean is not None and self.std is not None:
            Normalisation(mean=self.mean, std=self.std)
        if self.crop is not None and self.crop > (self.resize or self.crop):
            raise ValueError(f"a crop of {self.crop} pixels does not fit an image of {self.resize}")
        if self.classes == ():
            raise ValueError("it names no classes; it has to name all, or say nothing of them")

    def preprocessing(self, name: str, own: int | None, asked: int) -> Preprocessing:
        """How the network is shown images, as far as that is said; the rest is the data set's.

        Args:
            name: ORIGIN:FILE, for messages.
            own: the size that the file itself takes; None where it takes any.
            asked: the size that the user says; 0 where he does not.

        Raises:
            InvalidInput: no size is said, or two are.
        """
        if own is not None and self.size not in (None, own):
            raise InvalidInput(f"{name} takes images of {own} pixels, and its card says {self.size}; {_ADVICE}")
        size = own or self.size or asked
        if not size:
            raise InvalidInput(f"{name} takes images of any size and does not say which; give --input-size")
        resize = self.resize or self.crop or size
        crop = self.crop or min(size, resize)
        return Preprocessing(
            # A square of `crop` pixels is shown at `size`: of an image that is as much larger or smaller.
            resize_size=max(size, round(resize * size / crop)),
            input_size=size,
            interpolation=self.interpolation or "bilinear",
            normalisation=(
                None if self.mean is None or self.std is None else Normalisation(mean=self.mean, std=self.std)
            ),
            # How half a pixel beside the centre is rounded follows from the sizes here.
            shape={"squashed": "squashed", "centre-low": "centre-low", "centre-high": "centre-low"}.get(
                self.fit or "", "centre"
            ),
        )

    @property
    def shows_images(self) -> bool:
        """Whether it says how images are shown."""
        return self.mean is not None


_KEYS = tuple(field.name for field in fields(NetworkCard))
_TEXTS = ("fit", "interpolation", "output")


def read_card(path: Path, texts: Mapping[str, str]) -> NetworkCard:
    """The card of a file; an empty one where there is none.

    Args:
        path: of the file.
        texts: what it says itself, key -> text, or JSON.

    Raises:
        InvalidInput: it says what cannot be.
    """
    for beside in (path.with_name(f"{path.name}.json"), path.with_suffix(".json")):
        if beside != path and beside.exists():
            try:
                # A file that says nothing of this is of something else.
                document = {key: value for key, value in read_object(beside, MOST_BYTES).items() if key in _KEYS}
                return typed(document, NetworkCard)
            except Malformed as error:
                raise unreadable(beside, error, _ADVICE) from error
    try:
        return typed({key: _value(key, text) for key, text in texts.items() if key in _KEYS}, NetworkCard)
    except Malformed as error:
        raise InvalidInput(f"{path} says of itself what cannot be ({error}); {_ADVICE}") from error


def _value(key: str, text: str) -> Any:
    if key in _TEXTS:
        return text
    try:
        if len(text) > MOST_BYTES:
            raise Malformed(f"its {key} has {len(text)} characters")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"its {key} is no JSON: {error}") from error
