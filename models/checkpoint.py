"""Weights in and out of files, without ever running what a file says.

safetensors, and what torch.save wrote: a state_dict, alone or among other things, with whatever prefix its keys share.
`FILE#key` names one of several sets of weights in a file. How files of others are read: `models.foreign_weights`;
which of their tensors are meant: `models.weight_sets`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ground.durable import write_bytes
from ground.errors import CheckpointError
from models.foreign_weights import read_foreign
from models.names import locate
from models.network import Network
from models.weight_sets import choose, class_counts, sets_of

# Of the JSON that a safetensors file begins with; a network of a thousand tensors has 0.1 MB.
_MOST_HEADER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Weights:
    """What a file holds.

    Args:
        sets: sets of tensors, by the keys that lead to each with dots between; "" is the file's own.
        metadata: the text that came with them (safetensors only).
    """

    sets: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, str]

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The only set, or the file's own."""
        return dict(next(iter(self.sets.values())) if len(self.sets) == 1 else self.sets.get("", {}))


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was put into a network.

    Args:
        label: which set of the file's, as after `FILE#`; "" where it holds nothing else.
        metadata: the file's.
        low_precision: kinds of floating-point numbers below float32 that the weights were kept in.
    """

    label: str
    metadata: Mapping[str, str]
    low_precision: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Begun(Loaded):
    """What a network begins with.

    Args:
        digest: SHA-256 over what was taken from the file, 64 hex digits.
        left: keys of the network that keep their initial values.
    """

    digest: str
    left: tuple[str, ...]


def read_weights(path: str | Path) -> Weights:
    """Read a checkpoint; what kind it is follows from its first bytes, not from its name.

    Raises:
        CheckpointError: it is missing, damaged, or holds no weights that can be read safely.
    """
    path = Path(path)
    # A safetensors file starts with the length of a JSON header, which starts with a brace.
    if _first_bytes(path, 9)[8:] == b"{":
        return _read_safetensors(path)
    sets = sets_of(read_foreign(path))
    if not sets:
        raise CheckpointError(f"{path} holds no weights; give a file with a state_dict")
    return Weights(sets, {})


def load_weights(network: Network, path: str | Path) -> Loaded:
    """Put a checkpoint into a network.

    Args:
        path: `FILE`, or `FILE#key` for one of several sets of weights in it.

    Raises:
        CheckpointMismatch: keys or shapes differ, which the message lists, a differing class count first; or several
            sets of weights fit.
        CheckpointError: it cannot be read, or a weight is not finite.
    """
    loaded, tensors = _fitting(network, path)
    network.load_state_dict(tensors)
    return loaded


def begin_with(network: Network, path: str | Path, head: Collection[str], *, keep_head: bool = False) -> Begun:
    """Put all of a checkpoint into a network but a head of other classes, which stays as it is initialised.

    Args:
        path: `FILE`, or `FILE#key` for one of several sets of weights in it.
        head: the network's keys that belong to its classes.
        keep_head: leave them as they are initialised whatever the file holds.

    Raises:
        CheckpointMismatch, CheckpointError: as `load_weights`, for anything but the head.
    """
    loaded, tensors = _fitting(network, path, head)
    own = network.state_dict()
    fits = all(key in tensors and tensors[key].shape == own[key].shape for key in head)
    left = tuple(sorted(head)) if keep_head or not fits else ()
    taken = {key: tensor for key, tensor in tensors.items() if key not in left}
    network.load_state_dict({**own, **taken})
    return Begun(loaded.label, loaded.metadata, loaded.low_precision, digest=tensors_digest(taken), left=left)


def _fitting(network: Network, path: str | Path, free: Collection[str] = ()) -> tuple[Loaded, dict[str, Tensor]]:
    """The tensors of a checkpoint that are a network's, in its kinds of numbers, all of them finite."""
    file, chosen = locate(path)
    weights = read_weights(file)
    found = choose(file, weights.sets, network, chosen, free)
    kinds = {key: tensor.dtype for key, tensor in network.state_dict().items()}
    low = {tensor.dtype for tensor in found.tensors.values() if tensor.is_floating_point() and tensor.itemsize < 4}
    tensors = {key: tensor.to(kinds[key]) for key, tensor in found.tensors.items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file} holds values in {key} that are not finite; get another checkpoint")
    names = tuple(sorted(str(kind).removeprefix("torch.") for kind in low))
    return Loaded(found.label, weights.metadata, names), tensors


def num_classes_in(path: str | Path, network: Network) -> int | None:
    """How many classes a checkpoint is of, where it would fit a network but for that.

    Args:
        network: of any number of classes; its weights are not changed.
        path: `FILE`, or `FILE#key`.

    Returns:
        None where no set of weights in it is of such a network, or several are, of different numbers.

    Raises:
        CheckpointError: it cannot be read.
    """
    file, chosen = locate(path)
    counts = class_counts(read_weights(file).sets, network, chosen)
    return counts.pop() if len(counts) == 1 else None


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a file says of its weights, without reading them; only safetensors files say anything.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    file = locate(path)[0]
    if _first_bytes(file, 9)[8:] != b"{":
        return {}
    _require_small_header(file)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _not_whole(file, error) from None


def save_weights(network: Network, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write safetensors, atomically and durably."""
    path = Path(path)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, safetensors.torch.save(tensors, dict(metadata)))


def weights_digest(network: Network) -> str:
    """SHA-256 over all weights and buffers, or over the file that a network is: 64 hex digits.

    Device and memory layout do not matter.
    """
    return tensors_digest(network.state_dict()) if network.source_digest is None else network.source_digest


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """The same over tensors by name."""
    hasher = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        hasher.update(repr((key, str(values.dtype), tuple(values.shape))).encode())
        # As bytes: numpy has no bfloat16.
        hasher.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _first_bytes(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}; check the path") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder; give the checkpoint file in it") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the path and its rights") from None


def _read_safetensors(path: Path) -> Weights:
    _require_small_header(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return Weights({"": tensors}, dict(file.metadata() or {}))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _not_whole(path, error) from None


def _require_small_header(path: Path) -> None:
    size = int.from_bytes(_first_bytes(path, 8), "little")
    if size > _MOST_HEADER_BYTES:
        raise _not_whole(path, f"its list of tensors is said to have {size} bytes")


def _not_whole(path: Path, why: object) -> CheckpointError:
    return CheckpointError(f"{path} is not a whole safetensors file ({why}); get it again")
