"""Builders as actors of a Ray cluster, none of which Ray starts again, and none of whose calls it repeats."""

from __future__ import annotations

import os
from itertools import count
from typing import Any

from ground.ray_cluster import Cluster, Share, carried_environment, why_died
from teacher_cache.config import BuildConfig
from teacher_cache.engines.at_work import BuilderAtWork
from teacher_cache.engines.team import Died, Ended, Event, Placed, Ready


class RaySite:
    """See `teacher_cache.engines.team.Site`; a `with` block, at the end of which no builder is left.

    Args:
        share: of a node that each builder takes.
    """

    def __init__(self, cluster: Cluster, share: Share, config: BuildConfig) -> None:
        self._cluster, self._share, self._config = cluster, share, config
        self._numbers = count(1)
        self._actors: dict[int, Any] = {}
        # What is asked of an actor -> its builder, and what an answer means.
        self._asked: dict[Any, tuple[int, type[Placed] | type[Ready] | type[Ended]]] = {}

    def __enter__(self) -> RaySite:
        return self

    def __exit__(self, *_: object) -> None:
        for builder in list(self._actors):
            self.dismiss(builder)

    def start(self) -> int:
        """Have an actor made; it is told to prepare before it is there."""
        builder = next(self._numbers)
        actor = self._cluster.start(BuilderAtWork, self._share, carried_environment(), os.getcwd())
        self._actors[builder] = actor
        self._asked[actor.where.remote()] = builder, Placed
        self._asked[actor.prepare.remote(self._config)] = builder, Ready
        return builder

    def begin(self, builder: int) -> None:
        """Have one that is ready build."""
        self._asked[self._actors[builder].build.remote()] = builder, Ended

    def wait(self, seconds: float) -> list[Event]:
        """What happened, in the order in which it was asked."""
        ray, asked = self._cluster.ray, list(self._asked)
        if not asked:
            return []
        ray.wait(asked, num_returns=1, timeout=seconds)
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
        return [event for reference in answered if (event := self._hear(reference)) is not None]

    def _hear(self, reference: Any) -> Event | None:
        ray = self._cluster.ray
        builder, kind = self._asked.pop(reference, (0, Ended))
        if builder not in self._actors:
            return None
        try:
            event = kind(builder, ray.get(reference))
        except ray.exceptions.RayTaskError:
            raise  # a bug, with its traceback there
        except ray.exceptions.RayError as error:
            # Where it cannot be reached it may still be alive: then it is one builder more.
            self.dismiss(builder)
            return Died(builder, why_died(error))
        if kind is Ended:
            self.dismiss(builder)
        return event

    def stop(self, builder: int) -> None:
        """Ask one to finish the step in hand and end."""
        self._actors[builder].stop.remote()

    def dismiss(self, builder: int) -> None:
        """End its process."""
        actor = self._actors.pop(builder)
        self._asked = {reference: asked for reference, asked in self._asked.items() if asked[0] != builder}
        self._cluster.dismiss(actor)
