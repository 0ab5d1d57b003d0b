"""What a student is trained from: a store's arrays and nothing else, in memory or from a stream.

In memory, images, labels and views go to the device. Teacher outputs go there too if they take less than half of what
is free, and otherwise stay in main memory, from where each batch is fetched. What a stream does:
`student_train.streamed_data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ground.errors import InvalidInput, StoreUnreadable
from ground.geometry import Rendering, shows_boxes
from ground.main_memory import free_main_memory
from ground.places import Place
from ground.seeding import generator_for
from ground.views import evaluation_batches, render, view_pixels
from models import Representation
from models.compute import Compute
from storage.answers import AnswerForm
from storage.manifest import Manifest
from storage.rows import Rows
from storage.schema import UNLABELLED
from storage.store import Store
from student_train.block_stream import BlockStream
from student_train.dense_answers import dense_answers, empty_rows, output_of_ids, require_classes
from student_train.losses.tensors import channels_last
from student_train.mixed_rows import read_mixed
from student_train.needs import Wanted
from student_train.request import Request
from student_train.rest.rows import HeldRest, RestRows
from student_train.row_arrays import RowArray, as_tensor, laid_channels_last
from student_train.sampling import Batch, Sampling
from student_train.several_teachers import SeveralTeachers
from student_train.shown_images import ShownImages, takes_no_more
from student_train.signals import MixedLabels
from student_train.student_views import show

Inputs = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images (N, H, W, 3) uint8 and labels (N,) int64, on the device; `UNLABELLED` for training rows without one."""

    images: Tensor
    labels: Tensor

    def batches(self, rendering: Rendering) -> Iterator[Inputs]:
        """For an evaluation: see `ground.views.evaluation_batches`."""
        return evaluation_batches(self.images, self.labels, rendering)


class Evaluated(Protocol):
    """Images to measure a student on."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, on the device."""

    def batches(self, rendering: Rendering) -> Iterator[Inputs]:
        """Network inputs (B, 3, h, w) of the plain view, with their labels, on the device."""


@dataclass(frozen=True, slots=True)
class TrainImages:
    """As `LabelledImages`, where images may come from a stream; labels of mixes are those of their larger parts."""

    images: RowArray
    labels: Tensor
    mixed: MixedLabels | None = None


@dataclass(frozen=True, slots=True)
class StudentData:
    """The first n rows of a store, with its validation and test images.

    Where the teacher's answers were read, rows with one that has no content, a refusal that was paid for, are left out.

    Args:
        views: (n, V, 3), or (n, V, 5) of boxes: what the teacher saw.
        outputs: output name -> (n, V, ...) as stored, tensors in memory; empty for methods without a teacher.
        parameters: of the teacher, by name, where a loss needs them.
        rendering: how the student is shown images; the teacher's views are the store's all the same.
        place: the store's folder or URL.
        ledger_head: newest hash of its ledger when the data were read.
        empty_answers: rows that were left out.
        rest: rows beyond, where they are wanted.
        rest_order: of the store's rows then, see `Beyond`.
        unasked: whether the rows are labelled ones of the whole store, in the place of the first n.
        stream: what images and outputs come from, block by block; None where all of them are in memory.
        teachers: whose answers were combined, where there were several; the store is that of their images.
    """

    place: Place
    ledger_head: str | None
    manifest: Manifest
    compute: Compute
    rendering: Rendering
    train: TrainImages
    val: Evaluated
    test: Evaluated
    views: Tensor
    outputs: dict[str, RowArray]
    parameters: dict[str, Tensor]
    empty_answers: int = 0
    rest: RestRows | None = None
    rest_order: str | None = None
    unasked: bool = False
    stream: BlockStream | None = None
    teachers: SeveralTeachers | None = None

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
        return cls.read(Request.checked(store, n, wanted, rendering), wanted, compute)

    @classmethod
    def read(cls, request: Request, wanted: Wanted, compute: Compute) -> StudentData:
        """The rest of `load`: all of it, into memory."""
        store, rows = request.store, request.rows
        request.require_memory()
        # With no teacher involved, what the teacher said does not have to be read.
        kept = request.read_outputs()
        outputs = {name: as_tensor(values) for name, values in kept.items()}
        del kept
        chosen = _with_content(store, outputs, len(rows))
        outputs = {name: laid_channels_last(_of(tensor, chosen)) for name, tensor in outputs.items()}
        size = sum(tensor.nbytes for tensor in outputs.values())
        # On a CPU they are where training happens already.
        if compute.device.type != "cpu" and size < free_memory(compute) / 2:
            outputs = {name: compute.to_device(tensor) for name, tensor in outputs.items()}
        return cls(
            place=store.place.resolve(),
            ledger_head=request.ledger_head,
            manifest=store.manifest,
            compute=compute,
            rendering=request.rendering,
            train=TrainImages(
                _images(store, "train", rows, compute, chosen),
                read_labels(store, "train", rows, compute, chosen),
                read_mixed(store, rows, compute, chosen),
            ),
            val=_validation(request, compute),
            test=_labelled(store, "test", None, compute),
            views=_of(torch.from_numpy(store.read_sample("train/views", rows)), chosen),
            outputs={**outputs},
            parameters=read_parameters(store, compute) if wanted.parameters else {},
            empty_answers=0 if chosen is None else len(rows) - len(chosen),
            rest=_held_rest(request, compute),
            rest_order=request.rest_order,
            unasked=request.unasked,
            teachers=request.teachers,
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
        return 0 if self.unasked else self.n + self.empty_answers

    @property
    def num_calls(self) -> int:
        """Calls that were paid for what was asked for, of all teachers."""
        if self.teachers is not None:
            return self.teachers.num_calls
        return self.num_asked * self.manifest.identity.views

    @property
    def teacher_name(self) -> str:
        """Of the teacher, or of all."""
        return self.manifest.identity.teacher.name if self.teachers is None else self.teachers.name

    @property
    def num_classes(self) -> int:
        """Classes of the data, and so of the student."""
        return len(self.manifest.identity.dataset.classes)

    def drawn_by(self, sampling: Sampling) -> Sampling:
        """What draws batches from here as a sampling draws them from a sample in memory."""
        return sampling if self.stream is None else sampling.streamed(self.stream.order)

    def close(self) -> None:
        """Let go of threads and memory of a stream; they come back when they are needed."""
        if self.stream is not None:
            self.stream.close()

    def inputs(self, batch: Batch, step: int, *, seed: int, student_view: str) -> tuple[Tensor, Tensor]:
        """Student inputs of a step.

        Args:
            student_view: "teacher" replays the stored view, as a batch that holds all views of its images always does;
                others draw new ones, see `student_train.student_views`.

        Returns:
            (B, 3, h, w) float32 inputs, and (B,) int64: which of the V views stands for the teacher.
        """
        if self.stream is not None:
            assert batch.visits is not None, "batches of a stream come from what `drawn_by` gives"
            self.stream.hold(batch.visits)
        identity, rows = self.manifest.identity, batch.rows
        generator = generator_for(seed, "views", step)
        which = torch.randint(0, identity.views, (len(rows),), generator=generator)
        if batch.views > 1:
            which = torch.arange(batch.views).repeat_interleave(len(rows) // batch.views)
        images = self.images(rows)
        if student_view == "teacher" or batch.views > 1:
            replayed = replace(self.rendering, geometry=identity.geometry)
            return render(view_pixels(images, self.views[rows, which], replayed), self.rendering), which
        boxes = shows_boxes(identity.view_policy)
        return show(images, student_view, self.rendering, generator, boxes=boxes), which

    def images(self, rows: Tensor) -> Tensor:
        """Base images of some rows: (B, H, W, 3) uint8 on the device."""
        return self.compute.to_device(self.train.images[rows.to(self.train.images.device)])

    def teacher(self, rows: Tensor, which: Tensor, *, features: bool = True) -> Representation | None:
        """What the teacher said of some rows, float32 on the device, maps channels last; None when nothing was loaded.

        In the place of logits are its answers over all classes (B, K), see `student_train.dense_answers`; (B, 0) of a
        store without any.

        Args:
            features: fetch those too.
        """
        if not self.outputs:
            return None
        form, answers = self._form, self.manifest.identity.answer_names
        names = [name for name in self.outputs if features or name in answers]
        said = {name: self._rows(self.outputs[name], rows, which) for name in names}
        if form is None:
            return Representation(logits=torch.empty(len(rows), 0, device=self.compute.device), features=said)
        kept = {name: tensor for name, tensor in said.items() if name not in answers}
        return Representation(logits=dense_answers(form, said, self.num_classes), features=kept)

    def named_classes(self, rows: Tensor, which: Tensor) -> Tensor | None:
        """Classes that the teacher's answers to some rows name, (B, k) int64 on the device; None where it names all."""
        name = output_of_ids(self._form) if self._form is not None and self.outputs else None
        return None if name is None else self._rows(self.outputs[name], rows, which)

    @property
    def _form(self) -> AnswerForm | None:
        return self.manifest.identity.answer_form

    def _rows(self, output: RowArray, rows: Tensor, which: Tensor) -> Tensor:
        chosen = self.compute.to_device(output[rows.to(output.device), which.to(output.device)])
        if not chosen.is_floating_point():
            return chosen.long()
        return channels_last(chosen.float())


def _with_content(store: Store, outputs: Mapping[str, Tensor], rows: int) -> Tensor | None:
    """Which rows have answers with content: (m,) int64, or None for all of them.

    Raises:
        InvalidInput: too few of them have.
        StoreUnreadable: an answer names what is no class.
    """
    answers = {name: outputs[name] for name in store.manifest.identity.answer_names if name in outputs}
    return chosen_rows(store, without_content(store, answers), rows) if answers else None


def without_content(store: Store, answers: Mapping[str, Tensor]) -> Tensor:
    """Which of some rows have an answer without content: (m,) bool; raises `StoreUnreadable` for what is no class."""
    empty = empty_rows(answers)
    named = {name: values[~empty] for name, values in answers.items() if not values.is_floating_point()}
    require_classes(named, len(store.manifest.identity.dataset.classes), store.place)
    return empty


def chosen_rows(store: Store, empty: Tensor, rows: int) -> Tensor | None:
    """The rows that are not empty, (m,) int64, or None for all of them; raises `InvalidInput` if they are too few."""
    if not empty.any():
        return None
    chosen = (~empty).nonzero().squeeze(1)
    if len(chosen) < 2:
        raise InvalidInput(
            f"{len(chosen)} of {rows} rows of {store.place} have an answer with content, and the others were refused "
            "by the teacher; give a larger --n, or another store"
        )
    return chosen


def _of(tensor: Tensor, chosen: Tensor | None) -> Tensor:
    return tensor if chosen is None else tensor[chosen]


def read_parameters(store: Store, compute: Compute) -> dict[str, Tensor]:
    """What the store keeps of the teacher itself, on the device."""
    return {name: compute.to_device(torch.from_numpy(values)) for name, values in store.read_parameters().items()}


def read_labels(store: Store, split: str, rows: Rows | None, compute: Compute, chosen: Tensor | None = None) -> Tensor:
    """Labels of some rows of a split, or of the chosen ones among those, on the device.

    Raises:
        StoreUnreadable: they name what is no class.
    """
    labels = store.read_sample(f"{split}/labels", rows)
    classes = len(store.manifest.identity.dataset.classes)
    least = UNLABELLED if split == "train" else 0
    if len(labels) and not least <= labels.min() <= labels.max() < classes:
        raise StoreUnreadable(f"{split}/labels of {store.place} name classes beyond its {classes}")
    return compute.to_device(_of(torch.from_numpy(labels), chosen))


def _images(store: Store, split: str, rows: Rows | None, compute: Compute, chosen: Tensor | None = None) -> Tensor:
    return compute.to_device(_of(torch.from_numpy(store.read_sample(f"{split}/images", rows)), chosen))


def _held_rest(request: Request, compute: Compute) -> HeldRest | None:
    rows, store = request.rest, request.store
    if not len(rows):
        return None
    return HeldRest(_images(store, "train", rows, compute), read_labels(store, "train", rows, compute))


def _labelled(store: Store, split: str, rows: Rows | None, compute: Compute) -> LabelledImages:
    return LabelledImages(_images(store, split, rows, compute), read_labels(store, split, rows, compute))


def _validation(request: Request, compute: Compute) -> Evaluated:
    stored = _labelled(request.store, "val", request.val_rows, compute)
    if not takes_no_more(request.rendering):
        return stored
    return ShownImages.of(stored.images, stored.labels, request.rendering)


def free_memory(compute: Compute) -> float:
    """Bytes that are free where training happens."""
    if compute.device.type == "cuda":
        return float(torch.cuda.mem_get_info(compute.device)[0])
    return free_main_memory()
