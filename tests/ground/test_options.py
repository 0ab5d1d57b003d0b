"""Options take their defaults from the configuration they set."""

from __future__ import annotations

import ast

import click
import pytest
from click.testing import CliRunner

from ground.options import NumberRange, RunFolderPath, device_option, json_option, precision_option, setting_option
from student_train.train_config import TrainConfig
from teacher_cache.teacher_training import TrainingConfig


@click.command()
@setting_option(TrainConfig, "lr")
@setting_option(TrainConfig, "batch_size", help="Images of a step.")
@device_option
@precision_option(("fp32", "bf16"), "Numbers.")
@json_option
def command(**settings: object) -> None:
    click.echo(repr(settings))


def run(*arguments: str):
    return CliRunner().invoke(command, arguments)


def test_what_is_not_given_is_what_the_configuration_says():
    config = TrainConfig(student="resnet8")
    expected = {"lr": config.lr, "batch_size": config.batch_size, "device": "auto", "precision": "auto"}
    assert ast.literal_eval(run().output) == expected | {"as_json": False}


def test_what_is_given_has_the_type_of_the_default():
    assert "'batch_size': 8, " in run("--batch-size", "8", "--lr", "1").output
    assert run("--batch-size", "many").exit_code == 2
    assert "'auto', 'fp32', 'bf16'" in run("--precision", "fp8").output


def test_help_shows_the_defaults():
    assert "--batch-size INTEGER" in run("--help").output
    assert "[default: 0.05]" in run("--help").output


def test_both_stages_read_their_first_learning_rate_from_one_place_each():
    for config in (TrainConfig, TrainingConfig):
        option = setting_option(config, "lr")(click.Command("any", callback=lambda: None))
        assert option.params[-1].default == 0.05


def test_a_field_without_a_default_is_no_option():
    with pytest.raises(AssertionError, match="TrainConfig.student has no default"):
        setting_option(TrainConfig, "student")


def test_object_storage_is_never_taken_for_a_folder_of_runs(tmp_path):
    shown = click.command()(click.option("--out", type=RunFolderPath())(lambda out: click.echo(repr(out))))
    refused = CliRunner().invoke(shown, ["--out", "s3://bucket/run"])
    assert refused.exit_code == 2
    assert "runs and grids are written to folders, not to object storage" in refused.output
    assert CliRunner().invoke(shown, ["--out", str(tmp_path)]).output == f"{tmp_path!r}\n"


@pytest.mark.parametrize(("text", "is_one"), [("0", True), ("0.5", True), ("1", False), ("nan", False), ("inf", False)])
def test_a_number_of_a_range_is_a_finite_one(text, is_one):
    shown = click.command()(click.option("--gain", type=NumberRange(0, 1, max_open=True))(lambda gain: None))
    assert CliRunner().invoke(shown, ["--gain", text]).exit_code == (0 if is_one else 2)
    shown = click.command()(click.option("--gpus", type=NumberRange(min=0))(lambda gpus: None))
    assert (CliRunner().invoke(shown, ["--gpus", text]).exit_code == 0) == (text in ("0", "0.5", "1"))
