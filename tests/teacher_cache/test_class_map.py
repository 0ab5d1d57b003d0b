"""Mapped logits are the teacher's probabilities of the data's classes."""

from __future__ import annotations

import torch

from teacher_cache.class_map import described, mapped_logits, rows_of_head


def logits_of(rows: int, classes: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype) * 9


def test_one_to_one_the_logits_are_the_same_numbers_in_another_order():
    logits = logits_of(5, 6, torch.float32)
    assert torch.equal(mapped_logits(logits, ((4,), (0,), (5,))), logits[:, [4, 0, 5]])


def test_probabilities_of_several_classes_are_added_and_the_sum_is_made_1_again():
    logits, groups = logits_of(40, 7), ((1, 6), (0,), (2, 3, 5))
    probabilities = logits.softmax(dim=1)
    added = torch.stack([probabilities[:, list(group)].sum(dim=1) for group in groups], dim=1)
    found = mapped_logits(logits, groups).softmax(dim=1)
    torch.testing.assert_close(found, added / added.sum(dim=1, keepdim=True), rtol=1e-13, atol=0)


def test_where_all_classes_are_used_even_the_sum_of_the_exponentials_stays():
    logits = logits_of(9, 4)
    mapped = mapped_logits(logits, ((3, 0), (2, 1)))
    torch.testing.assert_close(mapped.logsumexp(dim=1), logits.logsumexp(dim=1), rtol=1e-13, atol=0)


def test_half_precision_is_added_in_float32():
    logits = logits_of(8, 4, torch.bfloat16)
    mapped = mapped_logits(logits, ((0, 1), (2,)))
    assert mapped.dtype == torch.float32
    torch.testing.assert_close(mapped[:, 0], logits.double()[:, :2].logsumexp(dim=1).float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(mapped[:, 1], logits[:, 2].float())


def test_large_logits_do_not_overflow():
    mapped = mapped_logits(torch.tensor([[3e38, 3e38, -3e38]]), ((0, 1), (2,)))
    assert mapped.isfinite().all()


def test_a_head_is_kept_where_its_rows_give_the_mapped_logits():
    assert rows_of_head(3, None) == [0, 1, 2]
    assert rows_of_head(3, ((2,), (0,))) == [2, 0]
    assert rows_of_head(3, ((2, 1), (0,))) == []


def test_a_map_is_described_by_what_it_does():
    assert described(((4,), (0,)), 9) == "2 of the teacher's 9, by a class map, one to one"
    assert described(((4, 5), (0,)), 9) == "2 from 3 of the teacher's 9, by a class map, probabilities added"
