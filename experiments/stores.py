"""The stores of a grid: one for each teacher and sample at the largest n, built, grown or extended as the grid asks for
more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from experiments.grid import Grid
from experiments.images import GridImages
from experiments.plan import PlannedRun, StoreNeed, as_bought, refused_of
from experiments.rules import RANDOM, students_of, with_students
from ground.errors import CKDError, InvalidInput
from ground.terminal import note, progress
from models.compute import Compute
from models.remote_names import is_remote
from storage.ledger import check_budget
from storage.manifest import FILE_NAME, Manifest
from storage.run_proof import RunProofs
from storage.store import Store
from storage.store_ledger import own_ledger
from teacher_cache.build import build, lay_out
from teacher_cache.build_report import BuildReport
from teacher_cache.buying import buy
from teacher_cache.config import BuildConfig, ExtensionConfig
from teacher_cache.datasets import ImageDataset
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.fallback import run_wide_enough
from teacher_cache.prepare import Prepared, prepare_build, prepare_test_build
from teacher_cache.rest import Rest
from teacher_cache.selection import SelectorSpec
from teacher_cache.teacher_training import TrainingConfig, train_teacher
from teacher_cache.teachers import Teacher
from teacher_cache.teachers.attempts import RemoteTeacher


@dataclass(frozen=True, slots=True)
class StorePlan:
    """What it takes to have a store as the grid needs it.

    Args:
        extension: first, calls for outputs that an existing store lacks; None where it lacks none.
        build: then, calls for rows that it lacks.
    """

    extension: Prepared | None
    build: Prepared

    @property
    def new_calls(self) -> int:
        """Calls still to be paid."""
        return sum(part.plan.needed_calls for part in self._parts)

    @property
    def bytes(self) -> int:
        """Room on the disk, uncompressed."""
        return sum(self._parts[0].plan.array_bytes.values())

    def seconds(self) -> float:
        """An estimate for the calls still to be made; how fast a teacher elsewhere is, only its limits say."""
        return sum(part.seconds() or 0.0 for part in self._parts)

    def let_go(self) -> None:
        """Hold no images, while others are planned or students are trained; whoever needs them decodes them again."""
        for part in self._parts:
            part.shown.let_go()

    @property
    def fingerprint(self) -> str:
        """Of the teacher."""
        return self.build.plan.identity.teacher.fingerprint

    @property
    def _parts(self) -> list[Prepared]:
        return [part for part in (self.extension, self.build) if part is not None]


class Stores:
    """Plans and makes the stores of a grid.

    Args:
        out: the grid's folder.
        dataset: its images, as `open_images` gives them, where they are open already: every file is read, once, for the
            digest.

    Attributes:
        images: what all of them keep.
        grid: the same, with its rules as they were bought (`as_bought`), and without the row of labels alone where no
            labels are kept.

    Raises:
        InvalidInput: they cannot be opened, or a sample is larger than they are many; the message names the line.
    """

    def __init__(self, grid: Grid, out: Path, device: str, dataset: ImageDataset | None = None) -> None:
        self.out, self.device = out, device
        self.grid = as_bought(grid, out)
        self.images = GridImages(self.grid, dataset)
        if not self.images.keeps_labels:
            self.grid = replace(self.grid, labels_only=None)
        self._teachers: dict[tuple[str, Path | None], Teacher | RemoteTeacher] = {}

    def check_proxies(self, runs: Iterable[PlannedRun]) -> None:
        """Raise `InvalidInput` with the line if a proxy is not of the store that its run learns from, or drew on other
        answers; of one that nothing vouches for, warn once.
        """
        entries, proofs = {entry.label: entry for entry in self.grid.methods}, RunProofs()
        doubts = []
        for run in runs:
            for proxy in (proxy for spec in run.spec.rest for proxy in spec.proxies):
                folder = self.out / run.store
                try:
                    if not (folder / FILE_NAME).exists():
                        raise InvalidInput(
                            f"the proxy {proxy.folder} cannot be of {folder}, which is not there yet; train one from it"
                        )
                    doubt = proxy.require_of(Store.open(folder), run.n, proofs, exactly=not run.spec.asks_teacher)
                except CKDError as error:
                    raise refused_of(self.grid, entries[run.label], error) from error
                doubts += [] if doubt is None else [doubt]
        for doubt in dict.fromkeys(doubts):
            note(doubt)

    def with_weights(self, need: StoreNeed) -> StoreNeed:
        """The need with the file of a teacher that the grid trains; trains it if it is not there."""
        if need.teacher_epochs is None:
            return need
        path = self.own_weights(need)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            training = TrainingConfig(teacher=need.teacher, epochs=need.teacher_epochs)
            with progress(f"teacher {need.teacher}: epochs", need.teacher_epochs) as advance:
                report = train_teacher(
                    training, self.images.of(need.teacher), path, Compute.choose(self.device), advance
                )
            note(f"teacher {need.teacher}: test accuracy {report['test_accuracy']:.4f}")
        return replace(need, weights=path)

    def own_weights(self, need: StoreNeed) -> Path:
        """Where the grid keeps a teacher that it trains itself; another training is another file."""
        return self.out / "teachers" / f"{need.name}-{need.teacher_epochs}epochs.safetensors"

    def plan(self, need: StoreNeed, stand_in: Teacher | None = None) -> StorePlan:
        """Look at what is there, and count what is to be called; nothing is called or written.

        Args:
            stand_in: in the place of a teacher that the grid is yet to train.

        Raises:
            CKDError: anything that would make the build fail later, the budget included.
        """
        folder = self.out / need.folder
        kept = _kept_outputs(folder)
        missing = [] if kept is None else [name for name in need.features if name not in kept]
        # What a store keeps beyond what is needed stays.
        features = need.features if kept is None else kept
        config = self._build_config(need, folder, features, self.grid.sizes[-1])
        plan = StorePlan(
            extension=self._plan_extension(need, folder, missing) if missing else None,
            build=self._prepared_by(prepare_build, config, need, stand_in),
        )
        if plan.extension is not None:
            # Each of the two fits the budget by itself.
            with closing(own_ledger(folder)) as ledger:
                account = ledger.summary(plan.fingerprint)
            budget = account.budget if self.grid.store.budget is None else self.grid.store.budget
            check_budget(need.teacher, spent=account.spent, budget=budget, wanted=plan.new_calls)
        return plan

    def plan_all(self, needs: Mapping[StoreNeed, Teacher | None]) -> dict[StoreNeed, StorePlan]:
        """As `plan`, of each with its stand-in. The images of a single store are held, and of several those of none."""
        plans = {}
        for need, stand_in in needs.items():
            plans[need] = self.plan(need, stand_in)
            if len(needs) > 1:
                plans[need].let_go()
        return plans

    def make(self, need: StoreNeed, plan: StorePlan, runs: Sequence[PlannedRun] = (), most: int | None = None) -> int:
        """Make the store hold what the grid needs; returns the calls that were made.

        Args:
            runs: of the grid, whose students a rule may look at.
            most: the largest n to buy by a rule; None for all of the grid.

        Raises:
            BudgetRefused: before the first call.
            StudentsMissing: a rule looks at students, of which there are none.
            Interrupted: the user asked to stop; everything called so far is kept.
        """
        made = 0
        if plan.extension is not None:
            config = self._extension_config(need, self.out / need.folder, plan.extension.plan.called_names)
            label = f"{need.folder}: teacher calls for more outputs"
            made += run_wide_enough(config, plan.extension, prepare_extension, partial(_extend, label)).new_calls
            plan = self.plan(need)
        if need.select == RANDOM:
            return made + self._build(need, plan.build)
        return made + self._buy(need, plan.build, runs, self.grid.sizes[-1] if most is None else most)

    def lay_out(self, need: StoreNeed, plan: StorePlan) -> None:
        """Make the store with all its images and without a call, as far as that is not done."""
        room, folder, prepared = self.grid.room or self.grid.sizes[-1], self.out / need.folder, plan.build
        if (folder / FILE_NAME).exists() and Manifest.load(folder).n >= room and self._is_held(folder, plan):
            return
        config = self._build_config(need, folder, [*prepared.plan.identity.features], room)
        config = replace(config, budget=sys.maxsize)  # room for more answers than may be paid for: none is
        made = prepare_build(config, self.images.of(need.teacher), prepared.teacher)
        lay_out(*made, budget=self.grid.store.budget)

    def _is_held(self, folder: Path, plan: StorePlan) -> bool:
        """Whether a budget is on record, where the grid has one; a store is made before it is."""
        if self.grid.store.budget is None:
            return True
        with closing(own_ledger(folder)) as ledger:
            return ledger.summary(plan.fingerprint).budget is not None

    def _build(self, need: StoreNeed, prepared: Prepared) -> int:
        features = [*prepared.plan.identity.features]
        config = self._build_config(need, self.out / need.folder, features, self.grid.sizes[-1])
        again = partial(prepare_build, dataset=self.images.of(need.teacher), teacher=prepared.teacher)
        return run_wide_enough(config, prepared, again, partial(_build, need.folder)).new_calls

    def _buy(self, need: StoreNeed, prepared: Prepared, runs: Sequence[PlannedRun], most: int) -> int:
        """Rows by a rule, in a round for each n of the grid; what was begun is finished first, and what is left of the
        pool kept last.
        """
        folder, features = self.out / need.folder, [*prepared.plan.identity.features]
        again = partial(prepare_build, dataset=self.images.of(need.teacher), teacher=prepared.teacher)
        there, made = Manifest.load(folder).n if (folder / FILE_NAME).exists() else 0, 0
        begun = [min(there, most)] if there else []
        for end in [*begun, *(n for n in self.grid.sizes if there < n <= most)]:
            config = self._build_config(need, folder, features, end)
            if end > there:
                config = replace(config, select=self._rule_of(need, runs))
            if end < self.grid.sizes[-1]:
                config = replace(config, rest=None)
            made += buy(config, None, partial(_build, need.folder), again).new_calls
        return made

    def _rule_of(self, need: StoreNeed, runs: Sequence[PlannedRun]) -> SelectorSpec:
        """The rule of the next round, with the folders of the students that it looks at; random for the first."""
        labels, folder = students_of(need.select), self.out / need.folder
        if not labels:
            return SelectorSpec(need.select)
        if not (folder / FILE_NAME).exists():
            return SelectorSpec(RANDOM)
        there = Manifest.load(folder).n
        if there not in self.grid.sizes:
            raise InvalidInput(
                f"{need.select} looks at students of what it has bought, which is {there} images in {folder}, and the "
                f"grid has no such n; name {there} too"
            )
        methods = {entry.label: entry.base for entry in self.grid.methods}
        trained = [run for run in runs if run.store == need.folder and run.n == there]
        return with_students(
            need.select,
            {
                label: [(self.out / run.folder).absolute() for run in trained if methods[run.label] == label]
                for label in labels
            },
        )

    def plan_test(self, need: StoreNeed, stand_in: Teacher | None = None) -> Prepared:
        """What the calls on test images take, which are the same for every sample; see `prepare_test_build`."""
        config = self._build_config(need, self.out / need.folder_of_tests, (), self.grid.test_images)
        config = replace(config, seed=self.grid.store.seed, budget=None, rest=None)
        return self._prepared_by(prepare_test_build, config, need, stand_in)

    def _prepared_by(
        self, prepare: Callable[..., Prepared], config: BuildConfig, need: StoreNeed, stand_in: Teacher | None
    ) -> Prepared:
        """A build, with the teacher of the stores before it where that is one of this machine."""
        if stand_in is not None or is_remote(need.teacher):
            return prepare(config, self.images.of(need.teacher), stand_in)
        key = need.teacher, need.weights
        prepared = prepare(config, self.images.of(need.teacher), self._teachers.get(key))
        self._teachers[key] = prepared.teacher
        return prepared

    def make_test(self, need: StoreNeed, prepared: Prepared) -> int:
        """Call the teacher on the test images, once; returns the calls that were made."""
        report = BuildReport(prepared.plan.config.store, prepared.plan.n)
        _build(need.folder_of_tests, prepared, report)
        return report.new_calls

    def _build_config(self, need: StoreNeed, folder: Path, features: Sequence[str], n: int) -> BuildConfig:
        grid, settings = self.grid, self.grid.store
        return BuildConfig(
            teacher=need.teacher,
            n=n,
            store=folder,
            dataset=grid.dataset,
            data_root=grid.data_root,
            image_size=grid.image_size,
            split=grid.split,
            split_seed=grid.split_seed,
            weights=need.weights,
            array_format=settings.array_format,
            features=",".join(features) or "none",
            feature_dtype=settings.feature_dtype,
            views=settings.views,
            view_policy=settings.view_policy,
            seed=need.sample_seed,
            budget=settings.budget,
            device=self.device,
            trust_teacher=settings.trust_teacher,
            rest=Rest(settings.rest),
        )

    def _plan_extension(self, need: StoreNeed, folder: Path, missing: Sequence[str]) -> Prepared:
        return prepare_extension(self._extension_config(need, folder, missing))

    def _extension_config(self, need: StoreNeed, folder: Path, missing: Sequence[str]) -> ExtensionConfig:
        settings = self.grid.store
        return ExtensionConfig(
            store=folder,
            features=",".join(missing),
            weights=need.weights,
            budget=settings.budget,
            feature_dtype=settings.feature_dtype,
            device=self.device,
        )


def _build(label: str, prepared: Prepared, report: BuildReport) -> None:
    plan = prepared.plan
    if not len(plan.missing_cells) and _num_kept(plan.config.folder) >= plan.num_images:
        return
    with progress(f"{label}: teacher calls", plan.total_calls, plan.total_calls - len(plan.missing_cells)) as advance:
        build(*prepared, advance, report)


def _extend(label: str, prepared: Prepared, report: BuildReport) -> None:
    with progress(label, prepared.plan.total_calls) as advance:
        extend(*prepared, advance, report)


def _num_kept(folder: Path) -> int:
    """Training images in a store, answered or not."""
    return Manifest.load(folder).num_images if (folder / FILE_NAME).exists() else 0


def _kept_outputs(folder: Path) -> tuple[str, ...] | None:
    if not (folder / FILE_NAME).exists():
        return None
    return tuple(Store.open(folder).manifest.identity.features)
