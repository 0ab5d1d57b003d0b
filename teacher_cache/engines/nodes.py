"""What every node of a cluster needs before work is begun on any: the packages, the files, the folders, one ledger."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ground.errors import InvalidInput
from ground.ray_cluster import Cluster, carried_environment, move_in
from storage.shared_folder import Mark, marked, why_not_shared
from teacher_cache.place import Place

_PACKAGE = "teacher-cache"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node says of itself.

    Args:
        boot: of its kernel: containers on one machine have the same.
        version: of this package.
        lacks: what it does not have, as sentences without an end.
    """

    boot: str
    version: str
    lacks: tuple[str, ...]


def look(environment: Mapping[str, str], folder: str, files: Sequence[Path], marks: Sequence[Mark]) -> Facts:
    """The facts of the machine on which it is called; see `require_nodes`."""
    move_in(environment, folder)
    lacks = [f"lacks {file}" for file in files if not file.is_file()]
    for mark in marks:
        why = why_not_shared(mark)
        if why is not None:
            lacks.append(f"cannot work in {mark.folder}, which {why}")
    return Facts(Place.of(Path()).boot, version(_PACKAGE), tuple(lacks))


def require_nodes(cluster: Cluster, *, files: Sequence[Path], folders: Sequence[Path]) -> int:
    """Check that each node has what is needed; nothing is left on any.

    Args:
        files: each at its path.
        folders: each the same one everywhere, on a file system that all nodes share.

    Returns:
        How many machines these are, this one counted: containers on one share its kernel.

    Raises:
        InvalidInput: the first node, and all that it lacks.
    """
    ours = Facts(Place.of(Path()).boot, version(_PACKAGE), ())
    with ExitStack() as stack:
        marks = [stack.enter_context(marked(folder)) for folder in folders]
        found = cluster.on_every_node(look, carried_environment(), os.getcwd(), list(files), marks)
    for node, facts in found:
        if facts.version != ours.version:
            raise InvalidInput(
                f"node {node.host} has {_PACKAGE} {facts.version}, and this is {ours.version}; install the same on all "
                "nodes"
            )
        if facts.lacks:
            raise InvalidInput(
                f"node {node.host} {'; it '.join(facts.lacks)}: every node needs the same files at the same paths, and "
                "stores, ledgers and runs on a file system that all share"
            )
    return len({ours.boot, *(facts.boot for _, facts in found)})
