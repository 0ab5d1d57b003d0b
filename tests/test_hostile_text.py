"""Text that others wrote, at every door: nothing that a terminal obeys comes out of any command, and no traceback."""

from __future__ import annotations

import json
import shutil
import sqlite3
import unicodedata
from contextlib import closing

import pytest

from ground.terminal import json_text, plain_lines
from tests.analysis.grids import PlannedRun, write_grid
from tests.conftest import run_command
from tests.manifests import sealed

HOSTILE = {
    "colour and clear": "\x1b[31mred\x1b[2J",
    "link (OSC 8)": "\x1b]8;;http://example.org\x1b\\here\x1b]8;;\x1b\\",
    "clipboard (OSC 52)": "\x1b]52;c;cm0gLXJm\x07",
    "CSI in one byte": "\x9b31mred",
    "line ends": "one\ntwo\rthree\u2028four",
    "right to left": "abc\u202edcba",
    "deleted": "abc\x7f\x7f",
    "NUL": "abc\0def",
    "surrogate": "abc\udc80\ud800",
    "markup": "[red]a[/red][link=http://example.org]b[/link] :skull:",
    "page": "<script>alert(1)</script>",
    "formula": "=cmd|'/c calc'!A0",
}
hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
# A database's text is no surrogate.
STORABLE = {name: text for name, text in HOSTILE.items() if name != "surrogate"}
storable = pytest.mark.parametrize("text", STORABLE.values(), ids=STORABLE)


RUN = PlannedRun(label="kd", accuracy=0.5)
FAILED = PlannedRun(label="ckd", accuracy=None)


def said(*arguments: object, lines_end: str = "\n", **options) -> str:
    """What a command prints, on both streams, after it was looked through."""
    result = run_command(*arguments, **options)
    printed = result.stdout.replace(lines_end, "\n") + result.stderr
    assert "Traceback" not in printed, printed
    assert result.returncode in (0, 1, 2), printed
    obeyed = {letter for letter in printed if letter != "\n" and unicodedata.category(letter)[0] == "C"}
    assert not obeyed, (arguments, ascii(printed))
    return printed


@storable
def test_a_ledger_that_another_program_wrote(built_store, tmp_path, text):
    store = shutil.copytree(built_store, tmp_path / "store")
    with closing(sqlite3.connect(store / "ledger.sqlite")) as database, database:
        database.execute("UPDATE accounts SET name = ?", (text,))
        database.execute("UPDATE sessions SET location = ?, purpose = ?, device = ?, precision = ?", [text] * 4)
    for command in ("summary", "list", "verify", "budget"):
        printed = said("ckd-cache", "ledger", command, "--store", store)
        assert command == "verify" or "[red]" not in text or "[red]a[/red]" in printed
        said("ckd-cache", "ledger", command, "--store", store, "--json")
    for kind in ("csv", "jsonl"):
        said("ckd-cache", "ledger", "export", "--store", store, "--format", kind, lines_end="\r\n")
    for command in ("info", "verify", "repair"):
        said("ckd-cache", command, "--store", store)
    said("ckd-cache", "ledger", "trace", "--call", 1, tmp_path, "--store", store)


@storable
def test_a_page_of_a_ledger_that_another_program_wrote(built_store, tmp_path, text):
    plan = {"stores": [{"teacher": "wrn_40_2", "dataset": "cifar100", "store": "store", "n": 96, "calls": 96}]}
    grid = write_grid(tmp_path / "grid", [RUN], **plan)
    store = shutil.copytree(built_store, grid / "store")
    with closing(sqlite3.connect(store / "ledger.sqlite")) as database, database:
        database.execute("UPDATE sessions SET purpose = ?", (text,))
    said("ckd-pipeline", "report", grid)
    page = (grid / "report.html").read_text(encoding="utf-8")
    assert "spent on" in page
    assert plain_lines(text.splitlines()[0]).replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;") in page
    require_harmless(page)


def require_harmless(page: str) -> None:
    assert "<script>alert" not in page
    assert not set(page) & set("\x1b\x9b\x7f\0\u202e")


def test_a_ledger_whose_text_does_not_decode_is_a_sentence(built_store, tmp_path):
    store = shutil.copytree(built_store, tmp_path / "store")
    with closing(sqlite3.connect(store / "ledger.sqlite")) as database, database:
        database.execute("UPDATE accounts SET name = CAST(x'61ff1b' AS TEXT)")
    for command in ("summary", "list", "export", "verify"):
        said("ckd-cache", "ledger", command, "--store", store, lines_end="\r\n")


@hostile
@pytest.mark.parametrize("field", ["name", "classes"])
def test_a_manifest_that_names_things_so(built_store, tmp_path, text, field):
    store = shutil.copytree(built_store, tmp_path / "store")
    document = json.loads((store / "manifest.json").read_text())
    dataset = document["identity"]["dataset"]
    dataset[field] = text if field == "name" else [text, *dataset["classes"][1:]]
    (store / "manifest.json").write_text(json.dumps(sealed(document)))
    said("ckd-cache", "info", "--store", store)
    said("ckd-cache", "verify", "--store", store)
    said("ckd-train", "--store", store, "--student", text)


@hostile
def test_runs_and_failures_of_others(tmp_path, text):
    grid = write_grid(tmp_path / "grid", [RUN, FAILED])
    failed = grid / FAILED.folder
    failed.mkdir(parents=True)
    (failed / "failure.json").write_text(json.dumps({"error": text, "kind": text, "at": text}))
    printed = said("ckd-pipeline", "status", grid)
    assert "[red]" not in text or text in printed
    said("ckd-pipeline", "status", grid, "--json")
    said("ckd-pipeline", "report", grid)
    page = (grid / "report.html").read_text(encoding="utf-8")
    require_harmless(page)


@hostile
@pytest.mark.parametrize("field", ["method", "device", "teacher", "store", "versions", "recipe", "key"])
def test_a_run_record_of_others(built_store, tmp_path, text, field):
    values = {"versions": {"torch": text}, "recipe": {"losses": [{"loss": text}]}, "key": {text: 1}}
    more = {"versions" if field == "key" else field: values.get(field, text)}
    grid = write_grid(tmp_path / "grid", [PlannedRun(label="kd", accuracy=0.5, more=more)])
    for command in (["ckd-train", "verify", grid / RUN.folder], ["ckd-cache", "ledger", "trace", grid / RUN.folder]):
        said(*command)
        said(*command, "--store", built_store)
    said("ckd-pipeline", "status", grid)
    said("ckd-pipeline", "report", grid)


@hostile
def test_a_plan_of_others(tmp_path, text):
    for changed in ({"name": text}, {"runs": [RUN.planned() | {"label": text}]}):
        grid = write_grid(tmp_path / next(iter(changed)), [RUN])
        plan = json.loads((grid / "grid.json").read_text())
        (grid / "grid.json").write_text(json.dumps(plan | changed))
        said("ckd-pipeline", "status", grid)
        printed = said("ckd-pipeline", "report", grid)
        if "report.html" in printed:
            require_harmless((grid / "report.html").read_text(encoding="utf-8"))


@hostile
@pytest.mark.parametrize("key", ["name", "dataset", "methods", "weights", "n", "data_root", "unknown"])
def test_a_grid_of_others(tmp_path, weights, text, key):
    document = {
        "dataset": "digits",
        "pairs": [{"teacher": "resnet8", "student": "resnet8", "weights": str(weights)}],
        "methods": ["kd"],
        "n": [24],
        "seeds": 1,
    }
    if key == "weights":
        document["pairs"][0]["weights"] = text
    else:
        document[key] = [text] if key in ("methods", "n") else text
    # JSON is YAML, escapes included.
    (tmp_path / "grid.yaml").write_text(json.dumps(document))
    said("ckd-pipeline", "run", tmp_path / "grid.yaml", "--dry-run", "--device", "cpu")


# Of a surrogate that stands for a byte an argument can be made, and of no other; of a NUL none.
@pytest.mark.parametrize("text", [text.replace("\ud800", "") for text in HOSTILE.values() if "\0" not in text])
def test_arguments_that_were_pasted(tmp_path, text):
    for arguments in (
        ["ckd-cache", text],
        ["ckd-cache", f"--{text}"],
        ["ckd-cache", "info", f"--{text}"],
        ["ckd-cache", "info", "--store", tmp_path / text.replace("/", "")],
        ["ckd-cache", "ledger", "list", "--store", tmp_path, "--status", text],
        ["ckd-cache", "ledger", "list", "--store", tmp_path, "--run", text],
        ["ckd-cache", "ledger", "summary", "--ledger", text],
        ["ckd-train", "losses", text],
        ["ckd-train", "--store", tmp_path, "--method", text],
        ["ckd-train", "verify", tmp_path / text.replace("/", "")],
        ["ckd-pipeline", "run", tmp_path / text.replace("/", "")],
        ["ckd-pipeline", "until", "--target", text],
    ):
        said(*arguments)


@hostile
def test_what_is_said_is_of_our_lines(text):
    assert not [letter for letter in json_text({text: text}) if not letter.isprintable()]
    assert json.loads(json_text({"a": text})) == {"a": text}
    assert not [letter for letter in plain_lines(text) if not letter.isprintable() and letter != "\n"]
