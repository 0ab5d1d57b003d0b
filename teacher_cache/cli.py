"""`ckd-cache`: stage one, everything that makes, shows or checks a store."""

from __future__ import annotations

import click

from ground.terminal import CommandGroup
from teacher_cache.commands.build import build
from teacher_cache.commands.convert import convert
from teacher_cache.commands.extend import extend
from teacher_cache.commands.info import info
from teacher_cache.commands.ledger import ledger
from teacher_cache.commands.repair import repair
from teacher_cache.commands.train_teacher import train_teacher
from teacher_cache.commands.upgrade import upgrade
from teacher_cache.commands.verify import verify


@click.group(cls=CommandGroup)
@click.version_option(package_name="teacher-cache")
def main() -> None:
    """Spend a teacher's calls once and keep everything it said.

    \b
    ckd-cache train-teacher --teacher wrn40_2 --dataset cifar100
    ckd-cache build --teacher wrn40_2 --dataset cifar100 --n 2400 --store stores/wrn40_2

    Exit status: 0 done, 1 a check failed, 2 bad usage or bad input, 3 refused by budget, 130 interrupted.
    """


for command in (train_teacher, build, info, verify, repair, convert, extend, upgrade, ledger):
    main.add_command(command)
