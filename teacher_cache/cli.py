"""`ckd-cache`: stage one, everything that makes, shows or checks a store."""

from __future__ import annotations

import click

from ground.terminal import CommandAt, CommandGroup

_COMMANDS = {
    "train-teacher": CommandAt(
        "teacher_cache.commands.train_teacher:train_teacher",
        "Train a teacher on a data set's labels; an interrupted training goes on where it stopped.",
    ),
    "teacher": CommandAt(
        "teacher_cache.commands.teacher:teacher",
        "Say what the network of this NAME would be as a teacher: its layers, classes, images, size and speed.",
    ),
    "build": CommandAt(
        "teacher_cache.commands.build:build", "Run the teacher once over a sample of images and keep what it says."
    ),
    # It trains students too, which this room cannot: a room above both stages has it, and none of it is imported here.
    "advise": CommandAt(
        "experiments.commands.advise:advise_command",
        "Say whether calls are worth paying for, from labels alone and a pilot of a few calls.",
    ),
    "info": CommandAt(
        "teacher_cache.commands.info:info", "Say what a store holds and how good its teacher is on its own views."
    ),
    "sheet": CommandAt(
        "experiments.commands.sheet:sheet",
        "Write a page with a store's images, round by round and class by class, and what the teacher said of them.",
    ),
    "verify": CommandAt(
        "teacher_cache.commands.verify:verify",
        "Check every row, the manifest and the ledger against each other; nothing is changed.",
    ),
    "repair": CommandAt(
        "teacher_cache.commands.repair:repair",
        "Show what is damaged in a store and can be put right, then do it.",
    ),
    "convert": CommandAt(
        "teacher_cache.commands.convert:convert",
        "Copy a store into another format, with its identity and its history, or into object storage and back; no call "
        "is made.",
    ),
    "extend": CommandAt(
        "teacher_cache.commands.extend:extend",
        "Add feature maps, or logits, to a whole store, by calling its teacher again on every view; "
        "or, with --rest, further images, without a call.",
    ),
    "upgrade": CommandAt(
        "teacher_cache.commands.upgrade:upgrade",
        "Bring a store of an older format, and its ledger, up to the current one, in place; no call is made.",
    ),
    "widen": CommandAt(
        "teacher_cache.commands.widen:widen",
        "Keep features in float32 from now on, where an answer does not fit their type; no call is made.",
    ),
    "ledger": CommandAt(
        "teacher_cache.commands.ledger:ledger", "Show, export and check the record of every teacher call."
    ),
}


@click.group(cls=CommandGroup, lazy=_COMMANDS)
@click.version_option(package_name="teacher-cache")
def main() -> None:
    """Spend a teacher's calls once and keep everything it said.

    \b
    ckd-cache train-teacher --teacher wrn40_2 --dataset cifar100
    ckd-cache build --teacher wrn40_2 --dataset cifar100 --n 2400 --store stores/wrn40_2

    Exit status: 0 done, 1 a check failed, 2 bad usage or bad input, 3 refused by budget, 130 interrupted.
    """
