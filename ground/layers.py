"""What the outputs of a network are called, wherever the network comes from.

Every network has `logits`. Its layers have names of its own, in the order they are computed, and any name will do that
`is_layer_name` accepts; four have a meaning to everybody: `stem`, the first map; `pooled`, the vector before the head;
`last`, the map that is pooled; and NAME.pre, the layer NAME before its activation. Every other layer is a stage.
"""

from __future__ import annotations

import re

LOGITS, STEM, POOLED, LAST = "logits", "stem", "pooled", "last"
# What follows a layer's name in that of its pre-activation.
BEFORE = ".pre"
# Dots, as in the module names of PyTorch; never first or last, so that no name is a path.
_NAME = re.compile(r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*")
_MAX_NAME = 128


def is_layer_name(name: object) -> bool:
    """Whether a layer may be called so."""
    return isinstance(name, str) and len(name) <= _MAX_NAME and name != LOGITS and _NAME.fullmatch(name) is not None


def is_stage(name: str) -> bool:
    """Whether a layer is a stage: neither stem, pooled vector nor last map, and after its activation."""
    return name not in (LOGITS, STEM, POOLED, LAST) and not is_before(name)


def is_before(name: str) -> bool:
    """Whether it is the pre-activation of another layer."""
    return name.endswith(BEFORE)


def is_extra(name: str) -> bool:
    """Whether a layer is kept only where it is named: a pre-activation, or the map that is pooled."""
    return is_before(name) or name == LAST


def layer_of(name: str) -> str:
    """The layer that a pre-activation is of; any other name as it is."""
    return name.removesuffix(BEFORE)
