"""The parts of `benchmarks.gpu`: what each measures, and how. Each runs in a process of its own.

What needs no CUDA runs on a CPU too, on one thread and smaller, to try it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Timing, take_turns_for
from benchmarks.stage_one import bare_loop, builder, make_images
from benchmarks.stage_two import train_steps
from benchmarks.stand_ins.random_store import CLASSES, TEACHER, make_store
from ground.durable import write_bytes
from models import create_model, save_weights
from models.compute import Compute
from student_train.methods import parse_method
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build

METHODS = ("kd", "ckd", "crd", "fitnets")
# Of a part's time: the rest is for what comes before the first round.
_SHARE_MEASURED = 0.6
_BATCH = 64


@dataclass(slots=True)
class Bench:
    """What a part measures with.

    Args:
        until: when it should have ended, by `time.monotonic`, which all processes of a machine share.
        report: where what is known is written, all of it each time.
    """

    compute: Compute
    student: str
    until: float
    report: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, device: str, precision: str, student: str, until: float, report: Path) -> Bench:
        """For a part in this process."""
        compute = Compute.choose(device, precision)
        if compute.device.type == "cpu":
            torch.set_num_threads(1)
        return cls(compute, student, until, report)

    @property
    def on_gpu(self) -> bool:
        """Whether there is one; a CPU is for trying."""
        return self.compute.device.type == "cuda"

    @property
    def steps(self) -> int:
        """Steps in each round."""
        return 20 if self.on_gpu else 1

    @property
    def left(self) -> float:
        """Seconds, at least 0."""
        return max(self.until - time.monotonic(), 0.0)

    def put(self, label: str, **numbers: Any) -> None:
        """Something is known: it is kept whatever becomes of this process."""
        self.rows[label] = {"label": label} | {
            name: round(value, 4) if isinstance(value, float) else value for name, value in numbers.items()
        }
        write_bytes(self.report, json.dumps([*self.rows.values()]).encode())

    def turns(
        self,
        subjects: Mapping[str, Callable[[], object]],
        on_round: Callable[[dict[str, Timing]], object],
        share: float = _SHARE_MEASURED,
    ) -> None:
        """Measure in turns for a share of what is left of the time; at least one round."""
        clock = time.perf_counter if self.on_gpu else time.process_time
        take_turns_for(share * self.left, {name: self._waited(run) for name, run in subjects.items()}, clock, on_round)

    def _waited(self, run: Callable[[], object]) -> Callable[[], None]:
        def ran() -> None:
            run()
            self.compute.synchronise()

        return ran


@dataclass(frozen=True, slots=True)
class Part:
    """Something to measure.

    Args:
        what: in a few words.
        share: of the time, beside those of others.
    """

    what: str
    share: float
    measure: Callable[[Bench], None]
    needs_cuda: bool = False


class BareStep:
    """Forward, cross-entropy, backward and SGD step of a student on one fixed batch.

    Args:
        compiled: arguments of `torch.compile`; None for none.
        optimizer: arguments of SGD beside those that training has.
    """

    def __init__(
        self, bench: Bench, compiled: Mapping[str, Any] | None = None, optimizer: Mapping[str, Any] | None = None
    ) -> None:
        self.compute = bench.compute
        self.network = create_model(bench.student, CLASSES, seed=0)
        self.compute.place(self.network)
        self.network.train()
        self.represent = self.network.represent
        if compiled is not None:
            self.represent = torch.compile(self.network.represent, **compiled)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, **(optimizer or {})
        )
        noise = torch.Generator().manual_seed(0)
        images = torch.randn(_BATCH, 3, 32, 32, generator=noise).contiguous(memory_format=torch.channels_last)
        self.images = images.to(self.compute.device)
        self.labels = torch.randint(0, CLASSES, (_BATCH,), generator=noise).to(self.compute.device)

    def __call__(self) -> None:
        with self.compute.autocast():
            logits = self.represent(self.images, ()).logits
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()

    def steps(self, number: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(number):
                self()

        return run

    def weights_after(self, number: int) -> Tensor:
        """All of them, flat, in float32 on the CPU."""
        self.steps(number)()
        return torch.cat([parameter.detach().float().cpu().flatten() for parameter in self.network.parameters()])


def stage_one(bench: Bench) -> None:
    """Calls a second of a build, plan excluded, over those of a bare batched forward loop."""
    n, batches = (6_400, (64, 512)) if bench.on_gpu else (64, (64,))
    with _folder() as folder:
        make_images(folder / "images", n, 32)
        torch.manual_seed(0)
        save_weights(create_model(TEACHER, CLASSES, 0, 32), folder / "teacher.safetensors", {})
        base = BuildConfig(
            teacher=TEACHER,
            n=n,
            store=folder / "store",
            dataset=f"imagefolder:{folder / 'images'}",
            weights=folder / "teacher.safetensors",
            device=str(bench.compute.device),
            precision=bench.compute.precision,
            trust_teacher=True,
        )
        for place, batch_size in enumerate(batches):
            config = replace(base, batch_size=batch_size)
            prepared = prepare_build(config)
            label = f"batches of {batch_size}"
            subjects: dict[str, Callable[[], object]] = {}
            subjects[f"{label}, bare"] = lambda prepared=prepared: bare_loop(prepared)
            for features in ("none", "all"):
                subjects[f"{label}, features {features}"] = builder(config, features, "zarr")

            def note(timings: dict[str, Timing], bare: str = f"{label}, bare") -> None:
                for name, timing in timings.items():
                    rounds, ratio = len(timing.seconds), 1 / timing.over(timings[bare])
                    bench.put(name, calls_per_second=n / timing.median, of_bare=ratio, rounds=rounds)

            bench.turns(subjects, note, _SHARE_MEASURED / (len(batches) - place))


def stage_two(bench: Bench) -> None:
    """A step from a store over a bare step on as many images, and the bare step without exactness."""
    with _folder() as folder, bench.compute.exact():
        store = _store(folder)
        subjects: dict[str, Callable[[], object]] = {}
        images: dict[str, int] = {}
        free = BareStep(bench)
        for method in METHODS:
            trainer = _trainer(bench, store, method)
            subjects[method] = lambda trainer=trainer: train_steps(trainer, bench.steps)
            stepper = trainer.stepper
            batch = stepper.sampling.batch(0, labels=stepper.labels, batch_size=_BATCH, seed=0)
            images[method] = len(batch.rows) // _BATCH
        for passes in sorted({*images.values()}):
            subjects[f"bare, {passes} x {_BATCH}"] = BareStep(bench).steps(passes * bench.steps)

        def freely() -> None:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
                free.steps(bench.steps)()

        subjects["bare, 1 x 64, not repeatable"] = freely

        def note(timings: dict[str, Timing]) -> None:
            for name, timing in timings.items():
                bare = timings[f"bare, {images.get(name, 1)} x {_BATCH}"]
                step = 1e3 * timing.median / bench.steps
                bench.put(name, ms_per_step=step, of_bare=timing.over(bare), rounds=len(timing.seconds))

        bench.turns(subjects, note)


def processes(bench: Bench) -> None:
    """Steps a second of several kd students together, each in a process of its own."""
    with _folder() as folder:
        store = _store(folder)
        numbers = (1, 2, 4, 8) if bench.on_gpu else (1, 2)
        alone = 0.0
        for place, number in enumerate(numbers):
            window = 0.4 * bench.left / (len(numbers) - place)
            rate = _steps_per_second(bench, store, number, window)
            alone = alone or rate
            bench.put(f"{number} processes", steps_per_second=rate, of_one=rate / alone, seconds=window)


def _steps_per_second(bench: Bench, store: Path, number: int, window: float) -> float:
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(number), context.SimpleQueue()
    workers = [
        context.Process(target=_train_for, args=(store, bench, barrier, rates, window), daemon=True)
        for _ in range(number)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise RuntimeError(f"{len(failed)} of {number} processes ended with {failed[0]}, for want of memory perhaps")
    total: float = sum(rates.get() for _ in workers)
    return total


def _train_for(store: Path, bench: Bench, barrier: Barrier, rates: Any, window: float) -> None:
    """Steps for so many seconds from when all are ready; puts the rate into `rates`."""
    if not bench.on_gpu:
        torch.set_num_threads(1)
    try:
        with bench.compute.exact():
            trainer = _trainer(bench, store, "kd")
            train_steps(trainer, 2)
            barrier.wait(timeout=60)
            started, done = time.monotonic(), 0
            while time.monotonic() - started < window:
                train_steps(trainer, bench.steps)
                done += bench.steps
            rates.put(done / (time.monotonic() - started))
    except BaseException:
        # The others are not to wait for this one.
        barrier.abort()
        raise


def streams(bench: Bench) -> None:
    """Steps a second of several kd students together in one process, each on a stream of its own."""
    with _folder() as folder, bench.compute.exact():
        store = _store(folder)
        subjects = {
            f"{number} students": _side_by_side(bench, [_trainer(bench, store, "kd") for _ in range(number)])
            for number in ((1, 2, 4, 8) if bench.on_gpu else (1, 2))
        }

        def note(timings: dict[str, Timing]) -> None:
            one = timings["1 students"].median
            for name, timing in timings.items():
                number = int(name.partition(" ")[0])
                rate, ratio = number * bench.steps / timing.median, number * one / timing.median
                bench.put(name, steps_per_second=rate, of_one=ratio, rounds=len(timing.seconds))

        bench.turns(subjects, note)


def _side_by_side(bench: Bench, trainers: Sequence[Trainer]) -> Callable[[], None]:
    """Steps of each in turns, which the device may do at the same time."""
    places: list[AbstractContextManager[Any]] = [nullcontext() for _ in trainers]
    if bench.on_gpu:
        # What they were made of is there before anything on another stream reads it.
        bench.compute.synchronise()
        places = [torch.cuda.stream(torch.cuda.Stream(bench.compute.device)) for _ in trainers]
    for trainer in trainers:
        trainer.state.student.train()

    def run() -> None:
        for _ in range(bench.steps):
            for trainer, place in zip(trainers, places, strict=True):
                with place:
                    trainer.train_step()

    return run


def graphs(bench: Bench) -> None:
    """A bare step as a CUDA graph over the same launched kernel by kernel."""
    with bench.compute.exact():
        eager, captured = BareStep(bench), BareStep(bench)
        replay = _captured(captured)

        def replays() -> None:
            for _ in range(bench.steps):
                replay()

        def note(timings: dict[str, Timing]) -> None:
            _put_steps(bench, timings, "eager")

        bench.turns({"eager": eager.steps(bench.steps), "graph": replays}, note)


def _captured(step: BareStep) -> Callable[[], None]:
    """A step as a graph; source: the whole-network capture of PyTorch's notes on CUDA graphs."""
    side = torch.cuda.Stream(step.compute.device)
    side.wait_stream(torch.cuda.current_stream(step.compute.device))
    with torch.cuda.stream(side):
        # What is chosen or made at first, momenta among it, is so before the capture.
        step.steps(3)()
    torch.cuda.current_stream(step.compute.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    step.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


def optimizer(bench: Bench) -> None:
    """SGD a parameter at a time, for all at once (foreach) and fused: a bare step, and whether it repeats itself."""
    kinds = {"one by one": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    with bench.compute.exact():
        first = {name: BareStep(bench, optimizer=kind).weights_after(3) for name, kind in kinds.items()}
        again = {name: BareStep(bench, optimizer=kind).weights_after(3) for name, kind in kinds.items()}
        subjects = {name: BareStep(bench, optimizer=kind).steps(bench.steps) for name, kind in kinds.items()}

        def note(timings: dict[str, Timing]) -> None:
            _put_steps(bench, timings, "one by one")
            for name, weights in first.items():
                repeats = torch.equal(weights, again[name])
                apart = (weights - first["one by one"]).abs().max().item()
                bench.put(name, **_without_label(bench.rows[name]), repeats_itself=repeats, apart=f"{apart:.1e}")

        bench.turns(subjects, note)


def compiled(bench: Bench) -> None:
    """A bare step by torch.compile over the same without, what compiling takes, and how far its weights are apart."""
    modes: dict[str, dict[str, Any]] = {"compiled": {}}
    if bench.on_gpu:
        modes["compiled, reduce-overhead"] = {"mode": "reduce-overhead"}
    with bench.compute.exact():
        eager = BareStep(bench).weights_after(3)
        subjects, said = {"eager": BareStep(bench).steps(bench.steps)}, {}
        for name, mode in modes.items():
            step, started = BareStep(bench, compiled=mode), time.monotonic()
            step()
            bench.compute.synchronise()
            seconds = time.monotonic() - started
            first, again = (BareStep(bench, compiled=mode).weights_after(3) for _ in range(2))
            said[name] = {
                "compile_seconds": seconds,
                "repeats_itself": torch.equal(first, again),
                "apart": f"{(first - eager).abs().max().item():.1e}",
            }
            bench.put(name, **said[name])
            subjects[name] = step.steps(bench.steps)

        def note(timings: dict[str, Timing]) -> None:
            _put_steps(bench, timings, "eager")
            for name, numbers in said.items():
                bench.put(name, **_without_label(bench.rows[name]), **numbers)

        bench.turns(subjects, note)


def _put_steps(bench: Bench, timings: Mapping[str, Timing], base: str) -> None:
    for name, timing in timings.items():
        step, ratio = 1e3 * timing.median / bench.steps, timing.over(timings[base])
        bench.put(name, ms_per_step=step, ratio=ratio, rounds=len(timing.seconds))


def _without_label(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "label"}


_runs = count()


def _trainer(bench: Bench, store: Path, method: str) -> Trainer:
    """A student that is ready for its first step."""
    config = TrainConfig(student=bench.student, seed=next(_runs))
    folder = RunFolder(store.parent / "unused")
    trainer = Trainer.open(config, store, None, parse_method(method), bench.compute, folder)
    trainer.prepare()
    return trainer


def _store(folder: Path, n: int = 320) -> Path:
    make_store(folder / "store", n, layers=("layer2",))
    return folder / "store"


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary one, with what is witnessed of its ledgers in it."""
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, CKD_WITNESS=f"{name}/witness"):
        yield Path(name)


PARTS: dict[str, Part] = {
    "stage_one": Part("a build over a bare forward loop", 3, stage_one),
    "stage_two": Part("a step from a store over a bare one", 4, stage_two),
    "processes": Part("several students at a time, a process each", 5, processes),
    "streams": Part("several students at a time, a CUDA stream each", 3, streams, needs_cuda=True),
    "graphs": Part("a bare step as a CUDA graph", 2, graphs, needs_cuda=True),
    "optimizer": Part("SGD one by one, foreach and fused", 3, optimizer),
    "compile": Part("a bare step by torch.compile", 4, compiled),
}
