"""A Ray cluster: one that is there, or one of this machine alone that ends with the command.

Of Ray we use core actors and tasks, and none of it repeats anything: what a process that died left is for the ledger
and the run folders to say. Ray is an extra, imported here and in the processes that it starts, and nowhere else. It
reports to nobody, shows no dashboard, and prints nothing where our commands print.
"""

from __future__ import annotations

import io
import logging
import os
import re
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

from ground.errors import InvalidInput

_Answer = TypeVar("_Answer")

INSTALL = "pip install 'teacher-cache[ray]'"
# Nothing of size goes through Ray: images, answers and students are in files.
_OBJECT_STORE_BYTES = 100_000_000
_SECONDS_FOR_AN_ANSWER = 120.0
_ATTEMPTS_TO_START = 3
_SECONDS_TO_CONNECT, _LAST_PORT = 5.0, 65535
_MANY_TO_A_NODE = 1_000_000
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
# Ray tells failures of processes apart, and each is ours to judge.
NO_RETRIES: Mapping[str, int] = {"max_restarts": 0, "max_task_retries": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What each worker takes of a node; several may share a GPU."""

    cpus: float = 1.0
    gpus: float = 0.0

    def check(self, device: str, option: str) -> None:
        """Raise `InvalidInput` for a device that no worker could be given, or a share of a GPU that there is not.

        Args:
            device: as the user says it.
            option: by which the GPUs are said.
        """
        if device not in ("auto", "cpu", "cuda"):
            raise InvalidInput(
                f"--device {device} is for work on this machine; with --engine ray each process is given its GPU, so "
                "leave it out, or say cpu"
            )
        if self.gpus and device == "cpu":
            raise InvalidInput(f"{option} {self.gpus:g} and --device cpu exclude each other; leave one out")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise InvalidInput(f"{option} must be at most 1, or a whole number of GPUs, got {self.gpus:g}")

    def fits_in(self, node: Node) -> int:
        """How many workers a node holds."""
        # Not a division: four quarters are one, and ten tenths.
        by_cpu = _MANY_TO_A_NODE if not self.cpus else int(node.cpus / self.cpus + 1e-6)
        if not self.gpus:
            return by_cpu
        by_gpu = int(node.gpus) * int(1 / self.gpus + 1e-6) if self.gpus < 1 else int(node.gpus // self.gpus)
        return min(by_cpu, by_gpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine, or a container, of the cluster that is alive."""

    id: str
    host: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """One that this process is connected to; see `joined`.

    Args:
        ray: the module.
    """

    ray: ModuleType

    def nodes(self) -> list[Node]:
        """Those that are alive now."""
        return [
            Node(
                id=node["NodeID"],
                host=node["NodeManagerHostname"],
                cpus=node["Resources"].get("CPU", 0.0),
                gpus=node["Resources"].get("GPU", 0.0),
            )
            for node in self.ray.nodes()
            if node["Alive"]
        ]

    @property
    def gpus(self) -> float:
        """Of all nodes."""
        return sum(node.gpus for node in self.nodes())

    def capacity(self, share: Share) -> int:
        """Workers that the cluster holds at once, when nobody else uses it."""
        return sum(share.fits_in(node) for node in self.nodes())

    def start(self, kind: type, share: Share, *arguments: Any) -> Any:
        """A process that holds an object of a class, and runs several of its methods at once, each when it is called.

        Returns:
            Ray's handle of it, at once: it may have to wait for room in the cluster.
        """
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_concurrency": 4, **NO_RETRIES}
        return self.ray.remote(**options)(kind).remote(*arguments)

    def dismiss(self, worker: Any) -> None:
        """End a process of `start` at once, or before it begins."""
        self.ray.kill(worker, no_restart=True)

    def on_every_node(self, function: Callable[..., _Answer], *arguments: Any) -> list[tuple[Node, _Answer]]:
        """What a function answers on each node, in a process of its own that takes no share of anything.

        Raises:
            InvalidInput: a node does not answer.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes, asked = self.nodes(), []
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
            task = self.ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(function)
            asked.append(task.remote(*arguments))
        found = []
        for node, answer in zip(nodes, asked, strict=True):
            try:
                found.append((node, self.ray.get(answer, timeout=_SECONDS_FOR_AN_ANSWER)))
            except self.ray.exceptions.RayError as error:
                raise InvalidInput(
                    f"node {node.host} of the Ray cluster does not run this program ({_first_line(error)}); install "
                    "the same packages there"
                ) from error
        return found


@contextmanager
def joined(address: str | None, *, cpus: int = 1) -> Iterator[Cluster]:
    """Be connected to a Ray cluster for as long as the block lasts; nothing of ours is left in it afterwards.

    Args:
        address: of a cluster, as `ray start` says it, or "auto" for the one of this machine; None for $RAY_ADDRESS, or
            for one of this machine alone that ends with the block.
        cpus: that such a one has at least, whatever the machine has.

    Raises:
        InvalidInput: Ray is not installed, no cluster answers, or it is of another version.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = _imported()
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address == "local":  # Ray's own word for it, with which it would keep a token in the user's home
        address = None
    if address is not None and address.startswith("ray://"):
        raise InvalidInput(
            f"{address} is for Ray's client, which this command is not; run it on a node of the cluster, with "
            "--ray-address auto"
        )
    with _signals_as_before(), _silenced():
        try:
            _connect(ray, address, cpus)
            yield Cluster(ray)
        finally:
            ray.shutdown()


def carried_environment() -> dict[str, str]:
    """Variables of this process that processes elsewhere need too; they may hold passwords, so they are passed like
    any argument, and not as Ray's runtime environment, which it logs.
    """
    return {name: value for name, value in os.environ.items() if name.startswith(("CKD_", "PG", "OPENAI_"))}


def move_in(environment: Mapping[str, str], folder: str) -> None:
    """Make a process that Ray started like the one that asked for it: its variables, and its folder if that exists."""
    os.environ.update(environment)
    if os.path.isdir(folder):
        os.chdir(folder)


def why_died(error: Exception) -> str:
    """What Ray says of a process that died, in few words."""
    found = re.search(r"The actor is dead because (.+?)\.(?:\s|$)", str(error))
    return found[1] if found else _first_line(error)


def _imported() -> ModuleType:
    try:
        return import_module("ray")
    except ImportError as error:
        raise InvalidInput(
            f"--engine ray needs Ray, which is not installed here; install it with: {INSTALL}"
        ) from error


def _connect(ray: ModuleType, address: str | None, cpus: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        _start(ray, cpus, quiet)
        return
    _require_listening(address)
    try:
        ray.init(address=address, **quiet)
    except RuntimeError as error:
        versions = _VERSIONS.findall(str(error))
        if len(versions) != 2:
            raise _no_answer(address, error) from error
        (theirs, their_python), (ours, our_python) = versions
        raise InvalidInput(
            f"the cluster at {address} is of Ray {theirs} on Python {their_python}, and this is Ray {ours} on Python "
            f"{our_python}; install the same on all nodes"
        ) from error
    except (ConnectionError, ValueError, OSError) as error:
        raise _no_answer(address, error) from error


def _require_listening(address: str) -> None:
    """Raise `InvalidInput` where nobody takes connections: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > _LAST_PORT:
        return  # "auto", or for Ray to refuse
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
    except OSError as error:
        raise _no_answer(address, error) from error


def _start(ray: ModuleType, cpus: int, quiet: Mapping[str, Any]) -> None:
    """A cluster of this machine alone."""
    # It runs whatever it is told to: only who has the token tells it anything, and nobody else has this one.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Its own helpers have half of that time to start, which is short where all cores are busy.
    os.environ.setdefault("RAY_agent_register_timeout_ms", str(30_000))
    settings = {"num_cpus": max(os.cpu_count() or 1, cpus), "object_store_memory": _OBJECT_STORE_BYTES, **quiet}
    for attempt in range(1, _ATTEMPTS_TO_START + 1):
        try:
            ray.init(address="local", include_dashboard=False, **settings)
            return
        except Exception as error:  # Ray has no class for what keeps its processes from starting
            ray.shutdown()
            # It gives its own processes half a minute, which a busy machine may not have for them.
            if attempt == _ATTEMPTS_TO_START:
                raise InvalidInput(
                    f"Ray does not start on this machine ({_first_line(error)}); see its logs in "
                    "/tmp/ray/session_latest, or go without --engine ray"
                ) from error


def _no_answer(address: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"no Ray cluster can be used at {address} ({_first_line(error)}); start one with: ray start --head, or leave "
        "--ray-address out for one of this machine alone"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def _silenced() -> Iterator[None]:
    """What Ray tells of processes that died it prints on stdout, where results go; we say it ourselves."""
    logger = logging.getLogger("ray")
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagates


@contextmanager
def _signals_as_before() -> Iterator[None]:
    """Connecting makes SIGTERM end the process in Ray's way, for good."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
