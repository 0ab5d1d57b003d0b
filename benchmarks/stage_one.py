"""What caching costs over merely running the teacher.

    python -m benchmarks.stage_one [--teacher wrn_40_2] [--n 1024] [--rounds 3]
    python -m benchmarks.stage_one --precision bf16 --n 3200 --threads 1 --processor-time --few
    python -m benchmarks.stage_one --teacher timm:tf_efficientnet_lite0 --n 768 --batch-size 16 --processor-time

Compares, on the same images, weights, batch size and precision: a bare batched forward loop of the same teacher; a
whole build of a store (plan excluded), with logits and with all features, in both formats; and caching one image at
a time in a Python list, which is what the paper's code does. Of a network from elsewhere, also its library's own module
on inputs that are made beforehand. Prints throughput as a fraction of the bare loop's.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.measure import take_turns
from ground.views import render
from models import canonical_name, create_model, save_weights
from models.compute import Compute
from models.module_network import ModuleNetwork, logits_of
from models.origins import preprocessing_of
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import Prepared, prepare_build
from teacher_cache.teachers import ZooTeacher


@click.command()
@click.option("--teacher", default="wrn_40_2", show_default=True)
@click.option("--n", default=1024, show_default=True, help="Teacher calls in each round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--precision", default="fp32", show_default=True, help="fp32 or bf16.")
@click.option("--threads", type=int, help="Of torch; whole builds write in another beside them.  [default: its own]")
@click.option("--few", is_flag=True, help="Of all that is compared, the bare loop and builds in Zarr alone.")
@click.option("--processor-time", is_flag=True, help="Of all threads, where others use the machine too.")
def main(
    teacher: str,
    n: int,
    rounds: int,
    batch_size: int,
    precision: str,
    threads: int | None,
    few: bool,
    processor_time: bool,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = preprocessing_of(canonical_name(teacher))
        make_images(folder / "images", n, 32 if own is None else own.resize_size)
        torch.manual_seed(0)
        save_weights(
            create_model(teacher, 100, 0, 32 if own is None else own.input_size), folder / "teacher.safetensors", {}
        )
        base = BuildConfig(
            teacher=teacher,
            n=n,
            store=folder / "store",
            dataset=f"imagefolder:{folder / 'images'}",
            weights=folder / "teacher.safetensors",
            batch_size=batch_size,
            precision=precision,
            trust_teacher=True,
        )
        prepared = prepare_build(base)
        subjects: dict[str, Callable[[], object]] = {"bare batched loop": lambda: bare_loop(prepared)}
        if not few:
            subjects["one image at a time"] = lambda: one_at_a_time(prepared)
        if own is not None and not few:
            subjects["the library's own forward"] = own_forward(prepared)
        for features in ("none", "all"):
            for array_format in ("zarr",) if few else ("zarr", "hdf5"):
                subjects[f"build, {array_format}, features {features}"] = builder(base, features, array_format)
        timings = take_turns(rounds, subjects, time.process_time if processor_time else time.perf_counter)
        bare = timings["bare batched loop"]
        card = prepared.teacher.card
        click.echo(
            f"{teacher}, {n} calls, batches of {batch_size}, {card.device} {card.identity.precision}"
            f"{', of processor time' if processor_time else ''}"
        )
        for label, timing in timings.items():
            rate = n / timing.median
            click.echo(f"{label:<28} {rate:8.1f} calls/s   {1 / timing.over(bare):6.3f} of the bare loop")


def make_images(folder: Path, n: int, size: int) -> None:
    """An image folder of 100 classes with random square images: enough for n calls, and few test images."""
    rng = np.random.default_rng(0)
    per_class = -(-n * 5 // 4 // 100) + 2
    for split, count in (("train", per_class), ("test", 1)):
        for label in range(100):
            target = folder / split / f"class{label:03}"
            target.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(target / f"{index:04}.png")


def builder(base: BuildConfig, features: str, array_format: str) -> Callable[[], object]:
    """A whole build in a fresh folder: store, ledger, reservations, fsync and all."""
    prepared = prepare_build(replace(base, features=features, array_format=array_format))

    def run() -> None:
        shutil.rmtree(base.store, ignore_errors=True)
        build(*prepared)

    return run


def bare_loop(prepared: Prepared) -> None:
    """The least that n calls can cost: batches through the network, logits kept in memory."""
    kept = []
    plan, teacher, shown = prepared
    for first in range(0, plan.n, plan.config.batch_size):
        cells = range(first, min(first + plan.config.batch_size, plan.n))
        kept.append(teacher.call(shown.pixels(cells), ["logits"])["logits"].cpu())


def own_forward(prepared: Prepared) -> Callable[[], object]:
    """The library's module alone: inputs are ready, and no layer is read."""
    plan, teacher, shown = prepared
    assert isinstance(teacher, ZooTeacher)
    assert isinstance(teacher.network, ModuleNetwork)
    module, compute = teacher.network.module, Compute.choose(precision=teacher.card.identity.precision)
    inputs = [
        compute.to_device(render(shown.pixels(cells), teacher.card.rendering))
        for first in range(0, plan.n, plan.config.batch_size)
        if (cells := range(first, min(first + plan.config.batch_size, plan.n)))
    ]

    def run() -> None:
        with torch.inference_mode(), compute.autocast():
            for batch in inputs:
                logits_of(module(batch)).cpu()

    return run


def one_at_a_time(prepared: Prepared) -> None:
    """What the paper's code does: a forward for each image as the data set hands it out."""
    kept = []
    plan, teacher, shown = prepared
    for row in range(plan.n):
        kept.append(teacher.call(shown.pixels([row]), ["logits"])["logits"].cpu())


if __name__ == "__main__":
    main()
