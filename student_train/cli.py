"""`ckd-train`: stage two, a student from a store alone."""

from __future__ import annotations

from typing import Any

import click

from ground.imports import uncollected
from ground.places import Place
from ground.terminal import CommandAt, CommandGroup
from student_train.commands.options import train_options

_COMMANDS = {
    "export": CommandAt(
        "student_train.commands.export:export",
        "Write the student of a finished RUN as a file that runs without this package.",
    ),
    "losses": CommandAt(
        "student_train.commands.losses:losses",
        "List every loss with needs, kinds of answers, defaults and source, or explain the one of this NAME.",
    ),
    "methods": CommandAt("student_train.commands.methods:methods", "List every method with the losses it adds up."),
    "predict": CommandAt(
        "student_train.commands.predict:predict_command",
        "Name the classes of photographs, files or folders of them, by the student of a finished RUN.",
    ),
    "verify": CommandAt(
        "student_train.commands.verify:verify",
        "Check that a finished RUN's results, metrics and weights are what they were when it ended.",
    ),
}
_DEFAULT = click.core.ParameterSource.DEFAULT


@click.group(cls=CommandGroup, lazy=_COMMANDS, invoke_without_command=True)
@click.version_option(package_name="teacher-cache")
@train_options
@click.pass_context
def main(context: click.Context, /, store: tuple[Place, ...], **settings: Any) -> None:
    """Train a student from a store; no teacher, no data set and no network is needed.

    \b
    ckd-train --store stores/wrn40_2-cifar100 --method ckd --n 1600
    ckd-train --store DIR --loss ce --loss kd:temperature=2,weight=0.5
    ckd-train --store SMALL --store LARGE --combine weighted --method kd
    ckd-train --store DIR --loss ce --loss my_losses:Huber:delta=2 --allow-code
    ckd-train losses
    ckd-train verify RUN
    ckd-train predict RUN photographs/
    ckd-train export RUN --to onnx

    Exit status: 0 done, 2 bad usage or bad input, 130 interrupted.
    """
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if context.get_parameter_source(name) is not _DEFAULT]
        if given:
            raise click.UsageError(f"--{given[0].replace('_', '-')} is for a training, not for a subcommand")
        return
    if not store:
        raise click.UsageError("Missing option '--store'.")
    # Here, and not above: it loads torch, and the help needs none.
    with uncollected():
        from student_train.commands.train import train

    train(stores=store, **settings)


if __name__ == "__main__":
    main()
