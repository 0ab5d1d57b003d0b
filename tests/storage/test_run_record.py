"""What a run says of itself: written as ever, read back as it was, and refused when somebody changed it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, structs

from ground.documents import Malformed, typed
from ground.errors import InvalidInput
from ground.geometry import Normalisation, Rendering, ViewGeometry
from storage.run_record import Failure, RunProtocol, RunRecord, RunSettings, has_failed, is_finished

# As releases before this record wrote it: every key, in its order.
DOCUMENT: dict[str, Any] = {
    "student": "resnet8",
    "method": "kd:temperature=2",
    "seed": 3,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "batch_size": 64,
    "student_view": "fresh",
    "protocol": {"patience": 50, "plateaus": 3, "max_evals": None},
    "recipe": {"losses": [{"loss": "kd", "weight": 1.0, "temperature": 2}], "sampling": None},
    "n": 800,
    "precision": "fp32",
    "store_id": "4b3605f8bc5c4767a438339849d93ccc",
    "teacher": "wrn_40_2",
    "teacher_fingerprint": "5e7d" * 16,
    "dataset": "cifar100",
    "store": "/stores/é\u3000\nx",
    "ledger_head": "246a" * 16,
    "teacher_calls": 800,
    "teacher_outputs": ["logits", "layer1"],
    "test_accuracy": 0.5,
    "best_val_accuracy": 0.1 + 0.2,
    "last_test_accuracy": 1e-05,
    "evaluations": 24,
    "steps": 312,
    "seconds": 12.5,
    "device": "cpu",
    "versions": {"teacher-cache": "0.1.0"},
}
# Read where a run of an earlier release, or one without a ledger, lacks them.
OPTIONAL = {"store", "ledger_head", "teacher_outputs"}
RENDERING = Rendering(
    geometry=ViewGeometry(image_size=32, crop_size=32, padding=4),
    normalisation=Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.25)),
)
# A float holds all of these exactly.
WHOLE = st.integers(-(1 << 53), 1 << 53) | st.just(1 << 100)
KEYS = st.text(max_size=5).filter(str.isprintable)
JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def record() -> RunRecord:
    return RunRecord(
        student="resnet8",
        method="kd:temperature=2",
        seed=3,
        lr=0.05,
        momentum=0.9,
        weight_decay=0.0005,
        batch_size=64,
        student_view="fresh",
        protocol=RunProtocol(patience=50, plateaus=3, max_evals=None),
        recipe={"losses": [{"loss": "kd", "weight": 1.0, "temperature": 2}], "sampling": None},
        n=800,
        precision="fp32",
        store_id="4b3605f8bc5c4767a438339849d93ccc",
        teacher="wrn_40_2",
        teacher_fingerprint="5e7d" * 16,
        dataset="cifar100",
        store="/stores/é\u3000\nx",
        ledger_head="246a" * 16,
        teacher_calls=800,
        teacher_outputs=("logits", "layer1"),
        test_accuracy=0.5,
        best_val_accuracy=0.1 + 0.2,
        last_test_accuracy=1e-05,
        evaluations=24,
        steps=312,
        seconds=12.5,
        device="cpu",
        versions={"teacher-cache": "0.1.0"},
    )


def test_run_json_is_written_as_it_always_was(tmp_path):
    record().save(tmp_path)
    assert (tmp_path / "run.json").read_text() == json.dumps(DOCUMENT, indent=2) + "\n"
    assert record().document() == DOCUMENT


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    record().save(tmp_path)
    assert RunRecord.read(tmp_path) == RunRecord.load(tmp_path, "") == record()


def test_a_record_says_how_its_student_was_shown_images_where_that_is_known(tmp_path):
    assert record().student_rendering is UNSET
    told = structs.replace(record(), student_rendering=RENDERING)
    told.save(tmp_path)
    written = json.loads((tmp_path / "run.json").read_text())
    assert written.pop("student_rendering") == json.loads(json.dumps(asdict(RENDERING)))
    assert written == DOCUMENT
    assert RunRecord.read(tmp_path).student_rendering == RENDERING


def test_a_record_says_of_which_sample_it_is_where_that_is_known(tmp_path):
    assert record().sample_seed is UNSET
    structs.replace(record(), sample_seed=7).save(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text()) == DOCUMENT | {"sample_seed": 7}
    assert RunRecord.read(tmp_path).sample_seed == 7
    with pytest.raises(Malformed, match="sample_seed"):
        typed(DOCUMENT | {"sample_seed": -1}, RunRecord)


def test_a_record_names_proxies_that_nothing_vouched_for_where_there_are_some():
    assert record().unproven_proxies is UNSET
    told = structs.replace(record(), unproven_proxies=("5e7d" * 16,))
    assert told.document() == DOCUMENT | {"unproven_proxies": ["5e7d" * 16]}
    with pytest.raises(Malformed, match="unproven_proxies"):
        typed(DOCUMENT | {"unproven_proxies": ["kd"]}, RunRecord)


def test_a_rendering_that_cannot_be_is_refused_with_its_place():
    rendering = json.loads(json.dumps(asdict(RENDERING)))
    rendering["geometry"]["crop_size"] = 4000
    with pytest.raises(Malformed, match="student_rendering.geometry: a 4000-pixel crop does not fit"):
        typed(DOCUMENT | {"student_rendering": rendering}, RunRecord)


@pytest.mark.parametrize("key", DOCUMENT)
def test_a_document_without_a_key_is_refused_unless_it_may_lack_it(key):
    document = {name: value for name, value in DOCUMENT.items() if name != key}
    if key in OPTIONAL:
        assert getattr(typed(document, RunRecord), key) is None
    else:
        with pytest.raises(Malformed, match=f"it has no {key}"):
            typed(document, RunRecord)


@given(st.sampled_from(sorted(DOCUMENT)), JSON)
def test_a_document_with_any_value_in_any_place_is_read_as_it_says_or_refused_by_the_place(key, value):
    document = DOCUMENT | {key: value}
    refused = None
    try:
        found = typed(document, RunRecord)
    except Malformed as error:
        refused = str(error)
    if refused is not None:
        assert refused.startswith(key)
        assert refused.isprintable()
    else:
        known = value if key != "protocol" else {name: value[name] for name in DOCUMENT["protocol"]}
        assert found.document() == document | {key: known}


@given(
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 1 << 40),
            "lr": st.floats(0, allow_infinity=False),
            "test_accuracy": st.floats(0, 1),
            "recipe": st.dictionaries(KEYS, JSON.filter(lambda value: value == value), max_size=3),
            "teacher_outputs": st.none() | st.lists(st.text(max_size=9), max_size=3),
            "ledger_head": st.none() | st.just("0" * 64),
        }
    )
)
def test_a_record_survives_being_written_down(values):
    found = typed(DOCUMENT | values, RunRecord)
    again = typed(json.loads(json.dumps(found.document())), RunRecord)
    assert json.dumps(again.document()) == json.dumps(found.document())


def test_settings_are_the_part_that_a_resumed_run_must_share():
    settings = typed(DOCUMENT, RunSettings)
    assert list(settings.document()) == list(DOCUMENT)[: list(DOCUMENT).index("store")]
    assert settings.document().items() <= DOCUMENT.items()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"n": NaN}'])
def test_a_damaged_run_json_is_refused_with_the_advice(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InvalidInput, match=r"run\.json' cannot be used \(.*\); train again"):
        RunRecord.load(tmp_path, "train again")


def test_a_run_is_finished_once_it_has_a_record_and_has_failed_while_it_has_a_failure(tmp_path):
    assert not is_finished(tmp_path)
    assert not has_failed(tmp_path)
    record().save(tmp_path)
    assert is_finished(tmp_path)
    Failure(error="e", kind="k").save(tmp_path)
    assert has_failed(tmp_path)


def test_a_failure_is_written_as_it_always_was_and_comes_back(tmp_path):
    failure = Failure(error="the loss is nan", kind="Diverged", at="2026-01-01T00:00:00+00:00")
    failure.save(tmp_path)
    document = {"error": "the loss is nan", "kind": "Diverged", "at": "2026-01-01T00:00:00+00:00"}
    assert (tmp_path / "failure.json").read_text() == json.dumps(document, indent=2) + "\n"
    assert Failure.load(tmp_path, "") == failure


@given(st.text(st.characters()))
def test_a_failures_sentence_can_be_printed(error):
    assert Failure(error=error, kind="k").sentence.isprintable()


def test_a_long_failure_is_cut():
    assert Failure(error="\x1b[2J" + "x" * 9999, kind="k").sentence == " [2J" + "x" * 4092


def test_reading_a_record_takes_no_torch():
    code = "import sys, storage.run_record; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
