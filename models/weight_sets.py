"""Which of the tensors in a checkpoint are a network's.

A checkpoint may hold several sets of weights: raw ones beside their moving average, a student beside its teacher, a
network beside a criterion. A set is a mapping of names to tensors, however deep it lies; within it, the network's keys
are found by the prefix that all of them share, whatever it is. Where more than one fits, the user has to choose.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ground.errors import CheckpointMismatch
from ground.terminal import plain
from models.network import Network

_MAX_LISTED = 5
# Batch norm's step counters: absent before torch 0.4.1, unused at a fixed momentum.
_OPTIONAL = ".num_batches_tracked"
# What profilers (thop) leave in the modules that they have counted.
_LEFT_BY_PROFILERS = ("total_ops", "total_params")


@dataclass(frozen=True, slots=True)
class Candidate:
    """Tensors that may be the network's, by its own keys.

    Args:
        label: what the user types to choose it: keys that lead to the set, then the prefix; empty for a plain file.
    """

    label: str
    tensors: Mapping[str, Tensor]


def sets_of(content: Any) -> dict[str, dict[str, Tensor]]:
    """Every mapping of names to tensors in what a file holds, by the keys that lead to it with dots between.

    One that lies in several places counts once.
    """
    found: dict[str, dict[str, Tensor]] = {}
    seen: set[int] = set()
    ahead: list[tuple[str, Any]] = [("", content)]
    while ahead:
        label, value = ahead.pop(0)
        if not isinstance(value, Mapping) or id(value) in seen:
            continue
        seen.add(id(value))
        tensors = {key: part for key, part in value.items() if isinstance(key, str) and isinstance(part, Tensor)}
        if tensors:
            found.setdefault(label, tensors)
        ahead += [(_joined(label, str(key)), part) for key, part in value.items() if isinstance(key, str | int)]
    return found


def choose(
    path: Path,
    sets: Mapping[str, Mapping[str, Tensor]],
    network: Network,
    chosen: str | None,
    free: Collection[str] = (),
) -> Candidate:
    """The one set, and the one prefix in it, that fits a network.

    Args:
        chosen: a label, or the beginning of one; None for whichever alone fits.
        free: keys of the network that need not be there, or may be of another shape.

    Raises:
        CheckpointMismatch: none fits, or several do, and which is meant is not said.
    """
    wanted = network.state_dict()
    every = [candidate for label, tensors in sets.items() for candidate in _candidates(label, tensors, wanted, free)]
    fitting = [each for each in every if not any(_mismatches(network, each.tensors, free))]
    fitting_and_meant = [each for each in fitting if _is_meant(each.label, chosen)]
    if len(fitting_and_meant) > 1:
        labels = [each.label for each in fitting_and_meant]
        raise CheckpointMismatch(
            f"{path} has {len(labels)} sets of weights that fit the network; choose one: {_listed(path, labels)}"
        )
    if fitting_and_meant:
        return fitting_and_meant[0]
    meant = [each for each in every if _is_meant(each.label, chosen)]
    if not meant:
        labels = [each.label for each in fitting or every]
        raise CheckpointMismatch(f"{path} has no weights under {plain(chosen or '')!a}; choose {_listed(path, labels)}")
    nearest = max(meant, key=lambda each: sum(key in wanted for key in each.tensors))
    where = f" (of it, {plain(nearest.label)})" if nearest.label else ""
    problems = "; ".join(_mismatches(network, nearest.tensors, free))
    raise CheckpointMismatch(f"{path}{where} does not fit the network: {problems}")


def class_counts(sets: Mapping[str, Mapping[str, Tensor]], network: Network, chosen: str | None) -> set[int]:
    """Numbers of classes that the sets which may be meant are of, where they fit the network but for that.

    Args:
        chosen: as for `choose`.
    """
    wanted = network.state_dict()
    every = [candidate for label, tensors in sets.items() for candidate in _candidates(label, tensors, wanted, ())]
    counts = [
        _class_count(each.tensors, wanted, network.num_classes) for each in every if _is_meant(each.label, chosen)
    ]
    return {count for count in counts if count is not None}


def _class_count(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], num_classes: int) -> int | None:
    """How long the tensors are that ought to be as long as there are classes, where nothing else differs."""
    needed = {key for key in wanted if not key.endswith(_OPTIONAL)}
    if not needed <= found.keys() <= wanted.keys():
        return None
    misshapen = [key for key in needed if _describe(found[key]) != _describe(wanted[key])]
    # Longer or shorter where the network has its classes, and alike in every other axis.
    if any(not found[key].dim() or wanted[key].shape != (num_classes, *found[key].shape[1:]) for key in misshapen):
        return None
    counts = {len(found[key]) for key in misshapen} or {num_classes}
    return counts.pop() if len(counts) == 1 else None


def _is_meant(label: str, chosen: str | None) -> bool:
    return chosen is None or label == chosen or label.startswith(f"{chosen}.")


def _candidates(
    label: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], free: Collection[str]
) -> Iterator[Candidate]:
    """A set's tensors by each prefix under which all the network's keys are; or else by the likeliest."""
    counts: Counter[str] = Counter()
    for key in tensors:
        start = 0
        while True:
            if key[start:] in wanted and key[start:] not in free and not key.endswith(_OPTIONAL):
                counts[key[:start]] += 1
            start = key.find(".", start) + 1
            if not start:
                break
    needed = sum(key not in free and not key.endswith(_OPTIONAL) for key in wanted)
    whole = [prefix for prefix, count in counts.items() if count == needed]
    # Without one key in common there is still something to say of it.
    for prefix in whole or [prefix for prefix, _ in counts.most_common(1)] or [""]:
        yield Candidate(_joined(label, prefix.removesuffix(".")), _below(tensors, prefix))


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    below = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return {key: tensor for key, tensor in below.items() if key.rpartition(".")[2] not in _LEFT_BY_PROFILERS}


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))


def _listed(path: Path, labels: Sequence[str]) -> str:
    """Choices as a shell takes them; a set without a name that is the only one needs none."""
    shown = labels[:_MAX_LISTED]
    typed = [shlex.quote(plain(f"{path}" if labels == [""] else f"{path}#{label}")) for label in shown]
    more = f" and {len(labels) - _MAX_LISTED} more" if len(labels) > _MAX_LISTED else ""
    return f"{' or '.join(typed)}{more}"


def _mismatches(network: Network, found: Mapping[str, Tensor], free: Collection[str]) -> Iterator[str]:
    wanted = {key: tensor for key, tensor in network.state_dict().items() if key not in free}
    found = {key: tensor for key, tensor in found.items() if key not in free}
    layer = network.head
    head = next((key for key, tensor in network.named_parameters() if layer and tensor is layer.weight), "")
    if head in found and found[head].dim() == 2 and len(found[head]) != network.num_classes:
        yield (
            f"the checkpoint has {len(found[head])} classes, the network {network.num_classes} "
            f"(create the network with {len(found[head])} classes, or give other weights)"
        )
    misshapen = [
        f"{key} {_describe(found[key])} for {_describe(tensor)}"
        for key, tensor in wanted.items()
        if key in found and _describe(found[key]) != _describe(tensor)
    ]
    lists = {
        "missing": [key for key in wanted if key not in found and not key.endswith(_OPTIONAL)],
        "unexpected": [key for key in found if key not in wanted],
        "misshapen": misshapen,
    }
    for what, keys in lists.items():
        if keys:
            more = f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
            yield f"{what}: {', '.join(map(plain, keys[:_MAX_LISTED]))}{more}"


def _describe(tensor: Tensor) -> str:
    """Shape and kind of number; precision does not count, it converts."""
    kind = "" if tensor.is_floating_point() else "complex " if tensor.is_complex() else "integer "
    return f"{kind}{tuple(tensor.shape)}"
