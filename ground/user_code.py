"""Code from outside this program, named as "package.module:attribute": imported only where the user says so.

A name of this form may stand on the command line, and as well in a grid that a stranger wrote, whose module then lies
in the folder where the user happens to be. So it is the command line alone that allows it, with `--allow-code`, and a
file cannot allow itself. What an installed package registers as an entry point the user has installed, and needs no
permission.
"""

from __future__ import annotations

import importlib
import os
import sys
from enum import Enum

from ground.errors import InvalidInput


class CodeRefused(InvalidInput):
    """Code from outside this program that the user has not allowed."""


class UserCode(Enum):
    """What a command does with code from outside this program."""

    REFUSED = "refused"
    ALLOWED = "allowed"  # the user gave --allow-code
    UNSEEN = "unseen"  # a dry run: whoever asks does without it

    @classmethod
    def of(cls, *, allowed: bool) -> UserCode:
        """What --allow-code means, given or not."""
        return cls.ALLOWED if allowed else cls.REFUSED


def require_allowed(what: str, code: UserCode) -> None:
    """Raise `CodeRefused` for code from outside this program, unless the user allowed it.

    Args:
        what: it is, with the name it was given by: "the loss my_losses:Huber", "the program export:teacher.pt2".
    """
    if code is not UserCode.ALLOWED:
        raise CodeRefused(
            f"{what} is code from outside this program, and is only run where you say so; look at it, then give "
            "--allow-code"
        )


def import_user_code(what: str, address: str, code: UserCode) -> object:
    """A class or function from a module of the user's, looked for in the working directory last.

    Args:
        what: it is to be, with the name it was given by, for messages: "the loss my_losses:Huber".
        address: "package.module:attribute".

    Raises:
        InvalidInput: it is not allowed, or cannot be imported.
    """
    require_allowed(what, code)
    # Last, so that a file here never stands in for an installed module.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return import_address(what, address)


def import_address(what: str, address: str) -> object:
    """A class or function of an installed package.

    Raises:
        InvalidInput: it cannot be imported.
    """
    module, _, attribute = address.partition(":")
    try:
        found: object = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        # Importing runs code that is not ours, which may fail in any way, and may not end the command as if done.
        raise InvalidInput(
            f"{what} cannot be imported ({type(error).__name__}: {error}); give it as package.module:Class, from a "
            "module that Python can find here"
        ) from error
    return found
