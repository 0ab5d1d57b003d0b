"""The training of one student: steps, and an evaluation every so many of them, until the protocol ends it.

The state between two evaluations is saved, so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from math import ceil
from typing import Any

import torch
from msgspec import UNSET, UnsetType, structs
from torch import Tensor, nn

from ground.documents import Positive, shown, typed
from ground.errors import Diverged, Interrupted, InvalidInput
from ground.geometry import Rendering
from ground.layers import LOGITS
from ground.places import Place
from ground.ranks import ALONE, Ranks
from ground.terminal import StopRequest, graceful_stop
from models import Network, Representation, network_shape
from models.compute import Compute
from models.evaluation import count_correct
from storage.manifest import Manifest
from storage.run_record import RESUME_FILE, RunRecord, RunSettings
from storage.store import Store
from student_train.anchor import anchor, leaves_level_open, require_head
from student_train.answers import require_answers
from student_train.averaging import AveragedWeights
from student_train.binding import Binding
from student_train.bound_method import Losses, bind_method
from student_train.data import Evaluated, StudentData, free_memory
from student_train.initial_student import InitialStudent, own_preprocessing, student_rendering
from student_train.method_spec import MethodSpec
from student_train.needs import Wanted
from student_train.protocol import Decision, Protocol
from student_train.ranked_stepper import RankedStepper, require_rows
from student_train.recording import learned_from, settings_of
from student_train.rest.proxy import ProxyRun
from student_train.rest.spec import require_rest
from student_train.rest.terms import begin_terms
from student_train.run_folder import RunFolder
from student_train.sampling import AllViews
from student_train.signals import Moment
from student_train.stepper import Stepper
from student_train.streamed_data import Streaming, load_data
from student_train.student_state import StudentState, make_optimizer
from student_train.student_views import require_drawn
from student_train.train_config import TrainConfig
from student_train.unlabelled import require_labels

log = logging.getLogger(__name__)

SAVE_EVERY_SECONDS = 10.0

# Reads what a student learns from; `load_data` is one.
Loader = Callable[[Store, int | None, Wanted, Compute, Rendering | None, Streaming], StudentData]


class Trainer:
    """Trains one student.

    Args:
        data: what it learns from.
        method: how.
        folder: where its results go.
        config: the rest.
        initial: the student, where it is made already.
        ranks: the processes that train it together; all of them make the same trainer and call the same methods.
        unproven: proxies that nothing vouches for.

    Attributes:
        state: the student, and all that changes with it.
        stepper: what changes it.
        threads: how many CPU threads the steps so far had, a number each time that it changed.
        num_ranks: the same of ranks.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: StudentData,
        method: MethodSpec,
        folder: RunFolder,
        initial: InitialStudent | None = None,
        ranks: Ranks = ALONE,
        unproven: Sequence[ProxyRun] = (),
    ) -> None:
        require_rows(config.batch_size, ranks)
        self.ranks, self.unproven = ranks, unproven
        self.config = config = replace(config, student_view=data.student_view(config.student_view))
        self.data, self.method, self.folder = data, method, folder
        require_labels(method, data.train.labels, data.place)
        if data.empty_answers:
            log.warning(
                "%d of %d rows are left out: the teacher refused to answer, which was paid for",
                data.empty_answers,
                data.num_asked,
            )
        sampling = data.drawn_by(method.sampling_of(data.manifest.identity.views))
        sampling.check(data.n)
        if config.student_view == "teacher" or isinstance(sampling, AllViews):
            data.require_replay()
        if initial is None:
            initial = InitialStudent.make(config, data.manifest.identity.dataset.classes, data.rendering)
        student, self.init_digest, self.init_calls = initial.network, initial.digest, initial.calls
        self.wanted = wanted_by(method, student.layers, data.manifest)
        labels = data.train.labels.cpu()
        require_head(student, method)
        form = data.manifest.identity.answer_form
        bound, student = bind_method(method, student, partial(_binding, data=data, labels=labels), config.seed, form)
        bound.require_room(_binding(student, data, labels), config.batch_size, free_memory(data.compute))
        data.compute.place(student)
        self.rest = begin_terms(method.rest, data, student, config)
        learned = nn.ModuleList([*bound.learned, *(term.loss for term in self.rest)]).to(data.compute.device)
        optimizer = make_optimizer(config, [*student.parameters(), *bound.learned.parameters()])
        # Every row has come once by then, but those of small sets more often.
        epoch = max(ceil(data.n / config.batch_size), *(term.steps_per_epoch for term in self.rest), 1)
        self.eval_every = config.protocol.steps_per_eval or epoch
        average = AveragedWeights(student, config.average) if config.average else None
        self.state = StudentState(student, learned, optimizer, Protocol(config.protocol), average)
        stepper = Stepper if ranks.alone else partial(RankedStepper, ranks=ranks)
        self.stepper = stepper(config, data, bound, sampling, self.wanted.student, labels, epoch, self.rest)
        self.threads: list[int] = []
        self.num_ranks: list[int] = []

    @classmethod
    def open(
        cls,
        config: TrainConfig,
        store: Place,
        n: int | None,
        method: MethodSpec,
        compute: Compute,
        folder: RunFolder,
        *,
        resume: bool = True,
        rendering: Rendering | None = None,
        load: Loader = load_data,
        ranks: Ranks = ALONE,
    ) -> Trainer:
        """Load from a store what the method needs.

        Args:
            n: rows to train on; None for all.
            resume: what `run` will be given; a folder that it would refuse is refused before anything is loaded.
            rendering: how the student is shown images; None is as the teacher was.
            load: reads the data, or hands out what was read for another student.
            ranks: as for the class; the folder is then theirs too, see `RankedFolder`.

        Raises:
            CKDError: anything that would make the training fail later.
        """
        # A batch that is too small is refused before anything is loaded.
        require_rows(config.batch_size, ranks)
        folder.check(resume=resume)
        opened = Store.open(store)
        identity = opened.manifest.identity
        config = _as_it_began(config, folder)
        require_drawn(config.student_view, method, identity.views)
        shown = rendering or student_rendering(config, identity)
        initial = None
        # A file that does not fit is refused before anything is loaded.
        if config.init is not None:
            initial = InitialStudent.make(config, identity.dataset.classes, shown)
        layers = network_shape(config.student, image_size=shown.size, code=config.code).layers
        wanted = wanted_by(method, layers, opened.manifest)
        asked = opened.manifest.n if n is None else n
        unproven = require_rest(
            method.rest, opened, asked, asks_teacher=method.asks_teacher, student_view=config.student_view
        )
        rendering = None if shown == identity.teacher_rendering else shown
        data = load(opened, n, wanted, compute, rendering, replace(_as_it_streamed(config, folder), ranks=ranks))
        return cls(config, data, method, folder, initial, ranks, unproven)

    def run(
        self, *, resume: bool = False, on_eval: Callable[[Mapping[str, Any]], None] = lambda row: None
    ) -> dict[str, Any]:
        """Train to the end of the protocol and write the results; a finished run only returns them.

        Returns:
            The content of run.json.

        Raises:
            InvalidInput, StoreBusy: the folder is another run's, or in use.
            Diverged: a loss is not finite.
            Interrupted: the user asked to stop; resume to go on.
        """
        with ExitStack() as stack:
            stack.enter_context(closing(self.data))
            for term in self.rest:
                stack.enter_context(closing(term))
            stack.enter_context(self.folder.opened(resume=resume))
            # What an extended or converted store had before, it has still.
            earlier = self.data.manifest.ids
            finished = self.folder.finished(self.settings(), earlier)
            if finished is not None:
                return finished
            state = self.folder.load_state(self.settings(), earlier)
            with self.data.compute.exact():
                if state is not None:
                    self.restore_state(state)
                else:
                    self.prepare()
                self.ranks.align(self.state.modules.state_dict().values())
                self._note_changes()
                with graceful_stop(together=not self.ranks.alone) as stop:
                    self._train(stop, on_eval)
                last, best = self._test_accuracies()
            return self._finish(last, best)

    def prepare(self) -> None:
        """Train what losses learn from stored answers alone; comes before the first step."""
        self.stepper.method.prepare(self._teacher_rows, Moment(seed=self.config.seed))

    def _note_changes(self) -> None:
        """Sums are split among threads and ranks, so that another number of them rounds differently."""
        threads, ranks = torch.get_num_threads(), self.ranks.count
        if self.threads and self.threads[-1] != threads:
            _warn_of_rounding(f"{self.threads[-1]} CPU threads", threads, "OMP_NUM_THREADS sets them")
        if self.num_ranks and self.num_ranks[-1] != ranks:
            _warn_of_rounding(f"{self.num_ranks[-1]} ranks", ranks, "torchrun's --nproc-per-node sets them")
        for before, now in ((self.threads, threads), (self.num_ranks, ranks)):
            if before[-1:] != [now]:
                before.append(now)

    def _train(self, stop: StopRequest, on_eval: Callable[[Mapping[str, Any]], None]) -> None:
        saved = started = time.monotonic()
        before = self.state.seconds
        while not self.state.protocol.finished:
            reached = self.train_interval(stop)
            if reached:
                on_eval(self.evaluate())
            self.state.seconds = before + time.monotonic() - started
            stopping = self.ranks.any(stop.requested)
            if stopping or time.monotonic() - saved > SAVE_EVERY_SECONDS:
                self.save_state()
                saved = time.monotonic()
            if stopping and not self.state.protocol.finished:
                raise Interrupted(f"stopped after step {self.state.step}; go on with the same command and --resume")

    def train_interval(self, stop: StopRequest) -> bool:
        """Train until an evaluation is due; false if the user asked to stop before."""
        self.state.student.train()
        due = (self.state.protocol.evals + 1) * self.eval_every
        while self.state.step < due:
            self.state.set_lr(self._lr_of(self.state.step))
            self.state.losses.append(self.train_step())
            # All ranks stop after the same step, whichever of them was asked to.
            if self.ranks.any(stop.requested) and self.state.step < due:
                return False
        return True

    def train_step(self) -> Losses:
        """One step of gradient descent; returns what its batch cost, without gradient, on the device."""
        return self.stepper.step(self.state)

    def _teacher_rows(self, rows: Tensor) -> Representation:
        """What the teacher said of the first view of some rows."""
        said = self.data.teacher(rows, torch.zeros_like(rows))
        assert said is not None
        return said

    def _lr_of(self, step: int) -> float:
        """The learning rate of a step, from 0, as far as it is known by now."""
        return self.config.lr * self.state.protocol.share_of_lr(step / self.eval_every)

    def evaluate(self) -> dict[str, Any]:
        """Measure the student and decide what follows; returns a row of metrics.csv.

        Raises:
            Diverged: a loss or a weight is not finite.
        """
        (train_loss, terms), lr = self.state.take_losses(), self._lr_of(self.state.step - 1)
        self._require_finite(train_loss)
        if leaves_level_open(self.state.student, self.method):
            anchor(self.state.evaluated, self.data, self.stepper.method)
        # GPUs of several kinds round what each rank computes for itself apart.
        self.ranks.align(self.state.modules.state_dict().values())
        val_accuracy = self.accuracy_on(self.data.val)
        decision = self.state.protocol.update(val_accuracy)
        # Before it goes back: it is of the weights that the row is of.
        test_accuracy = self.accuracy_on(self.data.test) if self._is_test_due else None
        if decision is Decision.IMPROVED:
            self.state.remember()
        elif decision is Decision.LOWER:
            self.state.go_back()
        row = {
            "step": self.state.step,
            "epoch": self.state.protocol.evals,
            "lr": lr,
            "train_loss": train_loss,
            "val_accuracy": val_accuracy,
            "test_accuracy": test_accuracy,
            **{f"loss/{name}": term for name, term in zip(self._term_names, terms, strict=True)},
        }
        self.state.rows.append(row)
        return row

    @property
    def _term_names(self) -> list[str]:
        return [*self.method.term_names, *(f"rest/{term.loss.name}" for term in self.rest)]

    @property
    def _is_test_due(self) -> bool:
        every = self.config.test_every
        return every is not None and self.state.protocol.evals % every == 0

    def _require_finite(self, train_loss: float) -> None:
        if not math.isfinite(train_loss):
            raise Diverged(
                f"the loss is {train_loss} at step {self.state.step}; lower --lr ({self.config.lr}) or the weights"
            )
        # The last step may have gone where no loss was computed.
        if not self.state.is_finite():
            raise Diverged(
                f"a weight of the student is not finite at step {self.state.step}; lower --lr ({self.config.lr})"
            )

    def accuracy_on(self, images: Evaluated) -> float:
        """Top-1 accuracy of the student, or its average, in [0, 1]; each rank measures its share of the batches."""
        own = islice(images.batches(self.data.rendering), self.ranks.rank, None, self.ranks.count)
        correct, total = self.ranks.totals(*count_correct(self.state.evaluated, own, self.data.compute))
        return correct / total

    def _test_accuracies(self) -> tuple[float, float]:
        """Of the last weights and of the best, which the result has from then on."""
        last = self.accuracy_on(self.data.test)
        if self.state.is_at_best:
            return last, last
        self.state.result.load_state_dict(self.state.best)
        return last, self.accuracy_on(self.data.test)

    def _finish(self, last_test_accuracy: float, test_accuracy: float) -> dict[str, Any]:
        record = RunRecord(
            **structs.asdict(self.settings()),
            student_rendering=self.data.rendering,
            fit=self.data.manifest.identity.fit,
            sample_seed=self.data.manifest.identity.seed,
            store=str(self.data.place),
            ledger_head=self.data.ledger_head,
            **learned_from(self.data, self.method, self.rest, self.wanted.teacher, self.unproven),
            init_calls=self.init_calls or UNSET,
            test_accuracy=test_accuracy,
            best_val_accuracy=self.state.protocol.best,
            last_test_accuracy=last_test_accuracy,
            evaluations=self.state.protocol.evals,
            steps=self.state.step,
            seconds=round(self.state.seconds, 2),
            device=self.data.compute.describe(),
            threads=tuple(self.threads),
            ranks=UNSET if self.num_ranks == [1] else tuple(self.num_ranks),
            versions={package: version(package) for package in ("teacher-cache", "torch", "numpy")},
        )
        self.folder.save_metrics(self.state.rows)
        self.folder.save_result(self.state.evaluated, record, self.data.place, self.data.manifest)
        return record.document()

    def settings(self) -> RunSettings:
        """Settings and sources; a run goes on only if all of them are the same."""
        return settings_of(self.config, self.data, self.method, self.init_digest)

    # State

    def save_state(self) -> None:
        """Keep what resuming needs."""
        self.folder.save_metrics(self.state.rows)
        settings = json.dumps(self.settings().document())
        company = {"threads": self.threads, "ranks": self.num_ranks}
        self.folder.save_state({"config": settings, **company, **self.state.saved()})

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept; raises `InvalidInput` if it is damaged."""
        try:
            # Earlier releases did not keep them.
            self.threads = typed(state.get("threads", []), list[Positive])
            self.num_ranks = typed(state.get("ranks", [1]), list[Positive])
            self.state.restore(state, self.data.compute.device)
            self._require_interval()
        except Exception as error:
            # A state from anybody fails in too many ways to list; none of them runs code.
            raise InvalidInput(
                f"the state in {self.folder.path} is damaged ({shown(str(error))}); delete {RESUME_FILE} to start again"
            ) from error
        log.info("going on after step %d", self.state.step)

    def _require_interval(self) -> None:
        """Raise `ValueError` unless the losses kept are those of the steps since the last evaluation."""
        since = self.state.step - self.state.protocol.evals * self.eval_every
        if not 0 <= since <= self.eval_every or since != len(self.state.losses):
            raise ValueError(f"{len(self.state.losses)} losses are kept of {since} steps since an evaluation")


def _warn_of_rounding(before: str, now: int, how: str) -> None:
    log.warning(
        "this run had %s before and goes on with %d: it may end in other numbers than one without a stop; %s",
        before,
        now,
        how,
    )


def _as_it_began(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """The configuration; a run of an earlier release goes on being shown pixels as the teacher was."""
    started = folder.started() if own_preprocessing(config) is not None else None
    if started is not None and isinstance(started.student_preprocessing, UnsetType):
        return replace(config, student_preprocessing="teacher")
    return config


def _as_it_streamed(config: TrainConfig, folder: RunFolder) -> Streaming:
    """Whether to stream; a run goes on as it began, however much memory is free by then."""
    rows, asked = config.stream_rows, config.stream or config.stream_rows is not None
    started = folder.started()
    if started is None:
        return Streaming(always=asked, rows=rows)
    if isinstance(started.streamed, UnsetType):
        return Streaming(always=asked, never=not asked, rows=rows)
    return Streaming(always=True, rows=started.streamed.window_rows if rows is None else rows)


def wanted_by(method: MethodSpec, student: Sequence[str], manifest: Manifest) -> Wanted:
    """What a method needs of a student with these layers and of this store, by the names of its outputs.

    Raises:
        InvalidInput: it cannot learn from the answers that are kept, or needs a last layer that is not; or as
            `MethodSpec.wanted`.
    """
    identity = manifest.identity
    require_answers(method, student, identity)
    wanted = method.wanted(student, identity.teacher.layers, logits=identity.keeps_answers)
    named = [identity.answer_names if name == LOGITS else (name,) for name in wanted.teacher]
    return replace(wanted, teacher=tuple(chain.from_iterable(named)))


def _binding(student: Network, data: StudentData, labels: Tensor) -> Binding:
    identity = data.manifest.identity
    size, names = data.rendering.size, student.layers
    student.eval()
    with torch.inference_mode():
        said = student.represent(torch.zeros(1, 3, size, size), student.extra_names).only(names)
    student.train()
    stored = {name: shape for name, shape in identity.features.items() if name in data.outputs}
    answers = {LOGITS: (data.num_classes,)} if identity.keeps_answers and data.outputs else {}
    return Binding(
        student={"logits": tuple(said.logits.shape[1:])}
        | {name: tuple(tensor.shape[1:]) for name, tensor in said.features.items()},
        teacher=answers | stored,
        teacher_layers=identity.teacher.layers,
        labels=labels,
        num_classes=data.num_classes,
        num_views=identity.views,
        parameters=data.parameters,
        student_head=student.head,
    )
