"""CRD: the contrast against its formula in loops, who is drawn as a negative, and what the memories remember."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput
from student_train.losses.crd import CRD, crd, draw_negatives, remembered
from student_train.signals import Moment
from tests.student_train.losses.checks import (
    Largest,
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    signals_for,
)

SHAPES = [(3, 7, 20), (1, 1, 2), (5, 40, 9)]


def contrast_by_hand(positive, negatives, num_rows):
    """Eq. 18 and 19 with the released constants; `negatives` holds a list of log scores for each sample."""
    total = 0.0
    for own, others in zip(positive, negatives, strict=True):
        noise = len(others) / num_rows
        total -= math.log(math.exp(own) / (math.exp(own) + noise + 1e-7))
        for other in others:
            total -= math.log(noise / (math.exp(other) + noise + 1e-7))
    return total / len(positive)


# The formula


@pytest.mark.parametrize("shape", SHAPES)
def test_crd_is_its_formula(shape):
    samples, rows, num_rows = shape
    positive, negative = drawn(0, samples, scale=3.0), drawn(1, samples, rows, scale=3.0)
    wanted = contrast_by_hand(positive.tolist(), negative.tolist(), num_rows)
    np.testing.assert_allclose(crd(positive, negative, num_rows).item(), wanted, rtol=1e-8)
    assert_gradient_is_right(lambda own, others: crd(own, others, num_rows), positive, negative)


@pytest.mark.parametrize("shape", SHAPES)
def test_counts_stand_for_repeated_negatives(shape):
    samples, rows, num_rows = shape
    positive, negative = drawn(2, samples, scale=3.0), drawn(3, samples, rows, scale=3.0)
    counts = torch.randint(0, 4, (samples, rows), generator=torch.Generator().manual_seed(0))
    counts[:, 0] += 1
    repeated = [np.repeat(values, times) for values, times in zip(negative.numpy(), counts.numpy(), strict=True)]
    wanted = contrast_by_hand(positive.tolist(), repeated, num_rows)
    np.testing.assert_allclose(crd(positive, negative, num_rows, counts).item(), wanted, rtol=1e-8)
    assert_gradient_is_right(lambda own, others: crd(own, others, num_rows, counts), positive, negative)


EDGES = [
    ("one sample", drawn(0, 1).float(), drawn(1, 1, 6).float()),
    ("identical rows", drawn(0, 1).float().expand(4), drawn(1, 1, 6).float().expand(4, -1)),
    ("zero", torch.zeros(4), torch.zeros(4, 6)),
    ("large", drawn(0, 4).float() * 1e4, drawn(1, 4, 6).float() * 1e4),
    ("hopeless", torch.full((4,), -1e4), torch.full((4, 6), 1e4)),
    ("solved", torch.full((4,), 1e4), torch.full((4, 6), -1e4)),
    ("bfloat16", drawn(0, 4).bfloat16(), drawn(1, 4, 6).bfloat16()),
]


@pytest.mark.parametrize("case", EDGES, ids=lambda case: case[0])
def test_crd_is_finite_at_the_edges(case):
    _, positive, negative = case
    assert_finite(lambda own, others: crd(own, others, 50), positive, negative)


@pytest.mark.parametrize(("positive", "negative"), [((3,), (4, 5)), ((3,), (3, 0)), ((3, 1), (3, 5)), ((3,), (3,))])
def test_crd_refuses_scores_that_do_not_fit(positive, negative):
    with pytest.raises(ValueError, match="positive scores"):
        crd(torch.zeros(positive), torch.zeros(negative), 10)


def test_crd_refuses_counts_that_do_not_fit():
    with pytest.raises(ValueError, match=r"counts are \(2, 4\)"):
        crd(torch.zeros(2), torch.zeros(2, 5), 10, torch.ones(2, 4))


# Negatives


def draw(first, size, num_rows, draws, seed=0):
    return draw_negatives(np.array(first), np.array(size), num_rows, draws, np.random.default_rng(seed))


@pytest.mark.parametrize("draws", [5, 12, 13, 400])
def test_negatives_are_of_other_classes_and_as_many_as_asked_for(draws):
    first, size = [0, 4, 12, 4], [4, 8, 4, 8]
    counts = draw(first, size, 16, draws)
    assert (counts.sum(axis=1) == draws).all()
    for row, start, length in zip(counts, first, size, strict=True):
        assert not row[start : start + length].any()
        assert (row.max() <= 1) == (draws <= 16 - length)


@pytest.mark.parametrize("draws", [3, 50])
def test_negatives_are_uniform_over_the_other_rows_and_independent_between_samples(draws):
    samples = 4000
    counts = draw([2] * samples, [3] * samples, 11, draws).astype(np.float64)
    others = np.delete(counts, [2, 3, 4], axis=1)
    share = draws / 8
    # Variance of one row's count: binomial with replacement, hypergeometric (one draw at most) without.
    variance = draws * (1 / 8) * (7 / 8) if draws > 8 else share * (1 - share)
    assert np.abs(others.mean(axis=0) - share).max() < 5 * math.sqrt(variance / samples)
    np.testing.assert_allclose(others.var(axis=0), variance, rtol=0.15)
    between = np.corrcoef(others[::2, 0], others[1::2, 0])[0, 1]
    assert abs(between) < 5 / math.sqrt(samples / 2)


# Memories


def test_a_memory_moves_by_momentum_and_keeps_norm_1():
    memory, embedded = drawn(0, 6, 4), drawn(1, 2, 4)
    before = memory.clone()
    after = remembered(memory, torch.tensor([4, 1]), embedded, 0.3).numpy()
    for row, new in [(4, embedded[0].numpy()), (1, embedded[1].numpy())]:
        moved = 0.3 * before[row].numpy() + 0.7 * new
        np.testing.assert_allclose(after[row], moved / np.sqrt((moved**2).sum()), rtol=1e-12)
    untouched = [0, 2, 3, 5]
    np.testing.assert_array_equal(after[untouched], before[untouched].numpy())
    assert torch.equal(memory, before)


def test_a_row_that_a_batch_holds_several_times_moves_once_to_the_mean():
    memory, embedded = drawn(0, 5, 4), drawn(1, 4, 4)
    after = remembered(memory, torch.tensor([3, 0, 3, 3]), embedded, 0.5)
    moved = 0.5 * memory[3] + 0.5 * embedded[[0, 2, 3]].mean(dim=0)
    torch.testing.assert_close(after[3], moved / moved.norm())
    assert after[3].norm().item() == pytest.approx(1.0)
    moved = 0.5 * memory[0] + 0.5 * embedded[1]
    torch.testing.assert_close(after[0], moved / moved.norm())


def test_an_embedding_of_zero_leaves_a_finite_memory():
    assert remembered(torch.zeros(3, 4), torch.tensor([1]), torch.zeros(1, 4), 0.5).isfinite().all()


# The class


def bound(binding, **settings):
    loss = CRD(**settings)
    torch.manual_seed(0)
    loss.bind(binding)
    return loss


HETEROGENEOUS = binding_for({"pooled": (6,), "layer3": (2, 3, 3)}, {"pooled": (9,), "layer3": (4, 2, 2)}, rows=23)


@pytest.mark.parametrize("settings", [{}, {"on": "pooled"}, {"on": "layer3:layer3"}, {"on": "pooled:logits"}])
@pytest.mark.parametrize("negatives", [4, 500])
def test_crd_is_a_loss(settings, negatives):
    loss = CRD(negatives=negatives, embedding=8, **settings)
    assert_is_a_loss(loss, HETEROGENEOUS)
    assert not loss.needs.comparable
    assert not loss.constrains_logits
    gradients = [parameter.grad for parameter in loss.parameters()]
    assert len(gradients) == 4
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def one_side_by_hand(loss, embedded, memory, rows, counts, log_z):
    """Loops over samples and negatives, gathering one memory row after another; returns loss and the scores met."""
    positive, negatives, met = [], [], []
    for sample, row in enumerate(rows):

        def score(place, sample=sample):
            return float(memory[place] @ embedded[sample]) / loss.temperature

        places = np.repeat(np.arange(len(memory)), counts[sample])
        positive.append(score(row))
        negatives.append([score(place) for place in places])
        met += [positive[-1], *negatives[-1]]
    if log_z is None:
        log_z = math.log(np.exp(met).mean() * len(memory))
    shifted = [[value - log_z for value in values] for values in negatives]
    return contrast_by_hand([value - log_z for value in positive], shifted, len(memory)), log_z


@pytest.mark.parametrize("settings", [{"negatives": 9}, {"negatives": 60}, {"negatives": 9, "normalise": False}])
def test_two_steps_of_crd_are_those_written_out(settings):
    binding = binding_for({"pooled": (6,)}, {"pooled": (9,)}, rows=21, classes=3)
    # Labels in no order: the memories sort rows by class, which must not show.
    binding.labels[:] = binding.labels[torch.randperm(21, generator=torch.Generator().manual_seed(5))]
    loss = bound(binding, on="pooled", embedding=5, **settings)
    log_z = [None, None] if loss.normalise else [0.0, 0.0]
    for step in range(3):
        signals = signals_for(binding, batch=4, seed=step, moment=Moment(seed=1, step=step))
        memories = [loss.student_memory.double().numpy().copy(), loss.teacher_memory.double().numpy().copy()]
        places = loss.place[signals.index].tolist()
        embedded = []
        for inputs, linear in zip(
            signals.pair("pooled", "pooled"), (loss.student_embedding, loss.teacher_embedding), strict=True
        ):
            vectors = inputs.detach().numpy() @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
            embedded.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        order = np.argsort(binding.labels.numpy(), kind="stable")
        blocks = [np.flatnonzero(binding.labels.numpy()[order] == label) for label in signals.labels.tolist()]
        first, size = np.array([block[0] for block in blocks]), np.array([len(block) for block in blocks])
        generator = signals.moment.numpy_generator("crd")
        counts = draw_negatives(first, size, 21, loss.negatives, generator).astype(int)
        wanted = 0.0
        for side in (0, 1):
            value, log_z[side] = one_side_by_hand(loss, embedded[side], memories[1 - side], places, counts, log_z[side])
            wanted += value
        assert loss(signals).item() == pytest.approx(wanted, rel=1e-4)
        for memory, new, now in zip(memories, embedded, (loss.student_memory, loss.teacher_memory), strict=True):
            moved = 0.5 * memory[places] + 0.5 * new
            moved /= np.linalg.norm(moved, axis=1, keepdims=True)
            np.testing.assert_allclose(now[places].numpy(), moved, atol=1e-5)


def test_every_row_has_its_own_place_in_the_memories():
    loss = bound(HETEROGENEOUS)
    assert sorted(loss.place.tolist()) == list(range(23))
    labels = torch.empty_like(HETEROGENEOUS.labels)
    labels[loss.place] = HETEROGENEOUS.labels
    assert torch.equal(labels, labels.sort().values)


def test_memories_start_uniform_in_the_released_range():
    loss = bound(binding_for({}, {}, rows=2000), embedding=12)
    for memory in (loss.student_memory, loss.teacher_memory):
        assert memory.abs().max() <= 0.5  # 1 / sqrt(12 / 3)
        assert memory.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.05)
    assert not torch.equal(loss.student_memory, loss.teacher_memory)


def train(loss, binding, steps):
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    values = []
    for step in steps:
        value = loss(signals_for(binding, batch=5, seed=step, moment=Moment(seed=3, step=step)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_resumed_loss_goes_on_exactly(stop):
    whole, first = bound(HETEROGENEOUS, negatives=30), bound(HETEROGENEOUS, negatives=30)
    wanted = train(whole, HETEROGENEOUS, range(7))
    train(first, HETEROGENEOUS, range(stop))
    state = {key: value.clone() for key, value in first.state_dict().items()}
    second = CRD(negatives=30)
    torch.manual_seed(99)
    second.bind(HETEROGENEOUS)
    second.load_state_dict(state)
    assert train(second, HETEROGENEOUS, range(stop, 7)) == wanted[stop:]
    for key, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_a_loss_that_is_evaluated_remembers_nothing():
    loss = bound(HETEROGENEOUS, negatives=30).eval()
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    assert loss(signals_for(HETEROGENEOUS)).isfinite()
    for key, value in loss.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_several_views_of_an_image_move_its_row_once():
    binding = binding_for({}, {}, rows=20, views=3)
    loss = bound(binding, negatives=30)
    loss(signals_for(binding, batch=4)).backward()
    norms = loss.student_memory[loss.place[signals_for(binding, batch=4).index]].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(12))


@pytest.mark.parametrize("case", ["one sample", "identical rows", "large", "zero"])
def test_the_class_is_finite_at_the_edges(case):
    binding = binding_for({}, {}, rows=20)
    loss = bound(binding, negatives=30)
    signals = signals_for(binding, batch=1 if case == "one sample" else 6)
    change = {
        "large": lambda said: said * 1e4,
        "zero": torch.zeros_like,
        "identical rows": lambda said: said[:1] + 0 * said,
    }
    if case in change:
        student = change[case](signals.student.logits.detach()).requires_grad_()
        signals = type(signals)(
            type(signals.student)(student, {}), signals.teacher, signals.labels, signals.index, signals.moment
        )
    for _ in range(2):
        value = loss(signals)
        assert value.isfinite()
        (gradient,) = torch.autograd.grad(value, signals.student.logits)
        assert gradient.isfinite().all()
    assert loss.student_memory.isfinite().all()


def test_memory_is_bounded_by_the_batch_times_the_rows():
    rows, batch = 5000, 8
    binding = binding_for({}, {}, classes=10, rows=rows)
    loss = bound(binding)
    signals = signals_for(binding, batch=batch)
    tracemalloc.start()
    with Largest() as largest:
        loss(signals).backward()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Neither n x n (25 million) nor batch x negatives x embedding (17 million).
    assert largest.numbers == max(rows * loss.embedding, batch * rows)
    assert peak < 2e6  # numpy's share: the counts, of one byte or four each


def test_one_class_is_refused():
    with pytest.raises(InvalidInput, match="crd: all 20 rows are of one class, .* train on rows of several classes"):
        CRD().bind(binding_for({}, {}, classes=1))


def test_several_outputs_are_refused_with_a_table():
    with pytest.raises(InvalidInput, match=r"crd: it embeds one output.*\n.*student layer"):
        CRD(on="pooled+logits").bind(HETEROGENEOUS)


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"negatives": 0}, {"embedding": -1}, {"momentum": 1.5}])
def test_senseless_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        CRD(**setting)
