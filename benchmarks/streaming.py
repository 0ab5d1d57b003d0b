"""How much memory stage one takes beside the bytes that pass through it, and how fast `verify` is.

    python -m benchmarks.streaming [--n 6000] [--size 224] [--rounds 3] [--processor-time]

Builds a store of random images, by a stand-in for a teacher, then verifies, repairs (which finds nothing to do) and
converts it, each in a process of its own, and prints the peak of each (`ru_maxrss`) over that of a process which only
imports the same. Images are made when they are read, as files are decoded. Then `verify` takes turns with reading and
hashing the same files, by one thread and by as many as there are cores; and with reading them once and hashing training
images twice, which is what `verify` cannot do without: as they are in the store, and as the teacher was shown them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import take_turns
from ground.geometry import Normalisation, Rendering, ViewGeometry
from storage.identity import TeacherIdentity
from storage.schema import IMAGES
from storage.store import Store
from storage.store_ledger import own_ledger
from storage.verify import store_problems
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.convert import convert
from teacher_cache.datasets.base import ImageDataset, Split
from teacher_cache.prepare import prepare_build
from teacher_cache.repair import repair
from teacher_cache.teachers.contract import Answers, Card

_CLASSES = 10
_LAYER = (64, 16, 16)
_NORMALISATION = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class _MadeImages(Split):
    """Random images, made when they are read."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.labels = np.arange(count, dtype=np.int64) % _CLASSES
        self._size, self._seed = size, seed

    def read(self, indices: np.ndarray) -> np.ndarray:
        """See `Split.read`."""
        images = np.empty((len(indices), self._size, self._size, 3), np.uint8)
        for place, index in enumerate(np.asarray(indices).tolist()):
            images[place] = np.frombuffer(
                np.random.default_rng([self._seed, index]).bytes(images[0].size), np.uint8
            ).reshape(images[0].shape)
        return images

    def content_digest(self) -> bytes:
        """See `Split.content_digest`."""
        return repr((len(self.labels), self._size, self._seed)).encode()


@dataclass(frozen=True)
class _Means:
    """Says the mean of a view, everywhere."""

    card: Card

    def call(self, views: Tensor, outputs: Sequence[str]) -> Answers:
        """See `Teacher.call`."""
        means = views.float().mean(dim=(1, 2, 3)) / 255
        return {
            name: means.view(-1, *(1 for _ in self.card.outputs[name])).expand(-1, *self.card.outputs[name])
            for name in outputs
        }

    def seconds_per_call(self, outputs: Sequence[str], batch_size: int) -> float:
        """See `Teacher.seconds_per_call`."""
        return 1e-4

    def close(self) -> None:
        """See `Teacher.close`."""


def _build(folder: Path, n: int, size: int) -> None:
    geometry = ViewGeometry(image_size=size, crop_size=size, padding=size // 8)
    dataset = ImageDataset(
        name="random",
        classes=tuple(f"class{number}" for number in range(_CLASSES)),
        train=_MadeImages(n * 5 // 4 + 8, size, 0),
        test=_MadeImages(200, size, 1),
        geometry=geometry,
        normalisation=_NORMALISATION,
    )
    outputs = {"logits": (_CLASSES,), "layer1": _LAYER}
    identity = TeacherIdentity(
        name="resnet8",
        fingerprint="0" * 64,
        num_classes=_CLASSES,
        normalisation=_NORMALISATION,
        precision="fp32",
        layers=("layer1",),
    )
    rendering = Rendering(geometry=geometry, normalisation=_NORMALISATION)
    teacher = _Means(Card(identity=identity, rendering=rendering, outputs=outputs, parameters={}, device="cpu"))
    config = BuildConfig(
        teacher="resnet8",
        dataset="digits",
        n=n,
        store=folder / "store",
        device="cpu",
        features="layer1",
        trust_teacher=True,
    )
    build(*prepare_build(config, dataset, teacher))


def _verify(folder: Path, n: int, size: int) -> None:
    with closing(own_ledger(folder / "store")) as ledger:
        assert store_problems(Store.open(folder / "store"), ledger) == []


def _repair(folder: Path, n: int, size: int) -> None:
    assert repair(folder / "store", act=False).is_empty


def _convert(folder: Path, n: int, size: int) -> None:
    convert(folder / "store", "hdf5", folder / "converted")


_STEPS: Mapping[str, Callable[[Path, int, int], None]] = {
    "nothing": lambda folder, n, size: None,
    "build": _build,
    "verify": _verify,
    "repair": _repair,
    "convert": _convert,
}


@click.command()
@click.option("--n", default=6000, show_default=True, help="Training images; validation is a quarter more.")
@click.option("--size", default=224, show_default=True, help="Of base images, in pixels.")
@click.option("--rounds", default=3, show_default=True, help="Of verifying.")
@click.option("--processor-time", is_flag=True, help="Of all threads, where others use the machine too.")
def main(n: int, size: int, rounds: int, processor_time: bool) -> None:
    images, outputs = (n * 5 // 4 + 200) * size * size * 3, n * (int(np.prod(_LAYER)) * 2 + _CLASSES * 4)
    click.echo(f"{images / 1e6:.0f} MB of images, {outputs / 1e6:.0f} MB of outputs")
    with tempfile.TemporaryDirectory() as name:
        base = 0.0
        for each in _STEPS:
            started = time.monotonic()
            peak = _peak_mb(partial(_STEPS[each], Path(name), n, size))
            base = base or peak
            click.echo(
                f"{each:8} {peak:7.0f} MB at most, {peak - base:6.0f} over imports; {time.monotonic() - started:.0f} s"
            )
        _speed(Path(name) / "store", rounds, time.process_time if processor_time else time.perf_counter)


def _speed(store: Path, rounds: int, clock: Callable[[], float]) -> None:
    """Print how fast a store is verified, over reading and hashing its arrays."""
    files = sorted(file for file in (store / "data.zarr").rglob("*") if file.is_file())
    size, cores = sum(file.stat().st_size for file in files), os.cpu_count() or 1

    def verify() -> None:
        with closing(own_ledger(store)) as ledger:
            assert store_problems(Store.open(store), ledger) == []

    def bare(threads: int, *, shown: bool) -> None:
        def read(file: Path) -> None:
            content = file.read_bytes()
            for _ in range(1 + (shown and file.parent == store / "data.zarr" / IMAGES)):
                hashlib.sha256(content).digest()

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, files))

    subjects: dict[str, Callable[[], object]] = {
        "verify": verify,
        "bare": lambda: bare(1, shown=False),
        "bare in threads": lambda: bare(cores, shown=False),
        "as often as needed": lambda: bare(cores, shown=True),
    }
    timings = take_turns(rounds, subjects, clock)
    for label, timing in timings.items():
        bare_rate, needed = (timings[name].over(timing) for name in ("bare in threads", "as often as needed"))
        click.echo(
            f"{label:18} {size / timing.median / 1e6:6.0f} MB/s, {bare_rate:.2f} of the bare rate of {cores} threads, "
            f"{needed:.2f} of hashing as often as needed"
        )


def _peak_mb(step: Callable[[], None]) -> float:
    """Peak memory of a step, in a process that is forked for it; nothing is imported again."""
    child = os.fork()
    if not child:
        status = 1
        try:
            torch.set_num_threads(1)
            step()
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    _, ended, usage = os.wait4(child, 0)
    if ended:
        raise SystemExit(1)
    return usage.ru_maxrss / 1e3  # KiB on Linux


if __name__ == "__main__":
    main()
