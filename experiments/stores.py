"""The stores of a grid: one for each teacher and sample at the largest n, built, grown or extended as the grid asks for
more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.grid import Grid
from experiments.plan import StoreNeed
from ground.errors import CKDError, InvalidInput
from ground.terminal import note, progress
from models.compute import Compute
from storage.ledger import check_budget
from storage.manifest import FILE_NAME
from storage.store import Store
from storage.store_ledger import own_ledger
from teacher_cache.build import build
from teacher_cache.config import BuildConfig, ExtensionConfig
from teacher_cache.datasets import ImageDataset, open_dataset
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import Prepared, prepare_build, prepare_test_build
from teacher_cache.sample import draw_sample
from teacher_cache.teacher_training import TrainingConfig, train_teacher
from teacher_cache.teachers import Teacher


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
        """An estimate for the calls still to be made."""
        return sum(part.seconds() for part in self._parts)

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
        dataset: its images, where they are open already: every file is read, once, for the digest.

    Raises:
        InvalidInput: they cannot be opened; the message names the line.
    """

    def __init__(self, grid: Grid, out: Path, device: str, dataset: ImageDataset | None = None) -> None:
        self.grid, self.out, self.device = grid, out, device
        self.dataset = open_images(grid) if dataset is None else dataset

    def check_sizes(self) -> None:
        """Raise `InvalidInput` with the line if a sample is larger than the images there are."""
        try:
            # One sample is as large as another.
            draw_sample(len(self.dataset.train), self.grid.sizes[-1], self.grid.samples[0], self.dataset.is_labelled)
        except InvalidInput as error:
            raise self.grid.refused("n", error) from error
        if self.grid.test_images > len(self.dataset.test):
            raise self.grid.refused("test_images", f"{self.dataset.name} has {len(self.dataset.test)} test images")

    def with_weights(self, need: StoreNeed) -> StoreNeed:
        """The need with the file of a teacher that the grid trains; trains it if it is not there."""
        if need.teacher_epochs is None:
            return need
        path = self.own_weights(need)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            training = TrainingConfig(teacher=need.teacher, epochs=need.teacher_epochs)
            with progress(f"teacher {need.teacher}: epochs", need.teacher_epochs) as advance:
                report = train_teacher(training, self.dataset, path, Compute.choose(self.device), advance)
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
            build=prepare_build(config, self.dataset, stand_in),
        )
        if plan.extension is not None:
            # Each of the two fits the budget by itself.
            with closing(own_ledger(folder)) as ledger:
                account = ledger.summary(plan.fingerprint)
            budget = account.budget if self.grid.store.budget is None else self.grid.store.budget
            check_budget(need.teacher, spent=account.spent, budget=budget, wanted=plan.new_calls)
        return plan

    def make(self, need: StoreNeed, plan: StorePlan) -> int:
        """Make the store hold what the grid needs; returns the calls that were made.

        Raises:
            BudgetRefused: before the first call.
            Interrupted: the user asked to stop; everything called so far is kept.
        """
        made = 0
        if plan.extension is not None:
            total = plan.extension.plan.total_calls
            with progress(f"{need.folder}: teacher calls for more outputs", total) as advance:
                made += extend(*plan.extension, advance).new_calls
            plan = self.plan(need)
        return made + _build(need.folder, plan.build)

    def plan_test(self, need: StoreNeed, stand_in: Teacher | None = None) -> Prepared:
        """What the calls on test images take, which are the same for every sample; see `prepare_test_build`."""
        config = self._build_config(need, self.out / need.folder_of_tests, (), self.grid.test_images)
        return prepare_test_build(replace(config, seed=self.grid.store.seed, budget=None), self.dataset, stand_in)

    def make_test(self, need: StoreNeed, prepared: Prepared) -> int:
        """Call the teacher on the test images, once; returns the calls that were made."""
        return _build(need.folder_of_tests, prepared)

    def _build_config(self, need: StoreNeed, folder: Path, features: Sequence[str], n: int) -> BuildConfig:
        grid, settings = self.grid, self.grid.store
        return BuildConfig(
            teacher=need.teacher,
            n=n,
            store=folder,
            dataset=grid.dataset,
            data_root=grid.data_root,
            image_size=grid.image_size,
            weights=need.weights,
            array_format=settings.array_format,
            features=",".join(features) or "none",
            feature_dtype=settings.feature_dtype,
            views=settings.views,
            view_policy=settings.view_policy,
            seed=need.sample_seed,
            budget=settings.budget,
            device=self.device,
        )

    def _plan_extension(self, need: StoreNeed, folder: Path, missing: Sequence[str]) -> Prepared:
        settings = self.grid.store
        return prepare_extension(
            ExtensionConfig(
                store=folder,
                features=",".join(missing),
                weights=need.weights,
                budget=settings.budget,
                feature_dtype=settings.feature_dtype,
                device=self.device,
            )
        )


def open_images(grid: Grid) -> ImageDataset:
    """The images that a grid names; raises `InvalidInput` with the line if they are not there."""
    try:
        return open_dataset(grid.dataset, data_root=grid.data_root, image_size=grid.image_size)
    except CKDError as error:
        raise grid.refused("dataset", error) from error


def _build(label: str, prepared: Prepared) -> int:
    plan = prepared.plan
    if not len(plan.missing_cells):
        return 0
    with progress(f"{label}: teacher calls", plan.total_calls, plan.total_calls - len(plan.missing_cells)) as advance:
        return build(*prepared, advance).new_calls


def _kept_outputs(folder: Path) -> tuple[str, ...] | None:
    if not (folder / FILE_NAME).exists():
        return None
    return tuple(output.name for output in Store.open(folder).outputs if output.name != "logits")
