"""Manifests as somebody writes them who knows how their digest is made (docs/store-format.md)."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the digest that belongs to its other fields."""
    fields = {name: value for name, value in document.items() if name != "digest"}
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return {**fields, "digest": hashlib.sha256(canonical.encode()).hexdigest()}
