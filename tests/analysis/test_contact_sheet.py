"""The page of a store's images: round by round, class by class, with what the teacher said; nothing in it runs."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis import contact_sheet as module
from analysis.contact_sheet import Neighbours, contact_sheet
from ground.errors import InvalidInput
from storage.manifest import Round
from storage.store import Store
from tests.conftest import run_command


class Shelves(HTMLParser):
    """Headings, and the images and words below each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.shelves: list[tuple[str, list[tuple[str, str]]]] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._open = tag
        if tag == "h3":
            self.shelves.append(("", []))
        if tag == "img":
            self.shelves[-1][1].append((dict(attributes)["src"], ""))

    def handle_data(self, data):
        if not data.strip():
            return
        if self._open == "h2":
            self.headings.append(data.strip())
        elif self._open == "h3":
            self.shelves[-1] = (data.strip(), [])
        elif self._open in ("img", "span"):
            source, _ = self.shelves[-1][1][-1]
            self.shelves[-1][1][-1] = (source, data.strip())
        self._open = "" if self._open != "img" else "img"


@pytest.fixture
def store(built_store) -> Store:
    found = Store.open(built_store)
    n = found.manifest.n
    rounds = (Round(rule="balanced", seed=0, first=n // 2, end=n),)
    found.manifest = replace(found.manifest, rounds=rounds)
    return found


def test_each_image_stands_in_its_round_and_class_with_what_the_teacher_said(store):
    page = Shelves(contact_sheet(store, each=10_000))
    n = store.manifest.n
    assert page.headings == [f"Rows 0 to {n // 2 - 1}, by random", f"Rows {n // 2} to {n - 1}, by balanced"]
    labels, logits = store.read("train/labels"), store.read("train/logits")[:, 0]
    images, classes = store.read("train/images"), store.manifest.identity.dataset.classes
    expected = []
    for first, end in ((0, n // 2), (n // 2, n)):
        counts = np.bincount(labels[first:end], minlength=len(classes))
        for label in sorted(np.flatnonzero(counts), key=lambda label: (-counts[label], label)):
            rows = [row for row in range(first, end) if labels[row] == label]
            said = [classes[logits[row].argmax()] for row in rows]
            expected.append((f"{classes[label]}: {len(rows)}", rows, said))
    assert [(name, [said for _, said in shots]) for name, shots in page.shelves] == [
        (name, said) for name, _, said in expected
    ]
    for (_, rows, _), (_, shots) in zip(expected, page.shelves, strict=True):
        for row, (source, _) in zip(rows, shots, strict=True):
            found = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
            np.testing.assert_array_equal(np.asarray(found), images[row])


def test_no_more_of_a_class_are_shown_than_asked_and_all_are_counted(store):
    page = Shelves(contact_sheet(store, each=1))
    assert {len(shots) for _, shots in page.shelves} == {1}
    assert sum(int(name.rpartition(": ")[2]) for name, _ in page.shelves) == store.manifest.n


def test_few_images_are_in_memory_at_once_whatever_stands_on_a_shelf(store, monkeypatch):
    wanted = contact_sheet(store, each=10_000, neighbours=Neighbours("x", 2, lambda rows: marked(rows, 2)))
    read, most = Store.read_sample, []

    def counted(self, name, rows=None):
        if name == "train/images":
            most.append(len(rows))
        return read(self, name, rows)

    monkeypatch.setattr(Store, "read_sample", counted)
    monkeypatch.setattr(module, "AT_ONCE", 3)
    page = contact_sheet(store, each=10_000, neighbours=Neighbours("x", 2, lambda rows: marked(rows, 2)))
    assert page == wanted
    assert max(most) == 3


def test_what_a_store_says_is_text_and_nothing_on_the_page_runs(store):
    identity = store.manifest.identity
    hostile = tuple(f"<script>alert({place})</script>" for place in range(len(identity.dataset.classes)))
    dataset = replace(identity.dataset, classes=hostile, name="<img src=x onerror=alert(1)>")
    store.manifest = replace(store.manifest, identity=replace(identity, dataset=dataset))
    page = contact_sheet(store, each=2)
    assert "script" not in Shelves(page).tags
    assert "onerror" not in re.sub(r"&lt;.*?&gt;", "", page)
    assert "default-src 'none'" in page


def test_the_command_writes_the_page_and_refuses_a_folder_that_is_not_there(built_store, tmp_path):
    done = run_command("ckd-cache", "sheet", "--store", built_store, "--out", tmp_path / "sheet.html")
    assert done.returncode == 0, done.stderr
    assert Shelves((tmp_path / "sheet.html").read_text()).shelves
    refused = run_command("ckd-cache", "sheet", "--store", built_store, "--out", tmp_path / "none" / "sheet.html")
    assert refused.returncode == 2
    assert "there is no folder" in refused.stderr
    assert not Path(tmp_path / "none").exists()


def marked(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows before each, as if those were most like it."""
    before = (rows[:, None] - np.arange(1, count + 1)) % 40
    return before, np.tile(np.arange(1, count + 1) / 8, (len(rows), 1))


def test_beside_each_image_stand_those_that_are_like_it_with_label_answer_and_distance(store):
    page = contact_sheet(store, each=10_000, neighbours=Neighbours("x", 2, lambda rows: marked(rows, 2)))
    labels, logits = store.read("train/labels"), store.read("train/logits")[:, 0]
    images, classes = store.read("train/images"), store.manifest.identity.dataset.classes
    shelves = re.findall(r'<div><img src="data:image/png;base64,([^"]+)" alt="row (\d+),(.*?)</ul>', page, re.DOTALL)
    assert sorted(int(row) for _, row, _ in shelves) == list(range(store.manifest.n))
    for _, row, rest in shelves:
        beside = re.findall(
            r'<li><img src="data:image/png;base64,([^"]+)" alt="row (\d+), (\w+)".*?>\n([\d.]+) (\w+): (.*?)</li>', rest
        )
        assert [int(other) for _, other, *_ in beside] == [(int(row) - 1) % 40, (int(row) - 2) % 40]
        for far, (png, other, in_alt, distance, label, said) in zip(("0.12", "0.25"), beside, strict=True):
            found, told = int(other), classes[logits[int(other)].argmax()]
            assert (distance, label, in_alt) == (far, classes[labels[found]], label)
            assert said == (told if told == label else f'<span class="wrong">{told}</span>')
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))), images[found])
    assert page.count("have another one within 0.12.") == 2


def test_a_page_that_no_browser_opens_is_refused_before_anything_is_compared(store, monkeypatch):
    monkeypatch.setattr("analysis.contact_sheet._MOST_PICTURES", 3 * store.manifest.n - 1)
    with pytest.raises(
        InvalidInput, match=r"shows? .* images and 2 beside each, .* give a smaller --each or --nearest"
    ):
        contact_sheet(store, each=10_000, neighbours=Neighbours("x", 2, lambda rows: pytest.fail("compared")))


def test_the_command_compares_by_pixels_and_never_by_the_teacher(built_store, tmp_path, weights):
    options = ("--store", built_store, "--out", tmp_path / "sheet.html", "--nearest", 3, "--device", "cpu")
    done = run_command("ckd-cache", "sheet", *options)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "sheet.html").read_text()
    assert "features of pixels" in page
    assert "script" not in Shelves(page).tags
    refused = run_command("ckd-cache", "sheet", *options, "--encoder", f"resnet8@{weights}")
    assert refused.returncode == 2
    assert "is the teacher resnet8 itself" in refused.stderr
