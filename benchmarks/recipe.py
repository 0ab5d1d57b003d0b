"""What stands around the loss costs in a step: views of each kind for a batch of 64, and averaging the weights.

    python -m benchmarks.recipe [--student resnet20] [--image-size 32] [--rounds 15] [--cpu-time]

Each takes turns with a bare forward, backward and SGD step at 32 pixels. "trivial, one by one" sends each image through
torchvision's own TrivialAugmentWide alone, in the place of all that drew the same operation together.
"""

from __future__ import annotations

import time
from itertools import count

import click
import torch
from torch import Tensor
from torchvision.transforms import TrivialAugmentWide

from benchmarks.measure import take_turns
from benchmarks.stage_two import bare_steps
from ground.geometry import Normalisation, Rendering, ViewGeometry
from ground.views import draw_views, render, resize, view_pixels
from models import create_model
from models.compute import Compute
from student_train.averaging import AveragedWeights
from student_train.student_views import DRAWINGS, show

BARE, SIZE, BATCH = "bare step", 32, 64


@click.command()
@click.option("--student", default="resnet20", show_default=True)
@click.option("--image-size", default=SIZE, show_default=True, help="Of base images, which are shown at 32 pixels.")
@click.option("--rounds", default=15, show_default=True)
@click.option("--cpu-time", is_flag=True, help="Count processor time: for a machine that others use.")
def main(student: str, image_size: int, rounds: int, cpu_time: bool) -> None:
    compute = Compute.choose()
    geometry = ViewGeometry(image_size=image_size, crop_size=image_size, padding=image_size // 8)
    normalisation = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    rendering = Rendering(geometry=geometry, normalisation=normalisation, input_size=SIZE)
    images = compute.to_device(torch.randint(0, 256, (BATCH, image_size, image_size, 3), dtype=torch.uint8))
    steps, alone = count(), TrivialAugmentWide()

    def shown(kind: str) -> None:
        show(images, kind, rendering, torch.Generator().manual_seed(next(steps)), boxes=False)
        compute.synchronise()

    def one_by_one() -> None:
        views = draw_views(geometry, BATCH, torch.Generator().manual_seed(next(steps)))
        pixels = resize(view_pixels(images, views, rendering), SIZE, rendering.interpolation)
        changed: list[Tensor] = [alone(image) for image in pixels]
        render(torch.stack(changed), rendering)
        compute.synchronise()

    network = create_model(student, num_classes=100)
    compute.place(network)
    average = AveragedWeights(network, 0.999)

    def averaged() -> None:
        average.update(network)
        compute.synchronise()

    subjects = {BARE: bare_steps(student, 1, 1, compute)}
    subjects |= {f"view: {kind}": lambda kind=kind: shown(kind) for kind in DRAWINGS}
    subjects |= {"view: trivial, one by one": one_by_one, "average": averaged}
    timings = take_turns(rounds, subjects, time.process_time if cpu_time else time.perf_counter)
    click.echo(f"{student}, {compute.describe()}, {compute.precision}, {torch.get_num_threads()} threads")
    click.echo(f"{'':<26} {'ms':>8} {'of the bare step':>17}")
    for name, timing in timings.items():
        click.echo(f"{name:<26} {1e3 * timing.median:8.1f} {timing.over(timings[BARE]):17.3f}")


if __name__ == "__main__":
    main()
