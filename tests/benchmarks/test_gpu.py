"""Parts that fail, hang or cannot run are said to, keep what they had, and end no other."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu
from benchmarks.gpu import run_parts
from benchmarks.gpu_parts import PARTS, Bench, Part

ROW = {"label": "a step", "ms": 1}
WRITE = f"import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{json.dumps([ROW])}'); "
# What a process of each name does.
PROGRAMS = {
    "good": WRITE,
    "bad": WRITE + "raise ValueError('no such kernel')",
    "slow": WRITE + "import time; time.sleep(60)",
    "silent": "sys = __import__('sys'); sys.exit(7)",
}


def command(name: str, until: float, report: Path) -> list[str]:
    return [sys.executable, "-S", "-c", PROGRAMS[name], str(report)]


def parts(*names: str, **needing: bool) -> dict[str, Part]:
    return {name: Part(f"what {name} is", 1, lambda bench: None, needing.get(name, False)) for name in names}


def test_a_part_that_fails_or_hangs_keeps_what_it_had_and_ends_no_other(tmp_path):
    file, deadline = tmp_path / "gpu.json", time.monotonic() + 16
    found = run_parts(parts("bad", "slow", "silent", "good"), command, file, {"card": "X"}, deadline, cuda=True)
    assert json.loads(file.read_text()) == found
    assert time.monotonic() < deadline
    said = {name: (part["status"], part.get("why"), part["found"]) for name, part in found["parts"].items()}
    assert said.pop("slow")[::2] == ("out of time", [ROW])
    assert said == {
        "bad": ("failed", "ValueError: no such kernel", [ROW]),
        "silent": ("failed", "it ended with 7", []),
        "good": ("done", None, [ROW]),
    }


def test_what_needs_cuda_is_never_run_without(tmp_path):
    made = parts("good", "bad", bad=True)
    found = run_parts(made, command, tmp_path / "gpu.json", {}, time.monotonic() + 20, cuda=False)
    assert found["parts"]["bad"] == {"what": "what bad is", "status": "needs CUDA", "found": []}
    assert found["parts"]["good"]["status"] == "done"


def test_time_that_is_spent_begins_nothing(tmp_path):
    found = run_parts(parts("good"), command, tmp_path / "gpu.json", {}, time.monotonic(), cuda=True)
    assert found["parts"]["good"]["status"] == "not begun"
    assert found["parts"]["good"]["why"] == "the time was spent"


def test_an_interrupted_run_keeps_the_parts_before_and_what_the_last_one_had(tmp_path, monkeypatch):
    class Interrupted(gpu.subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is not None and "sleep" in self.args[3]:
                while not Path(self.args[4]).exists():
                    time.sleep(0.01)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(gpu.subprocess, "Popen", Interrupted)
    file = tmp_path / "gpu.json"
    with pytest.raises(KeyboardInterrupt):
        run_parts(parts("good", "slow", "bad"), command, file, {}, time.monotonic() + 60, cuda=True)
    kept = json.loads(file.read_text())["parts"]
    assert {name: part["status"] for name, part in kept.items()} == {
        "good": "done",
        "slow": "interrupted",
        "bad": "not begun",
    }
    assert kept["slow"]["found"] == [ROW]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        pytest.param("optimizer", ["one by one", "foreach", "fused"], marks=pytest.mark.slow),
        # On a CPU the students take turns where on a GPU each has a stream.
        ("streams", ["1 students", "2 students"]),
    ],
)
def test_a_part_reports_what_it_measured(tmp_path, name, labels):
    bench = Bench.open("cpu", "fp32", "resnet8", time.monotonic(), tmp_path / "report.json")
    PARTS[name].measure(bench)
    rows = json.loads(bench.report.read_text())
    assert [row["label"] for row in rows] == labels
    assert all(row["rounds"] == 1 for row in rows)
    assert all(row.get("repeats_itself", True) for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_machine_without_a_card_is_not_taken_for_one(tmp_path):
    result = CliRunner().invoke(gpu.main, ["--out", str(tmp_path / "results")])
    assert result.exit_code == 2
    assert "no CUDA card is here" in result.output
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(tmp_path):
    options = ["--device", "cpu", "--budget", "20", "--student", "resnet8", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks.gpu", *options], check=True, cwd=Path(__file__).parents[2])
    found = json.loads((tmp_path / "gpu-cpu.json").read_text())
    status = {name: part["status"] for name, part in found["parts"].items()}
    assert list(status) == list(PARTS)
    assert {name for name, part in PARTS.items() if part.needs_cuda} == {
        name for name, said in status.items() if said == "needs CUDA"
    }
    # How much a busy machine does in such a time is not what this is about; nothing may fail.
    assert "failed" not in status.values(), found
