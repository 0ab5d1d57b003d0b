"""What an ONNX file says of itself, read without running it.

Weights may lie beside it: they belong to it, and none is looked for outside its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ground.documents import Malformed, require_path_below, shown
from ground.errors import InvalidInput
from ground.geometry import MAX_INPUT_SIZE
from models.file_stamp import Stamp, file_digest, stamp_of

# A protocol buffer holds no more.
_MOST_BYTES = (1 << 31) - 1
_MOST_BATCH = 4096
_FLOAT, _FLOAT16, _DOUBLE = 1, 10, 11


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """Of a classifier of images.

    Args:
        input: its name.
        is_half: it takes float16, and not float32.
        is_channels_last: it takes (B, H, W, 3).
        size: H and W; None for any.
        batch: B; None for any.
        outputs: names of those that are floating-point numbers.
        texts: key -> text that it carries.
        digest: SHA-256 of its content and of the data beside it.
        data: the files beside it that hold some of its weights.
    """

    input: str
    is_half: bool
    is_channels_last: bool
    size: int | None
    batch: int | None
    outputs: tuple[str, ...]
    texts: Mapping[str, str]
    digest: str
    data: tuple[Stamp, ...]


def read_onnx(path: Path) -> OnnxModel:
    """Raises `InvalidInput` for what is damaged, no ONNX file, no classifier of images, or looks outside its folder."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    content = _content(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise InvalidInput(f"{path} is not a whole ONNX file ({error}); write it again, or give another") from error
    if not (model.ir_version and model.graph.output):
        raise InvalidInput(f"{path} is not an ONNX file; give one that torch.onnx.export or the like has written")
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    if len(inputs) != 1:
        names = ", ".join(shown(value.name) for value in inputs[:8]) or "none"
        raise InvalidInput(f"{path} has {len(inputs)} inputs ({names}); give a file that takes images and nothing else")
    given = inputs[0].type.tensor_type
    if given.elem_type not in (_FLOAT, _FLOAT16):
        raise InvalidInput(
            f"{path} takes {_type_name(given.elem_type)} and not float numbers; give a file that takes normalised "
            "images"
        )
    batch, is_channels_last, size = _shape(path, given)
    data = _data_beside(path, model)
    return OnnxModel(
        input=inputs[0].name,
        is_half=given.elem_type == _FLOAT16,
        is_channels_last=is_channels_last,
        size=size,
        batch=batch,
        outputs=tuple(
            value.name
            for value in model.graph.output
            if value.type.tensor_type.elem_type in (_FLOAT, _FLOAT16, _DOUBLE)
        ),
        texts={item.key: item.value for item in model.metadata_props},
        digest=_digest(content, path.parent, data),
        data=tuple(stamp_of(path.parent / location) for location in data),
    )


def _content(path: Path) -> bytes:
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise InvalidInput(
            f"{path} has {size / 1e9:.1f} GB, and an ONNX file no more than 2; keep its weights beside it"
        )
    return path.read_bytes()


def _shape(path: Path, given: Any) -> tuple[int | None, bool, int | None]:
    """(batch, whether channels come last, size) of an input."""
    named = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in given.shape.dim]
    dims = named if given.HasField("shape") else [None] * 4
    said = ", ".join("any" if dim is None else str(dim) for dim in dims)
    if len(dims) != 4 or not (dims[1] in (3, None) or dims[3] == 3):
        raise InvalidInput(f"{path} takes an input ({said}) and not images (any, 3, height, width); give another file")
    is_channels_last = dims[1] != 3 and dims[3] == 3
    sides = {dim for dim in (dims[1:3] if is_channels_last else dims[2:4]) if dim is not None}
    if len(sides) > 1 or max(sides, default=1) > MAX_INPUT_SIZE or (dims[0] or 1) > _MOST_BATCH:
        raise InvalidInput(
            f"{path} takes an input ({said}); give a file of square images of at most {MAX_INPUT_SIZE} pixels, and of "
            f"at most {_MOST_BATCH} at once"
        )
    return dims[0], is_channels_last, next(iter(sides), None)


def _data_beside(path: Path, model: Any) -> list[str]:
    """Files that hold tensors of the model, by their path from its folder."""
    import onnx

    found = set()
    for part in _parts(model):
        if isinstance(part, onnx.TensorProto) and part.data_location == onnx.TensorProto.EXTERNAL:
            found |= {entry.value for entry in part.external_data if entry.key == "location"}
    for location in sorted(found):
        try:
            require_path_below(path.parent, location, "the place of its weights")
            # onnxruntime has names with stars for places in memory.
            place = path.parent / location
            if "*" in location or not place.is_file() or not os.access(place, os.R_OK):
                raise Malformed(f"the place of its weights is {shown(location)}, and no such file can be read")
        except Malformed as error:
            raise InvalidInput(
                f"{path} cannot be used ({error}); put its data beside it, or give another file"
            ) from error
    return sorted(found)


def _parts(message: Any) -> Iterator[Any]:
    waiting = [message]
    while waiting:
        current = waiting.pop()
        yield current
        for descriptor, value in current.ListFields():
            if descriptor.type == descriptor.TYPE_MESSAGE:
                waiting += [value] if hasattr(value, "ListFields") else value


def _digest(content: bytes, folder: Path, data: list[str]) -> str:
    own = hashlib.sha256(content).hexdigest()
    return hashlib.sha256(json.dumps([own, [(name, file_digest(folder / name)) for name in data]]).encode()).hexdigest()


def _type_name(kind: int) -> str:
    import onnx

    return (
        str(onnx.TensorProto.DataType.Name(kind)).lower() if kind in onnx.TensorProto.DataType.values() else "no tensor"
    )
