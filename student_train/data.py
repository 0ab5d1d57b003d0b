"""What a student is trained from: a store's arrays, in memory, and nothing else.

Images, labels and views go to the device. Teacher outputs go there too if they take less than half of what is free,
and otherwise stay in main memory, from where each batch is fetched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ground.errors import InvalidInput, StoreIncomplete, StoreUnreadable, store_command
from ground.seeding import generator_for
from ground.views import apply_views, draw_views
from models import Representation
from models.compute import Compute
from storage.manifest import Manifest
from storage.rows import Rows, num_validation
from storage.schema import output_array
from storage.store import Store
from storage.store_ledger import newest_head
from student_train.needs import Wanted
from student_train.sampling import Batch

STUDENT_VIEWS = ("auto", "fresh", "teacher")


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images (N, H, W, 3) uint8 and labels (N,) int64, on the device."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class StudentData:
    """The first n rows of a store, with its validation and test images.

    Args:
        views: (n, V, 3), what the teacher saw.
        outputs: output name -> (n, V, ...) as stored; empty for methods without a teacher.
        parameters: of the teacher, by name, where a loss needs them.
        folder: the store's.
        ledger_head: newest hash of its ledger when the data were read.
    """

    folder: Path
    ledger_head: str | None
    manifest: Manifest
    compute: Compute
    train: LabelledImages
    val: LabelledImages
    test: LabelledImages
    views: Tensor
    outputs: dict[str, Tensor]
    parameters: dict[str, Tensor]

    @classmethod
    def load(cls, store: Store, n: int | None, wanted: Wanted, compute: Compute) -> StudentData:
        """Read what is wanted, after checking that it is whole.

        Args:
            n: rows to train on; None for all.

        Raises:
            StoreUnreadable, StoreIncomplete: the store is damaged, unfinished, or lacks an output.
        """
        head = newest_head(store)
        rows = store.manifest.n if n is None else n
        if rows < 2:
            raise InvalidInput(f"--n {rows} is too small to train on; give at least 2")
        store.require_rows(Rows.first(rows))
        names = _require_outputs(store, wanted.teacher)
        _require_memory(store, names, rows)
        # With no teacher involved, what the teacher said does not have to be read.
        kept = store.read_outputs(names, Rows.first(rows)) if names else {}
        outputs = {name: torch.from_numpy(values) for name, values in kept.items()}
        size = sum(tensor.nbytes for tensor in outputs.values())
        # On a CPU they are where training happens already.
        if compute.device.type != "cpu" and size < free_memory(compute) / 2:
            outputs = {name: compute.to_device(tensor) for name, tensor in outputs.items()}
        return cls(
            folder=store.folder.resolve(),
            ledger_head=head,
            manifest=store.manifest,
            compute=compute,
            train=_labelled(store, "train", rows, compute),
            # A smaller n keeps the paper's proportion.
            val=_labelled(store, "val", min(num_validation(rows), store.manifest.num_val), compute),
            test=_labelled(store, "test", store.manifest.num_test, compute),
            views=torch.from_numpy(store.read_sample("train/views", Rows.first(rows))),
            outputs=outputs,
            parameters=_parameters(store, compute) if wanted.parameters else {},
        )

    def student_view(self, asked: str) -> str:
        """ "fresh" or "teacher"; what "auto" means: maps are compared place by place, so they must be of one crop."""
        if asked != "auto":
            return asked
        shapes = {output.name: output.shape for output in self.manifest.identity.outputs}
        return "teacher" if any(len(shapes[name]) > 1 for name in self.outputs) else "fresh"

    @property
    def n(self) -> int:
        """Rows to train on."""
        return len(self.train.labels)

    @property
    def num_classes(self) -> int:
        """Classes of the teacher, and so of the student."""
        return self.manifest.identity.teacher.num_classes

    def inputs(self, batch: Batch, step: int, *, seed: int, student_view: str) -> tuple[Tensor, Tensor]:
        """Student inputs of a step.

        Args:
            student_view: "fresh" draws a new crop and flip; "teacher" replays the stored view, as a batch that holds
                all views of its images always does.

        Returns:
            (B, 3, h, w) float32 inputs, and (B,) int64: which of the V views stands for the teacher.
        """
        identity, rows = self.manifest.identity, batch.rows
        generator = generator_for(seed, "views", step)
        which = torch.randint(0, identity.views, (len(rows),), generator=generator)
        if batch.views > 1:
            which = torch.arange(batch.views).repeat_interleave(len(rows) // batch.views)
        if student_view == "teacher" or batch.views > 1:
            views = self.views[rows, which]
        else:
            views = draw_views(identity.geometry, len(rows), generator)
        pixels = apply_views(self.train.images[self.compute.to_device(rows)], views, identity.geometry)
        return identity.teacher.normalisation.apply(pixels), which

    def teacher(self, rows: Tensor, which: Tensor) -> Representation | None:
        """What the teacher said of some rows, float32 on the device; None when nothing was loaded."""
        if not self.outputs:
            return None
        said = {name: self._rows(tensor, rows, which) for name, tensor in self.outputs.items()}
        logits = said.pop("logits")
        return Representation(logits=logits, features=said)

    def _rows(self, tensor: Tensor, rows: Tensor, which: Tensor) -> Tensor:
        chosen = tensor[rows.to(tensor.device), which.to(tensor.device)]
        return self.compute.to_device(chosen).float()


def _require_outputs(store: Store, needs: Iterable[str]) -> list[str]:
    wanted = sorted(needs)
    if not wanted:
        return []
    identity = store.manifest.identity
    known = {output.name for output in identity.outputs}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise StoreIncomplete(
            f"{store.folder} holds {', '.join(sorted(known))} and the loss needs {', '.join(missing)}; add it with: "
            f"{store_command('extend', store.folder, features=','.join(missing))}"
        )
    return sorted({"logits", *wanted})


def _parameters(store: Store, compute: Compute) -> dict[str, Tensor]:
    return {name: compute.to_device(torch.from_numpy(values)) for name, values in store.read_parameters().items()}


def _require_memory(store: Store, names: list[str], rows: int) -> None:
    """Refuse before loading what main memory cannot hold."""
    needed = rows * sum(store.arrays.specs[output_array(name)].row_bytes for name in names)
    free = free_main_memory()
    if needed > free:
        raise InvalidInput(
            f"{', '.join(names)} of {rows} rows take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free; "
            "lower --n, or use losses that need fewer features"
        )


def free_main_memory() -> float:
    """Bytes."""
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def free_memory(compute: Compute) -> float:
    """Bytes that are free where training happens."""
    if compute.device.type == "cuda":
        return float(torch.cuda.mem_get_info(compute.device)[0])
    return free_main_memory()


def _labelled(store: Store, split: str, rows: int, compute: Compute) -> LabelledImages:
    images, labels = (store.read_sample(f"{split}/{name}", Rows.first(rows)) for name in ("images", "labels"))
    classes = store.manifest.identity.teacher.num_classes
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise StoreUnreadable(f"{split}/labels of {store.folder} name classes beyond the {classes} of its teacher")
    return LabelledImages(*(compute.to_device(torch.from_numpy(values)) for values in (images, labels)))
