"""Figures: what is drawn is what was measured, in colours that everybody can tell apart."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert

from analysis.figures import (
    Pair,
    accuracy_figure,
    advantage_figure,
    flatness_figure,
    pairs_of,
    png_of,
    timeline_figure,
)
from analysis.palette import DARK, DARK_BACKGROUND, DASHES, GREY, LIGHT, LIGHT_BACKGROUND, SHAPES, looks_of

PAIR = Pair("wrn_40_2", "resnet8", "digits", "wrn_40_2 → resnet8")
HOSTILE = "</script><script>alert('x')</script> {{ 7*7 }} \"&\u2028"
# How the three kinds of colour blindness see linear RGB: Machado et al. 2009, table 1, severity 1.
SIGHTS = {
    "all": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Of WCAG 2."""
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* under D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    shares = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    x, y, z = np.where(shares > 0.008856, np.cbrt(shares), 7.787 * shares + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(("colours", "background"), [(LIGHT, LIGHT_BACKGROUND), (DARK, DARK_BACKGROUND)])
def test_colours_stand_out_from_their_background(colours, background):
    assert min(contrast(colour, background) for colour in colours) >= 3.0


@pytest.mark.parametrize("colours", [LIGHT, DARK])
@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_stay_apart_however_they_are_seen(colours, sight):
    seen = [lab(np.asarray(SIGHTS[sight]) @ linear(colour)) for colour in colours]
    # 2.3 is the least difference that is noticed side by side; lines need far more.
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 20


def test_no_two_methods_look_alike():
    labels = [f"method {place}" for place in range(GREY * len(DASHES))]
    looks = looks_of(labels)
    assert len({(look.colour, look.dash) for look in looks}) == len(labels)
    assert [look.shape for look in looks[: len(SHAPES)]] == list(SHAPES)
    assert [look.label for look in looks] == labels


def test_grey_is_for_methods_without_a_teacher():
    looks = {look.label: look for look in looks_of(["vanilla", "kd", "ckd"], {"vanilla"})}
    assert looks["vanilla"].colour == GREY
    assert GREY not in (looks["kd"].colour, looks["ckd"].colour)
    assert looks["vanilla"].dash != looks["kd"].dash


def curves(labels=("vanilla", "kd", "ckd"), sizes=(800, 1600, 3200), seeds=3, samples=1) -> pd.DataFrame:
    rows = [
        {
            "teacher": PAIR.teacher,
            "student": PAIR.student,
            "dataset": PAIR.dataset,
            "label": label,
            "n": n,
            "mean": 0.2 + 0.05 * place + n / 100_000,
            "std": 0.01 * (place + 1) if seeds > 1 else np.nan,
            "seeds": seeds,
            "samples": samples,
        }
        for place, label in enumerate(labels)
        for n in sizes
    ]
    return pd.DataFrame(rows)


def accuracy(frame: pd.DataFrame):
    looks = looks_of(dict.fromkeys(frame["label"]), {"vanilla"})
    return accuracy_figure(frame, PAIR, looks, {})


def drawn_rows(chart: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a chart's data, wherever altair has put them."""
    found: list[dict[str, Any]] = []

    def look(part: Any) -> None:
        if isinstance(part, dict):
            for key, value in part.items():
                if key in ("values", "datasets"):
                    lists = value.values() if isinstance(value, dict) else [value]
                    found.extend(row for rows in lists for row in rows if isinstance(row, dict))
                else:
                    look(value)
        elif isinstance(part, list):
            for value in part:
                look(value)

    look(chart)
    return found


def texts_of(svg: str) -> str:
    return " ".join(ElementTree.fromstring(svg).itertext())


def test_accuracy_is_drawn_in_percent_with_one_standard_deviation_each_way():
    frame = curves()
    rows = {(row["label"], row["n"]): row for row in drawn_rows(accuracy(frame).chart)}
    assert len(rows) == len(frame)
    for point in frame.to_dict("records"):
        row = rows[point["label"], f"{point['n']:,}"]
        assert row["mean"] == pytest.approx(100 * point["mean"])
        assert (row["low"], row["high"]) == pytest.approx(
            (100 * (point["mean"] - point["std"]), 100 * (point["mean"] + point["std"]))
        )
        assert row["accuracy"] == f"{100 * point['mean']:.2f} %"
    assert rows["vanilla", "1,600"]["calls"] == "0"
    assert rows["kd", "1,600"]["calls"] == "1,600"


def test_one_seed_has_no_error_bar():
    for row in drawn_rows(accuracy(curves(seeds=1)).chart):
        assert row["low"] == row["mean"] == row["high"]
        assert row["deviation"] == "one seed"


@pytest.mark.parametrize("sizes", [(800, 1600, 3200), (800, 2400), (800,)])
def test_points_of_one_n_lie_side_by_side_around_it(sizes):
    rows = drawn_rows(accuracy(curves(sizes=sizes)).chart)
    gap = min((high - low for low, high in itertools.pairwise(sizes)), default=sizes[0])
    for n in sizes:
        places = sorted(row["at"] for row in rows if row["n"] == f"{n:,}")
        assert len(set(places)) == 3
        assert np.mean(places) == pytest.approx(n)
        assert places[-1] - places[0] < 0.3 * gap


def test_what_is_read_aloud_names_the_best():
    figure = accuracy(curves())
    assert "The highest is ckd at n = 3,200 with 33.2 %." in figure.description
    assert ElementTree.fromstring(figure.svg()).get("aria-label") == figure.description


def test_svg_and_png_are_whole():
    svg = accuracy(curves()).svg()
    said = texts_of(svg)
    assert all(text in said for text in ("Test accuracy by n", "wrn_40_2 → resnet8", "vanilla", "ckd", "3,200"))
    assert all(colour in svg for colour in (LIGHT[0], LIGHT[1], LIGHT[GREY]))
    png = png_of(svg)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(png[first : first + 4], "big") for first in (16, 20))
    drawing = ElementTree.fromstring(svg)
    assert (width, height) == pytest.approx((2 * float(drawing.get("width")), 2 * float(drawing.get("height"))), abs=2)


def test_text_of_others_is_only_text_in_an_svg():
    svg = accuracy(curves(labels=("vanilla", HOSTILE))).svg()
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
    assert "script" not in tags
    assert "{{ 7*7 }}" in texts_of(svg)


def test_the_page_draws_in_its_own_colours_and_leaves_data_alone():
    chart = accuracy(curves(labels=("vanilla", LIGHT[0]))).page_chart()
    assert {row["label"] for row in drawn_rows(chart)} == {"vanilla", LIGHT[0]}
    assert f"var(--colour-{GREY})" in json.dumps(chart)
    assert chart["width"] == "container"
    assert chart["config"]["background"] == "transparent"


def test_only_the_page_leaves_its_legend_to_the_page():
    figure = accuracy(curves())
    assert texts_of(figure.svg()).count("ckd") == 1
    alone = vl_convert.vegalite_to_svg(json.dumps({**figure.page_chart(), "width": 400}))
    assert "ckd" not in texts_of(alone)


def advantages(rows: list[tuple[str, float, float, float, int]]) -> pd.DataFrame:
    return pd.DataFrame([("ckd", *row) for row in rows], columns=["method", "baseline", "mean", "low", "high", "pairs"])


def test_advantages_are_drawn_in_points_and_only_where_runs_are_paired():
    found = advantages([("kd", 0.02, 0.01, 0.03, 9), ("crd", -0.01, -0.02, 0.005, 9), ("rkd", *[np.nan] * 3, 0)])
    figure = advantage_figure(found, "ckd", looks_of(["kd", "crd", "rkd", "ckd"]), None, "advantage")
    rows = {row["label"]: row for row in drawn_rows(figure.chart) if "label" in row}
    assert set(rows) == {"kd", "crd"}
    assert (rows["kd"]["low"], rows["kd"]["mean"], rows["kd"]["high"]) == pytest.approx((1.0, 2.0, 3.0))
    assert rows["crd"]["interval"] == "-2.00 to +0.50"
    assert "over 2 other methods" in figure.description
    assert "1 of them lie wholly above zero" in figure.description
    assert "crd" in texts_of(figure.svg())


def test_one_paired_run_has_no_interval():
    found = advantages([("kd", 0.02, np.nan, np.nan, 1)])
    figure = advantage_figure(found, "ckd", looks_of(["kd", "ckd"]), None, "advantage")
    [row] = [row for row in drawn_rows(figure.chart) if "label" in row]
    assert row["interval"] == "none: one paired run"
    assert row["low"] == row["mean"] == row["high"]
    json.dumps(figure.page_chart(), allow_nan=False)


def test_timeline_draws_every_store_and_its_budget():
    steps = [("a", "2026-11-21T12:00:00.000+00:00", 64), ("a", "2026-11-21T12:00:05.000+00:00", 128)]
    steps += [("b", "2026-11-21T13:00:00.000+00:00", 32)]
    figure = timeline_figure(pd.DataFrame(steps, columns=["store", "at", "calls"]), {"a": 2400})
    rows = drawn_rows(figure.chart)
    assert [(row["label"], row["calls"]) for row in rows if "calls" in row] == [("a", 64), ("a", 128), ("b", 32)]
    assert [row["budget"] for row in rows if "budget" in row] == [2400]
    said = texts_of(figure.svg()).split()
    assert {"a", "b", "12:15"} <= set(said)


def test_flatness_is_drawn_at_the_largest_n_with_the_teacher():
    place = {"teacher": PAIR.teacher, "student": PAIR.student, "dataset": PAIR.dataset}
    place |= {"seeds": 1, "samples": 1}
    rows = [
        {**place, "label": label, "n": n, "rank": rank, "value": value}
        for n in (800, 1600)
        for label in ("kd", "teacher")
        for rank, value in enumerate((1.0, 0.5, 0.0), 1)
    ]
    figure = flatness_figure(pd.DataFrame(rows), PAIR, looks_of(["kd"]))
    drawn = drawn_rows(figure.chart)
    assert {row["label"] for row in drawn} == {"kd", "teacher"}
    # Nothing has a logarithm of 0.
    assert [row["value"] for row in drawn if row["label"] == "kd"] == [1.0, 0.5]
    assert "n = 1,600" in figure.title
    assert set(figure.frame["n"]) == {1600}


def test_pairs_are_named_by_what_differs():
    frame = pd.DataFrame(
        [("t", "s", "digits"), ("t", "u", "digits"), ("t", "s", "digits")], columns=["teacher", "student", "dataset"]
    )
    assert [pair.text for pair in pairs_of(frame)] == ["t → s", "t → u"]
    frame.loc[1, "dataset"] = "cifar100"
    assert [pair.text for pair in pairs_of(frame)] == ["t → s on digits", "t → u on cifar100"]


def test_names_of_files_are_plain_and_differ():
    one, other = Pair("t", "../a b", "images:x"), Pair("t", "../a+b", "images:x")
    assert one.name != other.name
    assert all(letter.isalnum() or letter in "_-" for letter in one.name + other.name)


def test_calls_are_drawn_where_a_teacher_was_asked():
    frame = curves(samples=1)
    looks = looks_of(dict.fromkeys(frame["label"]), {"vanilla"})
    figure = accuracy_figure(frame, PAIR, looks, {800: 1600, 1600: 3200, 3200: 6400})
    rows = {(row["label"], row["n"]): row for row in drawn_rows(figure.chart)}
    # Two views an image; what asks no teacher stands beside the others of its n.
    assert rows["kd", "1,600"]["at"] == pytest.approx(3200, rel=0.1)
    assert rows["vanilla", "1,600"]["at"] == pytest.approx(3200, rel=0.1)
    assert figure.title == "Test accuracy by teacher calls"
    assert "teacher calls; without a teacher, of the same n" in texts_of(figure.svg())


def test_labels_alone_are_a_line_across_with_their_band():
    frame = pd.concat([curves(), curves(labels=("all labels",), sizes=(0,))], ignore_index=True)
    looks = looks_of(dict.fromkeys(frame["label"]), {"vanilla", "all labels"})
    figure = accuracy_figure(frame, PAIR, looks, {})
    [row] = [row for row in drawn_rows(figure.chart) if row["label"] == "all labels"]
    assert "at" not in row
    assert (row["low"], row["mean"], row["high"]) == pytest.approx((19.0, 20.0, 21.0))
    assert "all labels, without a call, is a line across at 20.0 %." in figure.description
    assert "a line for each of 3 methods" in figure.description
    # As wide as the drawing is.
    lines = [element for element in ElementTree.fromstring(figure.svg()).iter() if element.tag.endswith("line")]
    assert any(abs(float(line.get("x2", 0))) == 480 and line.get("stroke-dasharray") for line in lines)
