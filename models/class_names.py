"""All that the classes of a published network are called: ImageNet's have a WordNet id, and words.

Any of the names will do to say which class is meant. They are those of the published head: weights that others made for
as many classes may mean something else.
"""

from __future__ import annotations

import re

from models.origins import Asked, class_names_of

# One a class, in the network's order: all its names, that of its origin first.
Names = tuple[tuple[str, ...], ...]
_SYNSET = re.compile(r"n[0-9]{8}")


def all_class_names_of(network: str, num_classes: int, asked: Asked) -> Names | None:
    """The names of a network's classes; None where nobody says.

    Args:
        network: canonical name.
        num_classes: of its head; only the published number of classes has published names.

    Raises:
        UnknownName, InvalidInput: as `models.origins.class_names_of`.
    """
    names = class_names_of(network, asked)
    if names is None or len(names) != num_classes:
        return None
    words = _words() if network.startswith("timm:") else {}
    return tuple((name, *words.get(name, ())) for name in names)


def _words() -> dict[str, tuple[str, ...]]:
    """WordNet id -> its words, of all that timm has."""
    from timm.data.imagenet_info import ImageNetInfo

    known = ImageNetInfo("imagenet-1k")
    return {
        name: tuple(word.strip() for word in description.split(","))
        for name, description in zip(known.label_names(), known.label_descriptions(), strict=True)
        if _SYNSET.fullmatch(name)
    }
