"""The losses against their formulas, written out in float64 with numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from student_train.losses import functional


def pair(seed: int, samples: int, classes: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, samples, classes, generator=generator, dtype=torch.float64) * scale
    return drawn[0], drawn[1]


def kd_by_formula(student, teacher, temperature: float) -> float:
    student, teacher = (log_softmax(np.asarray(x, dtype=np.float64) / temperature, axis=1) for x in (student, teacher))
    return temperature**2 * float((np.exp(teacher) * (teacher - student)).sum(axis=1).mean())


sizes = {"seed": st.integers(0, 10_000), "samples": st.integers(1, 7), "classes": st.integers(1, 9)}


@given(**sizes, temperature=st.floats(0.25, 20))
def test_kd_is_the_kl_divergence_of_softened_probabilities(seed, samples, classes, temperature):
    student, teacher = pair(seed, samples, classes)
    found = functional.kd(student, teacher, temperature)
    np.testing.assert_allclose(found.item(), kd_by_formula(student, teacher, temperature), rtol=1e-9, atol=1e-12)


def test_kd_has_the_hand_value():
    # Student (0.5, 0.5); teacher p = sigmoid(2) = 0.8808: ln 2 - H(p) = 0.693147 - 0.365334 = 0.327813.
    found = functional.kd(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=1.0)
    torch.testing.assert_close(found, torch.tensor(0.3278133))


@given(**sizes)
def test_kd_is_zero_for_equal_logits_and_ignores_a_constant(seed, samples, classes):
    student, teacher = pair(seed, samples, classes)
    assert abs(functional.kd(student, student.clone()).item()) < 1e-12
    shifted = functional.kd(student + 5, teacher - 3)
    torch.testing.assert_close(shifted, functional.kd(student, teacher), rtol=1e-9, atol=1e-10)


def test_kd_survives_extreme_logits():
    student = torch.tensor([[1e4, -1e4], [0.0, 0.0]], requires_grad=True)
    loss = functional.kd(student, torch.tensor([[-1e4, 1e4], [1e4, 0.0]]))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@given(**sizes)
def test_all_pairs_equals_the_double_sum(seed, samples, classes):
    student, teacher = pair(seed, samples, classes)
    total = 0.0
    for i in range(samples):
        for j in range(samples):
            difference = (student[i] - student[j]) - (teacher[i] - teacher[j])
            total += float((difference**2).sum())
    expected = total / (samples**2 * classes)
    np.testing.assert_allclose(
        functional.all_pairs_comparison(student, teacher).item(), expected, rtol=1e-9, atol=1e-12
    )


@given(**sizes)
def test_all_pairs_equals_the_closed_form_of_the_design(seed, samples, classes):
    student, teacher = pair(seed, samples, classes)
    d = (student - teacher).numpy()
    closed = 2 * samples * (d**2).sum() - 2 * (d.sum(axis=0) ** 2).sum()
    found = functional.all_pairs_comparison(student, teacher).item()
    np.testing.assert_allclose(found, closed / (samples**2 * classes), rtol=1e-8, atol=1e-9)


def test_all_pairs_keeps_its_digits_under_a_large_common_offset():
    student, teacher = (x.float() for x in pair(0, 64, 10))
    plain = functional.all_pairs_comparison(student.double(), teacher.double())
    far = functional.all_pairs_comparison(student + 1000, teacher)
    torch.testing.assert_close(far.double(), plain, rtol=1e-3, atol=0)


@given(**sizes)
def test_comparison_is_the_mean_squared_error(seed, samples, classes):
    student, teacher = pair(seed, samples, classes)
    expected = ((student.numpy() - teacher.numpy()) ** 2).mean()
    np.testing.assert_allclose(functional.comparison(student, teacher).item(), expected, rtol=1e-9)


@given(seed=st.integers(0, 1000), samples=st.integers(1, 5), dims=st.integers(1, 5), width=st.integers(1, 6))
def test_comparison_in_fewer_dimensions_is_average_pooling(seed, samples, dims, width):
    student, teacher = pair(seed, samples, dims * width)
    pooled = [
        torch.nn.functional.avg_pool1d(x[:, None], kernel_size=width, stride=width)[:, 0] for x in (student, teacher)
    ]
    expected = (pooled[0] - pooled[1]).square().mean()
    torch.testing.assert_close(functional.comparison(student, teacher, dims=dims), expected)


LOSSES = {
    "kd": functional.kd,
    "comparison": functional.comparison,
    "comparison in 2 dimensions": lambda student, teacher: functional.comparison(student, teacher, dims=2),
    "all pairs": functional.all_pairs_comparison,
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_finite_differences(name):
    student, teacher = pair(1, 4, 6)
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, teacher), (student.requires_grad_(),))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32_inside(name, dtype):
    student, teacher = (x.to(dtype) for x in pair(2, 4, 6))
    loss = LOSSES[name](student, teacher)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), LOSSES[name](student.double(), teacher.double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_differ_are_refused(name):
    with pytest.raises(ValueError, match=r"student's logits .* are \(3, 4\), the stored ones of the teacher \(3, 6\)"):
        LOSSES[name](torch.zeros(3, 4), torch.zeros(3, 6))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        functional.kd(torch.zeros(1, 2), torch.zeros(1, 2), temperature=0)
    with pytest.raises(ValueError, match="10 classes cannot be pooled to 3"):
        functional.comparison(torch.zeros(1, 10), torch.zeros(1, 10), dims=3)
