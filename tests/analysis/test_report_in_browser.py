"""The report in a real browser: it opens without the network, filters, sorts, answers the pointer, and fits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.report import write_report
from benchmarks.stand_ins.fabricated_grid import VANILLA, change_plan, make_grid, planned_runs, unfinish

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> \" {{ 7*7 }} & kd"
WIDE, NARROW = {"width": 1360, "height": 900}, {"width": 360, "height": 740}
# The first figure: accuracy by n of the first pair.
PLOT = "#accuracy figure:first-of-type .plot"


def lacking(what: str) -> None:
    """Skip, or fail where `CKD_REQUIRE_CHROMIUM` is set."""
    if os.environ.get("CKD_REQUIRE_CHROMIUM"):
        pytest.fail(f"CKD_REQUIRE_CHROMIUM is set, and {what}")
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking("playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        lacking("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = make_grid(
        tmp_path_factory.mktemp("browser") / "grid",
        bases={VANILLA: 0.2, "kd": 0.3, HOSTILE: 0.32, "ckd": 0.36},
        students=("resnet8", "wrn_16_2"),
        rates=(0.1, 0.05),
        with_logits=True,
    )
    change_plan(folder, name=HOSTILE)
    unfinish(folder, planned_runs(folder)[0]["run"], f"it failed: {HOSTILE}")
    return write_report(folder).page


class Watched:
    """A page, and what it complained about or asked for."""

    def __init__(self, page, path: Path) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=yes]", timeout=60_000)


@pytest.fixture
def opened(browser, report) -> Iterator[Watched]:
    context = browser.new_context(viewport=WIDE, color_scheme="light")
    watched = Watched(context.new_page(), report)
    yield watched
    context.close()


def labels_drawn(page, plot: str = PLOT) -> int:
    """How many lines a figure has."""
    return page.locator(f"{plot} .mark-line path").count()


def wait_for_lines(page, count: int) -> None:
    from playwright.sync_api import expect

    expect(page.locator(f"{PLOT} .mark-line path")).to_have_count(count)


def column(page, table: str, place: int) -> list[str]:
    cells = page.locator(f"[data-table={table}] tbody tr:visible td:nth-child({place})")
    return cells.all_inner_texts()


def point_at(page, place: int) -> None:
    """Move the pointer onto a point of the first figure."""
    page.locator(PLOT).scroll_into_view_if_needed()
    box = page.locator(f"{PLOT} .mark-symbol path").nth(place).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def numbers(texts: list[str]) -> list[float]:
    return [float(text.replace(",", "")) for text in texts if text]


def test_it_opens_from_a_file_without_complaint_and_without_the_network(opened, report):
    assert opened.complaints == []
    assert opened.requests == [report.as_uri()]
    assert opened.page.locator(".plot svg").count() == opened.page.locator(".plot").count() >= 6
    # Even what would be asked for later could not be.
    assert opened.page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.name)") == "TypeError"
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)


def test_text_of_others_is_shown_and_runs_nothing(opened):
    page = opened.page
    assert page.evaluate("window.hacked") is None
    assert page.title().startswith(HOSTILE)
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("img").count() == 0
    assert page.get_by_text(f"it failed: {HOSTILE}").first.is_visible()
    assert page.locator(".filters .choice", has_text="window.hacked").inner_text().strip() == HOSTILE
    assert opened.complaints == []


def test_a_method_that_is_not_wanted_leaves_figures_and_tables(opened):
    page = opened.page
    rows = page.locator("[data-table=runs] tbody tr:visible")
    before, drawn = rows.count(), labels_drawn(page)
    assert drawn == 4
    page.get_by_role("checkbox", name="ckd", exact=True).uncheck()
    wait_for_lines(page, 3)
    assert rows.count() == before - 36
    assert "ckd" not in column(page, "runs", 1)
    assert page.locator(".legend li:visible", has_text="ckd").count() == 0
    assert page.locator("#shown").inner_text() == "3 of 4 methods, 2 of 2 pairs shown"
    page.get_by_role("checkbox", name="ckd", exact=True).check()
    wait_for_lines(page, 4)
    assert rows.count() == before


def test_a_hostile_label_can_be_filtered_too(opened):
    page = opened.page
    page.locator(".choice", has_text="window.hacked").locator("input").uncheck()
    wait_for_lines(page, 3)
    assert HOSTILE not in column(page, "runs", 1)


def test_a_pair_that_is_not_wanted_leaves_figures_statements_and_tables(opened):
    page = opened.page
    figures, statements = page.locator("#accuracy figure:visible"), page.locator(".statements li:visible")
    assert (figures.count(), statements.count()) == (2, 2)
    page.get_by_role("checkbox", name="wrn_40_2 → wrn_16_2").uncheck()
    assert (figures.count(), statements.count()) == (1, 1)
    assert set(column(page, "runs", 2)) == {"resnet8"}
    assert set(column(page, "calls-for-targets", 1)) == {"wrn_40_2 → resnet8"}


def test_filters_are_used_from_the_keyboard(opened):
    page = opened.page
    page.get_by_role("button", name="none of the methods").focus()
    page.keyboard.press("Enter")
    wait_for_lines(page, 0)
    assert page.locator("[data-table=runs] tbody tr:visible").count() == 0
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    wait_for_lines(page, 1)
    assert set(column(page, "runs", 1)) == {VANILLA}


def test_rows_are_found_by_what_they_hold(opened):
    page = opened.page
    page.get_by_label("Find rows with").first.focus()
    field = page.locator("#find-runs")
    field.fill("wrn_16_2 ckd")
    page.locator("[data-table=runs] .count", has_text="18 of 143 rows").wait_for(timeout=5000)
    assert set(zip(column(page, "runs", 1), column(page, "runs", 2), strict=True)) == {("ckd", "wrn_16_2")}


def test_a_column_of_numbers_is_sorted_as_numbers_and_back(opened):
    page = opened.page
    header = page.locator("[data-table=runs] th", has_text="steps")
    place = 1 + header.evaluate("(cell) => cell.cellIndex")
    texts = column(page, "runs", place)
    ascending = sorted(numbers(texts))
    # Sorted as text, "1,536" would come before "192".
    assert sorted(texts) != [f"{value:,.0f}" for value in ascending]
    header.get_by_role("button").click()
    assert numbers(column(page, "runs", place)) == ascending
    assert header.get_attribute("aria-sort") == "ascending"
    header.get_by_role("button").click()
    assert numbers(column(page, "runs", place)) == ascending[::-1]
    assert header.get_attribute("aria-sort") == "descending"
    assert (
        page.locator("[data-table=runs] th[aria-sort=none]").count() == page.locator("[data-table=runs] th").count() - 1
    )


def test_sorting_works_from_the_keyboard_and_keeps_empty_cells_last(opened):
    page = opened.page
    header = page.locator("[data-table=calls-for-targets] th").last
    for order in ("ascending", "descending"):
        header.get_by_role("button").focus()
        page.keyboard.press("Enter")
        assert header.get_attribute("aria-sort") == order
        texts = column(page, "calls-for-targets", 3)
        known = [text for text in texts if text != "not reached"]
        assert len(known) == 2
        assert texts[:2] == known


def test_the_pointer_is_told_the_values(opened):
    page = opened.page
    point_at(page, 2)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(timeout=5000)
    said = tooltip.inner_text()
    assert "vanilla" in said
    assert "test accuracy" in said
    # A mean of the formula: 0.20 + 0.05 * log2(32 / 8).
    assert "30.00 %" in said
    assert "1.00 points" in said
    shades = page.locator(f"{PLOT} .mark-line path").evaluate_all(
        "(all) => all.map((line) => line.getAttribute('opacity'))"
    )
    assert shades == ["1", "0.2", "0.2", "0.2"]


def test_nothing_is_wider_than_a_phone(browser, report):
    context = browser.new_context(viewport=NARROW)
    watched = Watched(context.new_page(), report)
    page = watched.page
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
    assert not page.locator(".menu").evaluate("(menu) => menu.open")
    regions = page.locator(".scroll:visible")
    wider = regions.evaluate_all(
        "(all) => all.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.tabIndex)"
    )
    assert wider
    assert set(wider) == {0}
    plot = page.locator(f"{PLOT} svg").bounding_box()
    assert 250 < plot["width"] < NARROW["width"]
    page.locator(".menu > summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
    assert watched.complaints == []
    context.close()


def colours(page) -> tuple[str, ...]:
    return page.evaluate(
        """(plot) => {
            const of = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
            return [of("body", "backgroundColor"), of("body", "color"), of(`${plot} .mark-line path`, "stroke"),
                    of(`${plot} .role-axis-label text`, "fill")];
        }""",
        PLOT,
    )


def test_dark_and_light_differ_in_page_and_figures_and_the_reader_decides(browser, report):
    context = browser.new_context(viewport=WIDE, color_scheme="dark")
    page = Watched(context.new_page(), report).page
    dark = colours(page)
    page.emulate_media(color_scheme="light")
    light = colours(page)
    assert all(one != other for one, other in zip(dark, light, strict=True))
    page.get_by_role("radio", name="dark").check(force=True)
    assert colours(page) == dark
    page.reload()
    page.wait_for_selector("html[data-ready=yes]")
    assert colours(page) == dark
    page.get_by_role("radio", name="auto").check(force=True)
    assert colours(page) == light
    context.close()


def test_paper_gets_light_figures_and_no_controls(browser, report):
    context = browser.new_context(viewport=WIDE, color_scheme="light")
    page = Watched(context.new_page(), report).page
    light = colours(page)[1:]
    page.emulate_media(media="print", color_scheme="dark")
    assert colours(page)[1:] == light
    assert colours(page)[0] == "rgb(255, 255, 255)"
    assert page.locator(".side").is_hidden()
    assert page.locator("#find-runs").is_hidden()
    assert page.locator(f"{PLOT} svg").is_visible()
    assert page.locator(".legend").first.is_visible()
    assert page.locator(f"{PLOT} .role-legend").count() == 0
    context.close()


def test_the_keyboard_reaches_the_results_first(opened):
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_figure_says_what_it_shows_and_has_its_numbers_below(opened):
    page = opened.page
    drawing = page.get_by_role("img", name="a line for each of 4 methods").first
    assert drawing.locator(".plot").count() == 1
    figure = page.locator("#accuracy figure").first
    figure.locator("summary").focus()
    page.keyboard.press("Enter")
    assert figure.locator("table").is_visible()
    assert figure.locator("tbody tr").count() == 12
