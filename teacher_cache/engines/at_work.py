"""A builder in a process that somebody else started: what it is told, and what becomes of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from ground.errors import CKDError, InvalidInput
from ground.ray_cluster import move_in
from ground.terminal import StopRequest, stopped_by
from storage.identity import Identity
from teacher_cache.build import build
from teacher_cache.build_report import BuildReport
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import Prepared, prepare_build


class BuilderAtWork:
    """Prepares, builds, and stops when it is told to, each called from elsewhere.

    Args:
        environment, folder: of the process that started it.
    """

    def __init__(self, environment: Mapping[str, str], folder: str) -> None:
        move_in(environment, folder)
        self._stop = StopRequest()
        self._prepared: Prepared | None = None

    def where(self) -> str:
        """Host and process, for people."""
        return f"{socket.gethostname()}, process {os.getpid()}"

    def prepare(self, config: BuildConfig) -> Identity | CKDError:
        """Check here what can be checked without a call; returns what would be built, or why it cannot be."""
        try:
            self._prepared = prepare_build(config)
        except (CKDError, OSError) as error:
            return _to_be_said(error)
        return self._prepared.plan.identity

    def build(self) -> BuildReport | CKDError:
        """Build beside the others; an error that a user can act on is an answer, any other is raised."""
        assert self._prepared is not None, "prepare comes first"
        try:
            with stopped_by(self._stop):
                return build(*self._prepared)
        except (CKDError, OSError) as error:
            return _to_be_said(error)

    def stop(self) -> None:
        """Finish the step in hand and end."""
        self._stop.requested = True


def _to_be_said(error: CKDError | OSError) -> CKDError:
    """An error that a user can act on, as it would be said here; raises any other."""
    if isinstance(error, CKDError):
        return error
    if error.filename is None:
        raise error
    return InvalidInput(f"{error.filename} cannot be used ({error.strerror}); check the path and its permissions")
