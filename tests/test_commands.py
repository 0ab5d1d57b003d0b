"""The installed commands: what they print, what they return, and that bad input costs no call."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from storage.ledger import Ledger
from storage.store_folder import LEDGER_FILE
from tests.conftest import run_command

ROOT = Path(__file__).parent.parent


def make_folder_dataset(root, classes=("ant", "bee"), test_classes=None, per_class=12):
    rng = np.random.default_rng(0)
    for split, names in (("train", classes), ("test", test_classes or classes)):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for index in range(per_class):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture
def build(tmp_path, weights):
    """`ckd-cache build` of the digits with a small teacher; later arguments win."""

    def run(*arguments, **options):
        base = ("--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--device", "cpu")
        return run_command("ckd-cache", "build", *base, "--store", tmp_path / "store", *arguments, **options)

    return run


@pytest.mark.slow
def test_a_store_from_building_to_verifying(build, tmp_path):
    store = tmp_path / "store"
    dry = build("--n", 40, "--features", "layer1,pooled", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    estimate = json.loads(dry.stdout)
    assert (estimate["total_calls"], estimate["paid_calls"], estimate["needed_calls"]) == (40, 0, 40)
    assert estimate["array_bytes"]["train/features/layer1"] == 64 * 16 * 32 * 32 * 2, "whole chunks of 64 rows"
    assert estimate["seconds"] > 0
    assert not store.exists()

    built = build("--n", 40, "--features", "layer1,pooled", "--budget", 50, "--json")
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["new_calls"] == 40
    again = build("--n", 40, "--features", "layer1,pooled")
    assert again.stdout.startswith("0 new teacher calls")

    info = json.loads(run_command("ckd-cache", "info", "--store", store, "--json").stdout)
    assert (info["n"], info["views"], info["rows_valid"], info["format"]) == (40, 1, 40, "zarr")
    assert info["dataset"] == "digits"
    assert info["teacher"]["name"] == "resnet8"
    assert len(info["teacher"]["fingerprint"]) == 64
    assert info["features"] == {"layer1": [16, 32, 32], "pooled": [64]}
    assert info["parameters"] == {"head/weight": [10, 64], "head/bias": [10]}
    assert info["teacher"]["layers"][-4:] == ["layer1.pre", "layer2.pre", "layer3.pre", "last"]
    assert info["bytes"] > 40 * 16 * 32 * 32 * 2
    assert "40 of 40 whole" in run_command("ckd-cache", "info", "--store", store).stdout

    verified = run_command("ckd-cache", "verify", "--store", store)
    assert verified.returncode == 0
    assert "40 rows whole, 40 calls committed" in verified.stdout

    summary = json.loads(run_command("ckd-cache", "ledger", "summary", "--store", store, "--json").stdout)
    expected = {"committed": 40, "reserved": 0, "lost": 0, "spent": 40, "budget": 50, "remaining": 10}
    assert {name: summary[name] for name in expected} == expected
    assert len(summary["head"]) == 64
    assert summary["head"] == info["ledger_head"]

    listed = json.loads(run_command("ckd-cache", "ledger", "list", "--store", store, "--limit", 3, "--json").stdout)
    assert [call["id"] for call in listed] == [1, 2, 3]
    assert {call["status"] for call in listed} == {"committed"}
    exported = run_command("ckd-cache", "ledger", "export", "--store", store, "--format", "jsonl").stdout
    assert len([json.loads(line) for line in exported.splitlines()]) == 40
    as_csv = run_command("ckd-cache", "ledger", "export", "--store", store).stdout.splitlines()
    assert len(as_csv) == 41
    assert "output_digest" in as_csv[0]
    assert run_command("ckd-cache", "ledger", "verify", "--store", store).returncode == 0


def test_a_damaged_store_fails_verification_and_is_not_trained_from(build, tmp_path):
    store = tmp_path / "store"
    build("--n", 40, "--format", "hdf5")
    content = bytearray((store / "data.h5").read_bytes())
    import h5py

    with h5py.File(store / "data.h5", "r") as file:
        place = file["train/logits"].id.get_chunk_info(0).byte_offset + 10 * 4 * 7
    content[place] ^= 1
    (store / "data.h5").write_bytes(content)
    verified = run_command("ckd-cache", "verify", "--store", store)
    assert verified.returncode == 1
    assert (
        "train/logits: row 7 view 0 does not match its digest; see what can be done with: ckd-cache repair"
        in verified.stdout
    )
    trained = run_command("ckd-train", "--store", store, "--out", tmp_path / "run")
    assert trained.returncode == 2
    assert "row 7 of" in trained.stderr
    assert "Traceback" not in trained.stderr


def test_a_budget_that_is_too_small_is_exit_3(build, tmp_path):
    refused = build("--n", 40, "--budget", 39)
    assert refused.returncode == 3
    assert "asked for 40 calls of resnet8, 0 are already paid and 39 of the budget of 39 remain" in refused.stderr
    assert not (tmp_path / "store").exists()


@contextlib.contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """The kernel refuses every write of this process that would make a file larger."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.mark.slow
@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_a_disk_that_fills_is_a_sentence_and_the_build_goes_on_later(build, tmp_path, array_format):
    """A limit on file sizes stands in for a full disk: the kernel refuses the write in the same place."""
    arguments = ("--n", 100, "--features", "all", "--format", array_format, "--trust-teacher")

    with files_up_to(1_200_000):
        full = build(*arguments)
    assert full.returncode == 2, full.stderr
    assert "no room left to write" in full.stderr
    assert "Traceback" not in full.stderr
    assert not (tmp_path / "store" / LEDGER_FILE).exists(), "the room is taken before the first call"
    finished = build(*arguments, "--json")
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout)
    assert (report["rows_valid"], report["new_calls"], report["lost_calls"]) == (100, 100, 0)
    assert run_command("ckd-cache", "verify", "--store", tmp_path / "store").returncode == 0


@pytest.mark.slow
def test_a_disk_that_fills_in_the_middle_of_a_build_loses_nothing(build, tmp_path):
    """Once the arrays have their room only the ledger grows; here it may not, after some calls were paid."""
    arguments = ("--n", 500, "--batch-size", 16, "--trust-teacher")

    # Above any chunk's size, below that of the ledger's write-ahead log.
    with files_up_to(250_000):
        full = build(*arguments)
    assert full.returncode == 2, full.stdout + full.stderr
    assert "Traceback" not in full.stderr
    assert "no room left to write" in full.stderr
    finished = build(*arguments, "--json")
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout)
    assert report["rows_valid"] == 500
    assert 0 < report["new_calls"] < 500, "some were made before the disk was full, and are not made again"
    assert report["lost_calls"] == 0
    assert run_command("ckd-cache", "verify", "--store", tmp_path / "store").returncode == 0


@pytest.mark.slow
def test_a_small_disk_that_really_fills(build, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root may mount a disk")
    try:
        full = build("--n", 100, "--features", "all", "--store", disk / "store", "--trust-teacher")
        assert full.returncode == 2
        assert "the store needs" in full.stderr
        assert "MB free" in full.stderr
        assert not (disk / "store").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


# Says of each command, a line of JSON each, how it ended and what it printed.
COMMANDS_IN_TURN = """
import json, sys
from tests.running import run_command
for words in json.loads(sys.argv[1]):
    done = run_command(*words)
    print(json.dumps({"returncode": done.returncode, "stderr": done.stderr}))
"""


@pytest.mark.slow
def test_a_store_in_a_folder_that_cannot_be_written_to(build, tmp_path):
    store, base = tmp_path / "store", ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("only root can be made to heed permissions that it may change")
    built = build("--n", 40)
    assert built.returncode == 0, built.stderr
    weights = next(argument for argument in built.args if argument.endswith(".safetensors"))
    for path in (*store.rglob("*"), store):
        path.chmod(0o555 if path.is_dir() else 0o444)

    readers = (("verify",), ("info",), ("ledger", "summary"), ("ledger", "list"), ("repair",))
    commands = (
        *((*reader, "--store", store) for reader in readers),
        ("convert", "--store", store, "--to", "hdf5", "--out", tmp_path / "copy"),
        *(("extend", "--store", store, "--features", "pooled", "--weights", w, "--yes") for w in ("none.pth", weights)),
    )
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    # One process, since each would take seconds to start.
    words = json.dumps([["ckd-cache", *map(str, command)] for command in commands])
    process = subprocess.run(
        [*base, sys.executable, "-c", COMMANDS_IN_TURN, words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    *whole, without_weights, refused = (json.loads(line) for line in process.stdout.splitlines())
    assert [done["returncode"] for done in whole] == [0] * (len(readers) + 1), whole
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    assert "there are no weights at none.pth" in without_weights["stderr"]
    assert refused["returncode"] == 2
    assert "Permission denied" in refused["stderr"]
    assert "Traceback" not in refused["stderr"]


@pytest.mark.slow
def test_a_teacher_is_trained_found_and_used(tmp_path):
    environment = {"CKD_TEACHERS": str(tmp_path / "teachers"), "OMP_NUM_THREADS": "1"}
    base = ("--teacher", "resnet8", "--dataset", "digits", "--device", "cpu")
    missing = run_command("ckd-cache", "build", *base, "--n", 20, "--store", tmp_path / "s", env=environment)
    assert missing.returncode == 2
    assert "train a teacher with: ckd-cache train-teacher --teacher resnet8 --dataset digits" in missing.stderr
    train = ("ckd-cache", "train-teacher", *base, "--epochs", 1)
    trained = run_command(*train, "--json", env=environment)
    assert trained.returncode == 0, trained.stderr
    report = json.loads(trained.stdout)
    assert 0 <= report["test_accuracy"] <= 1
    assert report["epochs"] == 1
    from safetensors import safe_open

    with safe_open(report["out"], framework="pt") as file:
        metadata = file.metadata()
    assert float(metadata["test_accuracy"]) == report["test_accuracy"]
    assert metadata["lr"] == "0.05"
    again = run_command(*train, env=environment)
    assert again.returncode == 2
    assert "exists; delete it, or give another --out" in again.stderr
    built = run_command("ckd-cache", "build", *base, "--n", 20, "--store", tmp_path / "s", env=environment)
    assert built.returncode == 0, built.stderr
    other = (
        "--dataset",
        f"imagefolder:{make_folder_dataset(tmp_path / 'p', tuple('abcdefghij'), per_class=3)}",
    )
    wrong = run_command(
        "ckd-cache", "build", *base, *other, "--n", 20, "--store", tmp_path / "t", "--weights", report["out"]
    )
    assert wrong.returncode == 2
    assert "was trained on digits, whose classes are not those of imagefolder:p" in wrong.stderr


BAD_BUILDS = {
    "unknown teacher": (("--teacher", "wrn40_3"), "no network is called 'wrn40_3'; did you mean wrn_40_2"),
    "unknown data set": (
        ("--dataset", "cifar1000"),
        "no dataset is called 'cifar1000'; did you mean cifar100",
    ),
    "unknown layer": (("--features", "layr1"), "did you mean layer"),
    "unknown format": (("--format", "hdf6"), "did you mean hdf5"),
    "n too large": (("--n", "1151"), "give --n 1150 or less"),
    "n too small": (("--n", "1"), "--n 1 is too small to train on; give at least 2"),
    "n below nothing": (("--n", "-1"), "--n -1 is too small to train on; give at least 2"),
    "no n at all": (("--n", "0"), "labels alone take none: train on them, with: ckd-cache advise"),
    "missing weights": (("--weights", "nowhere.pth"), "there are no weights at nowhere.pth"),
    "other architecture": (("--teacher", "resnet14"), "is of a resnet8; give --teacher resnet8, or other --weights"),
    "no such device": (("--device", "abacus"), "pass --device cpu"),
    "missing data": (("--dataset", "cifar100", "--data-root", "/nowhere"), "/nowhere"),
    "no path": (("--dataset", "imagefolder"), "write imagefolder:PATH"),
    "bad ledger": (("--ledger", "nonsense://x"), "the ledger URL cannot be used"),
}


@pytest.mark.parametrize("case", BAD_BUILDS)
def test_bad_input_is_a_sentence_exit_2_and_no_call(build, tmp_path, case):
    arguments, message = BAD_BUILDS[case]
    result = build("--n", 40, *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_the_class_count_comes_first(build, tmp_path):
    folder = make_folder_dataset(tmp_path / "photos")
    result = build("--n", 10, "--dataset", f"imagefolder:{folder}")
    assert result.returncode == 2
    assert "whose classes are not those of imagefolder:photos (10 there, 2 here); give that data set" in result.stderr


def test_image_folders_that_cannot_be_used_are_named(build, tmp_path):
    extra = make_folder_dataset(tmp_path / "extra", test_classes=("ant", "bee", "cat"))
    result = build("--n", 10, "--dataset", f"imagefolder:{extra}")
    assert result.returncode == 2
    assert "cat" in result.stderr
    broken = make_folder_dataset(tmp_path / "broken")
    for index in range(12):
        (broken / "train" / "bee" / f"{index}.png").write_bytes(b"not an image")
    from models import create_model, save_weights

    save_weights(create_model("resnet8", num_classes=2), tmp_path / "two.safetensors", {})
    arguments = ("--dataset", f"imagefolder:{broken}", "--weights", tmp_path / "two.safetensors")
    result = build("--n", 18, *arguments)
    assert result.returncode == 2
    assert "cannot decode" in result.stderr
    assert "train/bee/" in result.stderr
    assert not (tmp_path / "store").exists()


def test_a_store_of_something_else_names_the_field(build):
    assert build("--n", 20).returncode == 0
    result = build("--n", 20, "--seed", 5)
    assert result.returncode == 2
    assert "seed (store: 0, asked: 5)" in result.stderr


BAD_TRAININGS = {
    "unknown student": (("--student", "resnet9"), "did you mean resnet8"),
    "unknown method": (("--method", "kdd"), "no method is called 'kdd'; did you mean"),
    "unknown loss": (("--loss", "kl"), "no loss is called 'kl'"),
    "both": (("--loss", "kd", "--method", "kd"), "exclude each other"),
    "too many rows": (("--n", "97"), "has 96 images; ask for fewer"),
    "no rows": (("--n", "1"), "too small to train on"),
    "no learning rate": (("--lr", "0"), "above 0"),
    "no number": (("--lr", "nan"), "finite number above 0"),
    "idle comparison": (("--comparison", "all"), "goes with --loss"),
    "unknown view": (("--student-view", "stale"), "no student view is called 'stale'"),
    "a view that is not drawn": (("--method", "mlkd", "--student-view", "trivial"), "no trivial one would be drawn"),
    "unknown schedule": (("--schedule", "cosin"), "no schedule is called 'cosin'; did you mean cosine"),
    "a schedule without end": (("--schedule", "cosine"), "say after how many evaluations it ends, with --max-evals"),
    "no step at all": (("--steps-per-eval", "0"), "--steps-per-eval must be at least 1"),
    "an average of nothing": (("--average", "1"), "--average must be at least 0, which is none, and below 1"),
    "a lost device": (("--device", "cuda:99"), "pass --device cpu"),
}


@pytest.mark.parametrize("case", BAD_TRAININGS)
def test_bad_training_input_is_a_sentence_and_exit_2(built_store, tmp_path, case):
    arguments, message = BAD_TRAININGS[case]
    result = run_command("ckd-train", "--store", built_store, "--out", tmp_path / "run", *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_missing_or_half_built_store_says_how_to_finish_it(store_of_each_format, tmp_path):
    result = run_command("ckd-train", "--store", tmp_path / "nowhere")
    assert result.returncode == 2
    assert "there is no store at" in result.stderr
    assert "ckd-cache build" in result.stderr
    from storage.store import Store

    half = tmp_path / "half"
    shutil.copytree(store_of_each_format, half)
    store = Store.open(half)
    store.arrays.write("train/valid", 50, np.zeros((46, 1), dtype=bool))
    store.arrays.sync()
    result = run_command("ckd-train", "--store", half, "--out", tmp_path / "run")
    assert result.returncode == 2
    assert "has 50 whole rows, 96 are needed; finish it with: ckd-cache build" in result.stderr


@pytest.mark.slow
def test_a_truncated_store_is_a_sentence(store_of_each_format, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(store_of_each_format, broken)
    if (broken / "data.h5").exists():
        content = (broken / "data.h5").read_bytes()
        (broken / "data.h5").write_bytes(content[: len(content) // 2])
    else:
        shutil.rmtree(broken / "data.zarr" / "train" / "logits")
    for command in (("ckd-train", "--out", tmp_path / "run"), ("ckd-cache", "info"), ("ckd-cache", "verify")):
        result = run_command(*command, "--store", broken)
        assert result.returncode in (1, 2), (command, result)
        assert "Traceback" not in result.stderr, (command, result.stderr)


def test_a_corrupt_ledger_is_a_sentence(built_store, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(built_store, broken)
    (broken / LEDGER_FILE).write_bytes(b"garbage" * 1000)
    for command in (("ledger", "summary"), ("ledger", "verify")):
        result = run_command("ckd-cache", *command, "--store", broken)
        assert result.returncode == 2
        assert "cannot be used" in result.stderr
        assert "Traceback" not in result.stderr
    verified = run_command("ckd-cache", "verify", "--store", broken)
    assert verified.returncode == 1
    assert "cannot be used" in verified.stdout, "for a store it is one problem among others"


def test_the_installed_commands_have_help_with_their_exit_codes():
    for name in ("ckd-cache", "ckd-train", "ckd-pipeline"):
        result = run_command(name, "--help", spawn=True)
        assert result.returncode == 0
        assert "Exit status:" in result.stdout


def subcommands(group: click.Group, path: tuple[str, ...] = ()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from subcommands(command, (*path, name))


@pytest.mark.parametrize("module", ["teacher_cache.cli", "pipeline"])
def test_every_subcommand_has_help_and_is_in_the_manual(module):
    manual = (ROOT / "docs" / "commands.md").read_text()
    group = importlib.import_module(module).main
    for path, command in subcommands(group):
        assert command.help, path
        assert " ".join(path) in manual, path
        assert CliRunner().invoke(group, [*path, "--help"]).exit_code == 0


def test_a_shared_ledger_is_named_without_its_password(build, tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    assert build("--n", 10, "--ledger", url).returncode == 0
    asked = run_command("ckd-cache", "ledger", "summary", "--store", tmp_path / "store")
    assert asked.returncode == 2
    assert "name it too, with its password if it has one, with: --ledger " in asked.stderr
    ledger = Ledger(url)
    assert ledger.summary().committed == 10
    ledger.close()
    verified = run_command("ckd-cache", "verify", "--store", tmp_path / "store", "--ledger", url)
    assert verified.returncode == 0
