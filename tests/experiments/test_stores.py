"""The stores of a grid: what their answers are kept as, and what is opened and held to plan them."""

from __future__ import annotations

from contextlib import closing

import pytest

from experiments.grid_file import read_grid
from experiments.plan import plan_stores
from experiments.stores import Stores
from ground.errors import TooNarrow
from storage.store import Store
from storage.store_ledger import own_ledger
from teacher_cache import prepare
from teacher_cache.datasets.made_split import MadeSplit
from teacher_cache.teachers import ZooTeacher, open_teacher
from tests.experiments.grids import small, write


@pytest.mark.parametrize("settings", [{}, {"feature_dtype": "float16"}])
def test_a_grid_goes_on_in_float32_unless_it_asks_for_float16(tmp_path, weights, monkeypatch, settings):
    call, counted = ZooTeacher.call, []

    def saying(self, views, outputs):
        said = {name: tensor.contiguous().clone() for name, tensor in call(self, views, outputs).items()}
        counted.append(len(views))
        said[outputs[-1]].view(-1)[0] = 70001.0
        return said

    monkeypatch.setattr(ZooTeacher, "call", saying)
    # What such a teacher says is no sense, and not what is tested.
    store = {"trust_teacher": True, **settings}
    grid = read_grid(write(tmp_path / "grid.yaml", small(weights, methods=["fitnets"], n=[24, 96], store=store)))
    stores = Stores(grid, tmp_path / "out", "cpu")
    (need,) = plan_stores(grid)
    if settings:
        with pytest.raises(TooNarrow, match="which float16 cannot hold"):
            stores.make(need, stores.plan(need))
        return
    assert stores.make(need, stores.plan(need)) == sum(counted) == 96
    assert [output.dtype for output in Store.open(tmp_path / "out" / need.folder).outputs] == ["float32", "float32"]
    assert stores.plan(need).new_calls == 0


def test_a_store_that_was_laid_out_and_stopped_before_its_budget_was_recorded_is_held_to_it(tmp_path, weights):
    def lay_out(**store) -> int | None:
        grid = read_grid(write(tmp_path / "grid.yaml", small(weights, store={"rest": 4, **store})))
        stores, (need,) = Stores(grid, tmp_path / "out", "cpu"), plan_stores(grid)
        stores.lay_out(need, stores.plan(need))
        with closing(own_ledger(tmp_path / "out" / need.folder)) as ledger:
            return ledger.summary().budget

    # What a SIGKILL between the two leaves is a store without a budget.
    assert lay_out() is None
    assert lay_out(budget=100) == 100
    # A budget that is on record is a purchase's to raise.
    assert lay_out(budget=120) == 100


def test_all_stores_of_a_teacher_are_planned_with_one_that_is_opened_once(tmp_path, weights, monkeypatch):
    opened = []

    def counted(*args):
        opened.append(open_teacher(*args))
        return opened[-1]

    monkeypatch.setattr(prepare, "open_teacher", counted)
    sampled = {"sample_seeds": 2, "select": ["random", "balanced"], "test_images": 10}
    grid = read_grid(write(tmp_path / "grid.yaml", small(weights, **sampled)))
    stores, needs = Stores(grid, tmp_path / "out", "cpu"), plan_stores(grid)
    plans = stores.plan_all(dict.fromkeys(needs))
    assert len(plans) == 4
    assert stores.plan_test(needs[0]).teacher is plans[needs[0]].build.teacher
    assert len(opened) == 1
    assert len({plan.fingerprint for plan in plans.values()}) == 1


def test_of_several_stores_that_are_planned_no_images_are_held(tmp_path, weights, monkeypatch):
    read, indices = MadeSplit.read, list[int]()

    def noted(self, index):
        indices.extend(index.tolist())
        return read(self, index)

    monkeypatch.setattr(MadeSplit, "read", noted)
    grid = read_grid(write(tmp_path / "grid.yaml", small(weights, sample_seeds=2)))
    stores = Stores(grid, tmp_path / "out", "cpu")
    for needs in (plan_stores(grid), plan_stores(grid)[:1]):
        plans = stores.plan_all(dict.fromkeys(needs))
        shown = plans[needs[0]].build.shown
        indices.clear()
        shown.images[0:48]
        # Those of a single store are there since its calls were counted.
        assert len(indices) == (48 if len(needs) > 1 else 0)
