"""ONNX files, run by onnxruntime: onnx:FILE.

Nothing in such a file is code: operators that onnxruntime does not know are refused, and no library of others is ever
loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ground.errors import InvalidInput
from models.file_network import first_line
from models.file_stamp import Stamp, is_as_stamped
from models.onnx_model import OnnxModel, read_onnx
from models.origins.files import FileFacts, FileOrigin

_CUDA = "CUDAExecutionProvider"


class OnnxFile(FileOrigin):
    """See `FileOrigin`."""

    scheme = "onnx"
    package = "onnxruntime"
    extra = "onnx"

    def check(self, name: str) -> None:
        """See `Origin.check`."""
        super().check(name)
        for package in ("onnx", self.package):
            if find_spec(package) is None:
                raise InvalidInput(
                    f"onnx:{name} needs the package {package}; install it with: pip install "
                    f"'teacher-cache[{self.extra}]'"
                )

    def facts(self, stamp: Stamp) -> FileFacts:
        """See `FileOrigin.facts`."""
        model = _read(stamp)
        return FileFacts(size=model.size, digest=model.digest, texts=model.texts)

    def program(self, stamp: Stamp) -> Session:
        """See `FileOrigin.program`."""
        return Session(Path(stamp[0]), _read(stamp))


class Session:
    """An ONNX file that runs; see `models.file_network.Program`.

    Raises:
        InvalidInput: onnxruntime cannot run it.
    """

    def __init__(self, path: Path, model: OnnxModel) -> None:
        self._path, self._model = path, model
        self._session = _session(path, ["CPUExecutionProvider"])

    @property
    def batches(self) -> tuple[int, int | None]:
        """See `Program.batches`."""
        return (1, None) if self._model.batch is None else (self._model.batch, self._model.batch)

    def run(self, images: Tensor, outputs: Sequence[str] | None) -> Mapping[str, Tensor]:
        """See `Program.run`; on the CPU, images are not copied."""
        if self._model.is_channels_last:
            images = images.permute(0, 2, 3, 1).contiguous()
        given = images.cpu().numpy()
        names = list(self._model.outputs if outputs is None else outputs)
        said = self._session.run(names, {self._model.input: given.astype(np.float16) if self._model.is_half else given})
        return {
            name: torch.from_numpy(array).to(images.device)
            for name, array in zip(names, said, strict=True)
            if isinstance(array, np.ndarray)
        }

    def place(self, device: torch.device) -> None:
        """See `Program.place`."""
        import onnxruntime

        if device.type == "cpu":
            self._session = _session(self._path, ["CPUExecutionProvider"])
            return
        if _CUDA not in onnxruntime.get_available_providers():
            raise InvalidInput(
                f"onnxruntime here does not run on {device}, so onnx:{self._path} cannot; give --device cpu, or "
                "install onnxruntime-gpu"
            )
        exact = {"device_id": device.index or 0, "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        self._session = _session(self._path, [(_CUDA, exact), "CPUExecutionProvider"])


def _session(path: Path, providers: list[Any]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    # What it warns of is for those who wrote the file.
    options.log_severity_level = 3
    # Between calls its threads would keep the cores from ours.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        # Errors of onnxruntime have no class in common but this one.
        raise InvalidInput(
            f"onnxruntime cannot run {path} ({first_line(error)}); write the file again, or give another"
        ) from error


def _read(stamp: Stamp) -> OnnxModel:
    model = _kept(stamp)
    if all(map(is_as_stamped, model.data)):
        return model
    _kept.cache_clear()
    return _kept(stamp)


@lru_cache(maxsize=4)
def _kept(stamp: Stamp) -> OnnxModel:
    return read_onnx(Path(stamp[0]))


ORIGIN = OnnxFile()
