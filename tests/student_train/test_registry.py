"""Losses by name: listed, explained, from a user's own file, and from another installed package."""

from __future__ import annotations

import hashlib
import json
import sys
import textwrap

import pytest

from ground.errors import InvalidInput, UnknownName
from ground.user_code import UserCode
from student_train import catalogue
from student_train.bound_method import BoundMethod
from student_train.losses import LOSSES
from student_train.methods import parse_losses
from student_train.names import NAMED_METHODS
from student_train.recipes import METHODS
from student_train.registry import find_loss, loss_name
from tests.conftest import run_command
from tests.student_train.losses.checks import binding_for, signals_for

OWN = '''
    import torch.nn.functional as F

    from student_train.losses import DistillationLoss


    class Huber(DistillationLoss):
        """Huber loss of the logits."""

        def __init__(self, delta: float = 1.0) -> None:
            super().__init__()
            self.delta = delta

        def forward(self, signals):
            return F.huber_loss(*self.logits(signals), delta=self.delta)
'''
TRAINING = ["--student", "resnet8", "--max-evals", "1", "--device", "cpu", "--json"]


def write_own(folder, name="my_losses", text=OWN):
    (folder / f"{name}.py").write_text(textwrap.dedent(text))


@pytest.mark.slow
def test_a_users_loss_outside_the_project_trains_from_the_command_line(built_store, tmp_path):
    write_own(tmp_path)
    losses = ["--loss", "ce", "--loss", "my_losses:Huber:delta=2,weight=0.5,compared=true", "--allow-code"]
    result = run_command("ckd-train", "--store", built_store, "--out", "run", *losses, *TRAINING, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    recipe = json.loads(result.stdout)["recipe"]["losses"]
    assert recipe[1] == {
        "loss": "my_losses:Huber",
        "code": hashlib.sha256((tmp_path / "my_losses.py").read_bytes()).hexdigest(),
        "delta": 2.0,
        "weight": 0.5,
        "compared": True,
        "standardised": False,
    }
    explained = run_command("ckd-train", "losses", "my_losses:Huber", "--allow-code", cwd=tmp_path)
    assert explained.returncode == 0, explained.stderr
    assert "Huber loss of the logits" in explained.stdout
    assert "delta=1" in explained.stdout


@pytest.mark.slow
def test_a_package_registers_losses_by_its_entry_points(built_store, tmp_path):
    write_own(tmp_path, "their_losses", f"{OWN}\n    import pathlib\n    pathlib.Path('{tmp_path}/it-ran').touch()\n")
    info = tmp_path / "their_losses-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-losses\nVersion: 1.0\n")
    points = "[ckd.losses]\nhuber = their_losses:Huber\nkd = their_losses:Huber\nbroken = their_losses:Missing\n"
    (info / "entry_points.txt").write_text(points)
    environment = {"PYTHONPATH": str(tmp_path)}
    assert run_command("ckd-train", "losses", "kd", env=environment).returncode == 0
    assert not (tmp_path / "it-ran").exists(), "imported, though nobody asked for its loss"
    listed = run_command("ckd-train", "losses", "--json", env=environment)
    assert listed.returncode == 0, listed.stderr
    losses = {loss["name"]: loss for loss in json.loads(listed.stdout)}
    assert losses["huber"]["settings"] == {"delta": 1.0}
    assert "Hinton" in losses["kd"]["source"], "a package cannot change what a known name means"
    assert "cannot be imported" in losses["broken"]["formula"]
    methods = run_command("ckd-train", "methods", env=environment)
    assert methods.returncode == 0, methods.stderr
    assert "the loss broken cannot be imported" in methods.stdout
    arguments = ["--store", built_store, "--out", tmp_path / "run", "--method", "huber:weight=3", *TRAINING]
    trained = run_command("ckd-train", *arguments, env=environment)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["recipe"]["losses"][1]["weight"] == 3


def test_every_loss_is_listed_with_needs_defaults_and_source():
    listed = run_command("ckd-train", "losses")
    assert listed.returncode == 0, listed.stderr
    assert all(f" {name} " in listed.stdout for name in LOSSES)
    for loss in catalogue.describe_losses():
        assert loss["formula"], loss["name"]
        assert loss["source"], loss["name"]
        assert set(loss["settings"]) == set(find_loss(loss["name"])().settings)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_explained(name, capsys):
    loss = catalogue.describe_loss(name)
    assert loss["formula"].endswith((".", ")")) or "=" in loss["formula"] or loss["details"], name
    assert loss_name(find_loss(name)) == name


def test_every_method_is_listed():
    listed = run_command("ckd-train", "methods")
    assert listed.returncode == 0, listed.stderr
    assert all(f" {name} " in listed.stdout for name in (*METHODS, *LOSSES))


def test_an_unknown_loss_names_the_nearest():
    result = run_command("ckd-train", "losses", "dk")
    assert result.returncode == 2
    assert "no loss is called 'dk'; did you mean" in result.stderr


@pytest.mark.slow
def test_options_of_a_training_are_refused_before_a_subcommand():
    result = run_command("ckd-train", "--lr", "0.1", "losses")
    assert result.returncode == 2
    assert "--lr is for a training" in result.stderr
    assert run_command("ckd-train").returncode == 2


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("nowhere.at_all:Loss", InvalidInput, "cannot be imported .ModuleNotFoundError"),
        ("torch.nn:Linear", InvalidInput, "is no loss; make it a subclass"),
        ("student_train.losses.kd:Nothing", InvalidInput, "cannot be imported .AttributeError"),
        ("student_train.losses.kd:KD:warmth=4", UnknownName, "no setting of loss .* is called 'warmth'"),
        ("kd:temperature", InvalidInput, "cannot read 'temperature'"),
    ],
)
def test_a_class_that_is_no_loss_is_a_sentence(spec, error, message):
    with pytest.raises(error, match=message):
        parse_losses([spec], code=UserCode.ALLOWED)


LEAVES_A_MARK = "from pathlib import Path\nPath('it-ran').touch()\n"


def ask_for_a_loss_in_this_folder(command, folder):
    losses = {
        "ckd-train": ["--store", folder / "absent", "--loss", "helper:Huber"],
        "losses": ["losses", "helper:Huber"],
    }
    return losses[command]


@pytest.mark.parametrize("command", ["ckd-train", "losses"])
def test_a_module_in_the_working_directory_is_not_run_unless_the_user_says_so(command, tmp_path):
    write_own(tmp_path, "helper", LEAVES_A_MARK)
    arguments = ask_for_a_loss_in_this_folder(command, tmp_path)
    refused = run_command("ckd-train", *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert "the loss helper:Huber is code from outside this program" in refused.stderr
    assert "give --allow-code" in refused.stderr
    assert not (tmp_path / "it-ran").exists()
    allowed = run_command("ckd-train", *arguments, "--allow-code", cwd=tmp_path)
    assert allowed.returncode == 2
    assert "the loss helper:Huber cannot be imported (AttributeError" in allowed.stderr
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("name", ["colorsys", "colorama"])
def test_a_file_in_the_working_directory_stands_in_for_no_installed_module(name, tmp_path, monkeypatch):
    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / "colorama.py").touch()
    monkeypatch.syspath_prepend(installed)
    write_own(tmp_path, name, LEAVES_A_MARK)
    result = run_command("ckd-train", "losses", f"{name}:Huber", "--allow-code", cwd=tmp_path)
    assert "cannot be imported (AttributeError" in result.stderr
    assert not (tmp_path / "it-ran").exists()


def test_a_class_of_ours_by_its_address_is_the_same_loss():
    assert loss_name(find_loss("student_train.losses.kd:KD")) == "kd"


CLUMSY = """
    from student_train.losses import DistillationLoss


    class Plain(DistillationLoss):
        def __init__(self, delta=1.0):
            super().__init__()
            self.delta = delta

        def forward(self, signals):
            return self.delta * self.logits(signals)[0].mean()


    class Listed(Plain):
        def __init__(self, layers: list = ()):
            super().__init__()
            self.layers = layers


    class Required(Plain):
        def __init__(self, delta: float):
            super().__init__(delta)


    class Forgetful(Plain):
        def __init__(self, warmth: float = 1.0):
            super().__init__()


    class Abstract(DistillationLoss):
        pass


    class Unresolved(Plain):
        def __init__(self, delta: "Nowhere" = 1.0):
            super().__init__(delta)


    class Vector(Plain):
        def forward(self, signals):
            return self.logits(signals)[0].mean(dim=1)


    class Weighty(Plain):
        def __init__(self, weight: float = 1.0):
            super().__init__()
            self.weight = weight
"""


@pytest.fixture
def clumsy(tmp_path, monkeypatch):
    write_own(tmp_path, "clumsy_losses", CLUMSY)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("clumsy_losses", None)


def test_a_setting_without_annotation_has_the_type_of_its_default(clumsy):
    (loss,) = parse_losses(["clumsy_losses:Plain:delta=2"], code=UserCode.ALLOWED).losses
    assert loss.make().delta == 2.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("Listed:layers=a", "layers cannot be given as text; annotate it as one of bool, int, float, str"),
        ("Required", "missing a required argument: 'delta'; give it as key=value, or give it a default"),
        ("Forgetful", "Forgetful does not keep its argument warmth"),
        ("Abstract", "has no forward; define forward"),
        ("Unresolved:delta=2", "an annotation of its arguments cannot be resolved"),
        ("Weighty", "has an argument weight, which every loss takes with another meaning"),
    ],
)
def test_a_clumsy_loss_is_refused_in_a_sentence(clumsy, spec, message):
    with pytest.raises(InvalidInput, match=message):
        parse_losses([f"clumsy_losses:{spec}"], code=UserCode.ALLOWED)


def test_a_loss_that_is_no_scalar_is_refused(clumsy):
    signals = signals_for(binding_for({}, {}))
    spec = parse_losses(["clumsy_losses:Vector"], code=UserCode.ALLOWED)
    method = BoundMethod(spec, [loss.make() for loss in spec.losses])
    with pytest.raises(InvalidInput, match=r"clumsy_losses:Vector gave \(6,\) where a scalar tensor is needed"):
        method.losses(signals)


def test_other_code_under_the_same_name_is_another_recipe(clumsy, tmp_path):
    spec = ["clumsy_losses:Plain"]
    before = parse_losses(spec, code=UserCode.ALLOWED).describe()
    assert parse_losses(spec, code=UserCode.ALLOWED).describe() == before
    path = tmp_path / "clumsy_losses.py"
    path.write_text(path.read_text() + "\n# changed\n")
    assert parse_losses(spec, code=UserCode.ALLOWED).describe() != before


def test_the_help_lists_the_named_methods_as_they_are():
    assert tuple(METHODS) == NAMED_METHODS
