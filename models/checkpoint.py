"""Weights in and out of files, without ever running what a file says.

safetensors, and the .pth / .pt files of published checkpoints: a plain state_dict, or one under `model`,
`state_dict` or `net`, possibly with the prefixes that wrappers leave. Pickles are read with
`weights_only=True`; numpy scalars (old checkpoints keep an accuracy in one) are the only addition to what
that allows, and they go to stand-ins of ours, so a hostile file cannot reach numpy.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ground.durable import write_bytes
from ground.errors import CheckpointError, CheckpointMismatch
from models.network import Network

_WRAPPERS = ("model", "state_dict", "net")
_PREFIXES = ("module.", "student.", "model.")
_MAX_LISTED = 5
# Batch norm's step counters: absent before torch 0.4.1, unused at a fixed momentum.
_OPTIONAL = ".num_batches_tracked"
# numpy's codes of numbers, in those of the struct module.
_STRUCT_CODES = {"b1": "?", "i4": "i", "i8": "q", "u4": "I", "u8": "Q", "f2": "e", "f4": "f", "f8": "d"}


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by key, and the text that came with them (safetensors only)."""

    state_dict: dict[str, Tensor]
    metadata: dict[str, str]


def read_weights(path: str | Path) -> Weights:
    """Read a checkpoint; what kind it is follows from its first bytes, not from its name.

    Raises:
        CheckpointError: it is missing, damaged, or holds more than tensors and numbers.
    """
    path = Path(path)
    # A safetensors file starts with the length of a JSON header, which starts with a brace.
    if _first_bytes(path, 9)[8:] == b"{":
        weights = _read_safetensors(path)
    else:
        weights = Weights(_plain_state_dict(path, _read_torch(path)), {})
    for key, tensor in weights.state_dict.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{path} holds {key} as sparse, quantised or empty; save plain dense tensors")
    return weights


def load_weights(network: Network, path: str | Path) -> dict[str, str]:
    """Put a checkpoint into a network.

    Returns:
        The file's metadata.

    Raises:
        CheckpointMismatch: keys or shapes differ; the message lists them, a differing class count first.
        CheckpointError: it cannot be read, or a weight is not finite.
    """
    weights = read_weights(path)
    problems = list(_mismatches(network, weights.state_dict))
    if problems:
        raise CheckpointMismatch(f"{path} does not fit the network: {'; '.join(problems)}")
    for key, tensor in weights.state_dict.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path} holds values in {key} that are not finite; get another checkpoint")
    network.load_state_dict(weights.state_dict)
    return weights.metadata


def save_weights(network: Network, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write safetensors, atomically and durably."""
    path = Path(path)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, safetensors.torch.save(tensors, dict(metadata)))


def weights_digest(network: Network) -> str:
    """SHA-256 over all weights and buffers, 64 hex digits; device and memory layout do not matter."""
    hasher = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        hasher.update(repr((key, str(values.dtype), tuple(values.shape))).encode())
        # As bytes: numpy has no bfloat16.
        hasher.update(values.reshape(-1).view(torch.uint8).numpy())
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
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return Weights({key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); get it again") from None


def _read_torch(path: Path) -> Any:
    try:
        # An open file and not a path: by the extension, torch may pick another reader.
        with path.open("rb") as file, torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        # A damaged or hostile pickle fails in too many ways to list; in none of them is its code run.
        reason = str(error).strip().split("\n")[0].split(". ")[0][:160]
        raise CheckpointError(
            f"{path} is not a checkpoint of tensors and numbers ({type(error).__name__}: {reason}); "
            "save its state_dict as safetensors, or get it again"
        ) from None


def _numpy_scalars() -> list[Any]:
    """The globals that a pickled numpy scalar names, under their numpy 1 and numpy 2 addresses."""
    addresses = [(_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*addresses, (_NumberType, "numpy.dtype")]


class _NumberType:
    """Stands in for `numpy.dtype`: what kind of number it is, in which byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = _STRUCT_CODES[code]
        self.order = "<"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(kind: _NumberType, raw: bytes) -> object:
    """Stands in for numpy's `scalar`: the plain number in its bytes."""
    return struct.unpack(kind.order + kind.code, raw)[0]


def _plain_state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """Unwrap, drop wrappers' prefixes, and keep the tensors."""
    if isinstance(content, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    tensors = (
        {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise CheckpointError(f"{path} holds no weights; give a state_dict, or one kept under {', '.join(_WRAPPERS)}")
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in tensors):
                tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
                stripped = True
    return tensors


def _mismatches(network: Network, found: Mapping[str, Tensor]) -> Iterator[str]:
    wanted = network.state_dict()
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
            yield f"{what}: {', '.join(keys[:_MAX_LISTED])}{more}"


def _describe(tensor: Tensor) -> str:
    """Shape and kind of number; precision does not count, it converts."""
    kind = "" if tensor.is_floating_point() else "complex " if tensor.is_complex() else "integer "
    return f"{kind}{tuple(tensor.shape)}"
