"""A store that an older release made is trained from, upgraded, and then grown: nothing that was paid for is lost."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result

from ground.errors import StoreBusy
from models import create_model, save_weights
from storage import ledger as ledger_module
from storage import manifest as manifest_module
from storage.arrays import ArrayFile
from storage.hdf5_arrays import Hdf5Arrays
from storage.ledger_report import count_calls
from storage.locks import FileLock
from storage.manifest import EXTENSION, Manifest
from storage.rows import Rows
from storage.store import Store
from storage.store_ledger import own_ledger
from storage.verify import store_problems
from storage.zarr_arrays import ZarrArrays
from student_train.cli import main as ckd_train
from teacher_cache.build import build
from teacher_cache.cli import main as ckd_cache
from teacher_cache.config import BuildConfig, ExtensionConfig
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build
from teacher_cache.upgrade import upgrade
from tests.storage.old_formats import FORMAT_2, FORMAT_3, SCHEMA_2, unpack

HEAD = ["head/bias", "head/weight"]
FORMATS = ("zarr", "hdf5")


@pytest.fixture
def old_stores(tmp_path):
    return unpack(FORMAT_2, tmp_path / "old")


@pytest.fixture(params=FORMATS)
def old_store(request, old_stores):
    return old_stores / request.param


def run(program, *arguments) -> Result:
    return CliRunner(env={"COLUMNS": "400"}).invoke(program, [str(argument) for argument in arguments])


def problems(folder) -> list[str]:
    ledger = own_ledger(folder)
    try:
        return [str(problem) for problem in store_problems(Store.open(folder), ledger)]
    finally:
        ledger.close()


def records(folder) -> list[dict]:
    """What the ledger recorded of stores, oldest first."""
    ledger = own_ledger(folder)
    with ledger.reading() as connection:
        found = connection.exec_driver_sql("SELECT payload FROM entries WHERE kind = 'store' ORDER BY seq").scalars()
        payloads = [json.loads(payload) for payload in found]
    ledger.close()
    return payloads


def growing(folder, weights, n) -> BuildConfig:
    return BuildConfig(
        teacher="resnet8",
        dataset="digits",
        weights=weights,
        store=folder,
        n=n,
        views=2,
        array_format=Manifest.load(folder).array_format,
        features="pooled",
        device="cpu",
    )


def test_a_student_is_trained_from_a_store_that_was_not_upgraded(old_store, tmp_path):
    settings = ("--student", "resnet8", "--device", "cpu", "--max-evals", 1, "--out", tmp_path / "run")
    before = (old_store / "manifest.json").read_bytes()
    trained = run(ckd_train, "--store", old_store, "--loss", "ce", "--loss", "kd", "--loss", "rkd", *settings)
    assert trained.exit_code == 0, trained.output
    assert (tmp_path / "run" / "student.safetensors").is_file()
    assert (old_store / "manifest.json").read_bytes() == before


def test_a_loss_that_needs_the_head_says_how_to_add_it(old_stores, tmp_path):
    settings = ("--student", "resnet8", "--device", "cpu", "--max-evals", 1, "--out", tmp_path / "run")
    refused = run(ckd_train, "--store", old_stores / "zarr", "--loss", "ce", "--loss", "srrl", *settings)
    assert refused.exit_code == 2
    assert "keeps nothing of the teacher itself, and its last layer is needed; add it with: ckd-cache upgrade" in (
        refused.output
    )


@pytest.mark.parametrize(
    "command",
    [
        ("build", "--teacher", "resnet8", "--dataset", "digits", "--views", 2, "--features", "pooled", "--n", 12),
        ("build", "--teacher", "resnet8", "--dataset", "digits", "--views", 2, "--features", "pooled", "--n", 8),
        ("extend", "--features", "layer1"),
        ("extend", "--features", "layer1", "--dry-run"),
        ("repair",),
        ("convert", "--to", "hdf5"),
    ],
)
def test_whatever_writes_to_an_older_store_says_to_upgrade_it(old_stores, weights, tmp_path, command, forwards):
    own = ("--out", tmp_path / "converted") if command[0] == "convert" else ()
    own = ("--weights", weights) if command[0] in ("build", "extend") else own
    refused = run(ckd_cache, *command, *own, "--store", old_stores / "zarr")
    assert refused.exit_code == 2
    assert "bring it up to format 4 with: ckd-cache upgrade --store" in refused.output
    assert not forwards


def test_a_dry_run_changes_nothing(old_store, weights):
    before = (old_store / "manifest.json").read_bytes()
    said = run(ckd_cache, "upgrade", "--store", old_store, "--weights", weights, "--dry-run", "--json")
    assert json.loads(said.stdout) == {
        "store": str(old_store),
        "from_version": 2,
        "version": 4,
        "manifests": ["manifest.json"],
        "parameters": HEAD,
        "from_schema": 2,
        "schema": 3,
        "done": False,
    }
    assert (old_store / "manifest.json").read_bytes() == before


def test_an_upgrade_is_recorded_and_happens_once(old_store, weights, forwards):
    before = Manifest.load(old_store)
    answers = Store.open(old_store).read_outputs(["logits", "pooled"], Rows.first(8))
    said = run(ckd_cache, "upgrade", "--store", old_store, "--weights", weights)
    parts = "format 2 to 4; kept of the teacher: head/bias, head/weight; ledger schema 2 to 3"
    assert f"upgraded ({parts})" in said.stdout
    after = Manifest.load(old_store)
    assert json.loads((old_store / "manifest.json").read_text())["format_version"] == after.format_version == 4
    assert after.history == ({"store_id": before.store_id, "made_by": "upgrade"},)
    assert after.store_id == before.store_id
    assert records(old_store)[-1] == {
        "store": after.store_id,
        "manifest": after.digest,
        "made_by": "upgrade",
        "replaces": before.digest,
    }
    assert problems(old_store) == []
    assert not forwards
    for name, values in Store.open(old_store).read_outputs(["logits", "pooled"], Rows.first(8)).items():
        assert (values == answers[name]).all()
    again = run(ckd_cache, "upgrade", "--store", old_store, "--weights", weights)
    assert "is of format 4 already; nothing to do" in again.stdout
    assert Manifest.load(old_store) == after


def test_an_upgraded_store_grows_into_the_one_this_release_builds(old_store, weights, tmp_path, forwards):
    upgrade(old_store, weights=weights)
    report = build(*prepare_build(growing(old_store, weights, 12)))
    assert (report.new_calls, sum(forwards)) == (8, 8)
    assert problems(old_store) == []
    fresh = tmp_path / "fresh"
    build(*prepare_build(replace(growing(old_store, weights, 12), store=fresh)))
    one, other = Store.open(old_store), Store.open(fresh)
    assert one.manifest.identity == other.manifest.identity
    assert one.manifest.samples == other.manifest.samples
    for name in one.arrays.specs:
        assert (one.read(name) == other.read(name)).all(), name


def test_without_weights_the_head_is_left_for_later(old_store, weights, forwards):
    upgrade(old_store)
    assert problems(old_store) == []
    assert Manifest.load(old_store).identity.parameters == ()
    refused = run(ckd_cache, "build", "--teacher", "resnet8", "--dataset", "digits", "--weights", weights, "--n", 12,
                  "--views", 2, "--features", "pooled", "--format", old_store.name, "--store", old_store)  # fmt: skip
    assert refused.exit_code == 2
    assert "it was upgraded without the teacher's weights; add it with: ckd-cache upgrade" in refused.output
    added = upgrade(old_store, weights=weights)
    assert (added.from_version, added.parameters) == (4, HEAD)
    assert [step["made_by"] for step in Manifest.load(old_store).history] == ["upgrade", "upgrade"]
    assert problems(old_store) == []
    assert sorted(Store.open(old_store).read_parameters()) == HEAD
    assert not forwards


def test_an_extension_adds_the_head_too(old_stores, weights):
    upgrade(old_stores / "zarr")
    extend(
        *prepare_extension(ExtensionConfig(store=old_stores / "zarr", features="stem", weights=weights, device="cpu"))
    )
    assert sorted(Store.open(old_stores / "zarr").read_parameters()) == HEAD
    assert problems(old_stores / "zarr") == []


def test_an_extension_that_was_interrupted_is_upgraded_and_finished(old_stores, weights, forwards):
    folder = old_stores / "extending"
    refused = run(ckd_cache, "upgrade", "--store", folder)
    assert refused.exit_code == 2
    assert "an extension of" in refused.output
    assert upgrade(folder, weights=weights).manifests == [EXTENSION, "manifest.json"]
    assert problems(folder) == []
    extend(*prepare_extension(ExtensionConfig(store=folder, features="pooled", weights=weights, device="cpu")))
    assert problems(folder) == []
    assert sum(forwards) == 16
    assert set(Manifest.load(folder).identity.features) == {"pooled"}


def test_weights_of_another_teacher_are_refused(old_stores, tmp_path):
    other = tmp_path / "other.safetensors"
    save_weights(create_model("resnet8", num_classes=10, seed=1), other, {})
    refused = run(ckd_cache, "upgrade", "--store", old_stores / "zarr", "--weights", other)
    assert refused.exit_code == 2
    assert "teacher.fingerprint" in refused.output
    assert Manifest.load(old_stores / "zarr").format_version == 2


def test_an_upgrade_is_refused_while_a_build_is_at_work(old_stores):
    with FileLock(old_stores / "zarr" / "build.lock") as builder:
        assert builder.try_shared()
        with pytest.raises(StoreBusy):
            upgrade(old_stores / "zarr")


def test_a_manifest_the_ledger_does_not_know_is_not_upgraded(old_stores):
    path = old_stores / "zarr" / "manifest.json"
    document = json.loads(path.read_text())
    del document["digest"]
    document["versions"]["torch"] = "0"
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps(document | {"digest": hashlib.sha256(canonical.encode()).hexdigest()}))
    refused = run(ckd_cache, "upgrade", "--store", path.parent)
    assert refused.exit_code == 2
    assert "is not what its ledger recorded" in refused.output
    assert [record["made_by"] for record in records(path.parent)] == ["build"]


class _Killed(BaseException):
    """Stands for a process that ends here."""


def _dying(owner, name, monkeypatch, *, before: bool) -> None:
    """Make a step of an upgrade the last thing that happens, or the first that does not."""
    step = getattr(owner, name)

    def die(*arguments, **options):
        if not before:
            step(*arguments, **options)
        raise _Killed

    monkeypatch.setattr(owner, name, die)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "step"),
    [
        (ArrayFile, "add"),
        (ArrayFile, "write"),
        (ArrayFile, "sync"),
        (ledger_module.Ledger, "record_store"),
        (manifest_module, "write_bytes"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("array_format", FORMATS)
def test_an_upgrade_that_is_killed_leaves_the_old_store_or_the_new_one(
    old_stores, weights, monkeypatch, array_format, owner, step, before
):
    folder = old_stores / array_format
    answers = Store.open(folder).read_outputs(["logits"], Rows.first(8))["logits"]
    if step == "add":
        owner = {"zarr": ZarrArrays, "hdf5": Hdf5Arrays}[array_format]
    with monkeypatch.context() as killing:
        _dying(owner, step, killing, before=before)
        with pytest.raises(_Killed):
            upgrade(folder, weights=weights)
    is_new = (step, before) == ("write_bytes", False)
    assert Manifest.load(folder).format_version == (4 if is_new else 2)
    assert problems(folder) == []
    assert (Store.open(folder).read_outputs(["logits"], Rows.first(8))["logits"] == answers).all()
    assert upgrade(folder, weights=weights).done is not is_new
    assert problems(folder) == []
    assert Manifest.load(folder).format_version == 4
    assert sorted(Store.open(folder).read_parameters()) == HEAD
    assert [record["made_by"] for record in records(folder)] == ["build", "upgrade"]


def test_calls_of_a_store_are_listed_alike_before_and_after(old_store):
    ledger = own_ledger(old_store)
    before = count_calls(ledger), ledger.summary().spent
    ledger.close()
    upgrade(old_store)
    ledger = own_ledger(old_store)
    assert (count_calls(ledger), ledger.summary().spent) == before == (16, 16)
    ledger.close()


# A store of format 3, which needs no weights to be brought up


@pytest.fixture
def stores_of_format_3(tmp_path):
    return unpack(FORMAT_3, tmp_path / "format-3")


def test_a_store_of_format_3_is_brought_up_without_weights_and_grows(stores_of_format_3, weights, tmp_path, forwards):
    folder, fresh = stores_of_format_3 / "hdf5", tmp_path / "fresh"
    before = Manifest.load(folder)
    refused = run(ckd_cache, "convert", "--store", folder, "--to", "zarr", "--out", tmp_path / "converted")
    assert "bring it up to format 4 with: ckd-cache upgrade --store" in refused.output
    assert "upgraded (format 3 to 4)" in run(ckd_cache, "upgrade", "--store", folder).stdout
    after = Manifest.load(folder)
    assert (after.identity, after.store_id, after.ledger_genesis) == (
        before.identity,
        before.store_id,
        before.ledger_genesis,
    )
    assert records(folder)[-1]["replaces"] == before.digest
    assert records(folder)[-1]["manifest"] == after.digest
    assert problems(folder) == []
    report = build(*prepare_build(replace(growing(folder, weights, 12), trust_teacher=True)))
    assert (report.new_calls, sum(forwards)) == (8, 8)
    build(*prepare_build(replace(growing(folder, weights, 12), store=fresh, trust_teacher=True)))
    assert Manifest.load(folder).samples == Manifest.load(fresh).samples
    assert problems(folder) == []


def test_an_extension_of_format_3_is_brought_up_without_weights_and_finished(stores_of_format_3, weights, forwards):
    folder = stores_of_format_3 / "extending"
    assert problems(folder) == []
    assert upgrade(folder).manifests == [EXTENSION, "manifest.json"]
    assert problems(folder) == []
    extend(*prepare_extension(ExtensionConfig(store=folder, features="pooled", weights=weights, device="cpu")))
    assert problems(folder) == []
    assert sum(forwards) == 16
    assert sorted(Store.open(folder).read_parameters()) == HEAD


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "step"),
    [(ledger_module.Ledger, "record_store"), (manifest_module, "write_bytes")],
    ids=["record_store", "write_bytes"],
)
def test_bringing_up_a_store_of_format_3_and_its_extension_goes_on_wherever_it_was_killed(
    stores_of_format_3, monkeypatch, owner, step, before
):
    folder = stores_of_format_3 / "extending"
    with monkeypatch.context() as killing:
        _dying(owner, step, killing, before=before)
        with pytest.raises(_Killed):
            upgrade(folder)
    assert problems(folder) == []
    assert Manifest.load(folder).format_version == 3
    assert upgrade(folder).done
    assert problems(folder) == []
    assert Manifest.load(folder).format_version == Manifest.load(folder, EXTENSION).format_version == 4


# A store of format 3, whose ledger is of schema 2


@pytest.fixture
def old_ledger(tmp_path):
    """The folder of such a store, `store`, and of a ledger by itself, `shared.sqlite`."""
    return unpack(SCHEMA_2, tmp_path / "schema-2")


def growing_of_schema_2(folder, weights, n) -> tuple:
    """What builds the store that an earlier release built, with n rows."""
    data = ("--dataset", "digits", "--views", 2, "--n", n, "--features", "none")
    return (
        "--teacher",
        "resnet8",
        "--weights",
        weights,
        *data,
        "--device",
        "cpu",
        "--trust-teacher",
        "--store",
        folder,
    )


def test_a_store_with_an_older_ledger_is_verified_and_trained_from(old_ledger, tmp_path):
    folder = old_ledger / "store"
    assert problems(folder) == []
    assert run(ckd_cache, "verify", "--store", folder).exit_code == 0
    assert run(ckd_cache, "ledger", "verify", "--store", folder).exit_code == 0
    summary = json.loads(run(ckd_cache, "ledger", "summary", "--store", folder, "--json").stdout)
    assert [summary[name] for name in ("committed", "spent", "budget", "returned", "cost_micros")] == [16, 16, 40, 0, 0]
    settings = ("--student", "resnet8", "--device", "cpu", "--max-evals", 1, "--out", tmp_path / "run")
    trained = run(ckd_train, "--store", folder, "--loss", "ce", "--loss", "kd", *settings)
    assert trained.exit_code == 0, trained.output
    assert (tmp_path / "run" / "proof.json").is_file(), "what cannot be recorded in the ledger is beside the run"
    assert own_version(folder) == 2


def own_version(folder) -> int:
    with closing(own_ledger(folder)) as ledger:
        return ledger.version


@pytest.mark.parametrize("n", [8, 12])
def test_a_build_on_an_older_ledger_says_to_upgrade_it_before_any_call(old_ledger, weights, forwards, n):
    folder = old_ledger / "store"
    refused = run(ckd_cache, "build", *growing_of_schema_2(folder, weights, n))
    assert refused.exit_code == 2
    assert f"bring it up to format 4 with: ckd-cache upgrade --store {folder}" in refused.output
    assert not forwards
    assert own_version(folder) == 2


@pytest.mark.parametrize(
    "command", [("extend", "--features", "layer1"), ("repair", "--yes"), ("convert", "--to", "hdf5"), ("widen",)]
)
def test_whatever_records_in_an_older_ledger_says_to_upgrade_it(old_ledger, weights, tmp_path, command, forwards):
    own = {"convert": ("--out", tmp_path / "converted"), "extend": ("--weights", weights)}.get(command[0], ())
    refused = run(ckd_cache, *command, *own, "--store", old_ledger / "store")
    assert refused.exit_code == 2, refused.output
    assert "bring it up to format 4 with: ckd-cache upgrade --store" in refused.output
    assert not forwards
    assert problems(old_ledger / "store") == []


def test_a_store_grows_once_it_and_its_ledger_are_brought_up(old_ledger, weights, forwards):
    folder = old_ledger / "store"
    said = run(ckd_cache, "upgrade", "--store", folder, "--dry-run")
    assert "would be upgraded; nothing was changed (format 3 to 4; ledger schema 2 to 3)" in said.stdout
    assert own_version(folder) == 2
    assert Manifest.load(folder).format_version == 3
    said = run(ckd_cache, "upgrade", "--store", folder)
    assert "upgraded (format 3 to 4; ledger schema 2 to 3)" in said.stdout
    assert own_version(folder) == 3
    assert problems(folder) == []
    assert "nothing to do" in run(ckd_cache, "upgrade", "--store", folder).stdout
    built = run(ckd_cache, "build", *growing_of_schema_2(folder, weights, 12))
    assert built.exit_code == 0, built.output
    assert sum(forwards) == 8
    assert problems(folder) == []


def test_a_ledger_is_brought_up_by_itself(old_ledger, monkeypatch):
    url = f"sqlite:///{old_ledger / 'shared.sqlite'}"
    monkeypatch.delenv("CKD_LEDGER", raising=False)
    document = {"ledger": url, "from_schema": 2, "schema": 3}
    said = run(ckd_cache, "upgrade", "--ledger", url, "--dry-run", "--json")
    assert json.loads(said.stdout) == {**document, "done": False}
    assert json.loads(run(ckd_cache, "upgrade", "--ledger", url, "--json").stdout) == {**document, "done": True}
    assert "is of schema 3 already; nothing to do" in run(ckd_cache, "upgrade", "--ledger", url).stdout
    assert run(ckd_cache, "ledger", "verify", "--ledger", url).exit_code == 0
    own = run(ckd_cache, "upgrade", "--ledger", f"sqlite:///{old_ledger / 'store' / 'ledger.sqlite'}")
    assert own.exit_code == 2
    assert "is the own ledger of the store at" in own.output
    for arguments, sentence in (((), "give --store DIR"), (("--ledger", url, "--weights", "w"), "leave --weights out")):
        refused = run(ckd_cache, "upgrade", *arguments)
        assert refused.exit_code == 2
        assert sentence in refused.output


def test_a_new_store_in_an_older_shared_ledger_says_to_upgrade_that(old_ledger, weights, tmp_path, forwards):
    url = f"sqlite:///{old_ledger / 'shared.sqlite'}"
    refused = run(ckd_cache, "build", *growing_of_schema_2(tmp_path / "new", weights, 8), "--ledger", url)
    assert refused.exit_code == 2
    assert f"bring it up to schema 3 with: ckd-cache upgrade --ledger {url}" in refused.output
    assert not forwards
    assert not (tmp_path / "new" / "manifest.json").exists()


def test_an_upgrade_that_was_undone_is_found_by_the_witness(old_ledger):
    folder = old_ledger / "store"
    before = {name: (folder / name).read_bytes() for name in ("ledger.sqlite", "manifest.json")}
    upgrade(folder)
    for name, content in before.items():
        (folder / name).write_bytes(content)
    refused = run(ckd_cache, "upgrade", "--store", folder)
    assert refused.exit_code == 2
    assert "it was rolled back to an older state" in refused.output
