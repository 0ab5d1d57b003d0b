"""A manifest on the disk is what it always was, and nothing else is taken for one; see test_store.py too."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import IdentityMismatch, StoreUnreadable
from storage.answers import AnswerForm, Kind, MissingMass
from storage.identity import require_same
from storage.manifest import FILE_NAME, Manifest, digest_of, is_sealed
from storage.schema import OutputSpec, parameter_array
from storage.store import array_specs
from tests.storage.conftest import make_identity

SPLITS = ("train", "val", "test")
SAMPLES = [f"{split}/{name}" for split in SPLITS for name in ("images", "labels", "source_index")]
PARAMETERS = [parameter_array(spec.name) for spec in make_identity().parameters]
MANIFEST = Manifest(
    store_id="01" * 16,
    array_format="zarr",
    arrays="data.zarr",
    identity=make_identity(),
    n=70,
    num_val=17,
    num_test=9,
    samples=dict.fromkeys([*SAMPLES, "train/views", *PARAMETERS], "ef" * 32),
    ledger_head="12" * 32,
    history=({"store_id": "02" * 16, "made_by": "convert"},),
    versions={"numpy": "2.0"},
)


def content_of(manifest: Manifest) -> dict[str, Any]:
    """What is written of a manifest, without its digest."""
    left_out = {"older"} if manifest.ledger_genesis else {"older", "ledger_genesis"}
    fields = {name: value for name, value in asdict(manifest).items() if name not in left_out}
    content = json.loads(json.dumps({"format_version": 4, **fields}))
    for name in ("input_size", "interpolation", "class_map"):
        if content["identity"]["teacher"][name] is None:
            del content["identity"]["teacher"][name]
    if content["identity"]["dataset"]["squares"] is None:
        del content["identity"]["dataset"]["squares"]
    if content["identity"]["answer"] is None:
        del content["identity"]["answer"]
    return content


CONTENT = content_of(MANIFEST)


def write(folder, document: dict[str, Any]) -> None:
    """As somebody who knows how the digest is made."""
    (folder / "manifest.json").write_text(json.dumps({**document, "digest": digest_of(document)}))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in [(*path, key), *places(item, (*path, key))]]


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(CONTENT)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


def test_a_manifest_is_written_and_digested_as_it_always_was(tmp_path, monkeypatch):
    """Stores and ledgers of earlier releases hold these digests; both were computed by a release of format 3."""
    assert MANIFEST.digest == "b37e1b8366b1bceb3cafaf0d6e7801883c8a0a93ee294649fb34ca3ea28cba3b"
    monkeypatch.setattr("storage.manifest.FORMAT_VERSION", 3)
    MANIFEST.save(tmp_path)
    written = hashlib.sha256((tmp_path / "manifest.json").read_bytes()).hexdigest()
    assert written == "03f0f618edecf1d09b1610843a51e53eab37b9f6e9641ee970538936914c8395"


@given(
    n=st.integers(0, 1 << 16),
    seed=st.integers(0, 1 << 40),
    views=st.integers(1, 1 << 10),
    classes=st.lists(st.text(st.characters(exclude_categories=("C", "Z"))), min_size=5, max_size=5),
    ledger=st.none() | st.just("postgresql://h/db"),
    rest=st.integers(0, 1 << 10),
)
def test_a_manifest_survives_a_round_trip(tmp_path_factory, n, seed, views, classes, ledger, rest):
    dataset = replace(MANIFEST.identity.dataset, classes=tuple(classes))
    identity = replace(MANIFEST.identity, seed=seed, views=views, dataset=dataset)
    counted = rest // 2 if rest else None
    manifest = replace(MANIFEST, n=n, rest=rest, rest_labelled=counted, identity=identity, ledger=ledger)
    specs = {spec.name: spec for spec in array_specs(identity)}
    blocks = {name: -(-manifest.rows_of(specs[name]) // specs[name].block_rows) for name in MANIFEST.samples}
    manifest = replace(manifest, samples={name: "ef" * 32 * count for name, count in blocks.items()})
    folder = tmp_path_factory.mktemp("store")
    manifest.save(folder)
    found = Manifest.load(folder)
    assert found == manifest
    assert found.digest == manifest.digest


def test_places_are_written_where_rows_do_not_lie_at_their_own_numbers_and_sound_ones_are_read(tmp_path):
    MANIFEST.save(tmp_path)
    assert "places" not in (tmp_path / FILE_NAME).read_text()
    manifest = replace(MANIFEST, places=((0, 40), (70, 10), (40, 20)))
    manifest.save(tmp_path)
    found = Manifest.load(tmp_path)
    assert found == manifest
    specs = {spec.name: spec for spec in array_specs(manifest.identity)}
    rows = {
        name: (found.rows_of(specs[name]), found.array_rows(specs[name])) for name in ("train/labels", "train/valid")
    }
    assert rows == {"train/labels": (70, 80), "train/valid": (70, 70)}
    assert found.places_of(specs["train/labels"], np.array([39, 40, 49, 50, 69])).tolist() == [39, 70, 79, 40, 59]
    for unsound in (((0, 40), (70, 10), (39, 20)), ((0, 40), (70, 10)), ((0, 40), (70, 10), (40, 19), (60, 0))):
        replace(manifest, places=unsound).save(tmp_path)
        with pytest.raises(StoreUnreadable, match="places is"):
            Manifest.load(tmp_path)


def test_a_store_of_an_older_format_has_no_places(tmp_path):
    write(tmp_path, {**CONTENT, "format_version": 3, "places": [[0, 40], [70, 10], [40, 20]]})
    with pytest.raises(StoreUnreadable, match="places is"):
        Manifest.load(tmp_path)


def test_a_teachers_own_input_size_is_written_and_read_back(tmp_path):
    teacher = replace(MANIFEST.identity.teacher, name="timm:resnet18", input_size=64, interpolation="bicubic")
    manifest = replace(MANIFEST, identity=replace(MANIFEST.identity, teacher=teacher))
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    rendering = manifest.identity.teacher_rendering
    assert (rendering.size, rendering.interpolation) == (64, "bicubic")


@pytest.mark.parametrize(("size", "interpolation"), [(0, "bicubic"), (64, None), (None, "bicubic"), (64, "nearest")])
def test_an_input_size_that_no_teacher_has_is_refused(tmp_path, size, interpolation):
    teacher = replace(MANIFEST.identity.teacher, input_size=size, interpolation=interpolation)
    replace(MANIFEST, identity=replace(MANIFEST.identity, teacher=teacher)).save(tmp_path)
    with pytest.raises(StoreUnreadable, match="is not a manifest this release can read"):
        Manifest.load(tmp_path)


def test_how_squares_are_made_is_written_where_it_is_not_the_usual_way(tmp_path):
    MANIFEST.save(tmp_path)
    assert "squares" not in (tmp_path / FILE_NAME).read_text()
    dataset = replace(MANIFEST.identity.dataset, squares="squashed")
    manifest = replace(MANIFEST, identity=replace(MANIFEST.identity, dataset=dataset))
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert manifest.digest != MANIFEST.digest
    replace(manifest, identity=replace(manifest.identity, dataset=replace(dataset, squares="round"))).save(tmp_path)
    with pytest.raises(StoreUnreadable, match="is not a manifest this release can read"):
        Manifest.load(tmp_path)


def test_what_a_ledger_records_of_a_store_does_not_depend_on_whether_its_genesis_is_noted(tmp_path):
    noted = replace(MANIFEST, ledger_genesis="34" * 32)
    assert noted.digest == MANIFEST.digest
    noted.save(tmp_path)
    assert Manifest.load(tmp_path) == noted
    write(tmp_path, content_of(noted) | {"ledger_genesis": "no hash"})
    with pytest.raises(StoreUnreadable, match="is not a manifest this release can read"):
        Manifest.load(tmp_path)


def test_ids_in_place_are_those_since_the_last_conversion():
    steps = [("02", "extend"), ("03", "convert"), ("04", "upgrade"), ("05", "extend")]
    manifest = replace(MANIFEST, history=tuple({"store_id": id_ * 16, "made_by": by} for id_, by in steps))
    assert manifest.ids_in_place == {"01" * 16, "04" * 16, "05" * 16}
    assert manifest.ids == manifest.ids_in_place | {"02" * 16, "03" * 16}


@pytest.mark.parametrize("path", [path for path in places(CONTENT) if isinstance(path[-1], str)])
def test_a_manifest_without_a_key_is_refused(tmp_path, path):
    document = copy.deepcopy(CONTENT)
    place = document
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    write(tmp_path, document)
    if path == ("versions", "numpy"):
        assert Manifest.load(tmp_path).versions == {}
    elif path == ("sources",):
        assert Manifest.load(tmp_path).sources == {}
    elif path in (("rounds",), ("places",)):
        assert (Manifest.load(tmp_path).rounds, Manifest.load(tmp_path).places) == ((), ())
    elif path == ("aligned_chunks",):
        assert not Manifest.load(tmp_path).aligned_chunks
    elif path in (("rest",), ("rest_labelled",)):
        found = Manifest.load(tmp_path)
        assert (found.rest, found.rest_labelled) == (0, None)
    else:
        with pytest.raises(StoreUnreadable, match="is not a manifest this release can read"):
            Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "path", [(), *(path for path in places(CONTENT) if path[0] not in ("samples", "versions", "sources"))]
)
def test_a_manifest_with_a_key_more_is_refused(tmp_path, path):
    document = copy.deepcopy(CONTENT)
    place = document
    for key in path:
        place = place[key]
    if isinstance(place, dict):
        place["extra"] = "x"
        write(tmp_path, document)
        with pytest.raises(StoreUnreadable, match="extra|history"):
            Manifest.load(tmp_path)


@given(
    st.sampled_from([path for path in places(CONTENT) if path != ("format_version",)]),
    st.sampled_from(
        [None, True, -1, 70.0, 1 << 100, 1 << 39, float("nan"), "\x1b[31m", "\ud800", "../x", [], {}, [[]]]
    ),
)
def test_any_value_in_any_place_is_kept_as_it_is_or_refused_in_a_printable_sentence(tmp_path_factory, path, value):
    folder, document = tmp_path_factory.mktemp("store"), changed(path, value)
    write(folder, document)
    refused = None
    try:
        manifest = Manifest.load(folder)
    except StoreUnreadable as error:
        refused = str(error)
    if refused is not None:
        assert refused.isprintable()
    else:
        assert content_of(manifest) == document


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("n",), -1, "n is -1, not a number of rows"),
        (("samples", "val/labels"), "x", "a value of samples is not digests in hexadecimal digits"),
        (("samples", "val/labels"), "0", "the number of digits in samples.val/labels is 1"),
        (
            ("identity", "dataset", "classes", 2),
            "\x07",
            r"identity.dataset.classes\[2\] is '\\x07', not a line of text",
        ),
        (
            ("identity", "outputs", 1, "dtype"),
            "<f4",
            r"identity.outputs\[1\].dtype is '<f4', not float16, bfloat16, float32 or int32",
        ),
        (("identity", "outputs", 1, "shape"), [1] * 9, "layer1 has the impossible shape"),
        (("identity", "geometry", "crop_size"), 4000, "identity.geometry: a 4000-pixel crop does not fit"),
        (("identity", "view_policy"), "plane", "view_policy is 'plane'"),
        (("identity", "dataset", "classes"), ["a"], "the number of classes is"),
        (("history",), [{"store_id": "x"}], "history is"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, path, value, said):
    write(tmp_path, changed(path, value))
    with pytest.raises(StoreUnreadable, match=said):
        Manifest.load(tmp_path)


def test_with_a_key_a_manifest_is_sealed_and_one_that_was_changed_without_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CKD_LEDGER_KEY", "one")
    MANIFEST.save(tmp_path)
    assert Manifest.load(tmp_path) == MANIFEST
    assert is_sealed(tmp_path)
    document = json.loads((tmp_path / "manifest.json").read_text())
    forged = {name: value for name, value in document.items() if name not in ("digest", "seal")}
    forged["ledger_head"] = "34" * 32
    resealed = {**forged, "digest": digest_of(forged), "seal": document["seal"]}
    (tmp_path / "manifest.json").write_text(json.dumps(resealed))
    with pytest.raises(StoreUnreadable, match="it was changed, or sealed with another key than the one in CKD_LED"):
        Manifest.load(tmp_path)
    for seal in (1, "é", "0" * 64):
        (tmp_path / "manifest.json").write_text(json.dumps({**document, "seal": seal}))
        with pytest.raises(StoreUnreadable, match="sealed with another key"):
            Manifest.load(tmp_path)


def test_a_manifest_from_before_sources_were_noted_keeps_its_digest_and_one_that_notes_them_is_read(tmp_path):
    MANIFEST.save(tmp_path)
    assert "sources" not in json.loads((tmp_path / "manifest.json").read_text())
    noted = replace(MANIFEST, sources={"dataset": "imagefolder:/data/photos", "listing": "12 images"})
    noted.save(tmp_path)
    assert Manifest.load(tmp_path) == noted
    assert noted.digest != MANIFEST.digest


def test_without_a_key_or_a_seal_a_manifest_is_read_as_it_always_was(tmp_path, monkeypatch):
    MANIFEST.save(tmp_path)
    assert not is_sealed(tmp_path)
    monkeypatch.setenv("CKD_LEDGER_KEY", "one")
    assert Manifest.load(tmp_path) == MANIFEST
    MANIFEST.save(tmp_path)
    monkeypatch.setenv("CKD_LEDGER_KEY", "another")
    with pytest.raises(StoreUnreadable, match="unset that to read what others have sealed"):
        Manifest.load(tmp_path)
    monkeypatch.delenv("CKD_LEDGER_KEY")
    assert Manifest.load(tmp_path) == MANIFEST


def mapped(class_map: Any, num_classes: int = 9) -> Manifest:
    teacher = replace(MANIFEST.identity.teacher, num_classes=num_classes, class_map=class_map)
    return replace(MANIFEST, identity=replace(MANIFEST.identity, teacher=teacher))


def test_a_class_map_is_written_and_read_back(tmp_path):
    manifest = mapped(((8,), (0, 3), (1,), (2,), (7,)))
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert manifest.digest != MANIFEST.digest


@pytest.mark.parametrize(
    "class_map",
    [
        ((0,), (1,), (2,), (3,)),
        ((0,), (1,), (2,), (3,), (9,)),
        ((0,), (1,), (2,), (3,), (-1,)),
        ((0,), (1,), (2,), (3,), ()),
        ((0,), (1,), (2,), (3,), (0,)),
        ((0,), (1,), (2,), (3,), (8, 7)),
        ((0,), (1,), (2,), (3,), (8, 8)),
        (0, 1, 2, 3, 4),
        {},
    ],
)
def test_what_is_no_class_map_is_refused(tmp_path, class_map):
    mapped(class_map).save(tmp_path)
    with pytest.raises(StoreUnreadable, match="is not a manifest this release can read"):
        Manifest.load(tmp_path)


def featured(**changes: Any) -> Manifest:
    """Without logits and last layer, of a teacher of other classes."""
    identity = MANIFEST.identity
    fields = {
        "teacher": replace(identity.teacher, num_classes=3),
        "outputs": identity.outputs[1:],
        "parameters": identity.parameters[2:],
    }
    identity = replace(identity, **fields | changes)
    samples = dict.fromkeys(
        [*SAMPLES, "train/views", *(parameter_array(it.name) for it in identity.parameters)], "ef" * 32
    )
    return replace(MANIFEST, identity=identity, samples=samples)


def test_a_store_may_keep_no_logits_and_then_the_teachers_classes_are_its_own_affair(tmp_path):
    for classes in (0, 3, 4000):
        manifest = featured(teacher=replace(MANIFEST.identity.teacher, num_classes=classes))
        manifest.save(tmp_path)
        assert Manifest.load(tmp_path) == manifest
        assert not manifest.identity.keeps_logits


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": (), "parameters": ()},
        {"parameters": MANIFEST.identity.parameters},
        {"teacher": replace(MANIFEST.identity.teacher, num_classes=-1)},
        {"outputs": MANIFEST.identity.outputs},
    ],
)
def test_a_store_that_no_build_makes_is_refused(tmp_path, changes):
    featured(**changes).save(tmp_path)
    with pytest.raises(StoreUnreadable, match="is not a manifest this release can read"):
        Manifest.load(tmp_path)


TOP_3 = AnswerForm(kind=Kind.TOP_K, k=3, missing=MissingMass.SPREAD)
LABELS = AnswerForm(kind=Kind.LABEL)


def answering(form: AnswerForm | None, outputs: tuple[OutputSpec, ...] | None = None) -> Manifest:
    """A store that keeps its answers so."""
    identity = MANIFEST.identity
    kept = ((form or AnswerForm()).outputs(5) if outputs is None else outputs) + identity.outputs[1:]
    return replace(MANIFEST, identity=replace(identity, answer=form, outputs=kept))


@pytest.mark.parametrize("form", [TOP_3, LABELS, AnswerForm(kind=Kind.SAMPLED, k=12), AnswerForm(kind=Kind.LOG_PROBS)])
def test_a_kind_of_answer_is_written_and_read_back(tmp_path, form):
    manifest = answering(form)
    manifest.save(tmp_path)
    found = Manifest.load(tmp_path)
    assert found == manifest
    assert (found.identity.answer_form, found.identity.answers) == (form, form.outputs(5))
    assert found.identity.keeps_answers
    assert not found.identity.keeps_logits
    assert found.identity.features == MANIFEST.identity.features
    assert found.digest != MANIFEST.digest


@pytest.mark.parametrize(
    ("form", "outputs"),
    [
        (AnswerForm(), None),
        (TOP_3, AnswerForm().outputs(5)),
        (TOP_3, ()),
        (TOP_3, TOP_3.outputs(5)[:1]),
        (TOP_3, TOP_3.outputs(5)[::-1]),
        (TOP_3, (OutputSpec("top_k.ids", (3,), "float32"), TOP_3.outputs(5)[1])),
        (TOP_3, (TOP_3.outputs(5)[0], OutputSpec("top_k.values", (3,), "int32"))),
        (TOP_3, (OutputSpec("top_k.ids", (2,), "int32"), TOP_3.outputs(5)[1])),
        (TOP_3, (*TOP_3.outputs(5), OutputSpec("logits", (5,), "float32"))),
        (replace(TOP_3, k=6), None),
        (LABELS, (OutputSpec("label", (1,), "int32"),)),
        (LABELS, (OutputSpec("label", (), "float32"),)),
        (AnswerForm(kind=Kind.LOG_PROBS), (OutputSpec("log_probs", (4,), "float32"),)),
        (AnswerForm(kind=Kind.LOG_PROBS), (OutputSpec("log_probs", (5,), "float16"),)),
        (None, (OutputSpec("logits", (5,), "float32"), OutputSpec("stem", (2,), "int32"))),
    ],
)
def test_outputs_that_are_not_those_of_the_kind_are_refused(tmp_path, form, outputs):
    answering(form, outputs).save(tmp_path)
    with pytest.raises(StoreUnreadable, match="is not a manifest this release can read"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"kind": "top_k", "k": 3},
        {"kind": "top_k", "k": 3, "missing": None},
        {"kind": "top_k", "k": True, "missing": "spread"},
        {"kind": "top_k", "k": 3.5, "missing": "spread"},
        {"kind": "top_k", "k": 0, "missing": "spread"},
        {"kind": "top_k", "k": -3, "missing": "spread"},
        {"kind": "top_k", "k": 1 << 40, "missing": "spread"},
        {"kind": "top_k", "k": 3, "missing": "halve"},
        {"kind": "top_k", "k": 3, "missing": "spread", "more": 1},
        {"kind": "logits", "k": None, "missing": None},
        {"kind": "label", "k": 3, "missing": None},
        {"kind": "\x1b[31m", "k": None, "missing": None},
        "top:3",
        [],
        3,
    ],
)
def test_what_is_no_kind_of_answer_is_refused(tmp_path, answer):
    document = content_of(answering(TOP_3))
    document["identity"]["answer"] = answer
    write(tmp_path, document)
    with pytest.raises(StoreUnreadable, match="is not a manifest this release can read") as raised:
        Manifest.load(tmp_path)
    assert str(raised.value).isprintable()


def test_a_build_that_keeps_answers_otherwise_is_refused_in_the_users_words(tmp_path):
    with pytest.raises(IdentityMismatch, match=r"answer \(store: top:3, asked: logits\)"):
        require_same(answering(TOP_3).identity, MANIFEST.identity, tmp_path)
    zero = replace(TOP_3, missing=MissingMass.ZERO)
    with pytest.raises(IdentityMismatch, match=r"answer \(store: top:3, asked: top:3:zero\); leave out"):
        require_same(answering(TOP_3).identity, answering(zero).identity, tmp_path)
