"""Options that commands of several rooms share, so that they are written once and mean the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
allow_code_option = click.option(
    "--allow-code", is_flag=True, help="Import classes that are named as package.module:Class, here or in a grid."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")


def precision_option(
    precisions: Sequence[str], help: str | None = None, *, refused: Sequence[str] = ()
) -> Callable[[_Command], _Command]:
    """--precision: auto, or one of these.

    Args:
        refused: those that the command refuses itself, in a sentence.
    """
    return click.option(
        "--precision",
        type=click.Choice(("auto", *dict.fromkeys((*precisions, *refused)))),
        metavar=f"[{'|'.join(('auto', *precisions))}]",
        default="auto",
        show_default=True,
        help=help,
    )


def setting_option(config: type, name: str, **more: Any) -> Callable[[_Command], _Command]:
    """An option that sets one field of a configuration; its type and its default are the field's.

    Args:
        config: a dataclass, where the default is written.
        name: of the field; underscores become hyphens.
        more: what `click.option` takes beside.
    """
    default = next(field.default for field in fields(config) if field.name == name)
    assert default is not MISSING, f"{config.__name__}.{name} has no default"
    return click.option(f"--{name.replace('_', '-')}", type=type(default), default=default, show_default=True, **more)
