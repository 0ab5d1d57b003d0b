"""Publishes a store: python -m tests.teacher_cache.publisher STORE URL."""

from __future__ import annotations

import sys
from pathlib import Path

from ground.places import ObjectUrl
from teacher_cache.publish import publish

if __name__ == "__main__":
    publish(Path(sys.argv[1]), ObjectUrl.parse(sys.argv[2]))
