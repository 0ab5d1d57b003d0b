"""The report of a grid: what it answers, what it says is missing, and that it changes and fetches nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import shutil
import statistics
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from analysis.answer import answer
from analysis.report import ReportSummary, write_report
from analysis.results import collect
from benchmarks.stand_ins.fabricated_grid import (
    ALL_LABELS,
    REST,
    STORE,
    VANILLA,
    change_plan,
    change_run,
    make_grid,
    planned_runs,
    unfinish,
)
from ground.errors import InvalidInput
from tests.analysis.grids import PlannedRun, write_grid
from tests.conftest import run_command

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror=alert(1)> {{ 7*7 }} {% raw %} \" ' & <!-- ]]>"


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def charts(self) -> dict:
        [place] = [place for place, element in enumerate(self.of("script")) if element.get("id") == "charts"]
        return json.loads(self.scripts[place])

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read_page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def table(folder: Path, name: str) -> pd.DataFrame:
    """A table of the page, as pandas reads it."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    part = re.search(rf'<table aria-labelledby="title-{re.escape(name)}">.*?</table>', text, re.DOTALL)[0]
    rows = [
        re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in re.findall("<tr.*?</tr>", part, re.DOTALL)
    ]
    plain = [[re.sub("<[^>]+>", "", cell) for cell in row] for row in rows]
    return pd.DataFrame(plain[1:], columns=plain[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def grid(tmp_path) -> Path:
    return make_grid(tmp_path / "grid")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, dict[str, bytes], ReportSummary]:
    """The same, what it held before it was reported, and what was said; read only."""
    folder = make_grid(tmp_path_factory.mktemp("plain") / "grid")
    before = contents(folder)
    return folder, before, write_report(folder)


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> Path:
    """A grid of two pairs, with everything, and its report; read only."""
    folder = make_grid(tmp_path_factory.mktemp("reported") / "grid", students=("resnet8", "wrn_16_2"), with_logits=True)
    write_report(folder)
    return folder


def test_a_whole_grid_lacks_nothing(plain):
    grid, _, summary = plain
    assert summary.missing == ()
    assert (summary.finished, summary.planned) == (27, 27)
    assert summary.page == grid / "report.html"
    assert "Nothing: all 27 planned runs are finished" in read_page(grid).text


def test_files_are_those_that_are_named_and_nothing_else_is_changed(plain):
    grid, before, summary = plain
    after = contents(grid)
    new = {name: content for name, content in after.items() if before.get(name) != content}
    assert {str(path.relative_to(grid)) for path in summary.files} == set(new)
    assert all(name == "report.html" or name.startswith(("report/tables/", "report/figures/")) for name in new)
    assert set(before) <= set(after)
    for folder, suffixes in (("tables", {".csv", ".md", ".tex"}), ("figures", {".svg", ".png"})):
        found = [Path(name) for name in new if name.startswith(f"report/{folder}/")]
        stems = {path.stem for path in found}
        assert {(path.stem, path.suffix) for path in found} == {(stem, suffix) for stem in stems for suffix in suffixes}
    assert {"calls", "savings", "accuracy", "advantage"} <= {Path(name).stem for name in new}


def test_the_same_runs_give_the_same_report(plain):
    grid, *_ = plain
    first = contents(grid)
    write_report(grid)
    assert contents(grid) == first


def test_files_of_an_earlier_report_do_not_stay(grid):
    write_report(grid)
    old, own = grid / "report" / "figures" / "accuracy-of-old.svg", grid / "report" / "figures" / "notes.txt"
    old.write_text("old")
    own.write_text("mine")
    write_report(grid)
    assert not old.exists()
    assert own.read_text() == "mine"


def test_calls_are_those_of_linear_interpolation(reported):
    # By hand: a method's mean is base + 0.05 * log2(n / 8) at n = 8, 16, 32, so ckd, from 0.36, has 0.41 at 16 and 0.46
    # at 32, and 0.43 lies two fifths of the way; kd, from 0.30, has 0.40 at 32.
    calls = table(reported, "calls-for-targets")
    ours = calls[calls["teacher → student"] == "wrn_40_2 → resnet8"].set_index("method")["calls for 43 %"]
    assert ours["ckd"] == f"{16 + 0.4 * 16:.0f}"
    assert ours["kd"] == "not reached"
    text = read_page(reported).text
    assert "22 calls with ckd No other method with a teacher reaches it." in text


def test_savings_are_told_in_words(grid):
    change_plan(grid, targets=[0.38])
    write_report(grid)
    # kd is at 0.35 and 0.40 for 16 and 32; ckd at 0.36 and 0.41 for 8 and 16.
    kd, ckd = 16 + 16 * 0.6, 8 + 8 * 0.4
    text = read_page(grid).text
    assert f"{ckd:.0f} calls with ckd {100 * (1 - ckd / kd):.0f} % fewer than the next best, kd, with {kd:.0f}." in text


def test_a_better_method_than_ours_is_named(tmp_path):
    folder = make_grid(tmp_path / "grid", bases={"kd": 0.30, "ckd": 0.36, "dist": 0.38, "crd": 0.37}, targets=(0.42,))
    write_report(folder)
    dist, crd, ckd = 8 + 8 * 0.8, 16.0, 16 + 16 * 0.2
    text = read_page(folder).text
    assert f"{dist:.0f} calls with dist {100 * (1 - dist / crd):.0f} % fewer than the next best, crd, with 16." in text
    assert f"ckd needs {ckd:.0f}, {100 * (ckd / dist - 1):.0f} % more than the best." in text


def test_a_target_that_was_passed_at_once_or_never_reached_says_so(grid):
    change_plan(grid, targets=[0.32, 0.9])
    write_report(grid)
    text = read_page(grid).text
    assert "Passed at 8 calls ckd is above it at the smallest n already" in text
    assert "No method reaches it. The highest is ckd: 46.0 % at n = 32." in text


def test_without_targets_two_are_chosen_from_the_curves(grid):
    change_plan(grid, targets=[])
    found = answer(collect(grid), [])
    high, low = found.targets
    # kd goes from 0.30 to 0.40, ckd from 0.36 to 0.46: only in between do both have a number.
    assert 0.36 <= low < high <= 0.40
    assert found.saved["saved_percent"].notna().all()
    write_report(grid)
    assert "The grid names no target accuracy;" in read_page(grid).text


def test_one_n_and_one_seed_are_enough(tmp_path):
    folder = make_grid(tmp_path / "grid", sizes=(8,), seeds=1, targets=())
    assert write_report(folder).missing == ()
    accuracy = table(folder, next(name for name in names_of_tables(folder) if name.startswith("numbers-accuracy")))
    assert accuracy["std over seeds"].tolist() == ["", "", ""]


def names_of_tables(folder: Path) -> list[str]:
    return [attributes["data-table"] for tag, attributes in read_page(folder).elements if "data-table" in attributes]


def test_a_grid_of_vanilla_alone_spends_no_calls(tmp_path):
    folder = make_grid(tmp_path / "grid", bases={VANILLA: 0.3}, targets=())
    write_report(folder)
    assert set(table(folder, "calls-of-runs")["calls"]) == {"0"}


def test_numbers_of_the_figures_are_means_over_seeds(reported):
    results = collect(reported)
    one = results[(results["student"] == "resnet8") & (results["label"] == "kd") & (results["n"] == 16)]
    name = next(name for name in names_of_tables(reported) if name.startswith("numbers-accuracy-wrn_40_2-resnet8"))
    shown = table(reported, name)
    row = shown[(shown["method"] == "kd") & (shown["n"] == "16")].iloc[0]
    assert row["test accuracy, %"] == f"{100 * statistics.fmean(one['test_accuracy']):.2f}"
    assert row["std over seeds"] == f"{100 * statistics.stdev(one['test_accuracy']):.2f}"


def test_advantages_are_told_for_all_pairs_and_each(reported):
    shown = [name for name in read_page(reported).charts if name.startswith("advantage")]
    assert len(shown) == 3
    # Every seed of ckd is 6 points above the same seed of kd.
    numbers = table(reported, "numbers-advantage").set_index("against")
    assert numbers.loc["kd", "advantage, points"] == "+6.00"
    assert numbers.loc["kd", "paired runs"] == "18"


def test_a_run_without_a_teacher_has_no_calls_behind_it(reported):
    calls = table(reported, "calls-of-runs")
    vanilla = calls[calls["method"] == VANILLA]
    assert set(vanilla["calls"]) == {"0"}
    assert set(vanilla["rows and views"]) == {"none: labels only"}
    assert set(vanilla["traced by"]) == {""}
    runs = table(reported, "runs")
    assert set(runs.loc[runs["method"] == VANILLA, "teacher calls"]) == {"0"}
    assert (calls[calls["method"] != VANILLA]["calls"] == calls[calls["method"] != VANILLA]["n"]).all()


def test_the_command_beside_a_run_lists_its_calls(reported):
    calls = table(reported, "calls-of-runs")
    row = calls[(calls["method"] == "ckd") & (calls["n"] == "16")].iloc[0]
    assert row["rows and views"] == "first 16 rows, 1 view each"
    program, *arguments = shlex.split(row["traced by"])
    result = run_command(program, *arguments, "--json", cwd=reported)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["calls_total"] == 16


def test_ledger_totals_are_shown(reported):
    [row] = table(reported, "ledgers").to_dict("records")
    assert (row["committed"], row["spent"], row["budget"], row["remaining"]) == ("32", "32", "40", "8")
    assert row["spent on"] == "build: 32 committed"
    assert "calls-by-time" in read_page(reported).charts


def test_settings_that_differ_are_columns_and_the_others_are_said_once(tmp_path):
    folder = make_grid(tmp_path / "grid", rates=(0.1, 0.05), seeds=1)
    write_report(folder)
    runs = table(folder, "runs")
    assert set(runs["lr"]) == {"0.1", "0.05"}
    assert runs.groupby("lr")["chosen"].agg(set).to_dict() == {"0.1": {"yes"}, "0.05": {"no"}}
    assert "batch" not in runs
    assert "batch 64" in read_page(folder).text


def test_what_nothing_vouches_for_is_told_before_the_table_of_runs(tmp_path):
    by_proxy = PlannedRun(more={"unproven_proxies": ["5e7d" * 16]})
    folder = write_grid(tmp_path / "grid", [by_proxy, PlannedRun(seed=1), PlannedRun(seed=2)])
    write_report(folder)
    text = read_page(folder).text
    assert "3 of 3 finished runs are not proven" in text
    assert "1 of 3 finished runs learned from a proxy that nothing vouched for" in text


def test_logits_bring_a_section_of_their_own(reported, plain):
    assert "Flatness of the logits" in read_page(reported).text
    assert "correlation" in names_of_tables(reported)
    grid, *_ = plain
    assert "Flatness" not in read_page(grid).text
    assert "correlation" not in names_of_tables(grid)


def test_a_partial_grid_says_what_is_missing(grid):
    runs = planned_runs(grid)
    unfinish(grid, runs[0]["run"], "its loss is nan at step 12; lower --lr")
    unfinish(grid, runs[1]["run"])
    shutil.rmtree(grid / runs[2]["run"])
    summary = write_report(grid)
    assert (summary.finished, summary.planned) == (24, 27)
    text = read_page(grid).text
    for sentence in (
        "Of 27 planned runs: 24 finished, 1 failed, 1 begun, 1 waiting.",
        f"Failed: {runs[0]['run']}: its loss is nan at step 12; lower --lr",
    ):
        assert sentence in summary.missing
        assert sentence in text
    assert text.index("What is missing", text.index("Which method needs")) < text.index("Mean over seeds")
    assert table(grid, "unfinished")["state"].tolist() == ["failed", "begun", "waiting"]


def test_a_grid_of_two_samples_says_so(tmp_path):
    folder = make_grid(tmp_path / "grid", sizes=(8, 16), seeds=2, samples=2, with_logits=True)
    assert write_report(folder).missing == ()
    text = read_page(folder).text
    for said in (
        "Mean over 4 runs, of 2 samples of images and 2 seeds; bars are",
        "Test accuracy is the mean over samples and seeds; calls are those of one sample, interpolated",
        "over runs of the same pair, n, sample and seed, in percentage points",
    ):
        assert said in text
    name = next(name for name in names_of_tables(folder) if name.startswith("numbers-accuracy"))
    row = table(folder, name).query("method == 'kd' and n == '8'").iloc[0]
    # 30 percent, 1.5 up or down for the sample and 0.5 for the seed: the squares add up to 10, over 4 - 1.
    assert (row["test accuracy, %"], row["std over samples and seeds"]) == ("30.00", "1.83")
    assert (row["samples"], row["seeds"]) == ("2", "2")
    assert sorted(table(folder, "runs")["sample seed"].unique()) == ["0", "1"]
    assert sorted(table(folder, "ledgers")["store"]) == ["stores/wrn_40_2-random", "stores/wrn_40_2-random-sample1"]


def test_a_plan_of_an_earlier_release_says_nothing_of_samples_and_neither_does_its_report(grid):
    runs = planned_runs(grid)
    for run in runs:
        del run["sample_seed"]
    change_plan(grid, runs=runs)
    assert write_report(grid).missing == ()
    text = read_page(grid).text
    assert "Mean over seeds (3); bars are" in text
    assert "sample seed" not in text
    assert "over samples" not in text


def test_a_run_that_lacks_one_sample_is_told(tmp_path):
    folder = make_grid(tmp_path / "grid", sizes=(8, 16), seeds=2, samples=2)
    # Both seeds are there still, with the other sample.
    unfinish(folder, planned_runs(folder)[0]["run"])
    sentence = "1 mean(s) are over fewer samples and seeds than planned, and so may be off the others."
    assert sentence in write_report(folder).missing
    assert table(folder, "unfinished")["sample seed"].tolist() == ["0"]


def test_means_over_fewer_seeds_are_told(grid):
    unfinish(grid, planned_runs(grid)[0]["run"])
    assert "1 mean(s) are over fewer seeds than planned, and so may be off the others." in write_report(grid).missing


def test_runs_whose_choice_is_open_are_told(tmp_path):
    folder = make_grid(tmp_path / "grid", rates=(0.1, 0.05), seeds=1)
    unfinish(folder, planned_runs(folder)[1]["run"])
    [sentence] = [sentence for sentence in write_report(folder).missing if "left out" in sentence]
    assert sentence.startswith("1 finished runs are left out of every mean")


def test_many_failures_do_not_hide_the_rest(grid):
    for run in planned_runs(grid)[:9]:
        unfinish(grid, run["run"], "no memory")
    missing = write_report(grid).missing
    assert sum(sentence.startswith("Failed: ") for sentence in missing) == 5
    assert "And 4 runs more failed; they are in the table below." in missing


def test_a_missing_store_is_told_and_the_rest_is_shown(grid):
    shutil.rmtree(grid / STORE)
    [sentence] = write_report(grid).missing
    assert sentence.startswith("Ledger: ")
    assert STORE in sentence
    assert "22 calls with ckd" in read_page(grid).text


def test_a_ledger_that_lacks_what_a_run_noted_is_told(grid):
    run = next(run for run in planned_runs(grid) if run["label"] == "kd")["run"]
    change_run(grid, run, ledger_head="ab" * 32)
    [sentence] = write_report(grid).missing
    assert "it was replaced or rolled back" in sentence
    calls = table(grid, "calls-of-runs").set_index("run")
    assert calls.loc[run, "entry"] == "not there"


@pytest.mark.parametrize("finished", ["none planned", "none finished", "none chosen"])
def test_nothing_to_report_is_a_sentence(tmp_path, finished):
    folder = make_grid(tmp_path / "grid", rates=(0.1, 0.05), seeds=1, sizes=(8,))
    if finished == "none planned":
        change_plan(folder, runs=[])
        said = r"no run of the grid in .* is finished \(none is planned\); run it"
    elif finished == "none finished":
        for run in planned_runs(folder):
            unfinish(folder, run["run"])
        said = r"no run of the grid in .* is finished \(6 begun\); run it"
    else:
        for run in planned_runs(folder)[1::2]:
            unfinish(folder, run["run"])
        said = r"no run of the grid in .* is chosen by validation yet.* \(3 finished, 3 begun\); run it"
    with pytest.raises(InvalidInput, match=said):
        write_report(folder)
    assert not (folder / "report.html").exists()
    assert not (folder / "report").exists()


def test_an_empty_folder_is_a_sentence(tmp_path):
    with pytest.raises(InvalidInput, match=r"grid\.json"):
        write_report(tmp_path)


def test_a_link_in_the_place_of_the_reports_folder_is_refused(grid, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (grid / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="is a link to another place"):
        write_report(grid)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_page_asks_nothing_of_anybody(reported):
    page = read_page(reported)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"link", "img", "iframe", "object", "embed", "audio", "video", "source", "base"}
    assert all("src" not in attributes and "srcset" not in attributes for _, attributes in page.elements)
    links = [attributes["href"] for attributes in page.of("a")]
    assert all(link.startswith(("#", "report/")) for link in links)
    assert all((reported / link).is_file() for link in links if link.startswith("report/"))
    anchors = {attributes.get("id") for _, attributes in page.elements}
    assert all(link[1:] in anchors for link in links if link.startswith("#"))
    text = (reported / "report.html").read_text(encoding="utf-8")
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_lets_only_the_pages_own_scripts_run(reported):
    page = read_page(reported)
    policy = next(item["content"] for item in page.of("meta") if item.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    code = [
        script
        for script, attributes in zip(page.scripts, page.of("script"), strict=True)
        if attributes.get("type") != "application/json"
    ]
    digests = {f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in code}
    assert set(rules["script-src"].split()) == digests


def test_every_id_is_used_once(reported):
    ids = [attributes["id"] for _, attributes in read_page(reported).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = [attributes["for"] for attributes in read_page(reported).of("label") if "for" in attributes]
    assert set(labelled) <= set(ids)


def test_headings_go_down_one_level_at_a_time(reported):
    levels = [int(tag[1]) for tag, _ in read_page(reported).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert read_page(reported).of("html")[0]["lang"] == "en"


def test_text_of_others_is_only_text(tmp_path):
    folder = make_grid(tmp_path / "grid", bases={VANILLA: 0.2, HOSTILE: 0.3, "ckd": 0.36})
    change_plan(folder, name=HOSTILE)
    unfinish(folder, planned_runs(folder)[0]["run"], HOSTILE)
    write_report(folder)
    page = read_page(folder)
    assert len(page.scripts) == 3
    assert not page.of("img")
    assert page.text.count("{{ 7*7 }}") > 5
    assert "49" not in [text.strip() for text in page.texts]
    labels = {attributes["data-label"] for _, attributes in page.elements if "data-label" in attributes}
    assert HOSTILE in labels
    [chart] = [chart for name, chart in page.charts.items() if name.startswith("accuracy")]
    assert HOSTILE in next(param["value"] for param in chart["params"] if param["name"] == "shown")
    assert not list(folder.glob(".*.partial"))


@pytest.fixture(scope="module")
def beside_labels(tmp_path_factory) -> Path:
    """The report of a grid with labels alone, at 44 %, and a method that uses the rest's labels; read only."""
    bases = {VANILLA: 0.20, "kd": 0.30, "ckd": 0.36, "kd + labels": 0.45}
    folder = make_grid(
        tmp_path_factory.mktemp("labels") / "grid",
        bases=bases,
        alone=0.44,
        with_labels=["kd + labels"],
        targets=(0.43, 0.5),
    )
    write_report(folder)
    return folder


def test_the_first_section_says_what_calls_brought_beyond_labels_alone(beside_labels):
    text = read_page(beside_labels).text
    for sentence in (
        "At 32 calls, ckd is at 46.0 %; labels alone, at no call, at 44.0 %: the calls brought +2.0 points",
        "+2.0 points (95 % interval +2.0 to +2.0, 3 pairs of runs).",
        "At 32 calls, kd + labels is at 55.0 %; labels alone, at no call, at 44.0 %: the calls brought +11.0 points",
    ):
        assert sentence in text
        assert text.index(sentence) < text.index("The grid asks for 50 % and 43 %.")
    assert "No run says what labels alone give" not in text


def test_a_target_that_labels_alone_reach_takes_no_call(beside_labels):
    calls = table(beside_labels, "calls-for-targets").set_index("method")
    assert calls.loc[ALL_LABELS].tolist() == ["not reached", "0"]
    assert calls.loc["ckd", "calls for 43 %"] == "22"
    text = read_page(beside_labels).text
    assert f"0 calls: {ALL_LABELS} Labels alone are at 44.0 %, at no call. Of the methods with a teacher:" in text
    assert "16 calls with kd + labels No other method with a teacher reaches it." in text


def test_labels_alone_are_saved_nothing_and_have_no_advantage_of_their_own(beside_labels):
    for name in ("savings", "advantage"):
        assert ALL_LABELS not in (beside_labels / "report" / "tables" / f"{name}.csv").read_text()
    beyond = table(beside_labels, "beyond-labels").set_index(["method", "n"])
    assert beyond.loc[("kd", "32"), ["difference", "95% interval", "pairs"]].tolist() == [
        "-4.00",
        "-4.00 to -4.00",
        "3",
    ]
    assert beyond.loc[("kd + labels", "8"), "difference"] == "+1.00"


def test_labels_alone_are_a_line_across_and_a_row_of_their_own(beside_labels):
    page = read_page(beside_labels)
    [chart] = [chart for name, chart in page.charts.items() if name.startswith("accuracy")]
    assert ALL_LABELS in next(param["value"] for param in chart["params"] if param["name"] == "shown")
    assert "Test accuracy by teacher calls" in page.text
    numbers = next(name for name in names_of_tables(beside_labels) if name.startswith("numbers-accuracy"))
    [row] = table(beside_labels, numbers).query(f"method == '{ALL_LABELS}'").to_dict("records")
    assert (row["n"], row["test accuracy, %"]) == ("0", "44.00")
    runs = table(beside_labels, "runs")
    assert set(runs.loc[runs["method"] == ALL_LABELS, "by label alone"]) == {str(REST)}
    assert set(runs.loc[runs["method"] == "kd", "rest"]) == {""}


def test_a_grid_without_labels_alone_says_which_setting_adds_them(plain, grid):
    reported, _, summary = plain
    sentence = "No run says what labels alone give, so this report cannot say what the calls brought beyond them."
    assert summary.missing == ()
    assert sentence in read_page(reported).text
    change_plan(grid, labelled=False)
    write_report(grid)
    assert sentence not in read_page(grid).text


def test_labels_alone_are_reported_before_anything_else_is_finished(tmp_path):
    folder = make_grid(tmp_path / "grid", seeds=1, alone=0.44, targets=())
    for run in planned_runs(folder)[:-1]:
        unfinish(folder, run["run"])
    assert write_report(folder).finished == 1
    assert not [name for name in read_page(folder).charts if name.startswith("accuracy")]
