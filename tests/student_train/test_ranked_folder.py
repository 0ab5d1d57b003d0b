"""The first of several ranks reads and writes a run's folder; the others know what it read, and need not reach it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ground.errors import Interrupted, InvalidInput, RankLost
from ground.ranks import Ranks
from storage.run_record import RESUME_FILE
from student_train.ranked_folder import RankedFolder
from student_train.run_folder import RunFolder
from tests.rank_threads import in_ranks
from tests.student_train.test_run_folder import SETTINGS, changed, state_of


def folder_of(ranks: Ranks, path: Path) -> RankedFolder:
    """The first rank's; the others are on a machine that does not have it."""
    return RankedFolder(path if ranks.is_first else path / "elsewhere", ranks)


def test_what_the_first_rank_kept_all_go_on_from(tmp_path):
    weights = torch.arange(6.0).reshape(2, 3)

    def work(ranks: Ranks) -> dict:
        folder = folder_of(ranks, tmp_path / "run")
        with folder.opened(resume=False):
            assert folder.finished(SETTINGS) is None
            assert folder.load_state(SETTINGS) is None
            folder.save_metrics([])
            folder.save_state({**state_of(SETTINGS), "weights": weights + ranks.rank})
        assert folder.started() == SETTINGS
        with folder.opened(resume=True):
            return folder.load_state(SETTINGS)

    for state in in_ranks(2, work):
        assert torch.equal(state["weights"], weights)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.csv", RESUME_FILE, "run.lock"]


def test_a_rank_of_another_command_is_named(tmp_path):
    def work(ranks: Ranks) -> None:
        settings = changed(batch_size=64 + ranks.rank)
        folder_of(ranks, tmp_path).finished(settings)

    with pytest.raises(InvalidInput, match="rank 1 has batch_size 65, and the first rank 64; start every rank with"):
        in_ranks(2, work)


def test_what_the_first_rank_refuses_ends_the_others(tmp_path):
    (tmp_path / RESUME_FILE).touch()
    errors = [None, None]

    def work(ranks: Ranks) -> None:
        try:
            folder_of(ranks, tmp_path).check(resume=False)
        except (InvalidInput, RankLost) as error:
            errors[ranks.rank] = error
            raise

    with pytest.raises(InvalidInput, match="holds a run already"):
        in_ranks(2, work)
    assert [type(error) for error in errors] == [InvalidInput, RankLost]


def test_no_rank_leaves_before_the_first_has_written(tmp_path):
    written = []

    def work(ranks: Ranks) -> bool:
        folder = folder_of(ranks, tmp_path / "run")
        try:
            with folder.opened(resume=False):
                if ranks.is_first:
                    folder.save_metrics([])
                    written.append(True)
                raise Interrupted("stopped")
        except Interrupted:
            return bool(written)

    assert in_ranks(2, work) == [True, True]
    with RunFolder(tmp_path / "run").opened(resume=True):
        pass
