"""What a rule that chooses images costs, in time and in memory, and what looking at the images costs beside it.

    python -m benchmarks.selection [--candidates 100000] [--bought 1200] [--count 400] [--width 256] [--cpu-time]

Features and students' answers are made up: rules are timed on them alone, each in a process of its own at half the
candidates and at all, one thread. The line through the two leads to 1,281,167, as many as ImageNet has. Then what
looking takes: at images of 32 and of 224 pixels with the encoder `pixels`, and with a student, without decoding.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import click
import numpy as np
import torch

from benchmarks.measure import peak_bytes, take_turns
from ground.geometry import Normalisation, ViewGeometry
from models import create_model
from models.compute import Compute
from storage.identity import DatasetIdentity, Identity, TeacherIdentity
from teacher_cache.datasets.base import ArraySplit
from teacher_cache.selection import SELECTORS, Pool
from teacher_cache.selection.encoders import open_encoder
from teacher_cache.selection.feature_rule import FeatureRule
from teacher_cache.selection.student_rule import StudentRule

IMAGENET = 1_281_167
CLASSES, STUDENTS, ROWS = 100, 3, 256
NOTHING = "nothing"
RULES = (
    NOTHING, "random", "balanced", "kcenter", "typical", "uncertain", "margin", "committee", "views", "mixup", "cutmix"
)  # fmt: skip


@click.command()
@click.option("--candidates", default=100_000, show_default=True)
@click.option("--bought", default=1200, show_default=True)
@click.option("--count", default=400, show_default=True)
@click.option("--width", default=256, show_default=True, help="Features of an image.")
@click.option("--cpu-time", is_flag=True, help="Count processor time: for a machine that others use.")
@click.option("--rule", help="Only print seconds and peak memory of one; for the benchmark itself.")
def main(candidates: int, bought: int, count: int, width: int, cpu_time: bool, rule: str | None) -> None:
    torch.set_num_threads(1)
    clock = time.process_time if cpu_time else time.perf_counter
    if rule is not None:
        work = work_of(rule, candidates, bought, count, width)
        started = clock()
        work()
        click.echo(f"{clock() - started} {peak_bytes()}")
        return
    sizes = (candidates // 2, candidates)
    given = ["--bought", str(bought), "--count", str(count), "--width", str(width), *["--cpu-time"] * cpu_time]
    click.echo(f"{count} images, after {bought}; {width} features, {STUDENTS} students of {CLASSES} classes")
    click.echo(f"{'rule':<10} {candidates:>10,} candidates {'':>7} {IMAGENET:,} by the slope")
    found = {name: [measured(name, size, given) for size in sizes] for name in RULES}
    least = found[NOTHING]
    for name, at_sizes in found.items():
        seconds = [taken for taken, _ in at_sizes]
        memory = [max(0.0, peak - base) for (_, peak), (_, base) in zip(at_sizes, least, strict=True)]
        cells = [f"{values[1]:9.2f} {unit}" for values, unit in ((seconds, "s"), ([m / 1e9 for m in memory], "GB"))]
        larger = [f"{extended(sizes, values):9.2f}" for values in (seconds, [m / 1e9 for m in memory])]
        click.echo(f"{name:<10} {' '.join(cells)}  {larger[0]} s {larger[1]} GB")
    for line in looking(clock):
        click.echo(line)


def extended(sizes: tuple[int, int], values: list[float]) -> float:
    """The line through two measurements, at as many candidates as ImageNet has."""
    slope = (values[1] - values[0]) / (sizes[1] - sizes[0])
    return max(values[1], values[1] + slope * (IMAGENET - sizes[1]))


def measured(name: str, size: int, given: list[str]) -> tuple[float, float]:
    """Seconds and peak bytes of a rule, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.selection", "--rule", name, "--candidates", str(size), *given]
    seconds, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(seconds), float(peak)


def work_of(name: str, candidates: int, bought: int, count: int, width: int) -> Callable[[], object]:
    """What a rule does once it has looked at the images; what it looked at is made up as it is called for."""
    rng = np.random.default_rng(0)
    if name == NOTHING:
        return lambda: None
    kind = SELECTORS[name]
    if issubclass(kind, FeatureRule):
        rule = kind()
        return lambda: rule.pick(made_features(candidates + bought, width), candidates, count, rng)
    if issubclass(kind, StudentRule):
        judge = kind("a+b")
        return lambda: ranked(judge, candidates, count)
    pool = made_pool(32, candidates + bought, bought, images=1)
    return lambda: kind().choose(pool, count, rng)


def made_features(number: int, width: int) -> torch.Tensor:
    """Of a thousand groups, (number, width), as a rectifier leaves them."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(number, width, generator=generator)
    groups = 2 * torch.randn(1000, width, generator=generator)
    for first in range(0, number, ROWS):
        rows = features[first : first + ROWS]
        rows.add_(groups[torch.randint(1000, (len(rows),), generator=generator)]).relu_()
    return features


def ranked(judge: StudentRule, candidates: int, count: int) -> np.ndarray:
    """As `StudentRule.choose`, with made-up answers."""
    generator, scores = torch.Generator().manual_seed(0), np.empty(candidates)
    for first in range(0, candidates, ROWS):
        number = min(ROWS, candidates - first)
        said = torch.randn(STUDENTS, number, CLASSES, generator=generator).double().softmax(dim=2)
        scores[first : first + number] = judge.scores(said).numpy()
    chosen: np.ndarray = np.argsort(-scores, kind="stable")[:count]
    return chosen


def made_pool(side: int, number: int, bought: int, images: int | None = None) -> Pool:
    """Images of noise; fewer than there are, where nobody looks at them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, number)
    pixels = rng.integers(0, 256, (images or number, side, side, 3), dtype=np.uint8)
    if images is not None:
        pixels = np.broadcast_to(pixels, (number, *pixels.shape[1:]))
    order = rng.permutation(number)
    half = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    identity = Identity(
        teacher=TeacherIdentity(
            name="resnet8",
            fingerprint="0" * 64,
            num_classes=CLASSES,
            normalisation=half,
            precision="fp32",
            layers=(),
        ),
        dataset=DatasetIdentity(name="noise", digest="0" * 64, classes=tuple(map(str, range(CLASSES)))),
        geometry=ViewGeometry(image_size=side, crop_size=side, padding=0),
        seed=0,
        views=1,
        view_policy="plain",
        outputs=(),
        parameters=(),
    )
    compute = Compute(torch.device("cpu"), "fp32")
    return Pool(
        images=ArraySplit(pixels, labels),
        left=order[bought:],
        bought=order[:bought],
        identity=identity,
        compute=compute,
    )


def looking(clock: Callable[[], float]) -> list[str]:
    """Milliseconds an image, and what that is for as many images as ImageNet has."""
    student = create_model("resnet20", CLASSES, seed=0).eval()

    def answer(inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return student(inputs)

    pools = {side: made_pool(side, 256, 0) for side in (32, 224)}
    encoders = {side: open_encoder("pixels", pool) for side, pool in pools.items()}
    inputs = torch.randn(256, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    subjects: dict[str, Callable[[], object]] = {
        f"pixels, images of {side} pixels": lambda side=side: encoders[side].features(pools[side], pools[side].left)
        for side in pools
    }
    subjects["resnet20 of 32 pixels"] = lambda: answer(inputs)
    timings = take_turns(3, subjects, clock)
    each = {name: timing.median / 256 for name, timing in timings.items()}
    return [
        f"{name:<28} {1e3 * seconds:8.3f} ms an image {seconds * IMAGENET / 3600:8.2f} h for {IMAGENET:,}"
        for name, seconds in each.items()
    ]


if __name__ == "__main__":
    main()
