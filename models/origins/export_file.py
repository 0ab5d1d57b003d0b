"""Exported programs: export:FILE, of torch.export (`.pt2`) or TorchScript; which of them is seen from the content.

Loading one runs what the file says, so it takes --allow-code.
"""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ground.errors import InvalidInput
from ground.geometry import MAX_INPUT_SIZE
from ground.user_code import UserCode, require_allowed
from models.file_network import first_line
from models.file_stamp import Stamp, file_digest
from models.network_card import MOST_BYTES
from models.origins.files import FileFacts, FileOrigin

# Where `ckd-train export` puts what it says of a program.
_DESCRIPTION = "/extra/description"


class ExportFile(FileOrigin):
    """See `FileOrigin`."""

    scheme = "export"

    def require_allowed(self, name: str, code: UserCode) -> None:
        """See `FileOrigin.require_allowed`."""
        require_allowed(f"the program {name}", code)

    def facts(self, stamp: Stamp) -> FileFacts:
        """See `FileOrigin.facts`."""
        return _facts(stamp)

    def program(self, stamp: Stamp) -> Exported:
        """See `FileOrigin.program`."""
        return _loaded(Path(stamp[0]))[0]


class Exported:
    """A program that runs; see `models.file_network.Program`.

    Args:
        module: it, of images to a tensor, or to several in a sequence or mapping.
        batches: see `Program.batches`.
    """

    def __init__(self, module: Callable[[Tensor], Any], batches: tuple[int, int | None]) -> None:
        self._module, self._batches = module, batches

    @property
    def batches(self) -> tuple[int, int | None]:
        """See `Program.batches`."""
        return self._batches

    def run(self, images: Tensor, outputs: Sequence[str] | None) -> Mapping[str, Tensor]:
        """See `Program.run`; all that it says is made in any case."""
        said = dict(_named(self._module(images)))
        return said if outputs is None else {name: said[name] for name in outputs}

    def place(self, device: torch.device) -> None:
        """See `Program.place`."""
        if isinstance(self._module, torch.nn.Module):
            self._module.to(device)


@dataclass(frozen=True, slots=True)
class _Input:
    """What a program says of its images: how many at least and at most, and their size; None for any."""

    batches: tuple[int, int | None] = (1, None)
    size: int | None = None


def _named(said: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors of an answer by key, or by position: the only one, or the first of a sequence, is `output_0`."""
    if isinstance(said, Mapping):
        items: Any = said.items()
    elif isinstance(said, (tuple, list)):
        items = ((f"output_{place}", part) for place, part in enumerate(said))
    else:
        items = (("output_0", said),)
    for name, part in items:
        if isinstance(part, Tensor):
            yield str(name), part


@lru_cache(maxsize=4)
def _facts(stamp: Stamp) -> FileFacts:
    path = Path(stamp[0])
    return FileFacts(size=_loaded(path)[1].size, digest=file_digest(path), texts=_texts(path))


def _loaded(path: Path) -> tuple[Exported, _Input]:
    """Raises `InvalidInput` for what is neither, or cannot be loaded."""
    is_script = _is_script(path)
    try:
        with _quietly():
            if is_script:
                module: Any = torch.jit.load(str(path), map_location="cpu").eval()
                taken = _Input()
            else:
                program = torch.export.load(str(path))
                module, taken = program.module(), _input_of(path, program)
    except InvalidInput:
        raise
    except Exception as error:
        # Loading runs what the file says, which may fail in any way.
        raise InvalidInput(
            f"{path} cannot be loaded ({type(error).__name__}: {first_line(error)}); write it again, with the release "
            "of torch that is used here"
        ) from error
    return Exported(module, taken.batches), taken


def _is_script(path: Path) -> bool:
    """Whether it is TorchScript; else it is a program of torch.export."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {entry.partition("/")[2] for entry in archive.namelist()} | {*archive.namelist()}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise InvalidInput(
            f"{path} is no exported program, or is cut short ({error}); give what torch.export.save or torch.jit.save "
            "wrote"
        ) from error
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return True
    if names & {"archive_format", "serialized_exported_program.json"}:
        return False
    if "data.pkl" in names:
        raise InvalidInput(f"{path} holds weights and no program; give --teacher the network's own name, and --weights")
    raise InvalidInput(f"{path} is a zip archive of other files; give what torch.export.save or torch.jit.save wrote")


def _input_of(path: Path, program: torch.export.ExportedProgram) -> _Input:
    names = program.graph_signature.user_inputs
    given = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(given) != 1 or not isinstance(given[0], Tensor) or given[0].ndim != 4:
        raise InvalidInput(
            f"{path} has {len(given)} inputs; give a program of one batch of images (any, 3, height, width)"
        )
    count, channels, height, width = given[0].shape
    sides = {side for side in (height, width) if isinstance(side, int)}
    if channels != 3 or len(sides) > 1 or max(sides, default=1) > MAX_INPUT_SIZE:
        raise InvalidInput(
            f"{path} takes an input ({count}, {channels}, {height}, {width}); give a program of square images of three "
            f"channels and at most {MAX_INPUT_SIZE} pixels"
        )
    return _Input(_batches(program, count), next(iter(sides), None))


def _batches(program: torch.export.ExportedProgram, count: Any) -> tuple[int, int | None]:
    if isinstance(count, int):
        return count, count
    bounds = program.range_constraints.get(count.node.expr)
    if bounds is None:
        return 1, None
    # sympy's own infinities are no Integer.
    least, most = (int(bound) if bound.is_Integer else None for bound in (bounds.lower, bounds.upper))
    return max(1, least or 1), most


def _texts(path: Path) -> dict[str, str]:
    """The description that a program carries: key -> text, or JSON."""
    with zipfile.ZipFile(path) as archive:
        found = [entry for entry in archive.infolist() if entry.filename.endswith(_DESCRIPTION)]
        if len(found) != 1:
            return {}
        if found[0].file_size > MOST_BYTES:
            raise InvalidInput(f"{path} says {found[0].file_size} bytes of itself; give a file that says less")
        try:
            document = json.loads(archive.read(found[0]))
        except (zipfile.BadZipFile, ValueError, RecursionError) as error:
            raise InvalidInput(f"{path} says of itself what is no JSON ({error}); write it again") from error
    if not isinstance(document, dict):
        return {}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in document.items()}


@contextmanager
def _quietly() -> Iterator[None]:
    """What torch says of its own file formats is for those who write them."""
    logger = logging.getLogger("torch")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


ORIGIN = ExportFile()
