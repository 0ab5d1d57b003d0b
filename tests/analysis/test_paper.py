"""The paper's figures, carried as data."""

from __future__ import annotations

import math

import pytest

from analysis import paper
from analysis.calls import NOT_REACHED, PASSED, calls_table, savings
from models import model_names
from tests.analysis.grids import PlannedRun, results_of


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("CKD", "ckd"),
        ("FitNets+CKD", "fitnets+ckd"),
        ("fitnets + ckd", "fitnets+ckd"),
        ("RKD_10", "rkd_10"),
        ("rkd_d", "rkd_10"),
        ("rkd_d:dims=100", "rkd_100"),
        ("rkd_d:dims=10,weight=2", "rkd_d:dims=10,weight=2"),
        ("ckd:pairs=all", "ckd:pairs=all"),
    ],
)
def test_our_names_and_the_papers_become_one(label, key):
    assert paper.method_key(label) == key


def test_networks_are_ours():
    assert paper.network_key("WRN-40-2") == "wrn_40_2"
    assert paper.network_key("somebody's own") == "somebody's own"
    for table in (paper.calls_to_target(), paper.white_box(), paper.logit_correlation()):
        assert set(table["teacher"]) | set(table["student"]) <= set(model_names())


def test_all_printed_numbers_are_there():
    assert len(paper.calls_to_target()) == 3 * 6 * 6
    assert len(paper.white_box()) == 2 * 6 * 3
    assert len(paper.logit_correlation()) == 3 * 5
    assert len(paper.rkd_dimensions()) == 2 * 4


def test_a_cell_of_each_table_is_as_printed():
    def cell(table, value, **keys):
        for name, key in keys.items():
            table = table[table[name] == key]
        (found,) = table[value]
        return found

    pair = {"teacher": "resnet110", "student": "resnet32"}
    # Table 1: ResNet110 to ResNet32, CKD, 50%: 3.40 thousand calls.
    assert cell(paper.calls_to_target(), "calls", label="ckd", target=0.5, **pair) == 3400
    assert cell(paper.logit_correlation(), "correlation_difference", label="dist", **pair) == 0.103
    white = {"teacher": "vgg13", "student": "vgg8", "label": "vid+ckd", "n": 2400}
    assert cell(paper.white_box(), "mean", **white) == pytest.approx(0.3697)
    assert cell(paper.white_box(), "std", **white) == pytest.approx(0.0059)
    assert cell(paper.rkd_dimensions(), "mean", student="wrn_16_2", label="rkd_100") == pytest.approx(0.3982)


def test_empty_cells_of_table_1_have_a_reason():
    table = paper.calls_to_target()
    empty = table[table["calls"].isna()]
    assert (table["why_empty"] != "").tolist() == table["calls"].isna().tolist()
    reasons = empty.set_index(["student", "label", "target"])["why_empty"]
    assert reasons["wrn_16_2", "ckd", 0.35] == PASSED
    assert reasons["wrn_16_2", "kd", 0.55] == NOT_REACHED
    assert reasons["resnet32", "mixup", 0.55] == NOT_REACHED
    assert reasons["resnet32", "mixup", 0.3] == PASSED


def test_it_reads_like_our_own_table(tmp_path):
    ours = calls_table(results_of(tmp_path, [PlannedRun()]), [0.5])
    assert list(paper.calls_to_target().columns) == list(ours.columns)


def test_the_papers_savings_follow_from_its_table():
    saved = savings(paper.calls_to_target(), "ckd").set_index(["student", "target"])
    # 3.11 thousand calls of CKD against 3.95 of Mixup.
    assert saved.loc[("wrn_16_2", 0.5), "saved_percent"] == pytest.approx(100 * (1 - 3.11 / 3.95))
    assert saved.loc[("wrn_16_2", 0.5), "next_best"] == "mixup"
    assert math.isnan(saved.loc[("vgg8", 0.55), "saved_percent"])
