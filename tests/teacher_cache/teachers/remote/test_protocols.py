"""The three protocols against a server that knows what it answers, and what each of its faults becomes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.stand_ins.faulty_server import Behaviour, FaultyServer, input_of, running
from ground.errors import InvalidInput
from storage.answers import AnswerForm, Kind, MissingMass
from storage.bill import Billed, FailureKind
from teacher_cache.teachers.attempts import Answer, Failure, Usage
from teacher_cache.teachers.elsewhere import RemoteOptions
from tests.teacher_cache.teachers.remote.asking import (
    NORMALISATION,
    Images,
    log_softmax,
    noise,
    opened,
    said_by,
    teacher_of,
)

PROTOCOLS = ("v2", "openai", "http")
OF_TWELVE = tuple(f"class {place}" for place in range(12))


def normalised(images: np.ndarray) -> np.ndarray:
    import torch

    return NORMALISATION.apply(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("has_binary", [False, True])
def test_logits_of_a_batch_are_the_servers(tmp_path, has_binary):
    behaviour = Behaviour(has_binary=has_binary)
    with running(behaviour) as server:
        teacher, images = teacher_of("v2", server.url, tmp_path), noise(3)
        answers = said_by(teacher, images)
        assert teacher.card.answer == AnswerForm()
        assert teacher.card.outputs == {"logits": (10,)}
        for answer, pixels in zip(answers, normalised(images), strict=True):
            assert isinstance(answer, Answer)
            np.testing.assert_array_equal(answer.values["logits"], behaviour.logits(pixels).astype(np.float32))
            assert answer.model == "any 1"
        assert server.counts.requests == 1
        assert server.counts.billed == {input_of(pixels): 1 for pixels in normalised(images)}


@pytest.mark.parametrize("datatype", ["UINT8", "BYTES"])
def test_pixels_are_sent_as_they_are_where_the_input_says_so(tmp_path, datatype):
    behaviour = Behaviour(datatype=datatype)
    with running(behaviour) as server:
        images = noise(2)
        answers = said_by(teacher_of("v2", server.url, tmp_path), images)
    for answer, pixels in zip(answers, images, strict=True):
        np.testing.assert_array_equal(answer.values["logits"], behaviour.logits(pixels).astype(np.float32))


def test_a_card_says_what_a_server_does_not(tmp_path):
    behaviour = Behaviour(has_metadata=False)
    with running(behaviour) as server:
        with pytest.raises(InvalidInput, match="say it with --card FILE"):
            teacher_of("v2", server.url, tmp_path)
        teacher = teacher_of("v2", server.url, tmp_path, input="images", datatype="FP32", answer="logits")
        assert isinstance(said_by(teacher, noise())[0], Answer)


@pytest.mark.parametrize("splits_digits", [False, True])
def test_chat_gives_the_log_probabilities_of_few_classes(tmp_path, splits_digits):
    behaviour = Behaviour(splits_digits=splits_digits)
    with running(behaviour) as server:
        teacher, images = teacher_of("openai", server.url, tmp_path), noise()
        answer = said_by(teacher, images)[0]
    assert teacher.card.answer == AnswerForm(kind=Kind.LOG_PROBS)
    np.testing.assert_allclose(answer.values["log_probs"], log_softmax(behaviour.logits(images[0])), atol=1e-5)
    assert answer.usage == Usage(tokens_in=100, tokens_out=1)
    assert answer.model == "seer-2026 fp_1"
    assert answer.request_id == "req-1"


def test_chat_gives_the_best_of_many_classes_and_states_the_rule_and_what_is_missing(tmp_path, caplog):
    caplog.set_level("INFO")
    classes = tuple(f"class {place}" for place in range(120))
    with running(Behaviour(classes=classes)) as server:
        teacher = opened("openai:seer", RemoteOptions(base_url=f"{server.url}/v1"), Images(classes))
        images = noise()
        answer = said_by(teacher, images)[0]
        true = log_softmax(server.behaviour.logits(images[0]))
    assert teacher.card.answer == AnswerForm(kind=Kind.TOP_K, k=20, missing=MissingMass.SPREAD)
    missing = [text for text in caplog.messages if "of 1 answers" in text]
    assert len(missing) == 1
    assert 0 < float(missing[0].split(" % of the probability is missing")[0].rpartition(" ")[2]) < 100
    # Two of the 20 tokens are words that are no class.
    best = np.argsort(-true, kind="stable")[:18]
    np.testing.assert_array_equal(answer.values["top_k.ids"][:18], best)
    values = answer.values["top_k.values"]
    assert np.all(np.diff(values) <= 0)
    assert np.exp(values.astype(np.float64)).sum() <= 1 + 1e-6
    # Relative sizes of what was seen are the server's.
    np.testing.assert_allclose(values[:18] - values[0], true[best] - true[best[0]], atol=1e-5)


def test_chat_without_log_probabilities_gives_labels(tmp_path):
    with running(Behaviour(gives_logprobs=False)) as server:
        images = noise()
        assert said_by(teacher_of("openai", server.url, tmp_path), images)[0].billed is Billed.YES
        answer = said_by(teacher_of("openai", server.url, tmp_path, answer="label"), images)[0]
        assert answer.values["label"] == server.behaviour.logits(images[0]).argmax()
        assert answer.values["label"].dtype == np.int32


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"scores_at": "by_name"},
        {"scores_at": "predictions.*.score", "labels_at": "predictions.*.label"},
        {"send": "multipart", "field": "photo"},
        {"send": "json", "json": {"image": {"b64": "{image}"}}},
    ],
)
def test_scores_are_found_where_the_card_says(tmp_path, card):
    with running() as server:
        images = noise()
        answer = said_by(teacher_of("http", server.url, tmp_path, **card), images)[0]
        true = np.exp(log_softmax(server.behaviour.logits(images[0])))
    np.testing.assert_allclose(answer.values["probabilities"], true, rtol=1e-6)
    assert answer.model == "v1"


def test_temperature_best_classes_and_labels_of_scores(tmp_path):
    with running() as server:
        images = noise()
        true = log_softmax(server.behaviour.logits(images[0]))
        warm = said_by(
            teacher_of("http", server.url, tmp_path, answer="log_probs", scores_at="logits", temperature=2), images
        )
        np.testing.assert_allclose(warm[0].values["log_probs"], log_softmax(2 * true), atol=1e-5)
        listed = {"scores_at": "predictions.*.score", "labels_at": "predictions.*.label", "top": 4}
        best = said_by(teacher_of("http", server.url, tmp_path, **listed), images)[0]
        np.testing.assert_array_equal(best.values["top_k.ids"], np.argsort(-true)[:4])
        np.testing.assert_allclose(best.values["top_k.values"], np.sort(true)[::-1][:4], atol=1e-5)
        label = {"answer": "label", "scores_at": None, "labels_at": "label"}
        assert said_by(teacher_of("http", server.url, tmp_path, **label), images)[0].values["label"] == true.argmax()


# Fault -> kind, whether it is billed, whether it is final.
TABLE = {
    "429": (FailureKind.RATE_LIMITED, Billed.NO, False),
    "429-seconds": (FailureKind.RATE_LIMITED, Billed.NO, False),
    "429-date": (FailureKind.RATE_LIMITED, Billed.NO, False),
    "400": (FailureKind.REJECTED, Billed.NO, True),
    "redirect": (FailureKind.REJECTED, Billed.NO, True),
    "500": (FailureKind.REJECTED, Billed.UNKNOWN, False),
    "503": (FailureKind.REJECTED, Billed.UNKNOWN, False),
    "hang-before": (FailureKind.UNKNOWN, Billed.UNKNOWN, False),
    "hang-within": (FailureKind.UNKNOWN, Billed.UNKNOWN, False),
    "cut-before": (FailureKind.UNKNOWN, Billed.UNKNOWN, False),
    "cut-within": (FailureKind.UNKNOWN, Billed.UNKNOWN, False),
    "invalid-json": (FailureKind.UNKNOWN, Billed.YES, False),
    "nan": (FailureKind.UNKNOWN, Billed.YES, False),
    "short": (FailureKind.UNKNOWN, Billed.YES, False),
    "deep": (FailureKind.UNKNOWN, Billed.YES, False),
    "endless": (FailureKind.UNKNOWN, Billed.YES, False),
    "packed": (FailureKind.UNKNOWN, Billed.YES, False),
}


@pytest.mark.parametrize("fault", TABLE)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_fault_is_a_failure_of_the_table_and_is_never_repeated(tmp_path, protocol, fault):
    with running(Behaviour(first=(fault,), hang=2.0, retry_seconds=7.0)) as server:
        teacher = teacher_of(protocol, server.url, tmp_path)
        hangs = fault.startswith("hang")
        failure = said_by(teacher, noise(), deadline=0.5 if hangs else 20.0)[0]
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.billed, failure.is_final) == TABLE[fault], failure.why
        assert server.counts.requests == 1
    assert (failure.retry_after is not None) is (fault in ("429-seconds", "429-date"))
    if failure.retry_after is not None:
        assert 5.0 <= failure.retry_after <= 7.0


def test_an_error_costs_nothing_where_the_card_says_so(tmp_path):
    with running(Behaviour(first=("500",))) as server:
        assert said_by(teacher_of("http", server.url, tmp_path, errors_cost=False), noise())[0].billed is Billed.NO


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_was_not_sent_is_not_billed(tmp_path, protocol):
    with running() as server:
        teacher = teacher_of(protocol, server.url, tmp_path)
    failure = said_by(teacher, noise(2) if protocol == "v2" else noise())[0]
    assert (failure.kind, failure.billed) == (FailureKind.NOT_SENT, Billed.NO)


def test_refusals_and_words_that_name_no_class_are_paid_answers_without_content(tmp_path):
    with running(Behaviour(first=("refusal", "foreign"))) as server:
        for _ in range(2):
            answer = said_by(teacher_of("openai", server.url, tmp_path), noise())[0]
            assert isinstance(answer, Answer)
            assert not answer.values
            assert answer.usage.tokens_in == 100


def test_a_label_that_is_no_class_is_a_failure(tmp_path):
    with running(Behaviour(first=("foreign",))) as server:
        failure = said_by(teacher_of("http", server.url, tmp_path, scores_at="by_name"), noise())[0]
    assert (failure.kind, failure.billed) == (FailureKind.UNKNOWN, Billed.YES)


def test_another_fingerprint_in_the_middle_is_told(tmp_path):
    with running(Behaviour(changes_after=1)) as server:
        teacher = teacher_of("openai", server.url, tmp_path)
        assert [said_by(teacher, noise())[0].model for _ in range(2)] == ["seer-2026 fp_1", "seer-2026 fp_2"]


def fingerprint(server: FaultyServer, folder, options: RemoteOptions | None = None, **card) -> str:
    if options is not None:
        return opened("openai:seer", options).card.identity.fingerprint
    return teacher_of("openai", server.url, folder, **card).card.identity.fingerprint


def test_what_changes_an_answer_is_another_teacher_and_what_does_not_is_not(tmp_path):
    (tmp_path / "prompt.txt").write_text("One of these, by its number:\n{classes}")
    with running() as server:
        base = f"{server.url}/v1"
        usual = fingerprint(server, tmp_path)
        others = {
            fingerprint(server, tmp_path, seed=1),
            fingerprint(server, tmp_path, top_logprobs=19),
            fingerprint(server, tmp_path, RemoteOptions(base_url=base, prompt=tmp_path / "prompt.txt")),
            fingerprint(server, tmp_path, RemoteOptions(base_url=base, image_detail="low")),
            fingerprint(server, tmp_path, RemoteOptions(base_url=f"{server.url}/other/v1")),
        }
        assert len(others - {usual}) == 5
        assert fingerprint(server, tmp_path, price={"call": "0.01"}, tolerance=2, key="MY_KEY", image_tokens=9) == usual
        teacher = teacher_of("openai", server.url, tmp_path, price={"input_tokens": "0.15"})
        assert teacher.card.strength == "declared"
        assert teacher.card.identity.name == "openai:seer"
        assert teacher.max_tokens_out == 8


def test_classes_agree_or_are_mapped(tmp_path):
    with running(Behaviour(classes=OF_TWELVE)) as server:
        with pytest.raises(InvalidInput, match="12 there, 10 here"):
            teacher_of("v2", server.url, tmp_path)
        groups = (*((place,) for place in range(9)), (9, 10, 11))
        teacher = opened(f"v2:{server.url}/any", class_map=groups)
        images = noise()
        logits = said_by(teacher, images)[0].values["logits"]
        own = server.behaviour.logits(normalised(images)[0])
    np.testing.assert_allclose(logits, [*own[:9], np.logaddexp.reduce(own[9:])], atol=1e-5)
