"""docs/losses.md says of every loss what its class says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from ground.errors import InvalidInput
from student_train import catalogue, loss_page
from student_train.losses import LOSSES

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"


@pytest.fixture(scope="module")
def entries() -> str:
    return loss_page.entries()


def test_the_page_is_what_the_classes_say():
    page = PAGE.read_text()
    assert loss_page.with_entries(page) == page, "docs/losses.md is behind the losses; run: make docs"


@pytest.mark.parametrize("name", LOSSES)
def test_an_entry_has_every_fact_that_the_program_tells(name, entries):
    loss = catalogue.describe_loss(name)
    entry = " ".join(entries.split()).partition(f"- **`{name}`** ")[2].partition("- **`")[0]
    recipe = "Recipe* {weight:g} (ce {ce:g}, kd {kd:g})".format(**loss["recipe"])
    settings = [
        f"`{key}={catalogue.shown_settings({key: value}).partition('=')[2]}`" for key, value in loss["settings"].items()
    ]
    kinds = [part for kind, meaning in loss["kinds"].items() if kind != "logits" for part in (kind, meaning)]
    for fact in (*kinds, loss["formula"].rstrip("."), loss["source"], recipe, *settings):
        assert fact in entry, fact
    # Not a word of the docstring is left out.
    said = re.sub(r"\b(Args|Note|Recipe|Checked):|\w+(, \w+)*: ", " ", loss["details"])
    plain = entry.replace("\\*", "*")
    assert [word for word in said.split() if word not in plain] == []


def test_every_entry_is_one_item_of_its_familys_list(entries):
    tokens = MarkdownIt().parse(entries)
    lists = [token for token in tokens if token.type.endswith("list_open")]
    items = [token for token in tokens if token.type == "list_item_open" and token.level == 1]
    settings = [token for token in tokens if token.type == "list_item_open" and token.level == 3]
    assert len(items) == len(LOSSES)
    assert {token.type for token in lists} == {"bullet_list_open"}
    assert {token.level for token in lists} == {0, 2}
    assert len(settings) >= sum(1 for name in LOSSES if catalogue.describe_loss(name)["settings"])


def test_stars_of_formulas_emphasise_nothing(entries):
    inline = [token for token in MarkdownIt().parse(entries) if token.type == "inline"]
    emphasised = set()
    for token in inline:
        for place, child in enumerate(token.children):
            if child.type == "em_open":
                emphasised.add(token.children[place + 1].content)
    assert emphasised <= {"Needs", "Answers", "Recipe", "Source", "Note", "Checked"}


def test_what_is_written_by_hand_stays():
    page = f"before\n{loss_page.BEGIN}\nold\n{loss_page.END}\nafter\n"
    made = loss_page.with_entries(page)
    assert made.startswith(f"before\n{loss_page.BEGIN}\n\n### Logits and labels\n")
    assert made.endswith(f"\n{loss_page.END}\nafter\n")
    assert "\nold\n" not in made
    assert loss_page.with_entries(made) == made


def test_a_page_without_marks_is_refused():
    with pytest.raises(InvalidInput, match="no place for the entries; put these two lines into it"):
        loss_page.with_entries(f"{loss_page.BEGIN}\n")
