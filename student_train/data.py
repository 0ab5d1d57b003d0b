"""What a student is trained from: a store's arrays, in memory, and nothing else.

Images, labels and views go to the device. Teacher outputs go there too if they take less than half of what is free,
and otherwise stay in main memory, from where each batch is fetched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ground.errors import InvalidInput, StoreIncomplete, StoreUnreadable
from ground.geometry import Rendering, shows_boxes
from ground.places import Place
from ground.seeding import generator_for
from ground.views import draw_views, render, view_pixels
from models import Representation
from models.compute import Compute
from storage.answers import AnswerForm
from storage.float_types import type_of
from storage.manifest import Manifest
from storage.rows import Rows
from storage.schema import UNLABELLED
from storage.store import Store
from storage.store_ledger import newest_head
from student_train.dense_answers import dense_answers, empty_rows, output_of_ids, require_classes
from student_train.needs import Wanted
from student_train.sampling import Batch


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images (N, H, W, 3) uint8 and labels (N,) int64, on the device; `UNLABELLED` for training rows without one."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class StudentData:
    """The first n rows of a store, with its validation and test images.

    Where the teacher's answers were read, rows with one that has no content, a refusal that was paid for, are left out.

    Args:
        views: (n, V, 3), or (n, V, 5) of boxes: what the teacher saw.
        outputs: output name -> (n, V, ...) as stored; empty for methods without a teacher.
        parameters: of the teacher, by name, where a loss needs them.
        rendering: how the student is shown images; the teacher's views are the store's all the same.
        place: the store's folder or URL.
        ledger_head: newest hash of its ledger when the data were read.
        empty_answers: rows that were left out.
    """

    place: Place
    ledger_head: str | None
    manifest: Manifest
    compute: Compute
    rendering: Rendering
    train: LabelledImages
    val: LabelledImages
    test: LabelledImages
    views: Tensor
    outputs: dict[str, Tensor]
    parameters: dict[str, Tensor]
    empty_answers: int = 0

    @classmethod
    def load(
        cls, store: Store, n: int | None, wanted: Wanted, compute: Compute, rendering: Rendering | None = None
    ) -> StudentData:
        """Read what is wanted, after checking that it is whole.

        Args:
            n: rows to train on; None for all.
            rendering: how the student is shown images; None is as the teacher was.

        Raises:
            RolledBack: the store's ledger is older than its witness, or a fork.
            InvalidInput: n is too small, memory is, the rendering is of images of another size, or the store has
                nothing to measure a student on.
            StoreUnreadable, StoreIncomplete: the store is damaged, unfinished, or lacks an output.
        """
        shown = _require_size(store, rendering)
        _require_measurable(store)
        head = newest_head(store, witnessed=True)
        rows = Rows.first(store.manifest.n if n is None else max(n, 0))
        if len(rows) < 2:
            raise InvalidInput(f"--n {n} is too small to train on; give at least 2")
        _require_whole(store, rows)
        names = _require_outputs(store, wanted.teacher)
        _require_memory(store, names, len(rows))
        # With no teacher involved, what the teacher said does not have to be read.
        kept = store.read_outputs(names, rows) if names else {}
        outputs = {name: _tensor(values) for name, values in kept.items()}
        del kept
        chosen = _with_content(store, outputs, len(rows))
        outputs = {name: _of(tensor, chosen) for name, tensor in outputs.items()}
        size = sum(tensor.nbytes for tensor in outputs.values())
        # On a CPU they are where training happens already.
        if compute.device.type != "cpu" and size < free_memory(compute) / 2:
            outputs = {name: compute.to_device(tensor) for name, tensor in outputs.items()}
        return cls(
            place=store.place.resolve(),
            ledger_head=head,
            manifest=store.manifest,
            compute=compute,
            rendering=shown,
            train=_labelled(store, "train", rows, compute, chosen),
            # A smaller n keeps the paper's proportion.
            val=_labelled(store, "val", Rows.first(min(rows.num_validation, store.manifest.num_val)), compute),
            test=_labelled(store, "test", None, compute),
            views=_of(torch.from_numpy(store.read_sample("train/views", rows)), chosen),
            outputs=outputs,
            parameters=_parameters(store, compute) if wanted.parameters else {},
            empty_answers=0 if chosen is None else len(rows) - len(chosen),
        )

    def student_view(self, asked: str) -> str:
        """ "fresh" or "teacher"; what "auto" means: maps are compared place by place, so they must be of one crop."""
        if asked != "auto":
            return asked
        shapes = {output.name: output.shape for output in self.manifest.identity.outputs}
        return "teacher" if any(len(shapes[name]) > 1 for name in self.outputs) else "fresh"

    def require_replay(self) -> None:
        """Raise `InvalidInput` if the student takes squares of another size than those that the teacher saw."""
        if shows_boxes(self.manifest.identity.view_policy):
            return  # which are resized for each
        ours, theirs = self.rendering.geometry.crop_size, self.manifest.identity.geometry.crop_size
        if ours != theirs:
            raise InvalidInput(
                f"the student is shown {ours} pixels, and the teacher's views have {theirs}; give --student-view "
                "fresh, and a method that does not need the teacher's views"
            )

    @property
    def n(self) -> int:
        """Rows to train on."""
        return len(self.train.labels)

    @property
    def num_asked(self) -> int:
        """Rows that were asked for, and whose calls were paid: those without content too."""
        return self.n + self.empty_answers

    @property
    def num_classes(self) -> int:
        """Classes of the data, and so of the student."""
        return len(self.manifest.identity.dataset.classes)

    def inputs(self, batch: Batch, step: int, *, seed: int, student_view: str) -> tuple[Tensor, Tensor]:
        """Student inputs of a step.

        Args:
            student_view: "fresh" draws a new crop and flip, or a box where the store's views are boxes; "teacher"
                replays the stored view, as a batch that holds all views of its images always does.

        Returns:
            (B, 3, h, w) float32 inputs, and (B,) int64: which of the V views stands for the teacher.
        """
        identity, rows = self.manifest.identity, batch.rows
        generator = generator_for(seed, "views", step)
        which = torch.randint(0, identity.views, (len(rows),), generator=generator)
        if batch.views > 1:
            which = torch.arange(batch.views).repeat_interleave(len(rows) // batch.views)
        if student_view == "teacher" or batch.views > 1:
            views, geometry = self.views[rows, which], identity.geometry
        else:
            geometry = self.rendering.geometry
            views = draw_views(geometry, len(rows), generator, boxes=shows_boxes(identity.view_policy))
        rendering = replace(self.rendering, geometry=geometry)
        pixels = view_pixels(self.train.images[self.compute.to_device(rows)], views, rendering)
        return render(pixels, self.rendering), which

    def teacher(self, rows: Tensor, which: Tensor) -> Representation | None:
        """What the teacher said of some rows, float32 on the device; None when nothing was loaded.

        In the place of logits are its answers over all classes (B, K), see `student_train.dense_answers`; (B, 0) of a
        store without any.
        """
        if not self.outputs:
            return None
        said = {name: self._rows(tensor, rows, which) for name, tensor in self.outputs.items()}
        form, identity = self._form, self.manifest.identity
        if form is None:
            return Representation(logits=next(iter(said.values())).new_empty(len(rows), 0), features=said)
        features = {name: tensor for name, tensor in said.items() if name not in identity.answer_names}
        return Representation(logits=dense_answers(form, said, self.num_classes), features=features)

    def named_classes(self, rows: Tensor, which: Tensor) -> Tensor | None:
        """Classes that the teacher's answers to some rows name, (B, k) int64 on the device; None where it names all."""
        name = output_of_ids(self._form) if self._form is not None and self.outputs else None
        return None if name is None else self._rows(self.outputs[name], rows, which)

    @property
    def _form(self) -> AnswerForm | None:
        return self.manifest.identity.answer_form

    def _rows(self, tensor: Tensor, rows: Tensor, which: Tensor) -> Tensor:
        chosen = self.compute.to_device(tensor[rows.to(tensor.device), which.to(tensor.device)])
        return chosen.float() if chosen.is_floating_point() else chosen.long()


def _tensor(values: np.ndarray) -> Tensor:
    """An output as it is stored, in its type."""
    if type_of(values) == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _with_content(store: Store, outputs: Mapping[str, Tensor], rows: int) -> Tensor | None:
    """Which rows have answers with content: (m,) int64, or None for all of them.

    Raises:
        InvalidInput: too few of them have.
        StoreUnreadable: an answer names what is no class.
    """
    identity = store.manifest.identity
    answers = {name: outputs[name] for name in identity.answer_names if name in outputs}
    if not answers:
        return None
    empty = empty_rows(answers)
    chosen = (~empty).nonzero().squeeze(1) if empty.any() else None
    if chosen is not None and len(chosen) < 2:
        raise InvalidInput(
            f"{len(chosen)} of {rows} rows of {store.place} have an answer with content, and the others were refused "
            "by the teacher; give a larger --n, or another store"
        )
    named = {name: _of(values, chosen) for name, values in answers.items() if not values.is_floating_point()}
    require_classes(named, len(identity.dataset.classes), store.place)
    return chosen


def _of(tensor: Tensor, chosen: Tensor | None) -> Tensor:
    return tensor if chosen is None else tensor[chosen]


def _require_size(store: Store, rendering: Rendering | None) -> Rendering:
    """The rendering to use, for base images as the store has them."""
    identity = store.manifest.identity
    if rendering is None:
        return identity.teacher_rendering
    asked, found = rendering.geometry.image_size, identity.geometry.image_size
    if asked != found:
        raise InvalidInput(f"the student's views are cut from {asked} pixels, and {store.place} has images of {found}")
    return rendering


def _require_measurable(store: Store) -> None:
    """Refuse what gives accuracies that say nothing, which no build makes."""
    manifest = store.manifest
    for split, images in (("validation", manifest.num_val), ("test", manifest.num_test)):
        if not images:
            raise InvalidInput(
                f"{store.place} has no {split} images, so no student's accuracy can be measured; build another store"
            )
    if len(manifest.identity.dataset.classes) < 2:
        raise InvalidInput(
            f"{store.place} has a single class, so every student would be right; build a store of two classes or more"
        )


def _require_whole(store: Store, rows: Rows) -> None:
    """Refuse rows that are not whole, and say which could be trained on instead."""
    try:
        store.require_rows(rows)
    except StoreIncomplete as error:
        prefix = store.valid_prefix()
        if prefix < 2:
            raise
        raise StoreIncomplete(f"{error}; or train on what is whole, with: --n {prefix}") from error


def _require_outputs(store: Store, needs: Iterable[str]) -> list[str]:
    wanted = sorted(needs)
    if not wanted:
        return []
    identity = store.manifest.identity
    known = {output.name for output in identity.outputs}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise StoreIncomplete(
            f"{store.place} holds {', '.join(sorted(known))} and the loss needs {', '.join(missing)}; add it with: "
            f"{store.command('extend', features=','.join(missing), weights=store.manifest.sources.get('weights'))}"
        )
    return sorted({*(output.name for output in identity.answers), *wanted})


def _parameters(store: Store, compute: Compute) -> dict[str, Tensor]:
    return {name: compute.to_device(torch.from_numpy(values)) for name, values in store.read_parameters().items()}


def _require_memory(store: Store, names: list[str], rows: int) -> None:
    """Refuse before loading what main memory cannot hold."""
    specs = store.arrays.specs
    needed = rows * sum(specs[name].row_bytes for name in [*map(store.array_of, names), "train/images", "train/views"])
    needed += sum(store.manifest.rows[split] * specs[f"{split}/images"].row_bytes for split in ("val", "test"))
    free = free_main_memory()
    if needed > free:
        raise InvalidInput(
            f"{', '.join(['images', *names])} of {rows} rows take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of "
            "memory are free; lower --n, or use losses that need fewer features"
        )


def free_main_memory() -> float:
    """Bytes."""
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def free_memory(compute: Compute) -> float:
    """Bytes that are free where training happens."""
    if compute.device.type == "cuda":
        return float(torch.cuda.mem_get_info(compute.device)[0])
    return free_main_memory()


def _labelled(
    store: Store, split: str, rows: Rows | None, compute: Compute, chosen: Tensor | None = None
) -> LabelledImages:
    images, labels = (store.read_sample(f"{split}/{name}", rows) for name in ("images", "labels"))
    classes = len(store.manifest.identity.dataset.classes)
    least = UNLABELLED if split == "train" else 0
    if len(labels) and not least <= labels.min() <= labels.max() < classes:
        raise StoreUnreadable(f"{split}/labels of {store.place} name classes beyond its {classes}")
    return LabelledImages(*(compute.to_device(_of(torch.from_numpy(values), chosen)) for values in (images, labels)))
