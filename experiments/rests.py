"""What a grid's methods learn from images that the teacher was not asked about, as the grid writes it.

That is as for `ckd-train --rest`. In the path of a proxy {n}, {seed} and {sample} stand for the run's own, and a path
that is not absolute begins at the grid's folder, so what is written becomes a `RestSpec` run by run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from experiments.settings_file import Entry
from ground.errors import CKDError, UnknownName
from student_train.auto_weights import LOSS_WEIGHTS, weighed
from student_train.rest.spec import REST_LOSSES, RestSpec, default_of_rest, parse_rest

PLACES = ("n", "seed", "sample")
_PROXY = "proxy"
_PLACE = re.compile(r"\{([^{}]*)\}")


def read_rest(entry: Entry) -> tuple[str, ...]:
    """The texts of one or several, checked as far as that needs no proxy."""
    items = entry.items() if entry.is_list else [entry]
    return tuple(_read(item) for item in items)


def _read(entry: Entry) -> str:
    text = entry.text()
    if not _is_proxy(text):
        try:
            parse_rest(weighed(text, LOSS_WEIGHTS, default_of_rest)[:1])
        except CKDError as error:
            entry.refuse(error)
    for name in _PLACE.findall(text):
        if name not in PLACES:
            entry.refuse(UnknownName("part of a run's path", name, PLACES))
    return text


def rest_of_run(texts: Sequence[str], out: Path, *, n: int, seed: int, sample: int) -> tuple[RestSpec, ...]:
    """What one run learns from the rest; the runs of its proxies are read.

    Args:
        out: the grid's folder.

    Raises:
        CKDError: a proxy is missing, or cannot be one.
    """
    values = dict(zip(PLACES, map(str, (n, seed, sample)), strict=True))
    return parse_rest([_placed(text, out, values) if _is_proxy(text) else text for text in texts])


def reads_labels(text: str) -> bool:
    """Whether a loss of the rest, as it is written, learns from labels."""
    return REST_LOSSES[text.partition(":")[0]].reads_labels


def _is_proxy(text: str) -> bool:
    return text.partition(":")[0] == _PROXY


def _placed(text: str, out: Path, values: dict[str, str]) -> str:
    """A proxy with the paths of its runs as they are for one run."""
    paths, comma, settings = text.partition(":")[2].partition(",")
    filled = _PLACE.sub(lambda found: values[found[1]], paths)
    return f"{_PROXY}:{'+'.join(str(out.absolute() / path) for path in filled.split('+'))}{comma}{settings}"
