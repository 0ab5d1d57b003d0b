"""FixMatch's term: the weak view's sure classes teach the strong view, and nothing is learned of the weak one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput
from student_train.rest.base import RestBatch
from student_train.rest.pseudo import PseudoLabels, pseudo_label_loss


def by_hand(weak: np.ndarray, strong: np.ndarray, confidence: float) -> float:
    """Equation 4, row by row."""
    total = 0.0
    for sure, other in zip(weak, strong, strict=True):
        probabilities = np.exp(sure) / np.exp(sure).sum()
        if probabilities.max() >= confidence:
            total -= np.log(np.exp(other) / np.exp(other).sum())[probabilities.argmax()]
    return total / len(weak)


@pytest.mark.parametrize("confidence", [0.0, 0.6, 0.9, 1.0])
def test_sure_rows_alone_teach_and_all_rows_are_counted(confidence):
    generator = torch.Generator().manual_seed(1)
    weak, strong = (3 * torch.randn(50, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    found = pseudo_label_loss(weak, strong, confidence)
    np.testing.assert_allclose(found.item(), by_hand(weak.numpy(), strong.numpy(), confidence), rtol=1e-12)


def test_no_gradient_reaches_the_weak_view():
    weak, strong = (torch.tensor([[4.0, 0.0], [0.0, 0.1]], requires_grad=True) for _ in range(2))
    pseudo_label_loss(weak, strong, 0.9).backward()
    assert weak.grad is None
    assert strong.grad[0].abs().sum() > 0
    assert strong.grad[1].abs().sum() == 0


def test_the_two_views_are_of_different_strength():
    looks = {"teacher": torch.tensor([[9.0, 0.0]]), "strong": torch.tensor([[1.0, 2.0]])}
    batch = RestBatch(torch.tensor([0]), torch.tensor([-1]), None, looks.__getitem__, lambda network, images: images)
    found = PseudoLabels()(batch)
    np.testing.assert_allclose(found.item(), by_hand(np.array([[9.0, 0.0]]), np.array([[1.0, 2.0]]), 0.95), rtol=1e-6)


def test_a_confidence_that_is_no_probability_is_refused():
    with pytest.raises(InvalidInput, match="loss of the rest pseudo: confidence is a probability, got 95"):
        PseudoLabels.arguments("pseudo:confidence=95")
