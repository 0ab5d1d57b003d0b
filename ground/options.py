"""Options that commands of several rooms share, so that they are written once and mean the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from ground.errors import CKDError
from ground.places import ObjectUrl, Place, only_read, parse_place

_Command = TypeVar("_Command", bound=Callable[..., Any])


class StorePlace(click.ParamType[Any]):
    """A store's folder, or its URL in object storage."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """Read what was given; nothing is opened."""
        try:
            return parse_place(value) if isinstance(value, str) else value
        except CKDError as error:
            self.fail(str(error), param, ctx)


class StoreFolder(click.Path):
    """A store's folder, for commands that change a store; a URL is refused, with what to do instead."""

    def __init__(self, *, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As a path."""
        if isinstance(value, str) and "://" in value:
            try:
                raise only_read(ObjectUrl.parse(value))
            except CKDError as error:
                self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


class RunFolderPath(click.Path):
    """A folder that runs or a grid are written to; a URL is refused, and never taken for a folder of that name."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As a path."""
        if isinstance(value, str) and "://" in value:
            self.fail("runs and grids are written to folders, not to object storage; give one that lasts", param, ctx)
        return super().convert(value, param, ctx)


class NumberRange(click.FloatRange):
    """A finite number of a range; click's own lets "nan" through, which is neither below nor above anything."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As a float."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number", param, ctx)
        return number


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
    more |= {"type": type(default), "default": [default] if more.get("multiple") else default, "show_default": True}
    return click.option(f"--{name.replace('_', '-')}", **more)
