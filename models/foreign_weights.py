"""Files of weights that others made: which kind one is, and its content, or a sentence that says what to do.

The kind follows from the first bytes, not from the name. What torch.save wrote is looked at before it is read
(`models.pickle_outline`): it may hold tensors, plain values and a few things that lie beside weights often, which are
put aside unseen. Then torch reads it with `weights_only=True`.
"""

from __future__ import annotations

import io
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ground.errors import CheckpointError
from ground.terminal import plain
from models.pickle_outline import (
    MOST_BYTES,
    Made,
    Outline,
    Unsound,
    is_within_storage,
    items_of,
    name_of,
    read_outline,
)

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What a kind of file begins with -> what it is, and what to do.
_STRANGERS = {
    b"version https://git-lfs": "is a git-lfs pointer and not the file it stands for; fetch that with git lfs pull",
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file, as Keras and TensorFlow keep weights; convert them to a PyTorch state_dict",
    b"\x93NUMPY": "is a numpy array; save a state_dict of tensors with torch.save",
    b"\x1f\x8b": "is compressed with gzip; unpack it",
    b"\xfd7zXZ": "is compressed with xz; unpack it",
    b"BZh": "is compressed with bzip2; unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it",
    b"7z\xbc\xaf": "is a 7z archive; unpack it, and give the checkpoint in it",
}
_WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<script")
# Fields that follow the version in an ONNX model.
_ONNX = b"\x12\x1a\x22\x2a\x3a\x42"
_LIBRARY = "torch."
_PLAIN_CALLS = (
    "collections.OrderedDict",
    "collections.Counter",
    "builtins.set",
    "builtins.complex",
    "torch.Size",
    "torch.device",
    "torch._tensor._rebuild_from_type_v2",
)
_PLAIN_VALUES = (
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
)
_TEXT_CODECS = ("latin1", "latin-1")
_SAFE_PROTOCOL = 2


class Aside:
    """Stands in for what lies beside the weights: takes what it is given, keeps nothing, and does nothing."""

    def __new__(cls, *_: object) -> Aside:
        """Whatever it is made from."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Nothing."""

    def __setstate__(self, _: object) -> None:
        """Nothing."""


def _empty_mapping(*_: object) -> dict[object, object]:
    """Stands in for `defaultdict`: a plain one, which may hold weights."""
    return {}


_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path", "PurePath")
_NUMPY_CORE = ("scalar", "_reconstruct")
_ASIDE = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "datetime.datetime",
    "datetime.date",
    "datetime.timedelta",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in _NUMPY_CORE),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "tuple", "bool")),
)


def read_foreign(path: Path) -> Any:
    """What a file that torch.save wrote holds: mappings, tensors, and plain values.

    Raises:
        CheckpointError: it is none, damaged, larger in memory than on the disk, or holds what cannot be read safely.
    """
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is an empty file; get it again")
    with path.open("rb") as file:
        start = file.read(1024)
    for beginning, sentence in _STRANGERS.items():
        if start.startswith(beginning):
            raise CheckpointError(f"{path} {sentence}")
    if start.lstrip().lower().startswith(_WEB_PAGE):
        raise CheckpointError(
            f"{path} is a web page and not a checkpoint; download the file itself, not the page that shows it"
        )
    if _is_onnx(start):
        raise CheckpointError(f"{path} is an ONNX model; give the state_dict of the PyTorch network it was made from")
    if tarfile.is_tarfile(path):
        raise CheckpointError(f"{path} is a tar archive; unpack it, and give the checkpoint in it")
    try:
        if start.startswith(b"PK"):
            outline = _outline_of_zip(path, size)
        elif start.startswith(_LEGACY):
            outline = _outline_of_legacy(path, size)
        elif start[:1] == b"\x80" and start[1:2] <= b"\x05":
            raise CheckpointError(
                f"{path} is a pickle that torch.save did not write; load it where it was made, and write its weights "
                f"with torch.save(state_dict, {_beside(path)!a})"
            )
        else:
            raise CheckpointError(
                f"{path} is not a checkpoint: neither safetensors nor what torch.save writes; give one of these"
            )
        _require_harmless(path, outline)
    except Unsound as error:
        raise CheckpointError(f"{path} is damaged, or was made to harm ({error}); get it again") from None
    return _read_torch(path)


def _is_onnx(start: bytes) -> bool:
    return len(start) > 2 and start[0] == 8 and start[1] < 32 and start[2] in _ONNX


def _outline_of_zip(path: Path, size: int) -> Outline:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            records = {entry.filename: entry.file_size for entry in entries}
            programs = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
            if not programs:
                inside = ", ".join(plain(name) for name in names[:3]) or "nothing"
                raise CheckpointError(
                    f"{path} is a zip archive of other files ({inside}); unpack it, and give the checkpoint in it"
                )
            folder = programs[0].removesuffix("data.pkl")
            if f"{folder}constants.pkl" in records or any(name.startswith(f"{folder}code/") for name in names):
                raise CheckpointError(
                    f"{path} is a TorchScript program, which is not run here; where it was made, save its weights: "
                    f"torch.save(torch.jit.load({str(path)!a}).state_dict(), {_beside(path)!a})"
                )
            if len(records) != len(names) or sum(records.values()) > size:
                raise Unsound(f"its parts are said to have {sum(records.values())} bytes, and the file has {size}")
            if records[programs[0]] > MOST_BYTES:
                raise Unsound(f"its list of what it holds has {records[programs[0]]} bytes")
            outline = read_outline(io.BytesIO(archive.read(programs[0])))
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise CheckpointError(f"{path} is cut short, or damaged ({error}); get it again") from None
    for key, storage in outline.storages.items():
        found = records.get(f"{folder}data/{key}")
        if found is None or found < storage.num_bytes:
            raise CheckpointError(f"{path} is damaged: of {storage.num_bytes} bytes of weights it has {found or 0}")
    return outline


def _outline_of_legacy(path: Path, size: int) -> Outline:
    """Files of torch before 1.6: a mark, a version, the writer's machine, the content, and names of what follows."""
    with path.open("rb") as file:
        programs = io.BytesIO(file.read(MOST_BYTES))
    try:
        outlines = [read_outline(programs) for _ in range(5)]
    except Unsound as error:
        if (
            size == programs.tell()
            or "ran out" in str(error)
            or "exhausted" in str(error)
            or "before STOP" in str(error)
        ):
            raise CheckpointError(f"{path} is cut short; get it again") from None
        raise
    outline = outlines[3]
    declared = sum(storage.num_bytes for storage in outline.storages.values())
    if declared > size - programs.tell():
        raise CheckpointError(
            f"{path} is cut short: it should have {declared} bytes of weights, and has {size - programs.tell()}; "
            "get it again"
        )
    return outline


def _require_harmless(path: Path, outline: Outline) -> None:
    """Refuse, by its name and place, what is neither a tensor, nor plain, nor put aside."""
    for place, value in outline.walk():
        name = name_of(value)
        if isinstance(value, Made) and value.is_module:
            raise CheckpointError(
                f"{path} holds a whole network{_under(place)}, which is code of its own ({plain(name or '')}); "
                f"{_one_line(path, place, '.state_dict()')}"
            )
        if name is not None and not _is_harmless(value, name):
            if name.startswith("torch._utils._rebuild_") and not (isinstance(value, Made) and value.is_tensor):
                raise CheckpointError(
                    f"{path} holds a tensor{_under(place)} that is sparse, quantised or special; "
                    "save plain dense tensors"
                )
            raise CheckpointError(
                f"{path} holds a {plain(name)}{_under(place)}, which cannot be read safely; "
                f"{_one_line(path, _place_of_weights(outline), '')}"
            )
        if isinstance(value, Made) and value.is_tensor and not is_within_storage(value):
            raise Unsound(f"the tensor{_under(place)} is larger than what is kept of it")
    if outline.protocol != _SAFE_PROTOCOL:
        raise CheckpointError(
            f"{path} was saved with pickle protocol {outline.protocol}, and torch reads only {_SAFE_PROTOCOL} safely; "
            f"{_one_line(path, (), '')}"
        )


def _is_harmless(value: object, name: str) -> bool:
    if name in _ASIDE or name == "collections.defaultdict":
        return True
    if isinstance(value, Made):
        # Other codecs can make much of little, again and again.
        if name == "_codecs.encode":
            return len(value.args) == 2 and isinstance(value.args[0], str) and value.args[1] in _TEXT_CODECS
        if name == "torch._tensor._rebuild_from_type_v2":
            return bool(value.args) and name_of(value.args[0]) in _PLAIN_VALUES
        return value.is_tensor or name in _PLAIN_CALLS
    return name in _PLAIN_VALUES or _is_kind_of_number(name)


def _is_kind_of_number(name: str) -> bool:
    kind = name.removeprefix(_LIBRARY)
    return name.startswith(_LIBRARY) and isinstance(getattr(torch, kind, None), torch.dtype)


def _under(place: tuple[str, ...]) -> str:
    return f" under {plain('.'.join(place))}" if place else ""


def _place_of_weights(outline: Outline) -> tuple[str, ...]:
    """Keys that lead to the first mapping of most tensors."""
    best: tuple[int, tuple[str, ...]] = (0, ())
    for place, value in outline.walk():
        items = items_of(value) or ()
        count = sum(isinstance(part, Made) and part.is_tensor for _, part in items)
        best = max(best, (count, place), key=lambda found: found[0])
    return best[1]


def _one_line(path: Path, place: tuple[str, ...], call: str) -> str:
    """How to make a safe file, for somebody who trusts this one."""
    keys = "".join(f"[{key!a}]" for key in place)
    return (
        "if you trust whoever made it, since this runs its code, keep its weights alone, in Python: torch.save("
        f"torch.load({str(path)!a}, weights_only=False, map_location='cpu'){keys}{call}, {_beside(path)!a})"
    )


def _beside(path: Path) -> str:
    return str(path.with_name(f"{path.stem}-weights.pth"))


def _read_torch(path: Path) -> Any:
    aside: list[Any] = [*((Aside, name) for name in _ASIDE), (_empty_mapping, "collections.defaultdict")]
    try:
        # An open file and not a path: by the extension, torch may pick another reader.
        with path.open("rb") as file, torch.serialization.safe_globals(aside), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        # A damaged or hostile pickle fails in too many ways to list; in none of them is its code run.
        reason = str(error).strip().split("\n")[0].split(". ")[0][:160]
        raise CheckpointError(
            f"{path} is not a checkpoint of tensors and numbers ({type(error).__name__}: {reason}); "
            "save its state_dict as safetensors, or get it again"
        ) from None
