"""The tables, ours beside the paper's, and what a format makes of a hostile label."""

from __future__ import annotations

import csv
import io
import json
import re
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from analysis import tables
from analysis.curves import accuracy_by_n
from analysis.logits import described
from analysis.table import Table
from ground.errors import UnknownName
from tests.analysis.grids import PlannedRun, results_of


def runs_of(curves: dict[str, list[float]], **more) -> list[PlannedRun]:
    return [
        PlannedRun(label=label, n=800 * (place + 2), seed=seed, accuracy=mean + (-1) ** seed * 0.01, **more)
        for label, means in curves.items()
        for place, mean in enumerate(means)
        for seed in (0, 1)
    ]


@pytest.fixture
def results(tmp_path) -> pd.DataFrame:
    curves = {"vanilla": [0.2, 0.3], "KD": [0.3, 0.45], "ckd": [0.35, 0.55], "FitNets+CKD": [0.32, 0.42]}
    return results_of(tmp_path, runs_of(curves))


def row_of(table: Table, **keys: str) -> dict[str, str]:
    (row,) = [row for row in table.frame.to_dict("records") if all(row[name] == key for name, key in keys.items())]
    return row


def test_calls_stand_beside_the_papers(results):
    table = tables.calls(results, accuracy_by_n(results), [0.4, 0.55])
    row = row_of(table, method="KD")
    # 0.4 lies two thirds of the way from 0.3 at 1600 to 0.45 at 2400; the paper prints 2.80 thousand.
    assert (row["40%"], row["40% (paper)"]) == ("2133", "2800")
    assert (row["55%"], row["55% (paper)"]) == ("", "")
    assert row_of(table, method="ckd")["55% (paper)"] == "3970"
    assert "vanilla makes no calls" in table.note
    assert "WACV 2025" in table.note


def test_savings_stand_beside_the_papers(results):
    row = row_of(tables.savings(results, accuracy_by_n(results), [0.4]), target="40%")
    assert (row["method"], row["calls"], row["next best"], row["its calls"]) == ("ckd", "1800", "KD", "2133")
    assert row["saved %"] == f"{100 * (1 - 1800 / (1600 + 800 * 2 / 3)):.1f}"
    assert row["saved % (paper)"] == f"{100 * (1 - 1.84 / 2.30):.1f}"


def test_savings_of_a_method_are_beside_those_of_the_same_method(results):
    row = row_of(tables.savings(results, accuracy_by_n(results), [0.4], "KD"), target="40%")
    # The paper's KD needs 2.80 thousand calls, its best other method 1.84.
    assert row["saved % (paper)"] == f"{100 * (1 - 2.80 / 1.84):.1f}"
    with pytest.raises(UnknownName):
        tables.savings(results, accuracy_by_n(results), [0.4], "kd")


def test_a_method_that_the_paper_does_not_have_saves_nothing_there(results):
    table = tables.savings(results, accuracy_by_n(results), [0.4], "FitNets+CKD")
    assert "saved % (paper)" not in table.frame
    assert "has no figures" in table.note


def test_accuracy_is_mean_and_deviation_in_percent(results):
    table = tables.accuracy(accuracy_by_n(results))
    # Two seeds 0.01 on either side of the mean: a deviation of sqrt(2) points.
    assert row_of(table, method="ckd")["n=2400"] == "55.00 ± 1.41"
    assert row_of(table, method="FitNets+CKD")["n=2400 (paper)"] == "41.43 ± 2.29"
    assert row_of(table, method="ckd")["n=2400 (paper)"] == ""


def test_the_white_box_table_has_white_box_methods_only(results):
    table = tables.white_box(accuracy_by_n(results))
    assert table.frame["method"].tolist() == ["FitNets+CKD"]
    assert table.frame["n=1600 (paper)"].tolist() == ["31.72 ± 2.46"]


def test_dimensions_average_over_the_sizes_that_all_have(tmp_path):
    runs = [PlannedRun(label="RKD", n=n, accuracy=accuracy) for n, accuracy in ((800, 0.2), (1600, 0.4))]
    runs += [PlannedRun(label="rkd_d:dims=50", n=n, accuracy=0.5) for n in (800, 1600, 2400)]
    runs += [PlannedRun(label="ckd", n=800)]
    table = tables.dimensions(accuracy_by_n(results_of(tmp_path, runs)))
    assert table.frame["method"].tolist() == ["RKD", "rkd_d:dims=50"]
    assert table.frame["accuracy"].tolist() == ["30.00", "50.00"]
    assert table.frame["accuracy (paper)"].tolist() == ["33.19", "37.73"]
    assert set(table.frame["n"]) == {"800, 1600"}


def test_correlation_stands_beside_the_papers(tmp_path):
    results = results_of(tmp_path, [PlannedRun(label="ckd", seed=seed) for seed in (0, 1, 2)])
    for run, value in zip(results["run"][:2], (0.08, 0.10), strict=True):
        content = {"images": 100, "correlation_difference": value, "singular_values": [2, 1]}
        (tmp_path / run / "logits.json").write_text(json.dumps(content | {"teacher_singular_values": [3, 1]}))
    table = tables.correlation(described(tmp_path, results))
    row = row_of(table, method="ckd")
    assert (row["n=800"], row["paper"]) == ("0.090 ± 0.014", "0.083")
    assert "100 test images" in table.note


def test_advantage_is_in_points_with_its_interval(results):
    row = row_of(tables.advantage(results, "ckd"), against="KD")
    assert (row["advantage"], row["pairs"]) == ("+7.50", "4")
    assert re.fullmatch(r"\+5\.00 to \+10\.00", row["95% interval"])


def test_tables_say_how_many_samples_they_are_over(tmp_path):
    runs = [
        PlannedRun(label=label, sample_seed=sample, seed=seed, accuracy=base + 0.02 * sample + 0.01 * seed)
        for label, base in (("KD", 0.3), ("ckd", 0.4))
        for sample in (0, 1)
        for seed in (0, 1)
    ]
    results = results_of(tmp_path, runs)
    accuracy = tables.accuracy(accuracy_by_n(results))
    # 30, 31, 32 and 33 percent: a deviation of sqrt(5 / 3).
    assert row_of(accuracy, method="KD")["n=800"] == "31.50 ± 1.29"
    assert "over 4 runs, of 2 samples of images and 2 seeds." in accuracy.note
    advantage = tables.advantage(results, "ckd")
    row = row_of(advantage, against="KD")
    assert (row["advantage"], row["over samples"], row["pairs"]) == ("+10.00", "+10.00 to +10.00", "4")
    assert "what another sample of images would change" in advantage.note


def test_one_sample_has_no_column_over_samples(results):
    advantage = tables.advantage(results, "ckd")
    assert "over samples" not in advantage.frame
    assert "neither covers another sample of images" in advantage.note
    assert "over seeds (2)." in tables.accuracy(accuracy_by_n(results)).note


def test_pairs_that_the_paper_does_not_have_leave_no_empty_columns(tmp_path):
    results = results_of(tmp_path, runs_of({"ckd": [0.3, 0.4], "kd": [0.2, 0.35]}, student="resnet8"))
    for table in tables.all_tables(results, accuracy_by_n(results), [0.35], described(tmp_path, results), "ckd"):
        assert not [name for name in table.frame.columns if "paper" in name]
        assert table.name == "advantage" or "has no figures for these pairs" in table.note


def test_several_data_sets_are_told_apart(tmp_path):
    curves = {"ckd": [0.3, 0.4]}
    one = results_of(tmp_path / "one", runs_of(curves))
    assert "dataset" not in tables.accuracy(accuracy_by_n(one)).frame
    assert "cifar100" in tables.accuracy(accuracy_by_n(one)).note
    two = pd.concat([one, results_of(tmp_path / "two", runs_of(curves, dataset="cifar10"))])
    assert tables.accuracy(accuracy_by_n(two)).frame["dataset"].tolist() == ["cifar100", "cifar10"]


def test_all_tables_are_those_with_rows(results, tmp_path):
    found = tables.all_tables(results, accuracy_by_n(results), [0.4], described(tmp_path, results), "ckd")
    assert [table.name for table in found] == [
        "calls",
        "savings",
        "savings-of-method",
        "accuracy",
        "advantage",
        "white-box",
    ]
    without = tables.all_tables(results, accuracy_by_n(results), [], described(tmp_path, results))
    assert [table.name for table in without] == ["accuracy", "white-box"]
    assert "savings-of-method" not in {
        table.name
        for table in tables.all_tables(results, accuracy_by_n(results), [0.4], described(tmp_path, results), "vanilla")
    }


def test_no_runs_make_no_tables(tmp_path):
    results = results_of(tmp_path, [])
    assert tables.all_tables(results, accuracy_by_n(results), [0.5], described(tmp_path, results), "ckd") == []
    for table in (
        tables.calls(results, accuracy_by_n(results), [0.5]),
        tables.accuracy(accuracy_by_n(results)),
        tables.correlation(described(tmp_path, results)),
    ):
        assert len(table.frame) == 0
        assert table.to_csv().count("\n") == 1
        assert "teacher" in table.to_markdown()
        assert r"\midrule" in table.to_latex()


def test_the_papers_own_tables_hold_every_printed_number():
    by_name = {table.name: table for table in tables.published()}
    assert row_of(by_name["paper-table-1"], student="vgg8", method="ckd")["55%"] == "5920"
    assert row_of(by_name["paper-table-2"], student="vgg8", method="vid")["n=1600"] == "29.29 ± 1.28"
    assert row_of(by_name["paper-table-3"], student="vgg8", method="rkd")["difference"] == "0.099"
    assert row_of(by_name["paper-figure-4"], student="vgg8", method="rkd_10")["accuracy"] == "35.39"


HOSTILE = r"a|b & 50% $x$ #1 {y} ~z ^w \input{x} <script>alert(1)</script> `c` *d* _e_ [f](g) rkd_d"


def table_of(cell: str) -> Table:
    frame = pd.DataFrame({"method": [cell, "kd"], "n=800": ["39.44 ± 4.50", ""]})
    return Table("a name/2", "Title & more", frame, "A note_.")


def test_csv_holds_the_cells_as_they_are():
    rows = list(csv.reader(io.StringIO(table_of(HOSTILE).to_csv())))
    assert rows == [["method", "n=800"], [HOSTILE, "39.44 ± 4.50"], ["kd", ""]]


@given(cell=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1))
def test_markdown_shows_any_cell_as_it_is(cell):
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(table_of(cell).to_markdown())
    cells = [after for token, after in pairwise(tokens) if token.type in ("td_open", "th_open")]
    assert len(cells) == 6
    children = cells[2].children or []
    assert {token.type for token in children} <= {"text", "text_special"}
    assert "".join(token.content for token in children) == cell


def test_markdown_shows_a_hostile_label_as_it_is():
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(table_of(HOSTILE).to_markdown())
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"<(em|code|a|s)\b", page)
    assert page.count("<td") == 4


def test_markdown_leaves_plain_names_readable():
    assert "| rkd_d:dims=10 | 39.44 ± 4.50 |" in table_of("rkd_d:dims=10").to_markdown()
    assert "| :--- | ---: |" in table_of("x").to_markdown()


def test_latex_escapes_everything_that_tex_would_take_for_its_own():
    text = table_of(HOSTILE).to_latex()
    (line,) = [line for line in text.splitlines() if "rkd" in line]
    assert line == (
        r"a\textbar{}b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{}z \textasciicircum{}w \textbackslash{}input\{x\} "
        r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} `c` {*}d{*} \_e\_ {[}f{]}(g) rkd\_d "
        r"& 39.44 $\pm$ 4.50 \\"
    )
    assert r"\caption{Title \& more. A note\_.}" in text
    assert r"\label{tab:a-name-2}" in text


def test_latex_has_the_rules_of_booktabs_and_numbers_to_the_right():
    lines = table_of("ckd").to_latex().splitlines()
    assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"\begin{tabular}{lr}" in lines
    assert sum(line.startswith(r"\begin") for line in lines) == sum(line.startswith(r"\end") for line in lines) == 2


@given(cell=st.text())
def test_no_cell_breaks_out_of_its_row(cell):
    table = table_of(cell)
    plain = table_of("plain")
    assert len(table.to_latex().splitlines()) == len(plain.to_latex().splitlines())
    assert len(table.to_markdown().splitlines()) == len(plain.to_markdown().splitlines())
    inside = re.sub(r"\\text\w+\{\}|\\[&%$#_{}]", "", table.to_latex().splitlines()[8])
    assert not re.search(r"[%#_~^]", inside)
    assert inside.count("&") == 1


def test_the_csv_of_a_table_holds_no_formula_and_its_numbers_as_they_are():
    frame = pd.DataFrame({"=method": ["=1+1", "kd"], "advantage": ["-0.50 ± 0.10", "+0.12 to -0.30"]})
    assert Table("t", "T", frame, "").to_csv() == "'=method,advantage\n'=1+1,-0.50 ± 0.10\nkd,+0.12 to -0.30\n"


def test_labels_alone_are_a_row_of_every_table_of_accuracies_and_calls(tmp_path):
    runs = runs_of({"KD": [0.3, 0.45], "ckd": [0.35, 0.55]})
    runs += [PlannedRun(label="vanilla, all labels", n=0, seed=seed, accuracy=0.4 + 0.02 * seed) for seed in (0, 1)]
    results = results_of(tmp_path, runs)
    calls, accuracy = tables.calls(results, accuracy_by_n(results), [0.4, 0.5]), tables.accuracy(accuracy_by_n(results))
    row = row_of(calls, method="vanilla, all labels")
    assert (row["40%"], row["50%"]) == ("0", "")
    assert "vanilla, all labels: every labelled image of the store, and 0 calls." in calls.note
    row = row_of(accuracy, method="vanilla, all labels")
    assert (row["n=0"], row["n=1600"]) == ("41.00 ± 1.41", "")
    assert tables.advantage(results, "ckd").frame["against"].tolist() == ["KD"]
    # Seed 0: 36 - 40, seed 1: 34 - 42.
    row = row_of(tables.beyond(results), method="ckd", n="1600")
    assert (row["difference"], row["95% interval"], row["pairs"]) == ("-6.00", "-8.00 to -4.00", "2")
