"""What a model that chats is asked about an image, and how its answer names a class.

A class is named by a number. All numbers of a prompt have as many digits, so none begins another one, and a token that
holds one whole says which class is meant: up to 1000 classes, most tokenisers have a token for each. Names would not
do: "cat" begins "caterpillar", and many names share their first token.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ground.errors import InvalidInput

_MOST_BYTES = 1 << 20
_PLACEHOLDER = re.compile(r"\{([a-z_]{1,32})\}")
_LAST = "\U0010ffff"

DEFAULT_PROMPT = """\
Which one of the {count} classes below does the image show? Answer with the number of that class, all its digits and \
nothing else.
{classes}"""


class Codes:
    """The words that answers are made of, one for each class, and which classes a beginning of one can become.

    Neither case nor white space around a word counts.

    Raises:
        InvalidInput: one of them begins another one, so that an answer could mean both.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        places: dict[str, int] = {}
        for place, word in enumerate(words):
            other = places.setdefault(word.strip().casefold(), place)
            if other != place:
                raise InvalidInput(
                    f"the prompt asks for names, and answers could mean {words[other]!a} and {word!a}; use {{classes}} "
                    "in it, which numbers them"
                )
        self._sorted = sorted(places)
        self._places = [places[word] for word in self._sorted]
        for first, second in pairwise(self._sorted):
            if second.startswith(first):
                raise InvalidInput(
                    f"the prompt asks for names, and {words[places[first]]!a} begins {words[places[second]]!a}, so "
                    "answers could mean both; use {classes} in it, which numbers them"
                )

    def beginning(self, text: str) -> range:
        """Classes, as places in `place_of`, whose word a text is, or begins, or which it begins with; white space
        before it does not count.
        """
        text = text.lstrip().casefold()
        at = bisect_left(self._sorted, text)
        if at < len(self._sorted) and self._sorted[at] == text:
            return range(at, at + 1)
        # A whole word, and then what belongs to none: a full stop, a line's end.
        if at and text.startswith(before := self._sorted[at - 1]) and not text[len(before)].isalnum():
            return range(at - 1, at)
        return range(at, bisect_left(self._sorted, text + _LAST))

    def place_of(self, number: int) -> int:
        """The class of one of the numbers that `beginning` gives."""
        return self._places[number]

    def named(self, answer: str, *, is_cut: bool = False) -> int | None:
        """The class that an answer names; None for none.

        Args:
            is_cut: whether it was cut off, so that the beginning of one name alone is enough.
        """
        found = self.beginning(answer.strip())
        is_whole = len(found) == 1 and answer.strip().casefold().startswith(self._sorted[found.start])
        return self._places[found.start] if is_whole or (is_cut and len(found) == 1) else None


def numbers(count: int) -> tuple[str, ...]:
    """A code for each class: its position from 0, all of the same width."""
    width = len(str(count - 1))
    return tuple(f"{place:0{width}}" for place in range(count))


def written(template: str, classes: Sequence[str]) -> tuple[str, Codes]:
    """The prompt, and the answers that it asks for.

    Args:
        template: with {classes}, a line with number and name for each, or with {names}, a line with the name; {count}
            is how many they are.

    Raises:
        InvalidInput: it asks for neither or for both, or by names that cannot be told apart.
    """
    found = {*_PLACEHOLDER.findall(template)}
    if unknown := sorted(found - {"classes", "names", "count"}):
        raise InvalidInput(
            f"the prompt has {{{unknown[0]}}}, which stands for nothing; it takes {{classes}}, {{names}}"
        )
    if len(found & {"classes", "names"}) != 1:
        raise InvalidInput("the prompt has to list the classes once, as {classes} (numbered) or as {names}")
    codes = Codes(numbers(len(classes)) if "classes" in found else classes)
    lines = [" ".join(pair) for pair in zip(numbers(len(classes)), classes, strict=True)]
    values = {"classes": "\n".join(lines), "names": "\n".join(classes), "count": str(len(classes))}
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template), codes


def read_template(path: Path | None) -> str:
    """What the user asks, or the usual prompt; raises `InvalidInput` for a file that cannot be read."""
    if path is None:
        return DEFAULT_PROMPT
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidInput(f"the prompt {path} is larger than {_MOST_BYTES} bytes; give a shorter one")
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8"
        raise InvalidInput(f"the prompt {path} cannot be read ({why}); give another --prompt") from error
