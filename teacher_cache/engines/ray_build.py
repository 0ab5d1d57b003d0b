"""`--engine ray`: a build by several builders of one store, each on its share of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from ground.errors import InvalidInput
from ground.ray_cluster import Cluster, Share, joined
from ground.terminal import graceful_stop
from storage.database import parse_url, sqlite_path
from storage.ledger import Ledger
from storage.store import Store
from storage.store_ledger import open_ledger_of
from teacher_cache.build_report import BuildReport
from teacher_cache.config import BuildConfig
from teacher_cache.engines.nodes import require_nodes
from teacher_cache.engines.progress import StoreProgress
from teacher_cache.engines.ray_site import RaySite
from teacher_cache.engines.spent import newest_session, paid_since
from teacher_cache.engines.team import Team
from teacher_cache.plan import BuildPlan, matching_store

# What of several builders' reports adds up; what was paid for is the ledger's to say.
_SUMMED = ("reused_calls", "adopted_calls", "lost_calls", "refused_calls", "unanswered_calls", "returned_calls")


@dataclass(frozen=True, slots=True, kw_only=True)
class RayEngine:
    """Where builders run.

    Args:
        workers: how many, at once.
        address: of a cluster; None for $RAY_ADDRESS, or one of this machine alone.
        gpus: of each builder; None for one where the cluster has any, and the device is not the CPU.
    """

    workers: int
    address: str | None = None
    gpus: float | None = None

    def check(self, device: str) -> None:
        """Raise `InvalidInput` for what means nothing together; no cluster is needed for that."""
        Share(gpus=self.gpus or 0.0).check(device, "--gpus-per-worker")

    def share(self, cluster: Cluster, device: str) -> Share:
        """What each builder takes; raises `InvalidInput` where the cluster does not hold them."""
        gpus = self.gpus
        if gpus is None:
            gpus = float(device != "cpu" and cluster.gpus > 0)
        if device == "cuda" and not gpus:
            raise InvalidInput("--device cuda needs a GPU for each builder, and they are given none; say cpu, or auto")
        share, room = Share(gpus=gpus), cluster.capacity(Share(gpus=gpus))
        if room < self.workers:
            raise InvalidInput(
                f"the Ray cluster holds {room} builders of a CPU and {gpus:g} GPUs each, and --workers is "
                f"{self.workers}; ask for fewer, or give each less with --gpus-per-worker"
            )
        return share


def build_with_ray(
    plan: BuildPlan, engine: RayEngine, on_progress: Callable[[int, str], None], report: BuildReport
) -> None:
    """Make the plan's rows whole, by builders elsewhere; see `teacher_cache.build.build`.

    Args:
        on_progress: told of cells that became whole, whoever wrote them.
        report: to be added to; what builders that died paid for is in it too.

    Raises:
        InvalidInput: before any call, if Ray or a node lacks something, or the ledger cannot be shared by the nodes.
        CKDError: as `build`, or builders died too often.
    """
    config = plan.config
    assert isinstance(config, BuildConfig), "an extension is made on one machine"
    before = _newest_session(plan)
    with joined(engine.address, cpus=engine.workers) as cluster:
        share = engine.share(cluster, config.device)
        elsewhere = _for_everywhere(plan, config, share)
        _require_nodes(cluster, elsewhere)
        progress = StoreProgress(plan, on_progress)
        with graceful_stop() as stop, RaySite(cluster, share, elsewhere) as site:
            team = Team(site, engine.workers, plan.identity, lambda count: progress.tell(_shown(count)))
            reports = team.build(stop)
    progress.tell("")
    progress.look()
    _add_up(plan, before, reports, report)


def _shown(at_work: int) -> str:
    return f"{at_work} builders at work" if at_work else "builders load, and look at what they have"


def _for_everywhere(plan: BuildPlan, config: BuildConfig, share: Share) -> BuildConfig:
    """The same build, as seen from a process that was started in another folder."""
    weights = config.weights or plan.sources.get("weights")
    return replace(
        config,
        store=config.store.absolute(),
        weights=None if weights is None else Path(weights).absolute(),
        data_root=None if config.data_root is None else config.data_root.absolute(),
        # A GPU that it was not given is another's.
        device=config.device if share.gpus else "cpu",
    )


def _require_nodes(cluster: Cluster, config: BuildConfig) -> None:
    file = None if config.ledger is None else sqlite_path(parse_url(config.ledger))
    machines = require_nodes(
        cluster,
        files=[] if config.weights is None else [config.weights],
        folders=[config.folder, *([] if file is None else [file.parent])],
    )
    if machines > 1 and (config.ledger is None or file is not None):
        raise InvalidInput(
            f"the cluster has {machines} machines, and an SQLite ledger is for one: give --ledger postgresql://... for "
            "a new store, or start Ray on this machine alone by leaving --ray-address out"
        )


def _add_up(plan: BuildPlan, before: int, reports: list[BuildReport], report: BuildReport) -> None:
    store = _store(plan)
    assert store is not None, "a builder ended well"
    with closing(_ledger(plan, store)) as ledger:
        paid = paid_since(ledger, store.manifest.store_id, before)
    report.new_calls += paid.calls
    report.cost_micros += paid.micros
    for name in _SUMMED:
        setattr(report, name, getattr(report, name) + sum(getattr(one, name) for one in reports))
    report.rows_valid, report.rest = max(one.rows_valid for one in reports), store.manifest.rest


def _newest_session(plan: BuildPlan) -> int:
    store = _store(plan)
    if store is None or store.manifest.ledger_head is None:
        return 0
    with closing(_ledger(plan, store)) as ledger:
        return newest_session(ledger)


def _store(plan: BuildPlan) -> Store | None:
    return matching_store(plan.config.store, plan.identity, plan.array_format)


def _ledger(plan: BuildPlan, store: Store) -> Ledger:
    return open_ledger_of(store, plan.config.ledger, accept_rollback=plan.config.accept_rollback)
