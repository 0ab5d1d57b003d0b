"""What a grid has planned is read as it was written, and a hostile plan is refused in a sentence."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.grid_plan import GridPlan
from ground.errors import InvalidInput
from tests.analysis.grids import PlannedRun, write_grid

STORE = {"teacher": "t", "dataset": "d", "store": "stores/t-d", "n": 800, "calls": 800}
# A float holds all of these exactly.
WHOLE = st.integers(-(1 << 53), 1 << 53) | st.just(1 << 100)
JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def test_a_plan_says_what_its_file_says(tmp_path):
    runs = [PlannedRun(accuracy=None), PlannedRun(seed=1, accuracy=None)]
    plan = GridPlan.load(write_grid(tmp_path, runs, stores=[STORE], budget=900, targets=[0.5, 1]))
    assert (plan.name, plan.targets, plan.test_images, plan.budget) == ("test", (0.5, 1.0), 0, 900)
    assert (plan.cost.calls, plan.cost.calls_without_store) == (800, 1600)
    assert [{name: getattr(store, name) for name in STORE} for store in plan.stores] == [STORE]
    assert [{name: getattr(run, name) for name in runs[0].planned()} for run in plan.runs] == [
        run.planned() for run in runs
    ]


@given(
    st.sampled_from(["name", "targets", "test_images", "budget", "stores", "cost", "runs"])
    | st.tuples(st.sampled_from(["stores", "runs"]), st.sampled_from(["teacher", "store", "run", "n", "settings"])),
    JSON,
)
def test_any_value_in_any_place_is_read_or_refused_in_a_printable_sentence(tmp_path_factory, place, value):
    folder = write_grid(tmp_path_factory.mktemp("grid"), [PlannedRun(accuracy=None)], stores=[STORE])
    document: dict[str, Any] = json.loads((folder / "grid.json").read_text())
    if isinstance(place, tuple):
        document[place[0]][0][place[1]] = value
    else:
        document[place] = value
    (folder / "grid.json").write_text(json.dumps(document))
    refused = None
    try:
        GridPlan.load(folder)
    except InvalidInput as error:
        refused = str(error)
    if refused is not None:
        assert refused.isprintable()
        assert refused.endswith("give the folder of a grid that `ckd-pipeline run` has made")


def test_a_folder_without_a_plan_says_what_to_give(tmp_path):
    with pytest.raises(InvalidInput, match="grid.json.*no such file.*ckd-pipeline run"):
        GridPlan.load(tmp_path / "nothing")


def test_a_plan_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "grid.json")
    with pytest.raises(InvalidInput, match="no ordinary file"):
        GridPlan.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "Expecting value"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "cannot be used"),
        (b"\xff\xfe\xfa".decode("latin-1"), "cannot be used"),
        ('{"format": 2}', "format '2', this release reads 1"),
        ('{"format": 1}', "no name"),
    ],
)
def test_a_damaged_plan_is_refused_in_a_sentence(tmp_path, content, said):
    (tmp_path / "grid.json").write_text(content, encoding="latin-1")
    with pytest.raises(InvalidInput, match=f"grid.json.*{said}"):
        GridPlan.load(tmp_path)


def test_a_store_of_the_plan_outside_the_folder_is_refused(tmp_path):
    store = {"teacher": "t", "dataset": "d", "store": "../x", "n": 1, "calls": 1}
    with pytest.raises(InvalidInput, match=r"store is '../x', which is no path below the folder"):
        GridPlan.load(write_grid(tmp_path, [], stores=[store]))


@pytest.mark.parametrize("spelling", ["{}", "./{}", "{}/", "runs/../{}", "{}/."])
def test_one_folder_is_no_two_runs(tmp_path, spelling):
    folder = write_grid(tmp_path, [PlannedRun(), PlannedRun(seed=1)])
    plan = json.loads((folder / "grid.json").read_text())
    plan["runs"][1]["run"] = spelling.format(plan["runs"][0]["run"])
    (folder / "grid.json").write_text(json.dumps(plan))
    with pytest.raises(InvalidInput, match="twice|no path below"):
        GridPlan.load(folder)
