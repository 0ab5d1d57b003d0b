"""The figures: one Vega-Lite specification each, for the page, the SVG and the PNG.

A figure keeps its numbers as a table too, for those who cannot see it. Everything drawn is data: text from run files
is never part of an expression. On the page, colours are CSS variables, the legend is the page's own, and the parameter
`shown` lists the methods that are drawn.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from analysis.curves import PAIR, averaged_over, of_several_samples
from analysis.labels_only import of_labels_alone, of_samples
from analysis.logits import TEACHER
from analysis.palette import GREY, LIGHT, SHAPES, Look

_WIDTH, _HEIGHT = 480, 300
_ROW_HEIGHT = 34
_PNG_SCALE = 2.0
_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
# Points of one n are spread over at most this much of the gap between two n, and of the whole range.
_SPREAD, _SPREAD_OF_RANGE = 0.3, 0.06
_SMALLEST_SHARE = 1e-6
_INK, _FAINT, _GRID = "#2b2f36", "#5c636e", "#e3e6ea"
_AXES = {"gridColor": _GRID, "domainColor": _FAINT, "tickColor": _FAINT, "labelColor": _FAINT, "titleColor": _INK}
_CONFIG = {
    "font": "Liberation Sans, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {**_AXES, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 10},
    # Points say what they are in the table below; a screen reader need not read each of them.
    "aria": False,
}
_STATIC = {
    "background": "#ffffff",
    "legend": {"labelFontSize": 12, "labelLimit": 240, "title": None, "labelColor": _INK, "symbolStrokeWidth": 2},
    "title": {"color": _INK, "fontSize": 14, "fontWeight": 600, "anchor": "start", "offset": 12},
}
_PAGE = {"background": "transparent", "font": "inherit"}
_PAGE_LEGEND = {"orient": "bottom", "columns": 1, "labelLimit": 400, "labelColor": _INK, "title": None}
_FIT = {"type": "fit-x", "contains": "padding"}
_LONGEST_NAME = 80
_SINGLE_SEED = "one seed"


@dataclass(frozen=True, slots=True)
class Pair:
    """A teacher, a student and the images they see; `text` is what people read."""

    teacher: str
    student: str
    dataset: str
    text: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """For file names and anchors."""
        plain = re.sub(r"[^A-Za-z0-9_]+", "-", f"{self.teacher}-{self.student}-{self.dataset}").strip("-")[
            :_LONGEST_NAME
        ]
        digest = hashlib.sha256("\0".join((self.teacher, self.student, self.dataset)).encode()).hexdigest()
        return f"{plain}-{digest[:6]}"


def pairs_of(frame: pd.DataFrame) -> list[Pair]:
    """The pairs of a table, in its order; one data set for all need not be named."""
    columns = frame[PAIR].drop_duplicates()
    on = " on {}" if columns["dataset"].nunique() > 1 else ""
    return [
        Pair(teacher, student, dataset, f"{teacher} → {student}{on.format(dataset)}")
        for teacher, student, dataset in columns.itertuples(index=False)
    ]


def of_pair(frame: pd.DataFrame, pair: Pair) -> pd.DataFrame:
    """A table's rows of one pair."""
    same = frame["teacher"].eq(pair.teacher) & frame["student"].eq(pair.student) & frame["dataset"].eq(pair.dataset)
    return frame[same]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing and what it shows.

    Args:
        name: of its files.
        description: what is to be seen, for those who cannot.
        chart: Vega-Lite, without title and configuration.
        frame: the numbers that are drawn, under headers for people.
        pair: whose numbers they are; None where they are of all, or of no pair.
        needs_legend: whether a legend of the methods, which the page has once for all figures, tells its marks apart.
    """

    name: str
    title: str
    description: str
    chart: Mapping[str, Any]
    frame: pd.DataFrame
    pair: Pair | None = None
    needs_legend: bool = False

    def page_chart(self) -> dict[str, Any]:
        """The specification for the page: as wide as its place, in the page's colours."""
        chart = {**self.chart, "width": "container", "autosize": _FIT, "description": self.description}
        chart = _without_legends(chart) if self.needs_legend else chart
        document: dict[str, Any] = _in_variables({**chart, "config": {**_CONFIG, **_PAGE, "legend": _PAGE_LEGEND}})
        return document

    def svg(self) -> str:
        """The drawing by itself."""
        title = self.title if self.pair is None else [self.title, self.pair.text]
        chart = {**self.chart, "title": title, "description": self.description, "config": _CONFIG | _STATIC}
        svg = str(vl_convert.vegalite_to_svg(json.dumps(chart), vl_version=_VEGA_LITE))
        return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(self.description)}" ', 1)


def png_of(svg: str) -> bytes:
    """A drawing in pixels."""
    return bytes(vl_convert.svg_to_png(svg, scale=_PNG_SCALE))


@cache
def browser_code() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script without dependencies; it sets `window.vegaEmbed`."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE))


def accuracy_figure(curves: pd.DataFrame, pair: Pair, looks: Sequence[Look], calls: Mapping[int, int]) -> Figure:
    """Test accuracy of one pair by teacher calls, with the standard deviation over samples and seeds.

    A method without a teacher stands at the calls that its n images cost the others. Labels alone are a line across.

    Args:
        curves: of `analysis.curves.accuracy_by_n`, with at least one point of this pair whose n is not 0.
        looks: of every method of the report.
        calls: n -> teacher calls of n rows, for methods with a teacher; empty where none asks one, and n is drawn.
    """
    ours = of_pair(curves, pair)
    sampled, alone = of_samples(ours), of_labels_alone(ours)
    drawn = [look for look in looks if look.label in set(ours["label"])]
    of_points = [look for look in drawn if look.label in set(sampled["label"])]
    numbers = sorted({calls.get(int(n), int(n)) for n in sampled["n"]})
    offsets = _offsets(numbers, of_points)
    rows = []
    for point in sampled.itertuples(index=False):
        cost = calls.get(point.n, point.n)
        said = {"n": f"{point.n:,}", "calls": "0" if _is_grey(drawn, point.label) else f"{cost:,}"}
        rows.append({"at": cost + offsets[point.label], **said, **_accuracy_row(point)})
    tooltip = {
        "label": "method",
        "n": "n",
        "calls": "teacher calls",
        "accuracy": "test accuracy",
        "deviation": f"std over {averaged_over(curves)}",
        "seeds": "seeds",
    }
    if of_several_samples(curves):
        tooltip["samples"] = "samples"
    has_free = any(look.colour == GREY for look in of_points)
    free = "; without a teacher, of the same n" if has_free else ""
    title = f"teacher calls{free}" if calls else "n, training images of the store"
    x = alt.X("at:Q", title=title, scale=_scale(), axis=alt.Axis(values=numbers, grid=False))
    y = alt.Y("mean:Q", title="test accuracy (%)", scale=_scale())
    base = alt.Chart().transform_filter(_IS_SHOWN).encode(x=x, color=_colour(drawn))
    chart = _over(
        rows,
        # The layer that hears the pointer, beside those with a tooltip.
        base.mark_line(strokeWidth=2)
        .encode(y=y, strokeDash=_dash(drawn), opacity=_unless_another())
        .properties(name=_HEARS),
        base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q", opacity=_unless_another()),
        base.mark_point(filled=True, size=70, opacity=1).encode(
            y=y, shape=_shape(drawn), tooltip=_tooltip(tooltip), opacity=_unless_another()
        ),
        # What the pointer meets is larger than what is drawn.
        base.mark_point(filled=True, size=500).encode(y=y, opacity=alt.value(0), tooltip=_tooltip(tooltip)),
    )
    across = [_line_across(alone, drawn, y, tooltip)] if len(alone) else []
    best, by = sampled.loc[sampled["mean"].idxmax()], "teacher calls" if calls else "n"
    labels = "".join(
        f" {point.label}, without a call, is a line across at {100 * point.mean:.1f} %."
        for point in alone.itertuples(index=False)
    )
    return Figure(
        name=f"accuracy-{pair.name}",
        title=f"Test accuracy by {by}",
        description=(
            f"Test accuracy of {pair.text} by {by}, a line for each of {len(of_points)} methods, with the standard "
            f"deviation over {averaged_over(curves)}. The highest is {best['label']} at n = {best['n']:,} with "
            f"{100 * best['mean']:.1f} %.{labels}"
        ),
        chart=_plain(*across, chart, params=[_HOVERED_THERE, _shown(drawn)]),
        frame=ours[["label", "n", "mean", "std", "seeds", "samples"]],
        pair=pair,
        needs_legend=True,
    )


def advantage_figure(
    advantages: pd.DataFrame, method: str, looks: Sequence[Look], pair: Pair | None, name: str
) -> Figure:
    """How much more accurate a method is than each other, averaged over paired runs, with its interval.

    Args:
        advantages: of `analysis.advantage.advantages`, for one pair or all.
    """
    rows = [_advantage_row(row) for row in advantages.to_dict("records") if row["pairs"]]
    drawn = [look for look in looks if look.label in {row["label"] for row in rows}]
    tooltip = {"label": "against", "advantage": "advantage", "interval": "95 % interval", "pairs": "paired runs"}
    y = alt.Y("label:N", title=None, sort=[look.label for look in drawn], axis=_NAMES)
    base = alt.Chart().transform_filter(_IS_SHOWN).encode(y=y, color=_colour(drawn, legend=False))
    x = alt.X("mean:Q", title="percentage points of test accuracy", scale=_scale(zero=True))
    zero = alt.Chart().mark_rule(color=_FAINT, strokeDash=[4, 3]).encode(x="zero:Q")
    found = _over(
        rows,
        base.mark_rule(strokeWidth=2.5).encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(filled=True, size=90, opacity=1).encode(x=x, shape=_shape(drawn, legend=False)),
        base.mark_point(filled=True, size=700, opacity=0).encode(x=x, tooltip=_tooltip(tooltip)),
    )
    chart = _plain(_over([{"zero": 0}], zero), found, params=[_shown(drawn)])
    ahead = sum(row["ahead"] for row in rows)
    return Figure(
        name=name,
        title=f"Advantage of {method}",
        description=(
            f"Averaged paired advantage of {method} in test accuracy over {len(rows)} other methods, with 95 % "
            f"intervals; {ahead} of them lie wholly above zero."
        ),
        chart={**chart, "height": _ROW_HEIGHT * (len(rows) + 1)},
        frame=advantages,
        pair=pair,
    )


def timeline_figure(timeline: pd.DataFrame, budgets: Mapping[str, int]) -> Figure:
    """Teacher calls charged so far, by time, in UTC.

    Args:
        timeline: of `analysis.ledgers.timeline`: store, at, calls.
        budgets: store -> its budget, for those that have one.
    """
    stores = list(timeline["store"].unique())
    looks = [Look(store, place % GREY, _CIRCLE, (1, 0)) for place, store in enumerate(stores)]
    rows = [
        {"label": row.store, "at": row.at, "calls": int(row.calls), "said": f"{row.calls:,}", "when": row.at}
        for row in timeline.itertuples(index=False)
    ]
    tooltip = {"label": "store", "when": "time (UTC)", "said": "calls so far"}
    x = alt.X(
        "at:T",
        title="time (UTC)",
        scale=alt.Scale(type="utc"),
        axis=alt.Axis(grid=False, tickCount=6, labelOverlap="greedy", labelSeparation=8),
    )
    y = alt.Y("calls:Q", title="teacher calls charged")
    base = alt.Chart().encode(x=x, y=y, color=_colour(looks))
    charts = [
        _over(
            rows,
            base.mark_line(interpolate="step-after", strokeWidth=2),
            base.mark_point(filled=True, size=16),
            base.mark_point(filled=True, size=160).encode(opacity=alt.value(0), tooltip=_tooltip(tooltip)),
        )
    ]
    if budgets:
        limits = [{"label": store, "budget": budget, "said": f"{budget:,}"} for store, budget in budgets.items()]
        rule = alt.Chart().mark_rule(strokeDash=[5, 4], strokeWidth=1.5)
        said = _tooltip({"label": "store", "said": "budget"})
        charts.append(_over(limits, rule.encode(y=alt.Y("budget:Q"), color=_colour(looks), tooltip=said)))
    return Figure(
        name="calls-by-time",
        title="Teacher calls by time",
        description=(
            f"Teacher calls charged so far by time, a line for each of {len(stores)} stores"
            f"{', and dashed the budgets' if budgets else ''}."
        ),
        chart=_plain(*charts),
        frame=timeline,
    )


def flatness_figure(values: pd.DataFrame, pair: Pair, looks: Sequence[Look]) -> Figure:
    """Singular values of the centred logits, largest first: how flat what a network says is.

    Args:
        values: of `analysis.logits.flatness`; the largest n of the pair is drawn.
    """
    ours = of_pair(values, pair)
    ours = ours[ours["n"] == ours["n"].max()]
    n = int(ours["n"].iloc[0])
    drawn = [look for look in looks if look.label in set(ours["label"])]
    # A logarithm has no place for what rounding leaves of the last ones.
    rows = [
        {"label": row.label, "rank": int(row.rank), "value": row.value, "said": f"{row.value:.4g}"}
        for row in ours.itertuples(index=False)
        if row.value > _SMALLEST_SHARE
    ]
    tooltip = _tooltip({"label": "network", "rank": "place", "said": "share of the largest"})
    x = alt.X(
        "rank:Q",
        title="place of the singular value",
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(grid=False, tickMinStep=1),
    )
    y = alt.Y("value:Q", title="share of the largest", scale=alt.Scale(type="log"))
    students, teachers = ([row for row in rows if (row["label"] == TEACHER) is is_its] for is_its in (False, True))
    base = alt.Chart().encode(x=x, y=y)
    of_student = base.transform_filter(_IS_SHOWN).encode(color=_colour(drawn))
    chart = _plain(
        _over(
            teachers,
            base.mark_line(strokeWidth=2.5, color=_INK, strokeDash=[8, 3]),
            base.mark_point(filled=True, size=160, opacity=0).encode(tooltip=tooltip),
        ),
        _over(
            students,
            of_student.mark_line(strokeWidth=2).encode(strokeDash=_dash(drawn)),
            of_student.mark_point(filled=True, size=160, opacity=0).encode(tooltip=tooltip),
        ),
        params=[_shown(drawn)],
    )
    return Figure(
        name=f"flatness-{pair.name}",
        title=f"Singular values of the centred logits, n = {n:,}",
        description=(
            f"Singular values of the centred logits of {pair.text} at n = {n:,}, as shares of the largest on a "
            f"logarithmic scale: the teacher's, dashed and dark, and those of the students of {len(drawn)} methods."
        ),
        chart=chart,
        frame=ours[["label", "n", "rank", "value", "seeds", "samples"]],
        pair=pair,
        needs_legend=True,
    )


_CIRCLE = next(iter(SHAPES))
_NAMES = alt.Axis(labelLimit=180, ticks=False, domain=False, labelPadding=8)
_HEARD: dict[str, Any] = {"fields": ["label"], "on": "pointerover", "clear": "pointerout"}
_HOVERED = alt.selection_point(name="hovered", **_HEARD)
# The layer that hears the pointer, and what it hears, which a specification has at its top.
_HEARS = "lines"
_HOVERED_THERE = {"name": "hovered", "select": {"type": "point", **_HEARD}, "views": [_HEARS]}
_IS_SHOWN = "indexof(shown, datum.label) >= 0"


def _accuracy_row(point: Any) -> dict[str, Any]:
    """What is drawn and said of a row of `accuracy_by_n`, beside where it stands."""
    mean, std = 100 * point.mean, 0.0 if math.isnan(point.std) else 100 * point.std
    return {
        "label": point.label,
        "mean": mean,
        "low": mean - std,
        "high": mean + std,
        "accuracy": f"{mean:.2f} %",
        "deviation": _SINGLE_SEED if math.isnan(point.std) else f"{100 * point.std:.2f} points",
        "seeds": int(point.seeds),
        "samples": int(point.samples),
    }


def _line_across(alone: pd.DataFrame, looks: Sequence[Look], y: alt.Y, tooltip: Mapping[str, str]) -> Any:
    """Labels alone: their mean as a line over the whole width, and their standard deviation as a band behind it."""
    rows = [{"n": "0", "calls": "0", **_accuracy_row(point)} for point in alone.itertuples(index=False)]
    base = alt.Chart().transform_filter(_IS_SHOWN)
    said = _tooltip(tooltip)
    return _over(
        rows,
        base.mark_rect(color=LIGHT[GREY], opacity=0.15).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_rule(strokeWidth=2).encode(y=y, color=_colour(looks), strokeDash=_dash(looks)),
        base.mark_rule(strokeWidth=14, opacity=0).encode(y=y, tooltip=said),
    )


def _advantage_row(found: Mapping[str, Any]) -> dict[str, Any]:
    mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    known = not math.isnan(low)
    return {
        "label": found["baseline"],
        "mean": mean,
        "low": low if known else mean,
        "high": high if known else mean,
        "advantage": f"{mean:+.2f} points",
        "interval": f"{low:+.2f} to {high:+.2f}" if known else "none: one paired run",
        "pairs": int(found["pairs"]),
        "ahead": known and low > 0,
    }


def _offsets(numbers: Sequence[int], looks: Sequence[Look]) -> dict[str, float]:
    """How far aside each method's points are drawn, so that error bars of one n do not cover each other."""
    gaps = [high - low for low, high in pairwise(numbers)]
    spread = (
        min(_SPREAD * min(gaps), _SPREAD_OF_RANGE * (numbers[-1] - numbers[0]))
        if gaps
        else _SPREAD_OF_RANGE * numbers[0]
    )
    middle = (len(looks) - 1) / 2
    return {look.label: spread * (place - middle) / len(looks) for place, look in enumerate(looks)}


def _is_grey(looks: Iterable[Look], label: str) -> bool:
    return any(look.label == label and look.colour == GREY for look in looks)


def _over(rows: list[dict[str, Any]], *layers: alt.Chart) -> dict[str, Any]:
    """Layers that draw the same rows, which are then there once."""
    # Put together here: Altair copies all that a chart holds, layers and rows, whenever it is given anything more.
    specifications = [layer.to_dict(validate=False) for layer in layers]
    for specification in specifications:
        # Of a chart by itself; its rows, of which it has none of its own, are below.
        for name in ("$schema", "config", "data", "datasets"):
            del specification[name]
    return {"layer": specifications, "data": {"values": rows}}


def _scale(*, zero: bool = False) -> alt.Scale:
    return alt.Scale(zero=zero, nice=True, padding=12)


def _shown(looks: Sequence[Look]) -> dict[str, Any]:
    return {"name": "shown", "value": [look.label for look in looks]}


def _unless_another() -> Any:
    return alt.when(_HOVERED).then(alt.value(1)).otherwise(alt.value(0.2))


def _colour(looks: Sequence[Look], *, legend: bool = True) -> alt.Color:
    scale = alt.Scale(domain=[look.label for look in looks], range=[LIGHT[look.colour] for look in looks])
    colour = alt.Color("label:N", scale=scale, title=None)
    return colour if legend else colour.legend(None)


def _shape(looks: Sequence[Look], *, legend: bool = True) -> alt.Shape:
    scale = alt.Scale(domain=[look.label for look in looks], range=[look.shape for look in looks])
    shape = alt.Shape("label:N", scale=scale, title=None)
    # The legend's shapes are filled; a line around them would be dashed with the line's dashes.
    return shape.legend(symbolStrokeWidth=0) if legend else shape.legend(None)


def _dash(looks: Sequence[Look]) -> alt.StrokeDash:
    scale = alt.Scale(domain=[look.label for look in looks], range=[list(look.dash) for look in looks])
    return alt.StrokeDash("label:N", scale=scale, title=None)


def _tooltip(titles: Mapping[str, str]) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def _plain(*parts: Mapping[str, Any], params: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The specification of what is drawn one over the other, as JSON has it."""
    said = {"params": list(params)} if params else {}
    return {"$schema": alt.SCHEMA_URL, "layer": list(parts), "width": _WIDTH, "height": _HEIGHT, **said}


def _without_legends(value: Any) -> Any:
    """A specification whose channels have no legend."""
    if isinstance(value, dict):
        return {
            key: {**part, "legend": None}
            if key in _LEGENDS and isinstance(part, dict)
            else part
            if key == "values"
            else _without_legends(part)
            for key, part in value.items()
        }
    return [_without_legends(part) for part in value] if isinstance(value, list) else value


_LEGENDS = ("color", "shape", "strokeDash")
_VARIABLES = {colour: f"var(--colour-{place})" for place, colour in enumerate(LIGHT)}
_VARIABLES |= {_INK: "var(--ink)", _FAINT: "var(--faint)", _GRID: "var(--grid)"}


def _in_variables(value: Any) -> Any:
    """A specification with the page's variables in the place of our colours; data stay as they are."""
    if isinstance(value, dict):
        return {key: part if key == "values" else _in_variables(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_in_variables(part) for part in value]
    return _VARIABLES.get(value, value) if isinstance(value, str) else value
