"""Rules that say which images to buy answers for; one a file. See docs/selection.md."""

from teacher_cache.selection.contract import Pool, Selector
from teacher_cache.selection.rules import SELECTORS, SelectorSpec, spelled

__all__ = ["SELECTORS", "Pool", "Selector", "SelectorSpec", "spelled"]
