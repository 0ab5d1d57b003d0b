"""Programs of the tests as processes that start in milliseconds: python -m tests.forking.

Importing torch and the rooms takes seconds, so one process does it, and forks one for each line of JSON on its
standard input, a module to run as a program: {"module", "arguments", "stdout", "stderr"}, the last two files to write.
It answers with the exit status, negative for a signal, as `subprocess` has it. See `running.run_program`.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from importlib import import_module

import torch

from teacher_cache.datasets import open_dataset

# The last is what torch imports when the first optimizer is made.
_IMPORTED_ONCE = ("teacher_cache.build", "teacher_cache.extend", "student_train.trainer", "torch._dynamo")


def become(job: dict) -> int:
    """What a forked process does with the rest of its life; returns its exit code."""
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = [job["module"], *job["arguments"]]
    try:
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    torch.set_num_threads(1)
    for name in _IMPORTED_ONCE:
        import_module(name)
    open_dataset("digits", data_root=None, image_size=None, download=False)  # imports what a plan needs
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = become(json.loads(line))
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
