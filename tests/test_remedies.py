"""What a sentence suggests works when it is pasted: provoked, read as a shell reads it, run, and then all is well.

Folders have names that a shell would take apart.
"""

from __future__ import annotations

import ast
import importlib
import json
import shlex
import shutil
from pathlib import Path

import click
import pytest

from ground.errors import suggested
from models import create_model, save_weights
from storage.manifest import Manifest
from storage.store import Store
from tests.running import run_command
from tests.test_commands import make_folder_dataset

ROOT = Path(__file__).parent.parent


def run(*words, cwd=None, env=None):
    return run_command(*words, cwd=cwd, env=env)


def suggestion(said: str) -> list[str]:
    """The words of the command that a refusal ends with."""
    _, found, command = said.strip().rpartition("with: ")
    assert found, said
    return shlex.split(command)


def succeeded(result) -> str:
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the commands are run: a folder with an awkward name, which is also that of what is in it."""
    folder = tmp_path / "it's a; place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def photos(place):
    return make_folder_dataset(place / "my photos")


@pytest.fixture
def two_classes(place):
    """Weights of a teacher for the photos."""
    path = place / "-weights of mine.safetensors"
    save_weights(create_model("resnet8", num_classes=2, seed=0), path, {})
    return path


@pytest.fixture
def photo_store(place, photos, two_classes):
    """16 rows from the photos at 24 pixels, as HDF5, with a feature map: nothing of it is a default."""
    store = place / "a store"
    succeeded(
        run(
            "ckd-cache", "build", "--teacher", "resnet8", "--dataset", f"imagefolder:{photos.name}", "--n", 8,
            "--weights", two_classes.name, "--store", store.name, "--image-size", 24, "--format", "hdf5", "--features",
            "pooled", "--feature-dtype", "float32", "--view-policy", "plain", "--seed", 3, "--device", "cpu",
        )
    )  # fmt: skip
    return store


# Growing


def test_a_store_is_grown_without_saying_again_what_it_says_itself(photo_store, photos, two_classes):
    grown = run(
        "ckd-cache", "build", "--store", photo_store, "--n", 16, "--dataset", f"imagefolder:{photos}", "--weights",
        two_classes, "--device", "cpu", "--json",
    )  # fmt: skip
    assert json.loads(succeeded(grown))["new_calls"] == 8
    identity = Manifest.load(photo_store).identity
    assert (identity.geometry.image_size, identity.seed, identity.view_policy) == (24, 3, "plain")


def test_info_says_what_was_listed(photo_store):
    listed = "imagefolder:my photos: 24 training and 24 test images in train/ and test/, 2 classes of 12 to 12 training"
    assert f"listed    {listed}" in succeeded(run("ckd-cache", "info", "--store", photo_store))
    described = json.loads(succeeded(run("ckd-cache", "info", "--store", photo_store, "--json")))
    assert described["listing"].startswith(listed)


def test_a_place_that_is_no_text_is_left_out_of_the_manifest(place, photos, two_classes):

    parent = place / "line\nbreak"
    parent.mkdir()
    odd = photos.rename(parent / "photos")
    succeeded(
        run(
            "ckd-cache", "build", "--teacher", "resnet8", "--dataset", f"imagefolder:{odd}", "--n", 8, "--weights",
            two_classes, "--store", "s", "--device", "cpu",
        )
    )  # fmt: skip
    assert Manifest.load(Path("s")).sources.keys() == {"weights", "listing"}


def test_where_an_image_folder_lies_has_to_be_said_and_the_sentence_says_how(photo_store, tmp_path):
    asked = run("ckd-cache", "build", "--store", photo_store, "--n", 16)
    assert asked.returncode == 2
    assert "was built from imagefolder:my photos, and only you can say where that lies" in asked.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    succeeded(run(*suggestion(asked.stderr), cwd=elsewhere))
    assert Manifest.load(photo_store.resolve()).n == 16


def test_a_store_from_before_places_were_noted_leaves_them_to_the_user(photo_store):
    store = Store.open(photo_store)
    store.manifest.sources.clear()
    assert "--dataset imagefolder:PATH" in store.build_command(16)
    assert "--weights" not in store.build_command(16)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--image-size", 32), "geometry.image_size"),
        (("--seed", 4), "seed"),
        (("--view-policy", "augmented"), "view_policy"),
        (("--features", "none"), "outputs"),
        (("--feature-dtype", "float16"), "outputs"),
        (("--teacher", "resnet14"), "no tensor|tensors|different|resnet"),
        (("--format", "zarr"), "is a hdf5 store, not zarr"),
    ],
)
def test_a_setting_that_is_given_and_differs_is_refused_by_name(photo_store, photos, two_classes, given, named):
    refused = run(
        "ckd-cache", "build", "--store", photo_store, "--n", 16, "--dataset", f"imagefolder:{photos}", "--weights",
        two_classes, *given,
    )  # fmt: skip
    assert refused.returncode == 2
    assert any(word in refused.stderr for word in named.split("|")), refused.stderr
    assert Manifest.load(photo_store).n == 8


def test_another_data_set_is_refused_by_name_before_it_is_looked_for(photo_store):
    for other in ("cifar100", "digits"):
        refused = run("ckd-cache", "build", "--store", photo_store, "--n", 16, "--dataset", other)
        assert refused.returncode == 2
        assert f"another dataset.name (store: imagefolder:my photos, asked: {other})" in refused.stderr
        assert "say where its own images lie" in refused.stderr
        assert "--download" not in refused.stderr


def test_digits_are_grown_by_store_and_n_alone(tmp_path, built_store, weights):
    store = shutil.copytree(built_store, tmp_path / "store")
    grown = run("ckd-cache", "build", "--store", store, "--n", 100, "--weights", weights, "--device", "cpu", "--json")
    assert json.loads(succeeded(grown))["new_calls"] == 4


def test_a_new_store_needs_a_teacher(tmp_path):
    for arguments in (("--n", 8), ("--n", 8, "--store", tmp_path / "none")):
        refused = run("ckd-cache", "build", *arguments)
        assert refused.returncode == 2
        assert "Missing option '--teacher'" in refused.stderr


def test_a_build_without_a_call_says_how_labels_alone_are_trained_on(photo_store, place, photos, two_classes):
    own = ("--dataset", f"imagefolder:{photos.name}", "--image-size", 24)
    new = run(
        "ckd-cache", "build", "--n", 0, "--teacher", "resnet8", "--weights", two_classes.name, "--store", "none", *own
    )
    assert new.returncode == 2
    assert "--n 0 asks the teacher about no image" in new.stderr
    assert not (place / "none").exists()
    advice = run(*suggestion(new.stderr), "--seeds", 1, "--max-evals", 1, "--device", "cpu", "--jobs", 1, "--json")
    said = json.loads(succeeded(advice))
    assert (said["calls_made"], said["labels_alone"]["runs"], said["labelled_images"]) == (0, 1, 20)
    # A store that is there has labels already.
    there = run("ckd-cache", "build", "--n", 0, "--store", photo_store.name)
    assert there.returncode == 2
    trained = run(*suggestion(there.stderr), "--student", "resnet8", "--max-evals", 1, "--device", "cpu", "--out", "r")
    succeeded(trained)
    record = json.loads(Path("r", "run.json").read_text())
    assert (record["n"], record["teacher_calls"], record["labelled_rows"]) == (0, 0, 8)


def test_an_extension_keeps_its_features_in_the_type_of_the_stores(photo_store, two_classes):
    added = ("--store", photo_store, "--features", "stem", "--weights", two_classes, "--yes", "--device", "cpu")
    succeeded(run("ckd-cache", "extend", *added))
    assert {output.dtype for output in Store.open(photo_store).outputs} == {"float32"}


# A store that is not whole


@pytest.fixture
def half_grown(tmp_path, built_store):
    """A store of 96 rows of which row 50 is not there any more."""
    store = shutil.copytree(built_store, tmp_path / "half grown")
    Store.open(store).retract([50, 60])
    return store


def test_a_half_grown_store_says_what_can_be_trained_on_and_that_works(half_grown, tmp_path):
    train = (
        "ckd-train", "--store", half_grown, "--method", "kd", "--student", "resnet8", "--max-evals", 1, "--device",
        "cpu", "--out", tmp_path / "run",
    )  # fmt: skip
    refused = run(*train)
    assert refused.returncode == 2
    assert "has 50 whole rows, 96 are needed; finish it with: ckd-cache build" in refused.stderr
    assert "; or train on what is whole, with: --n 50" in refused.stderr
    succeeded(run(*train, *suggestion(refused.stderr)))


# Weights


def test_teachers_of_two_folders_of_one_name_have_places_of_their_own(place, monkeypatch):
    monkeypatch.setenv("CKD_TEACHERS", str(place / "teachers"))
    folders = [make_folder_dataset(place / side / "data") for side in ("left", "right")]
    train = ("ckd-cache", "train-teacher", "--teacher", "resnet8", "--epochs", 1, "--device", "cpu", "--json")
    left = json.loads(succeeded(run(*train, "--dataset", f"imagefolder:{folders[0]}")))["out"]
    build = ("ckd-cache", "build", "--teacher", "resnet8", "--dataset", f"imagefolder:{folders[1]}", "--n", 8)
    refused = run(*build, "--device", "cpu", "--store", place / "right store")
    assert refused.returncode == 2, "the other folder's teacher was taken"
    words = suggestion(refused.stderr)
    assert words[:2] == ["ckd-cache", "train-teacher"]
    right = json.loads(succeeded(run(*words, "--epochs", 1, "--device", "cpu", "--json")))["out"]
    assert Path(left).parent.parent == Path(right).parent.parent
    assert left != right
    succeeded(run(*build, "--device", "cpu", "--store", place / "right store"))


def test_a_teacher_at_the_place_of_earlier_releases_is_named_and_not_taken(place, photos, two_classes, monkeypatch):
    monkeypatch.setenv("CKD_TEACHERS", str(place / "teachers"))
    older = place / "teachers" / "imagefolder-my photos" / "resnet8.safetensors"
    older.parent.mkdir(parents=True)
    two_classes.rename(older)
    build = ("ckd-cache", "build", "--teacher", "resnet8", "--dataset", f"imagefolder:{photos}", "--n", 8)
    refused = run(*build, "--store", "s", "--device", "cpu")
    assert refused.returncode == 2
    said = refused.stderr.partition("if the one at ")[2].partition("trained on this data set, ")[2].partition(")")[0]
    assert shlex.split(said) == ["--weights", str(older)]
    succeeded(run(*build, "--store", "s", "--device", "cpu", *shlex.split(said)))


def test_missing_weights_are_trained_where_they_were_looked_for(place, photos):
    build = (
        "ckd-cache", "build", "--teacher", "resnet8", "--dataset", f"imagefolder:{photos.name}", "--image-size", 24,
        "--n", 8, "--store", "s", "--weights", "-my own.safetensors", "--device", "cpu",
    )  # fmt: skip
    refused = run(*build)
    assert refused.returncode == 2
    succeeded(run(*suggestion(refused.stderr), "--epochs", 1, "--device", "cpu"))
    succeeded(run(*build))


# Damage, extensions, budgets, shared ledgers


def test_damage_is_put_right_by_what_verify_suggests(place, half_grown, weights):
    said = run("ckd-cache", "verify", "--store", half_grown)
    assert said.returncode == 1
    command = suggestion(said.stdout.splitlines()[0])
    assert command[:2] == ["ckd-cache", "repair"] or command[:2] == ["ckd-cache", "build"]
    succeeded(run(*command, *(["--yes"] if command[1] == "repair" else [])))


def test_the_features_that_a_loss_needs_are_added_by_what_is_suggested(photo_store, place):
    train = ("ckd-train", "--store", photo_store, "--method", "fitnets", "--student", "resnet8", "--max-evals", 1)
    refused = run(*train, "--device", "cpu", "--out", place / "run")
    assert refused.returncode == 2
    succeeded(run(*suggestion(refused.stderr), "--yes", "--device", "cpu"))
    succeeded(run(*train, "--device", "cpu", "--out", place / "run"))


def test_a_budget_that_is_too_small_is_raised_by_what_is_suggested(photo_store, photos, two_classes):
    grow = (
        "ckd-cache", "build", "--store", photo_store, "--n", 16, "--dataset", f"imagefolder:{photos}", "--weights",
        two_classes, "--device", "cpu",
    )  # fmt: skip
    refused = run(*grow, "--budget", 10)
    assert refused.returncode == 3
    succeeded(run(*grow, *suggestion(refused.stderr)))


def test_a_shared_ledger_is_named_in_what_is_suggested(place, weights):
    url = f"sqlite:///{place / 'shared ledger.sqlite'}"
    build = ("ckd-cache", "build", "--teacher", "resnet8", "--dataset", "digits", "--n", 8, "--weights", weights)
    succeeded(run(*build, "--store", "s", "--ledger", url, "--device", "cpu"))
    summary = run("ckd-cache", "ledger", "summary", "--store", "s")
    assert summary.returncode == 2
    succeeded(run("ckd-cache", "ledger", "summary", "--store", "s", *suggestion(summary.stderr)))
    store = Store.open(Path("s"))
    assert shlex.split(store.command("verify")) == [
        "ckd-cache", "verify", "--store", "s", "--ledger", store.manifest.ledger
    ]  # fmt: skip
    succeeded(run(*shlex.split(store.command("verify"))))
    refused = run("ckd-train", "--store", "s", "--n", 12, "--out", "run")
    grow = suggestion(refused.stderr)
    succeeded(run(*grow, "--device", "cpu"))
    assert Manifest.load(Path("s")).n == 12


# All of them


def test_positional_arguments_that_look_like_options_are_paths():
    assert shlex.split(suggested("ckd-pipeline report", Path("-out of it"))) == [
        "ckd-pipeline",
        "report",
        "./-out of it",
    ]


def calls_in_source() -> list[tuple[str, str, tuple[str, ...]]]:
    """(file, subcommand of ckd-cache, options) of every command that the code suggests by these functions."""
    found = []
    for path in (file for room in ("ground", "storage", "teacher_cache", "student_train", "analysis", "experiments")
                 for file in (ROOT / room).rglob("*.py")):  # fmt: skip
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args or ast.unparse(node.func) == "click.command":
                continue
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            first = node.args[0]
            if called in ("store_command", "command") and isinstance(first, ast.Constant):
                options = tuple(keyword.arg for keyword in node.keywords if keyword.arg is not None)
                found.append((str(path.relative_to(ROOT)), first.value, ("store", *options)))
    return found


def test_every_suggested_command_has_the_options_that_are_suggested():
    calls = calls_in_source()
    assert len(calls) >= 15
    for place, name, options in calls:
        command = importlib.import_module("teacher_cache.cli").main
        for word in name.split():
            command = command.get_command(click.Context(command), word)
            assert command is not None, (place, name)
        known = {option.removeprefix("--") for parameter in command.params for option in parameter.opts}
        assert {option.replace("_", "-") for option in options} <= known, (place, name, options)
