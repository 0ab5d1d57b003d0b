"""Everything that a GPU changes, on whatever card is there, in a given time: `make bench-gpu`.

    python -m benchmarks.gpu [--budget 1500] [--out docs/results] [--part stage_two ...]
    python -m benchmarks.gpu --device cpu --budget 60 --student resnet8 --out /tmp/here

Each part (`gpu_parts.py`) is a process of its own with a share of the time, and of what the parts before it left. What
it has measured when that ends is kept, whether it is done, fails or is stopped: `gpu-NAME.json` is written after each
part, NAME being the card's, and says of each what became of it and why. On a CPU the parts that need CUDA are said to,
and the others are measured by processor time.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.gpu_parts import PARTS, Bench, Part
from ground.durable import write_json
from ground.terminal import plain
from models.compute import Compute

# Left for writing and for the start of the next process.
_SPARE_SECONDS = 2.0
# Of a part's seconds: when it should end, before it is stopped.
_SHARE_BEFORE_STOPPED = 0.9
_MOST_SHOWN = 500

Command = Callable[[str, float, Path], Sequence[str]]


@click.command()
@click.option("--budget", default=1500.0, show_default=True, help="Seconds that all of it may take.")
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--student", default="wrn_16_2", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("docs/results"))
@click.option("--part", "chosen", multiple=True, type=click.Choice([*PARTS]), help="Repeatable.  [default: all]")
@click.option("--one", nargs=2, type=(str, float), hidden=True, help="Measure this part until then.")
@click.option("--report", type=click.Path(path_type=Path), hidden=True)
def main(
    budget: float,
    device: str,
    precision: str,
    student: str,
    out: Path,
    chosen: tuple[str, ...],
    one: tuple[str, float] | None,
    report: Path,
) -> None:
    if one is not None:
        name, until = one
        PARTS[name].measure(Bench.open(device, precision, student, until, report))
        return
    started = time.monotonic() - _seconds_since_start()
    compute = Compute.choose(device, precision)
    if device == "auto" and compute.device.type != "cuda":
        raise click.UsageError("no CUDA card is here; to try it on a CPU, give --device cpu --budget 60 --out FOLDER")

    def command(name: str, until: float, report: Path) -> list[str]:
        own = [sys.executable, "-m", "benchmarks.gpu", "--device", str(compute.device), "--student", student]
        return [*own, "--precision", compute.precision, "--one", name, str(until), "--report", str(report)]

    document = describe(compute) | {"student": student, "budget_seconds": budget}
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"gpu-{slug(compute.describe())}.json"
    parts = {name: part for name, part in PARTS.items() if not chosen or name in chosen}
    run_parts(parts, command, file, document, started + budget, cuda=compute.device.type == "cuda")
    click.echo(file)


def slug(card: str) -> str:
    """A card's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def describe(compute: Compute) -> dict[str, Any]:
    """What was measured on."""
    found: dict[str, Any] = {
        "card": compute.describe(),
        "device": compute.device.type,
        "precision": compute.precision,
        "clock": "of the wall" if compute.device.type == "cuda" else "of the processor",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }
    if compute.device.type == "cuda":
        properties = torch.cuda.get_device_properties(compute.device)
        found |= {
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def run_parts(
    parts: Mapping[str, Part],
    command: Command,
    file: Path,
    document: Mapping[str, Any],
    deadline: float,
    *,
    cuda: bool,
) -> dict[str, Any]:
    """Measure part after part, writing what is known after each; returns what is in the file.

    Args:
        command: what measures a part until then, by `time.monotonic`, and reports to a file.
        deadline: of all of them, by `time.monotonic`.
        cuda: whether there is such a device.
    """
    known: dict[str, dict[str, Any]] = {
        name: {"what": part.what, "status": "not begun", "found": []} for name, part in parts.items()
    }
    whole = {**document, "parts": known}
    if not cuda:
        for name, part in parts.items():
            if part.needs_cuda:
                known[name]["status"] = "needs CUDA"
    write_json(file, whole)
    waiting = [name for name in parts if known[name]["status"] == "not begun"]
    while waiting:
        name, shares = waiting[0], sum(parts[each].share for each in waiting)
        waiting = waiting[1:]
        seconds = (deadline - time.monotonic()) * parts[name].share / shares - _SPARE_SECONDS
        if seconds <= 0:
            known[name]["why"] = "the time was spent"
            continue
        click.echo(f"{name}: {parts[name].what}, within {seconds:.0f} s", err=True)
        try:
            _measure(known[name], name, command, seconds)
        finally:
            write_json(file, whole)
        print_part(name, known[name])
    return whole


def _measure(known: dict[str, Any], name: str, command: Command, seconds: float) -> None:
    """Run a part in a process of its own and put down what became of it."""
    known["status"], started = "interrupted", time.monotonic()
    until = started + _SHARE_BEFORE_STOPPED * seconds
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        report = Path(folder) / "report.json"
        # A group of its own, so that what it started ends with it.
        process = subprocess.Popen(command(name, until, report), stdout=errors, stderr=errors, start_new_session=True)
        try:
            status = process.wait(seconds)
            known["status"] = "failed" if status else "done"
            if status:
                errors.seek(0)
                known["why"] = _last_line(errors.read()) or f"it ended with {status}"
        except subprocess.TimeoutExpired:
            known |= {"status": "out of time", "why": f"it did not end within {seconds:.0f} s"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            known["seconds"] = round(time.monotonic() - started, 1)
            if report.exists():
                known["found"] = json.loads(report.read_text())


def _last_line(text: str) -> str:
    """What an error says of itself, at the end of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return plain(lines[-1])[:_MOST_SHOWN] if lines else ""


def print_part(name: str, known: Mapping[str, Any]) -> None:
    click.echo(f"{name}: {known['status']}" + (f" ({known['why']})" if "why" in known else ""))
    for row in known["found"]:
        numbers = ", ".join(f"{key} {value}" for key, value in row.items() if key != "label")
        click.echo(f"  {row['label']:<34} {numbers}")


def _seconds_since_start() -> float:
    """How old this process is: what it imported first is part of the time that it may take."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _commit() -> str | None:
    """Of the checkout, where it is one."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None


if __name__ == "__main__":
    main()
