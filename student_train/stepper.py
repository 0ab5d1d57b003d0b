"""A step of gradient descent: batch -> student -> signals -> loss -> weights.

Every random choice comes from (seed, purpose, step), so a step depends on nothing but the state that it changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models import Network, Representation
from student_train.bound_method import BoundMethod, Losses
from student_train.data import StudentData
from student_train.losses.tensors import channels_last, raised
from student_train.mixing import Part
from student_train.rest.terms import RestTerm
from student_train.sampling import Batch, Sampling
from student_train.signals import Moment, Signals
from student_train.student_state import StudentState
from student_train.train_config import TrainConfig


@dataclass(slots=True)
class Stepper:
    """Steps a student; it holds nothing that a step changes.

    Args:
        config: its seed, batch size and student view are used; the view is not "auto".
        method: bound to the student that is stepped.
        layers: of the student, that losses want.
        labels: (n,) int64 on the CPU, what batches may be drawn by.
        steps_per_epoch: for losses that depend on the epoch.
        rest: what is learned from rows that the teacher was not asked about, beside.
    """

    config: TrainConfig
    data: StudentData
    method: BoundMethod
    sampling: Sampling
    layers: Sequence[str]
    labels: Tensor
    steps_per_epoch: int
    rest: Sequence[RestTerm] = ()

    def step(self, state: StudentState) -> Losses:
        """Change the weights once; returns what the batch cost, without gradient, on the device."""
        losses = self._losses(state)
        state.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        self.share_gradients(state)
        state.optimizer.step()
        state.advance()
        for term in self.rest:
            term.loss.after_step(state.student)
        return Losses(losses.total.detach(), losses.terms)

    def _losses(self, state: StudentState) -> Losses:
        config, data = self.config, self.data
        moment = Moment(seed=config.seed, step=state.step, epoch=state.step / self.steps_per_epoch)
        batch = self.sampling.batch(state.step, labels=self.labels, batch_size=config.batch_size, seed=config.seed)
        inputs, which = data.inputs(batch, state.step, seed=config.seed, student_view=config.student_view)
        parts: Sequence[Part] = ()
        mixing = self.method.spec.mixing
        if mixing is not None:
            inputs, parts = mixing.mix(inputs, moment.numpy_generator("mixing"))
        rows = data.compute.to_device(batch.rows)
        signals = Signals(
            student=self.represent(state.student, inputs, batch, self.layers),
            teacher=data.teacher(batch.rows, which),
            labels=data.train.labels[rows],
            index=rows,
            moment=moment,
            views=batch.views,
            ids=data.named_classes(batch.rows, which),
            mixed=None if data.train.mixed is None else data.train.mixed.of(rows),
        )
        return self._with_rest(self.method.losses(signals, parts), state.student, moment)

    def _with_rest(self, losses: Losses, student: Network, moment: Moment) -> Losses:
        for term in self.rest:
            value = term.value(student, moment, self._logits)
            losses = losses.plus(term.weight_at(moment.epoch), value)
        return losses

    def _logits(self, network: Network, inputs: Tensor, batch: Batch) -> Tensor:
        """What a network says of the images of a batch, its layers left aside."""
        return self.represent(network, inputs, batch, ()).logits

    def share_gradients(self, state: StudentState) -> None:
        """Bring the gradients to what the whole batch has: here they are."""

    def represent(self, student: Network, inputs: Tensor, batch: Batch, layers: Sequence[str]) -> Representation:
        """The student's representation in at least float32, each pass through the network on its own.

        Args:
            layers: features that are wanted.
        """
        with self.data.compute.autocast():
            said = [_said(student, inputs[part], layers) for part in batch.passes]
        if len(said) == 1:
            return said[0].map(_raised)
        return Representation(
            logits=_raised(torch.cat([part.logits for part in said])),
            features={name: _raised(torch.cat([part.features[name] for part in said])) for name in said[0].features},
        )


def _said(student: Network, inputs: Tensor, layers: Sequence[str]) -> Representation:
    """What the student says of a batch, as far as it is wanted."""
    extras = [name for name in layers if name in student.extra_names]
    return student.represent(inputs, extras).only(layers)


def _raised(tensor: Tensor) -> Tensor:
    """At least float32; its gradient comes in the layout of the network's maps, whatever a loss made of it."""
    (found,) = raised(tensor)
    if found.dim() == 4 and found.requires_grad:
        # A tensor of its own, so that the network's gradient of the same map does not pass through the hook.
        found = found.view_as(found)
        found.register_hook(channels_last)
    return found
