"""A finished run's student as a file that runs without this package: ONNX, or a program of torch.export.

The file takes normalised images (B, 3, S, S) in float32, any number of them, and gives logits (B, K); how photographs
become those is said in a JSON file beside it, and in the file itself. What it says of noise is compared with the
network before it takes its name. Nothing in it names this machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ground.documents import Malformed, read_object
from ground.durable import write_bytes, write_json
from ground.errors import InvalidInput
from models.module_network import ModuleNetwork
from student_train.finished_student import FinishedStudent

INPUT, OUTPUT = "images", "logits"
DESCRIPTION = "description"
SUFFIXES = {"onnx": ".onnx", "export": ".pt2"}
# Of the largest logit: other orders of summation differ by a hundredth of it.
TOLERANCE = 1e-4
_LEAST = 1e-6
_PROBES = (3, 1)
_TRACED = 2
# A protocol buffer, which an ONNX file is, can hold no more.
_MOST_ONNX_BYTES = (1 << 31) - (1 << 20)
_EXTRA = "pip install 'teacher-cache[onnx]'"
_TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir")

# Normalised images -> logits.
Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Args:
        description: the JSON file beside it.
        difference: the largest between its logits and the network's, of noise; None where nothing here can run it.
        largest: of those logits, in size.
    """

    file: Path
    description: Path
    digest: str
    num_bytes: int
    difference: float | None
    largest: float

    @property
    def is_right(self) -> bool:
        """Whether nothing was found against it; where it is wrong, nothing was written."""
        return self.difference is None or self.difference <= TOLERANCE * self.largest + _LEAST


def export_student(student: FinishedStudent, to: str, out: Path | None = None) -> Exported:
    """Write a student as a file of its own, and its description beside it.

    Args:
        to: of `SUFFIXES`.
        out: the file; None is `student` with its suffix in the run's folder.

    Raises:
        InvalidInput: a package is missing, the network cannot be written so, or a file is in the way.
    """
    path = student.folder / f"student{SUFFIXES[to]}" if out is None else out
    if path.suffix != SUFFIXES[to]:
        raise InvalidInput(f"{path} does not end in {SUFFIXES[to]}, which --to {to} writes; give such an --out")
    beside = path.with_suffix(".json")
    files = _files_beside(beside, described := describe(student))
    content, run = (_to_onnx if to == "onnx" else _to_program)(student, described)
    difference, largest = (None, 0.0) if run is None else _difference(student.network, run, student.rendering.size)
    digest = hashlib.sha256(content).hexdigest()
    exported = Exported(
        file=path, description=beside, digest=digest, num_bytes=len(content), difference=difference, largest=largest
    )
    if exported.is_right:
        write_bytes(path, content)
        write_json(beside, {**described, "files": {**files, path.name: digest}})
    return exported


def describe(student: FinishedStudent) -> dict[str, Any]:
    """What has to be known to show a student a photograph, and to read its answer.

    The photograph's shorter side is resized to `resize` pixels by `interpolation` and the central square of as many
    taken (`fit` centre; squashed: both sides are resized); its centre of `crop` pixels, on black if it is larger, is
    resized to `size` by `crop_interpolation`, both antialiased; pixels on [0, 1], less `mean`, by `std`, are the input.
    """
    rendering, record = student.rendering, student.record
    return {
        "student": record.student,
        "dataset": record.dataset,
        "input": INPUT,
        "output": OUTPUT,
        "size": rendering.size,
        "fit": student.fit.shape,
        "resize": rendering.geometry.image_size,
        "interpolation": student.fit.interpolation,
        "crop": rendering.geometry.crop_size,
        "crop_interpolation": rendering.interpolation,
        "mean": list(rendering.normalisation.mean),
        "std": list(rendering.normalisation.std),
        "classes": list(student.classes),
    }


def _files_beside(path: Path, described: dict[str, Any]) -> dict[str, str]:
    """Other files of the same student that a description names already: name -> digest.

    Raises:
        InvalidInput: something else than a description is in its place.
    """
    if not path.exists():
        return {}
    try:
        found = read_object(path)
    except Malformed:
        found = {}
    files = found.pop("files", None)
    if not isinstance(files, dict):
        raise InvalidInput(f"{path} is no description of a student, and would be replaced; give another --out")
    return files if found == described else {}


def _difference(network: nn.Module, run: Runner, size: int) -> tuple[float, float]:
    """The largest difference between what a file and its network say of noise, and the largest logit."""
    differences, largest = [], 0.0
    generator = torch.Generator().manual_seed(0)
    for count in _PROBES:
        images = torch.randn(count, 3, size, size, generator=generator)
        with torch.inference_mode():
            expected = network(images)
        # Not `max` of floats: what is no number has to show.
        differences.append((run(images) - expected).abs().max())
        largest = max(largest, float(expected.abs().max()))
    return float(torch.stack(differences).max()), largest


def _to_program(student: FinishedStudent, described: dict[str, Any]) -> tuple[bytes, Runner | None]:
    """Bytes of a torch.export program, and what runs them."""
    program = _traced(student)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={DESCRIPTION: json.dumps(described)})
    loaded = torch.export.load(io.BytesIO(content.getvalue())).module()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = loaded(images)
        return logits

    return content.getvalue(), run


def _to_onnx(student: FinishedStudent, described: dict[str, Any]) -> tuple[bytes, Runner | None]:
    """Bytes of an ONNX model, and what runs them, where onnxruntime is installed."""
    if sum(tensor.numel() * tensor.element_size() for tensor in student.network.state_dict().values()) > (
        _MOST_ONNX_BYTES
    ):
        raise InvalidInput(f"{student.record.student} is larger than an ONNX file can be, 2 GB; give --to export")
    try:
        import onnx
        import onnxscript  # noqa: F401  torch writes ONNX by it
    except ImportError as error:
        raise InvalidInput(f"--to onnx needs the package {error.name}; install it with: {_EXTRA}") from error
    with _quietly(), _said_of(student, "onnx"):
        program = torch.onnx.export(
            _traced(student), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        )
    assert program is not None
    model = program.model_proto
    _forget_origins(model)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()}
    onnx.helper.set_model_props(model, texts)
    content = model.SerializeToString()
    return content, _onnx_runner(content)


def _onnx_runner(content: bytes) -> Runner | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _traced(student: FinishedStudent) -> torch.export.ExportedProgram:
    size = student.rendering.size
    with _quietly(), _said_of(student, "a program"):
        return torch.export.export(
            _bare(student.network, size),
            (torch.zeros(_TRACED, 3, size, size),),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )


def _bare(network: nn.Module, size: int) -> nn.Module:
    """A library's own module where it answers with logits, so that its parameters have the library's names."""
    if isinstance(network, ModuleNetwork):
        with torch.inference_mode():
            if isinstance(network.module(torch.zeros(1, 3, size, size)), Tensor):
                return network.module
    return network


def _forget_origins(message: Any) -> None:
    """Remove, from all parts of a model, which file and line it was made by."""
    for descriptor, value in message.ListFields():
        if descriptor.name in ("metadata_props", "doc_string"):
            message.ClearField(descriptor.name)
        elif descriptor.type == descriptor.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                _forget_origins(part)


@contextmanager
def _said_of(student: FinishedStudent, what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise InvalidInput(f"{student.record.student} cannot be written as {what} ({reason})") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """What the exporters say is for those who write them."""
    levels = {name: logging.getLogger(name).level for name in _TALKATIVE}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
