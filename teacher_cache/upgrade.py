"""Bring a store of an older format, and a ledger of an older schema, up to the current one, in place; no call is made.

What the teacher said stays where it is. What stores of the older format did not keep of the teacher itself is added, if
its weights are given; it can be added later, by another upgrade. An extension that was not finished is brought up with
its store. The ledger is first, since what is done to the store is recorded in it; one that is shared is brought up for
all stores, by the first of them or by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ground.errors import InvalidInput
from storage.ledger import Ledger
from storage.ledger_migrations import SCHEMA_VERSION
from storage.manifest import FORMAT_VERSION
from storage.shared_ledger import require_shared
from storage.store import Store, open_extension
from storage.store_ledger import open_ledger_of, witness_of
from storage.verify import require_recorded
from storage.witness import Witness
from teacher_cache.extend import teacher_of
from teacher_cache.outputs import kept_parameters
from teacher_cache.teachers import TeacherSource


@dataclass(slots=True)
class UpgradeReport:
    """What an upgrade did, or would do.

    Args:
        from_version: of the store on the disk.
        version: what it is afterwards.
        manifests: files that are written anew; none if there is nothing to do.
        parameters: what is added of the teacher itself.
        from_schema: of its ledger; None where that was not looked at, as it is shared and was not named, or where a
            build stopped before it could begin one.
        schema: what the ledger is of afterwards.
        done: whether anything was written.
    """

    store: Path
    from_version: int
    version: int = FORMAT_VERSION
    manifests: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    from_schema: int | None = None
    schema: int = SCHEMA_VERSION
    done: bool = False

    @property
    def has_older_ledger(self) -> bool:
        """Whether the ledger is brought up."""
        return self.from_schema not in (None, self.schema)


def upgrade(
    folder: Path, *, ledger_url: str | None = None, weights: Path | None = None, act: bool = True
) -> UpgradeReport:
    """Bring a store and its ledger up to the current format, or with `act` off say what that would change.

    Args:
        weights: of the store's own teacher, to keep what the older format did not keep of it.

    Raises:
        StoreBusy: a build is at work.
        RolledBack: the ledger is older than its witness, or a fork.
        IdentityMismatch: the weights are not those of its teacher, or the ledger is not its own.
        InvalidInput: its extension was not finished, and the weights are missing.
    """
    with Store.alone(folder, clean=act, older=True), ExitStack() as stack:
        store = Store.open(folder)
        extension = open_extension(folder)
        older = None if extension is None else extension.manifest.older
        if older is not None and older.keeps_no_parameters and weights is None:
            raise InvalidInput(
                f"an extension of {folder} was interrupted, and to finish it the teacher's last layer has to be kept "
                f"too; give the teacher's weights, with: {store.command('upgrade', weights='FILE')}"
            )
        report = UpgradeReport(folder, store.manifest.format_version)
        steps = list(_steps(store, extension, weights))
        report.manifests = [each.file_name for each, _ in steps]
        report.parameters = sorted({name for _, parameters in steps for name in parameters})
        ledger = stack.enter_context(_ledger_of(store, ledger_url, needed=bool(steps)))
        if ledger is not None:
            report.from_schema = ledger.version
        if not act or not (steps or report.has_older_ledger):
            return report
        if ledger is not None:
            ledger.upgrade()
        for each, parameters in steps:
            if ledger is not None:
                require_recorded(each, ledger)
            each.upgrade(parameters, ledger)
        if ledger is not None:
            witness_of(store, ledger).advance()
        report.done = True
    return report


@dataclass(frozen=True, slots=True)
class LedgerUpgradeReport:
    """What bringing up a ledger by itself did, or would do: the schema it was of, and is of afterwards."""

    ledger: str
    from_schema: int
    schema: int = SCHEMA_VERSION
    done: bool = False


def upgrade_ledger(url: str, *, act: bool = True) -> LedgerUpgradeReport:
    """Bring a ledger up to the current schema by itself, or with `act` off say what that would change.

    Builds that use it may be at work: each change is one transaction, and so is this.

    Raises:
        StoreUnreadable: there is no ledger, or its tables are not what releases of its schema made.
        RolledBack: it is older than its witness, or a fork.
        InvalidInput: it is a store's own, which is brought up with that; or it is sealed with a key that is not set.
    """
    with closing(Ledger(url)) as ledger:
        require_shared(ledger, url)
        witness = Witness(ledger, own=False)
        witness.require_newest()
        before = ledger.version
        if ledger.is_older and act:
            ledger.upgrade()
            witness.advance()
        return LedgerUpgradeReport(ledger.shown_url, before, done=before != ledger.version)


@contextmanager
def _ledger_of(store: Store, url: str | None, *, needed: bool) -> Iterator[Ledger | None]:
    """A store's ledger; none where a build stopped before it could begin it, which the next one does.

    Args:
        needed: also one that is shared, and was not named, which is an error then.
    """
    is_unnamed = url is None and store.manifest.ledger is not None
    if store.manifest.ledger_head is None or (is_unnamed and not needed):
        yield None
        return
    with closing(open_ledger_of(store, url)) as ledger:
        yield ledger


def _steps(
    store: Store, extension: Store | None, weights: Path | None
) -> Iterator[tuple[Store, Mapping[str, np.ndarray]]]:
    """What to write, with the parameters of the teacher to add; the extension first, as it is nobody's to read yet."""
    source = TeacherSource(name=store.manifest.identity.teacher.name, weights=weights)
    teacher = None if weights is None else teacher_of(store, source, "cpu")
    for each in filter(None, (extension, store)):
        kept = {spec.name for spec in each.manifest.identity.parameters}
        found = {} if teacher is None else kept_parameters(teacher.card, each.outputs)
        added = {name: values for name, values in found.items() if name not in kept}
        if each.manifest.older is not None or added:
            yield each, added
