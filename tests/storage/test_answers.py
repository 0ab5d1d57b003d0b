"""Forms of answers: what they are called, what they are kept in, and that both array formats give them back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from storage.answers import ANSWER_NAMES, AnswerForm, Kind, MissingMass, empty_answers, is_empty, top1
from storage.digest import output_digests
from storage.identity import Identity
from storage.rows import Rows
from storage.schema import OutputSpec
from storage.store import Store
from tests.storage.conftest import CLASSES, VIEWS, make_identity, make_samples

FORMS = (
    AnswerForm(),
    AnswerForm(kind=Kind.LOG_PROBS),
    AnswerForm(kind=Kind.PROBABILITIES),
    AnswerForm(kind=Kind.TOP_K, k=3, missing=MissingMass.ZERO),
    AnswerForm(kind=Kind.SAMPLED, k=7),
    AnswerForm(kind=Kind.LABEL),
)
forms = (
    st.sampled_from([Kind.LOGITS, Kind.LOG_PROBS, Kind.PROBABILITIES, Kind.LABEL]).map(
        lambda kind: AnswerForm(kind=kind)
    )
    | st.builds(AnswerForm, kind=st.just(Kind.TOP_K), k=st.integers(1, 1 << 16), missing=st.sampled_from(MissingMass))
    | st.builds(AnswerForm, kind=st.just(Kind.SAMPLED), k=st.integers(1, 1 << 16))
)


def identity_of(form: AnswerForm) -> Identity:
    """Of a store that keeps answers so, beside the features of the others."""
    identity = make_identity()
    return dataclasses.replace(
        identity,
        answer=None if form.kind is Kind.LOGITS else form,
        outputs=(*form.outputs(CLASSES), *identity.outputs[1:]),
    )


@given(forms)
def test_a_text_and_a_form_are_each_others(form):
    assert AnswerForm.read(form.text) == form


def test_the_words_of_the_command_line_are_read():
    assert AnswerForm.read("top:16") == AnswerForm(kind=Kind.TOP_K, k=16, missing=MissingMass.SPREAD)
    assert AnswerForm.read("top:16:zero") == AnswerForm(kind=Kind.TOP_K, k=16, missing=MissingMass.ZERO)
    assert AnswerForm.read("sampled:12") == AnswerForm(kind=Kind.SAMPLED, k=12)
    assert [AnswerForm.read(kind).kind for kind in ("logits", "log_probs", "probabilities", "label")] == [
        Kind.LOGITS,
        Kind.LOG_PROBS,
        Kind.PROBABILITIES,
        Kind.LABEL,
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no kind of answer; give logits, log_probs"),
        ("softmax", "is no kind of answer"),
        ("top_k:4", "is no kind of answer"),
        ("top", "is not how top is said"),
        ("label:3", "is not how label is said"),
        ("sampled:3:zero", "is not how sampled is said"),
        ("logits:zero", "is not how logits is said"),
        ("top:0", "keeps 0 ids of each answer; give 1 to 65536"),
        ("top:65537", "keeps 65537 ids"),
        ("top:4:halve", "has the rule 'halve' for the missing mass; give spread, zero, renormalise"),
        ("top:-4", "is no kind of answer"),
        ("top:\u0664", "is no kind of answer"),
        ("top:4\n", "is no kind of answer"),
        ("\x1b[31m", r"'\\x1b\[31m' is no kind of answer"),
    ],
)
def test_any_other_text_is_refused_in_a_sentence(text, said):
    with pytest.raises(InvalidInput, match=said) as raised:
        AnswerForm.read(text)
    assert str(raised.value).isprintable()


@given(st.text())
def test_no_text_does_anything_but_read_or_be_refused(text):
    refused = None
    try:
        form = AnswerForm.read(text)
    except InvalidInput as error:
        refused = str(error)
    if refused is None:
        assert AnswerForm.read(form.text) == form
    else:
        assert refused.isprintable()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": Kind.TOP_K},
        {"kind": Kind.TOP_K, "k": 3},
        {"kind": Kind.TOP_K, "missing": MissingMass.ZERO},
        {"kind": Kind.TOP_K, "k": 0, "missing": MissingMass.ZERO},
        {"kind": Kind.SAMPLED},
        {"kind": Kind.SAMPLED, "k": 3, "missing": MissingMass.ZERO},
        {"kind": Kind.LABEL, "k": 1},
        {"k": 2},
        {"missing": MissingMass.SPREAD},
    ],
)
def test_a_form_has_what_its_kind_has(wrong):
    with pytest.raises(ValueError, match="an answer"):
        AnswerForm(**wrong)


def test_outputs_are_those_of_the_format():
    """docs/store-format.md lists them."""
    assert {form.kind.value: form.outputs(5) for form in FORMS} == {
        "logits": (OutputSpec("logits", (5,), "float32"),),
        "log_probs": (OutputSpec("log_probs", (5,), "float32"),),
        "probabilities": (OutputSpec("probabilities", (5,), "float32"),),
        "top_k": (OutputSpec("top_k.ids", (3,), "int32"), OutputSpec("top_k.values", (3,), "float32")),
        "sampled": (OutputSpec("sampled.ids", (7,), "int32"), OutputSpec("sampled.weights", (7,), "float32")),
        "label": (OutputSpec("label", (), "int32"),),
    }
    assert {name for form in FORMS for name in form.names} == ANSWER_NAMES
    assert [form.size_bytes(1000) for form in FORMS] == [4000, 4000, 4000, 24, 56, 4]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.text)
def test_an_answer_is_empty_where_all_of_it_says_nothing(form):
    outputs = form.outputs(5)
    nothing = empty_answers(outputs, 3)
    assert [nothing[output.name].shape for output in outputs] == [(3, *output.shape) for output in outputs]
    assert is_empty(nothing).all()
    assert (top1(form, nothing) == -1).all()
    for output in outputs:
        said = {name: values.copy() for name, values in nothing.items()}
        said[output.name][1] = 1
        assert is_empty(said).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("form", "values", "answered"),
    [
        (FORMS[0], {"logits": [[0, 3, 3], [-1, -2, -3]]}, [1, 0]),
        (FORMS[2], {"probabilities": [[0.1, 0.2, 0.7], [np.nan] * 3]}, [2, -1]),
        (FORMS[3], {"top_k.ids": [[2, 0, 1], [1, 2, 0]], "top_k.values": [[-0.1] * 3] * 2}, [2, 1]),
        (FORMS[4], {"sampled.ids": [[4, 1, -1], [-1] * 3], "sampled.weights": [[0.5, 0.5, 0]] * 2}, [4, -1]),
        (FORMS[5], {"label": [3, -1]}, [3, -1]),
    ],
)
def test_the_class_that_is_answered_is_the_first_or_the_largest(form, values, answered):
    arrays = {
        name: np.array(rows, np.int32 if name.endswith(("ids", "label")) else np.float32)
        for name, rows in values.items()
    }
    assert top1(form, arrays).tolist() == answered


def random_values(outputs: tuple[OutputSpec, ...], cells: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        output.name: rng.integers(0, CLASSES, (cells, *output.shape), np.int32)
        if output.dtype == "int32"
        else rng.normal(size=(cells, *output.shape)).astype(output.dtype)
        for output in outputs
    }


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.text)
def test_a_store_gives_back_what_was_written_of_any_kind(tmp_path, array_format, form):
    identity = identity_of(form)
    n = 70
    store = Store.create(tmp_path / "store", identity, array_format=array_format, samples=make_samples(identity, n))
    values = random_values(identity.outputs, n * VIEWS)
    refused = empty_answers(identity.outputs, 1)
    for name, array in values.items():
        array[3] = refused[name][0]
    cells = range(n * VIEWS)
    digests = store.write_outputs(cells, values)
    store.publish(cells)
    opened = Store.open(store.folder)
    assert opened.manifest.identity == identity
    assert {opened.array_of(name) for name in form.names} == {f"train/{name}" for name in form.names}
    read = opened.read_outputs([output.name for output in identity.outputs], Rows.first(n))
    for output in identity.outputs:
        found = read[output.name].reshape(n * VIEWS, *output.shape)
        assert found.dtype == values[output.name].dtype
        np.testing.assert_array_equal(found, values[output.name])
    np.testing.assert_array_equal(digests, output_digests(identity.outputs, values))
    assert is_empty({name: read[name].reshape(n * VIEWS, -1) for name in form.names}).nonzero()[0].tolist() == [3]


def test_a_layer_may_be_called_like_an_answer_of_another_kind(tmp_path):
    """An exported program may call any output of it so: stores of it were built before there were kinds."""
    identity = make_identity()
    layer = OutputSpec("probabilities", (5,), "float16")
    teacher = dataclasses.replace(identity.teacher, layers=("probabilities",))
    identity = dataclasses.replace(
        identity, teacher=teacher, outputs=(identity.outputs[0], layer), parameters=identity.parameters[:2]
    )
    store = Store.create(tmp_path / "store", identity, array_format="zarr", samples=make_samples(identity, 8))
    assert Store.open(store.folder).array_of("probabilities") == "train/features/probabilities"
    assert identity.features == {"probabilities": (5,)}
    assert identity.answer_form == AnswerForm()
