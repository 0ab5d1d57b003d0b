"""moto's S3 server, in an environment of its own, on a loopback address: nearer to the real one than `object_server`.

The environment is made once, in the folder that CKD_MOTO names, or below the temporary folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "moto[server,s3]==5.2.5"
BUCKET = "bucket"
# Its own command answers requests at once, and looks whether an object is there before it writes it: of two conditional
# writes both may succeed. A service lets one, so here they take turns.
_SERVE = """
import sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

answer, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

def in_turn(environ, start_response):
    with turn:
        return answer(environ, start_response)

run_simple("127.0.0.1", int(sys.argv[1]), in_turn, threaded=True, request_handler=MotoRequestHandler)
"""


def moto_program() -> Path:
    """The Python that has it, where it is installed if it is not there.

    Raises:
        subprocess.SubprocessError, OSError: it cannot be installed.
    """
    folder = Path(os.environ.get("CKD_MOTO") or Path(tempfile.gettempdir()) / "ckd-moto")
    lock = folder.with_name(f"{folder.name}.lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "bin" / "moto_server").exists():
            _install(folder)
    return folder / "bin" / "python"


def _install(folder: Path) -> None:
    try:
        # By our own pip: one of its own would be installed first. Nothing is compiled that is not imported.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, capture_output=True)
        install = [sys.executable, "-m", "pip", "--python", folder, "install", "-q", "--no-compile", PACKAGE]
        subprocess.run(install, check=True, capture_output=True, timeout=600)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def moto_server(program: Path) -> Iterator[int]:
    """Its port, with one bucket, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "-c", _SERVE, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_bucket(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _make_bucket(port: int, process: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            with opener.open(request, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"moto's server did not start (status {process.poll()})")
