"""What every formula must survive (finite differences, the edges of its inputs), and what every loss class must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ground.spec import argument_names
from models import Representation
from student_train.binding import Binding
from student_train.comparison import GroupComparison
from student_train.losses.base import DistillationLoss
from student_train.signals import Moment, Signals

Formula = Callable[..., Tensor]


def drawn(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def assert_gradient_is_right(formula: Formula, *students: Tensor) -> None:
    """Against finite differences, for every argument; float64, away from kinks."""
    inputs = [student.clone().requires_grad_() for student in students]
    assert torch.autograd.gradcheck(formula, inputs, eps=1e-6, atol=1e-5, rtol=1e-3)


def assert_finite(formula: Formula, *students: Tensor) -> None:
    """The loss is a finite scalar of at least float32, and its gradient is finite."""
    inputs = [student.clone().requires_grad_() for student in students]
    loss = formula(*inputs)
    assert loss.shape == ()
    assert loss.dtype in (torch.float32, torch.float64)
    assert loss.isfinite(), loss
    if loss.requires_grad:
        for gradient in torch.autograd.grad(loss, inputs, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


def logit_edges(classes: int = 5) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """(name, student, teacher, labels) of logits at the edges, float32 and bfloat16."""
    student, teacher = drawn(0, 6, classes).float(), drawn(1, 6, classes).float()
    labels = torch.arange(6) % classes
    return [
        ("one sample", student[:1], teacher[:1], labels[:1]),
        ("one class in the batch", student, teacher, torch.zeros_like(labels)),
        ("identical rows", student[:1].expand(6, -1), teacher[:1].expand(6, -1), labels),
        ("equal to the teacher", teacher.clone(), teacher, labels),
        ("large", student * 1e4, teacher * 1e4, labels),
        ("opposite and large", -teacher * 1e4, teacher * 1e4, labels),
        ("zero", torch.zeros_like(student), torch.zeros_like(teacher), labels),
        ("zero student", torch.zeros_like(student), teacher, labels),
        ("bfloat16", student.bfloat16(), teacher.bfloat16(), labels),
    ]


def map_edges(student: Sequence[int], teacher: Sequence[int]) -> list[tuple[str, Tensor, Tensor]]:
    """(name, student, teacher) of maps or vectors at the edges; the shapes are those of one sample."""
    ours, theirs = drawn(2, 4, *student).float(), drawn(3, 4, *teacher).float()
    return [
        ("one sample", ours[:1], theirs[:1]),
        ("identical rows", ours[:1].expand(4, *student), theirs[:1].expand(4, *teacher)),
        ("zero", torch.zeros_like(ours), torch.zeros_like(theirs)),
        ("zero student", torch.zeros_like(ours), theirs),
        ("zero teacher", ours, torch.zeros_like(theirs)),
        ("one zero sample", ours * torch.tensor([0.0, 1, 1, 1]).view(-1, *[1] * len(student)), theirs),
        ("large", ours * 1e4, theirs * 1e4),
        ("bfloat16", ours.bfloat16(), theirs.bfloat16()),
    ]


def binding_for(
    student: dict[str, tuple[int, ...]],
    teacher: dict[str, tuple[int, ...]],
    *,
    classes: int = 5,
    rows: int = 20,
    views: int = 1,
    parameters: dict[str, Tensor] | None = None,
) -> Binding:
    """A binding for given shapes of one sample; logits are added to both sides."""
    logits = {"logits": (classes,)}
    return Binding(
        student=logits | student,
        teacher=logits | teacher,
        teacher_layers=list(teacher),
        labels=torch.arange(rows) % classes,
        num_classes=classes,
        num_views=views,
        parameters=parameters or {},
    )


def signals_for(binding: Binding, batch: int = 6, seed: int = 0, moment: Moment | None = None) -> Signals:
    """Random signals of these shapes, float32: what the student says takes a gradient."""

    def said(shapes: Mapping[str, tuple[int, ...]], first: int, *, grad: bool) -> Representation:
        tensors = {
            name: drawn(first + place, batch * binding.num_views, *shape).float().requires_grad_(grad)
            for place, (name, shape) in enumerate(shapes.items())
        }
        return Representation(tensors.pop("logits"), tensors)

    index = torch.randperm(binding.num_rows, generator=torch.Generator().manual_seed(seed))[:batch]
    index = index.repeat(binding.num_views)
    return Signals(
        student=said(binding.student, 100 * seed, grad=True),
        teacher=said(binding.teacher, 100 * seed + 50, grad=False),
        labels=binding.labels[index],
        index=index,
        moment=moment or Moment(seed=seed),
        views=binding.num_views,
    )


def assert_is_a_loss(loss: DistillationLoss, binding: Binding) -> Tensor:
    """A class keeps its settings, binds, gives a finite scalar and a gradient, compared too where it says so."""
    assert set(loss.settings) == set(argument_names(type(loss)))
    assert loss.name
    assert loss.source
    torch.manual_seed(0)
    loss.bind(binding)
    signals = signals_for(binding)
    value = loss(signals)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.isfinite()
    value.backward()
    said = [signals.student.logits, *signals.student.features.values()]
    gradients = [tensor.grad for tensor in said if tensor.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    if loss.needs.comparable:
        assert loss(GroupComparison()(signals_for(binding, seed=1))).isfinite()
    return value.detach()


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return result
