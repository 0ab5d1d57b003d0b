"""Programs of the tests, and installed commands, as processes that start in milliseconds: python -m tests.forking.

Importing torch and the rooms takes seconds, so one process does it, and forks one for each line of JSON on its
standard input: a module to run as a program {"module", "arguments", "stdout", "stderr"}, or what an installed script
calls {"command", ...}, the last two files to write. What is begun with {"environment", "folder", ...} has those and a
session of its own, and its process id is the answer; {"poll": PID} and {"wait": PID} ask how that ended. Otherwise the
answer is the exit status, negative for a signal, as `subprocess` has it. See `running`.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from teacher_cache.datasets import open_dataset
from tests.grid_workers import IMPORTED_ONCE, forked_workers, started_here
from tests.running import COMMANDS, command_called

_COMMANDS = ("ckd-cache", "ckd-train", "ckd-pipeline")
_IMPORTED_ONCE = (*IMPORTED_ONCE, "teacher_cache.build", "teacher_cache.extend")


def become(job: dict[str, Any]) -> int:
    """What a forked process does with the rest of its life; returns its exit code."""
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        if "environment" in job:
            _leave_home(job)
        _work(job)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _leave_home(job: dict[str, Any]) -> None:
    """Have a session, an environment and a folder of its own; a PYTHONPATH is heeded as Python does when it starts."""
    os.setsid()
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))


def _work(job: dict[str, Any]) -> None:
    if "module" in job:
        sys.argv = [job["module"], *job["arguments"]]
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        return
    # As of a script: the folder of the script comes first where modules are looked for.
    sys.argv, sys.path[0] = [str(COMMANDS / job["command"]), *job["arguments"]], str(COMMANDS)
    with started_here(Path(job["stdout"]).parent), forked_workers():
        command_called(job["command"])()


def answer(job: dict[str, Any]) -> int | None:
    """What is said of a line, None for what has not ended."""
    asked = job.get("poll") or job.get("wait")
    if asked is None:
        asked = os.fork()
        if asked == 0:
            code = 1
            try:
                code = become(job)
            finally:
                os._exit(code)
        if "environment" in job:
            return asked
    ended, status = os.waitpid(asked, os.WNOHANG if "poll" in job else 0)
    return os.waitstatus_to_exitcode(status) if ended else None


def main() -> None:
    torch.set_num_threads(1)
    for name in _IMPORTED_ONCE:
        import_module(name)
    for name in _COMMANDS:
        command_called(name)
    open_dataset("digits", data_root=None, image_size=None, download=False)  # imports what a plan needs
    gc.freeze()  # a collection in a process that is forked would copy every page of it
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)
    main()
