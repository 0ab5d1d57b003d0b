"""MLServer, in an environment of its own, serves an ONNX file; the client says what the file says here.

The environment is made once, in the folder that CKD_MLSERVER names (or below the temporary folder). Where it cannot be
installed the test is skipped with the reason, unless CKD_REQUIRE_MLSERVER=1.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from teacher_cache.teachers.attempts import Answer
from teacher_cache.teachers.elsewhere import RemoteOptions
from tests.onnx_classifier import CLASSES, SIZE, classifier, onnx
from tests.teacher_cache.teachers.remote.asking import Images, noise, opened, said_by

PACKAGES = ("mlserver==1.7.1", "onnxruntime")
RUNTIME = """
import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Onnx(MLModel):
    async def load(self):
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri)
        return True

    async def predict(self, payload):
        images = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        logits = self._session.run(["logits"], {"images": images})[0]
        outputs = [NumpyCodec.encode_output("logits", logits)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)
"""


@pytest.fixture(scope="module")
def programs() -> Path:
    """Where MLServer's programs are."""
    folder = Path(os.environ.get("CKD_MLSERVER") or Path(tempfile.gettempdir()) / "ckd-mlserver")
    programs = folder / "bin"
    if not (programs / "mlserver").exists():
        try:
            # By our own pip: one of its own would be installed first. Nothing is compiled that is not imported.
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, capture_output=True)
            install = [sys.executable, "-m", "pip", "--python", folder, "install", "-q", "--no-compile", *PACKAGES]
            subprocess.run(install, check=True, capture_output=True, timeout=600)
        except (subprocess.SubprocessError, OSError) as error:
            if os.environ.get("CKD_REQUIRE_MLSERVER") == "1":
                raise
            pytest.skip(f"MLServer cannot be installed here ({type(error).__name__})")
    return programs


def free_ports(count: int) -> list[int]:
    with closing(socket.socket()) as one, closing(socket.socket()) as two, closing(socket.socket()) as three:
        sockets = (one, two, three)[:count]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def server(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its URL, and the file that it serves."""
    folder = tmp_path_factory.mktemp("mlserver")
    file = folder / "teacher.onnx"
    onnx.save(classifier(outputs=("logits",)), str(file))
    http, grpc, metrics = free_ports(3)
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    (folder / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0, "metrics_endpoint": None}))
    (folder / "serving.py").write_text(RUNTIME)
    model = {
        "name": "tiny",
        "implementation": "serving.Onnx",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, SIZE, SIZE]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, CLASSES]}],
        "parameters": {"uri": str(file), "version": "v1"},
    }
    (folder / "model-settings.json").write_text(json.dumps(model))
    log = (folder / "log").open("w")
    environment = os.environ | {"PYTHONPATH": str(folder)}
    process = subprocess.Popen(
        [programs / "mlserver", "start", "."], cwd=folder, stdout=log, stderr=log, env=environment
    )
    url = f"http://127.0.0.1:{http}"
    try:
        wait_for(f"{url}/v2/models/tiny/ready", process)
        yield url, file
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"MLServer did not start (status {process.poll()})")


@pytest.mark.slow
def test_it_says_what_the_file_says_here(server, tmp_path):
    import onnxruntime

    url, file = server
    images = Images(tuple(f"class {place}" for place in range(CLASSES)))
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"size": SIZE, "max_batch": 4}))
    rendering = replace(images.rendering, input_size=SIZE)
    teacher = opened(f"v2:{url}/tiny", RemoteOptions(card=card), replace(images, rendering=rendering))
    assert teacher.max_batch == 4
    shown = np.repeat(np.repeat(noise(4), SIZE // 8, axis=2), SIZE // 8, axis=3)
    answers = said_by(teacher, shown, deadline=60.0)
    session = onnxruntime.InferenceSession(str(file))
    pixels = rendering.normalisation.apply(torch.from_numpy(shown)).numpy()
    expected = session.run(["logits"], {"images": pixels})[0]
    for answer, logits in zip(answers, expected, strict=True):
        assert isinstance(answer, Answer), answer
        np.testing.assert_allclose(answer.values["logits"], logits, atol=1e-5)
        assert answer.model == "tiny v1"
