"""Stage two where it can reach nothing: python -m tests.student_train.offline_student '[[ARGUMENTS], ...]'.

One `ckd-train` after another, each with its arguments, and a NUL after what each printed. No socket connects, and
importing anything that could hold a teacher or a data set fails.
"""

from __future__ import annotations

import json
import sys
from importlib.abc import MetaPathFinder

FORBIDDEN = ("teacher_cache", "pipeline", "torchvision")


class Refuse(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in FORBIDDEN:
            raise AssertionError(f"stage two imported {fullname}")


def stay_offline(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        raise AssertionError(f"stage two used the network: {event} {arguments}")


if __name__ == "__main__":
    sys.meta_path.insert(0, Refuse())
    sys.addaudithook(stay_offline)
    import torch

    torch.set_num_threads(1)
    from student_train.cli import main

    for arguments in json.loads(sys.argv[1]):
        main(arguments, standalone_mode=False)
        print(end="\0", flush=True)
