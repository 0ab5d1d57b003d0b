"""Cross-entropy of labelled rows is the formula."""

from __future__ import annotations

import numpy as np
import torch

from student_train.rest.base import RestBatch
from student_train.rest.labels import Labels


def test_labels_cost_the_mean_of_what_the_student_gives_them():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 4, generator=generator)
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    seen = []
    batch = RestBatch(
        rows=torch.arange(6),
        labels=labels,
        student=None,
        look=lambda role: [seen.append(role), inputs][1],
        logits=lambda network, images: 2 * images,
    )
    logits = 2 * inputs.double().numpy()
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(shares[np.arange(6), labels.numpy()]).mean()
    np.testing.assert_allclose(Labels()(batch).item(), expected, rtol=1e-6)
    assert seen == ["student"]
