"""Cells of CSV files that programs for spreadsheets open: a text that begins a formula would be computed there.

The characters are those that OWASP names under "CSV Injection".
"""

from __future__ import annotations

import re

from ground.terminal import plain

# The last four are the first four in full width, which some spreadsheets take for them.
_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# As tables write them: a count, a mean with its deviation, a range, a share.
_NUMBER = re.compile(r"[-+]?[0-9][0-9.,]*(e[-+]?[0-9]+)?%?( (±|to) [-+]?[0-9][0-9.,]*%?)?", re.ASCII)


def neutral(cell: object) -> object:
    """A cell that no spreadsheet computes and no terminal obeys; a number is left as it is, and so is a number as text.

    A text that begins a formula gets an apostrophe before it; what cannot be printed is written as Python would.
    """
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    return plain(f"'{cell}" if cell.startswith(_BEGINS_FORMULA) else cell)
