"""What is made of a teacher's answers, beside the same in float64 by other means; see test_keep.py for whole builds."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax

from ground.errors import InvalidInput
from storage.answers import AnswerForm, Kind, empty_answers, is_empty
from storage.schema import OutputSpec
from teacher_cache.answers import Conversion, chosen_form, sample_of, uniform_numbers
from teacher_cache.outputs import as_said, find_misfit, rows_that_fit, to_arrays

CLASSES = 9
INPUTS = [bytes([number]) * 16 for number in range(200)]
FORMS = {text: AnswerForm.read(text) for text in ("log_probs", "probabilities", "top:4", "sampled:12", "label")}
logits = arrays(np.float32, st.tuples(st.integers(1, 8), st.just(CLASSES)), elements=st.floats(-50, 50, width=32))


def made(given: str, kept: str, seed: int = 0, **said: Any) -> dict[str, np.ndarray]:
    """What becomes of answers."""
    tensors = {name: torch.as_tensor(values) for name, values in said.items()}
    count = len(next(iter(tensors.values())))
    conversion = Conversion(given=AnswerForm.read(given), kept=AnswerForm.read(kept), seed=seed)
    return {name: values.numpy() for name, values in conversion.convert(tensors, INPUTS[:count]).items()}


def ranked(scores: np.ndarray) -> np.ndarray:
    """Classes by falling score, of equals the lower one first."""
    return np.array([sorted(range(scores.shape[1]), key=lambda place: (-row[place], place)) for row in scores])


@given(logits)
def test_of_logits_anything_can_be_made(values):
    exact = log_softmax(values.astype(np.float64), axis=1)
    log_probs = made("logits", "log_probs", logits=values)["log_probs"]
    np.testing.assert_allclose(log_probs, exact, rtol=1e-5, atol=1e-5)
    probabilities = made("logits", "probabilities", logits=values)["probabilities"]
    np.testing.assert_allclose(probabilities, np.exp(exact), rtol=1e-4, atol=1e-7)
    top = made("logits", "top:4", logits=values)
    assert (top["top_k.ids"].dtype, top["top_k.values"].dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(top["top_k.ids"], ranked(values)[:, :4])
    np.testing.assert_array_equal(top["top_k.values"], np.take_along_axis(log_probs, top["top_k.ids"], axis=1))
    assert (np.diff(top["top_k.values"], axis=1) <= 0).all()
    label = made("logits", "label", logits=values)["label"]
    assert (label.dtype, label.shape) == (np.int32, (len(values),))
    np.testing.assert_array_equal(label, values.argmax(axis=1))


@given(logits)
def test_log_probabilities_and_probabilities_lead_to_the_same_as_logits(values):
    log_probs = made("logits", "log_probs", logits=values)["log_probs"]
    probabilities = made("logits", "probabilities", logits=values)["probabilities"]
    for kept in ("top:4", "label"):
        for name, found in made("log_probs", kept, log_probs=log_probs).items():
            np.testing.assert_allclose(found, made("logits", kept, logits=log_probs)[name], atol=1e-5)
    np.testing.assert_allclose(
        made("log_probs", "probabilities", log_probs=log_probs)["probabilities"], probabilities, rtol=1e-6
    )
    logs = made("probabilities", "log_probs", probabilities=probabilities)["log_probs"]
    there = probabilities > 1e-30
    np.testing.assert_allclose(logs[there], log_probs[there], rtol=1e-4, atol=1e-4)
    assert np.isfinite(logs).all(), "a probability of 0 has a logarithm that can be kept"


@given(logits, st.integers(1, CLASSES))
def test_a_top_k_is_the_beginning_of_a_larger_one(values, k):
    whole = made("logits", f"top:{CLASSES}", logits=values)
    for name, found in made("logits", f"top:{k}", logits=values).items():
        np.testing.assert_array_equal(found, whole[name][:, :k])
    said = {name: torch.from_numpy(array) for name, array in whole.items()}
    for name, found in made(f"top:{CLASSES}", f"top:{k}:zero", **said).items():
        np.testing.assert_array_equal(found, whole[name][:, :k])
    np.testing.assert_array_equal(made(f"top:{CLASSES}", "label", **said)["label"], ranked(values)[:, 0])
    dense = np.empty_like(values)
    np.put_along_axis(dense, whole["top_k.ids"].astype(np.int64), whole["top_k.values"], axis=1)
    np.testing.assert_array_equal(dense, made("logits", "log_probs", logits=values)["log_probs"])


def test_what_is_equal_is_ranked_by_its_number():
    values = np.zeros((2, 50), np.float32)
    values[1, 20:] = 1
    top = made("logits", "top:5", logits=values)
    np.testing.assert_array_equal(top["top_k.ids"], [[0, 1, 2, 3, 4], [20, 21, 22, 23, 24]])


@given(logits, st.integers(0, 1 << 40))
def test_a_sample_holds_every_draw_once_and_is_the_same_whoever_answers(values, seed):
    found = made("logits", "sampled:12", seed, logits=values)
    ids, weights = found["sampled.ids"], found["sampled.weights"]
    assert (ids.dtype, weights.dtype, ids.shape) == (np.int32, np.float32, (len(values), 12))
    counts = np.rint(weights * 12).astype(int)
    np.testing.assert_allclose(counts / 12, weights, atol=1e-7)
    assert (counts.sum(axis=1) == 12).all()
    assert ((ids == -1) == (counts == 0)).all()
    for row, count in zip(ids, counts, strict=True):
        used = [(-int(number), int(place)) for place, number in zip(row, count, strict=True) if number]
        assert used == sorted(used)
        assert len({place for _, place in used}) == len(used)
        assert all(0 <= place < CLASSES for _, place in used)
    # Alone, or among others: what is drawn follows from the input.
    for row in range(len(values)):
        conversion = Conversion(given=AnswerForm(), kept=FORMS["sampled:12"], seed=seed)
        alone = conversion.convert({"logits": torch.from_numpy(values[row : row + 1])}, INPUTS[row : row + 1])
        np.testing.assert_array_equal(alone["sampled.ids"].numpy()[0], ids[row])
        np.testing.assert_array_equal(alone["sampled.weights"].numpy()[0], weights[row])


def test_the_mean_of_samples_is_the_distribution():
    """Anshumann et al., ACL 2025: unbiased, whatever k is; a top-k of the same size is not."""
    rng = np.random.default_rng(1)
    logs = log_softmax(rng.normal(scale=2, size=CLASSES))
    probabilities, draws, k = np.exp(logs), 5000, 3
    total = np.zeros(CLASSES)
    for number in range(draws):
        classes, shares = sample_of(logs, uniform_numbers(7, number.to_bytes(16, "little"), k))
        total[classes] += shares
    error = np.sqrt(probabilities * (1 - probabilities) / (k * draws))
    assert (np.abs(total / draws - probabilities) < 4 * error).all()
    assert error.max() < 0.006, "so many draws tell"


def test_what_is_drawn_is_written_down():
    """Stores hold samples: the numbers behind them may never change."""
    # openssl dgst -shake128 -xoflen 24: three numbers of 64 bits, of which the upper 53 count
    expected = [0.620043623347849, 0.07070835417946808, 0.9430871733236599]
    np.testing.assert_allclose(uniform_numbers(3, b"\x05" * 16, 3), expected, atol=1e-10)
    np.testing.assert_array_equal(sample_of(np.log([0.5, 0.25, 0.25]), np.array([0.1, 0.6, 0.2, 0.99]))[0], [0, 1, 2])


def test_a_class_without_probability_is_never_drawn():
    logs = np.array([-np.inf, 0.0, -np.inf, -np.inf])
    for numbers in (np.zeros(5), np.full(5, 1 - 2.0**-53), np.linspace(0, 0.99, 5)):
        classes, shares = sample_of(logs, numbers)
        assert (classes.tolist(), shares.tolist()) == ([1], [1.0])


def test_halves_are_computed_in_float32_and_features_pass():
    values = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0)).half()
    found = made("logits", "top:3", logits=values, pooled=torch.ones(4, 2))
    assert found["top_k.values"].dtype == np.float32
    expected = np.sort(log_softmax(values.numpy().astype(np.float64), axis=1), axis=1)[:, ::-1][:, :3]
    np.testing.assert_allclose(found["top_k.values"], expected, rtol=1e-5)
    assert found["pooled"].shape == (4, 2)


def test_answers_are_the_same_in_blocks_of_any_size(monkeypatch):
    values = np.random.default_rng(0).normal(size=(50, CLASSES)).astype(np.float32)
    whole = {kept: made("logits", kept, logits=values) for kept in FORMS}
    monkeypatch.setattr("teacher_cache.answers.MOST_NUMBERS", 3 * CLASSES + 1)
    for kept, expected in whole.items():
        for name, found in made("logits", kept, logits=values).items():
            np.testing.assert_array_equal(found, expected[name])


BROKEN = {
    "nan": [np.nan, *[0.0] * (CLASSES - 1)],
    "all nan": [np.nan] * CLASSES,
    "inf": [np.inf, *[0.0] * (CLASSES - 1)],
    "minus inf": [-np.inf] * CLASSES,
}


@pytest.mark.parametrize("kept", FORMS)
@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_number_fits_no_store_whatever_is_made_of_it(kept, broken):
    values = np.zeros((3, CLASSES), np.float32)
    values[1] = BROKEN[broken]
    outputs = FORMS[kept].outputs(CLASSES)
    said = {name: torch.from_numpy(array) for name, array in made("logits", kept, logits=values).items()}
    assert rows_that_fit(said, outputs).tolist() == [True, False, True]
    row = {name: array[1] for name, array in as_said(said, outputs).items()}
    misfit = find_misfit(row, outputs)
    assert misfit is not None
    assert not misfit.is_too_large
    fitting = to_arrays(said, outputs, np.array([True, False, True]))
    assert [len(array) for array in fitting.values()] == [2] * len(outputs)


LAYER = OutputSpec("pooled", (3,), "bfloat16")


@pytest.mark.parametrize("kept", ["logits", *FORMS])
def test_an_answer_without_content_fits_where_it_is_a_refusal_and_nowhere_else(kept):
    outputs = (*AnswerForm.read(kept).outputs(CLASSES), LAYER)
    values = {name: torch.from_numpy(array) for name, array in empty_answers(outputs, 2).items()}
    nobody, second = np.array([False, False]), np.array([False, True])
    assert rows_that_fit(values, outputs).tolist() == [False, False]
    assert rows_that_fit(values, outputs, nobody).tolist() == [False, False]
    assert rows_that_fit(values, outputs, second).tolist() == [False, True]
    stored = to_arrays(values, outputs)
    row = {name: array[:1] for name, array in stored.items()}
    assert find_misfit(row, outputs) is not None
    assert find_misfit(row, outputs, is_refusal=True) is None
    # One that says something is a refusal by name alone: it fits as any other does, or not.
    values["pooled"][1] = 0
    assert rows_that_fit(values, outputs, second).tolist() == [False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_whether_a_feature_map_fits_does_not_depend_on_how_it_lies_in_memory(dtype, layout):
    outputs = (OutputSpec("layer1", (2, 3, 4), "float16"),)
    maps = torch.zeros(5, 2, 3, 4)
    for row, value in ((1, 1e5), (2, -1e5), (3, math.nan), (4, 65504.0)):
        maps[row, 1, row % 3, 2] = value
    said = maps.to(dtype).contiguous(memory_format=layout)
    before = said.clone()
    assert rows_that_fit({"layer1": said}, outputs).tolist() == [True, False, False, False, dtype == torch.float32]
    assert torch.equal(said.nan_to_num(7), before.nan_to_num(7))
    row = torch.ones(5, dtype=torch.bool).numpy()
    assert to_arrays({"layer1": said}, outputs, row)["layer1"].shape == (5, 2, 3, 4)


def test_a_broken_answer_is_no_refusal_by_its_ids():
    values = np.full((1, CLASSES), np.nan, np.float32)
    for kept in ("top:4", "sampled:12", "label"):
        assert not is_empty(made("logits", kept, logits=values)).any()


def card_of(given: str, num_classes: int = CLASSES, layers: tuple[str, ...] = ()) -> Any:
    identity = SimpleNamespace(name="teacher", num_classes=num_classes, class_map=None, layers=layers)
    return SimpleNamespace(identity=identity, answer=AnswerForm.read(given))


POSSIBLE = {
    "logits": ("logits", "log_probs", "probabilities", "top:3", "sampled:20", "label"),
    "log_probs": ("log_probs", "probabilities", "top:3", "sampled:20", "label"),
    "probabilities": ("log_probs", "probabilities", "top:3", "sampled:20", "label"),
    "top:5": ("top:5", "top:3", "top:5:zero", "label"),
    "sampled:20": ("sampled:20",),
    "label": ("label",),
}
ALL = (
    "logits",
    "log_probs",
    "probabilities",
    "top:5",
    "top:3",
    "top:5:zero",
    "top:9",
    "sampled:20",
    "sampled:3",
    "label",
)


@pytest.mark.parametrize("given_text", POSSIBLE)
def test_what_cannot_be_made_is_refused_and_what_the_teacher_gives_is_named(given_text):
    full = given_text in ("logits", "log_probs", "probabilities")
    for text in ALL:
        form = AnswerForm.read(text)
        if text in POSSIBLE[given_text] or (full and form.kind in (Kind.TOP_K, Kind.SAMPLED)):
            assert chosen_form(card_of(given_text), form) == form
        else:
            with pytest.raises(
                InvalidInput, match=f"teacher answers with {given_text}, of which {text} cannot be made"
            ):
                chosen_form(card_of(given_text), form)
    assert chosen_form(card_of(given_text), None) == AnswerForm.read(given_text)


def test_more_ids_than_classes_and_names_of_layers_are_refused():
    with pytest.raises(
        InvalidInput, match="top:10 keeps more ids than the 9 classes that there are; give --keep top:9"
    ):
        chosen_form(card_of("logits"), AnswerForm.read("top:10"))
    with pytest.raises(InvalidInput, match="has a layer called 'label', as a store calls what --keep label keeps"):
        chosen_form(card_of("logits", layers=("label",)), AnswerForm.read("label"))


def test_the_teacher_is_asked_for_what_it_gives():
    conversion = Conversion(given=AnswerForm(), kept=FORMS["top:4"])
    assert conversion.asked(("top_k.ids", "top_k.values", "layer1")) == ("logits", "layer1")
    assert conversion.asked(("layer1",)) == ("layer1",)
    assert Conversion(given=AnswerForm(), kept=AnswerForm()).asked(("logits", "layer1")) == ("logits", "layer1")


def test_a_device_without_room_left_costs_no_answer(monkeypatch):
    values = np.random.default_rng(0).normal(size=(5, CLASSES)).astype(np.float32)
    expected, sort, asked = made("logits", "top:4", logits=values), torch.Tensor.sort, []

    def full_once(self, *arguments, **options):
        asked.append(self.shape)
        if len(asked) == 1:
            raise torch.OutOfMemoryError("no room")
        return sort(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "sort", full_once)
    found = made("logits", "top:4", logits=values)
    assert len(asked) == 2
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
