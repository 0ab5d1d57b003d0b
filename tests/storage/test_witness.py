"""A ledger that is put back, cut, or grown in two copies is found out by what was seen of it before."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from ground.errors import InvalidInput, RolledBack, StoreUnreadable
from storage.ledger import Ledger
from storage.ledger_check import ledger_problems
from storage.ledger_tables import entries
from storage.witness import Disagreement, Witness, witness_folder


def grow(path: Path, *budgets: int) -> None:
    """Record some entries, and have them seen."""
    with closing(Ledger(path, create=True)) as ledger:
        for budget in budgets:
            ledger.set_budget("ab" * 32, "wrn_40_2", budget)
        Witness(ledger, own=True).advance()


def disagreement(path: Path) -> Disagreement | None:
    with closing(Ledger(path)) as ledger:
        return Witness(ledger, own=True).disagreement()


def require_newest(path: Path) -> None:
    with closing(Ledger(path)) as ledger:
        Witness(ledger, own=True, store=path.parent).require_newest()


def accept(path: Path) -> Disagreement | None:
    with closing(Ledger(path)) as ledger:
        return Witness(ledger, own=True).accept()


def seen() -> list[int]:
    """The highest entry of each ledger in the witness."""
    return [json.loads(file.read_text())["newest"]["entry"] for file in sorted(witness_folder().glob("*.json"))]


def kinds(path: Path) -> list[tuple[str, str]]:
    with closing(Ledger(path)) as ledger, ledger.reading() as connection:
        query = sa.select(entries.c.kind, entries.c.payload).order_by(entries.c.seq)
        return [tuple(row) for row in connection.execute(query)]


@pytest.fixture
def ledger(tmp_path) -> Path:
    path = tmp_path / "ledger.sqlite"
    grow(path, 10, 11)
    return path


def copied(path: Path, name: str) -> Path:
    return Path(shutil.copy(path, path.with_name(name)))


def test_a_ledger_that_grew_agrees_with_its_witness(ledger):
    assert seen() == [3]
    with closing(Ledger(ledger)) as opened:
        opened.set_budget("ab" * 32, "wrn_40_2", 12)
    assert disagreement(ledger) is None, "a killed builder recorded, and had no time to have it seen"
    grow(ledger, 13)
    assert seen() == [5]
    assert disagreement(ledger) is None


def test_an_older_copy_is_a_rollback_with_both_heads_and_what_to_do(ledger):
    older = copied(ledger, "older.sqlite")
    grow(ledger, 12, 13)
    found = disagreement(older)
    assert (found.seen.entry, found.found.entry, found.common.entry, found.is_fork) == (5, 3, 3, False)
    with pytest.raises(
        RolledBack,
        match=rf"older\.sqlite ends with entry 3 \({found.found.hash[:12]}\), and the witness at .* has seen entry 5 "
        rf"\({found.seen.hash[:12]}\) of it: it was rolled back .*bring back the newer one, or .*with: ckd-cache "
        r"repair --store .* --accept-rollback",
    ):
        require_newest(older)
    assert disagreement(ledger) is None


def test_a_chain_whose_end_was_cut_off_is_a_rollback(ledger):
    with closing(Ledger(ledger)) as opened, opened.reading() as connection:
        connection.execute(sa.delete(entries).where(entries.c.seq == 3))
        connection.commit()
    found = disagreement(ledger)
    assert (found.seen.entry, found.found.entry, found.is_fork) == (3, 2, False)


@pytest.mark.parametrize("grown", [(20,), (20, 21), (20, 21, 22, 23)], ids=["less", "as much", "more"])
def test_two_copies_that_both_grew_are_a_fork(ledger, grown):
    copy = copied(ledger, "copy.sqlite")
    grow(ledger, 12)
    grow(ledger, 13)
    grow(copy, *grown)
    found = disagreement(copy)
    assert (found.seen.entry, found.found.entry, found.common.entry, found.is_fork) == (5, 3 + len(grown), 3, True)
    with pytest.raises(RolledBack, match=r"it is a fork, two heads follow entry 3 \(.*\), so two copies"):
        require_newest(copy)
    assert seen() == [5], "a fork does not move the witness"
    assert disagreement(ledger) is None


def test_an_older_copy_that_was_never_a_head_is_a_rollback_that_then_becomes_a_fork(ledger):
    with closing(Ledger(ledger)) as opened:
        opened.set_budget("ab" * 32, "wrn_40_2", 12)
        opened.copy_to(older := ledger.with_name("older.sqlite"))
    grow(ledger, 13, 14)
    assert not disagreement(older).is_fork
    grow(older, 20, 21, 22)
    assert disagreement(older).is_fork


def test_an_accepted_rollback_is_chained_and_becomes_what_was_seen(ledger):
    older = copied(ledger, "older.sqlite")
    grow(ledger, 12, 13)
    before = disagreement(older)
    assert accept(older) == before
    kind, payload = kinds(older)[-1]
    assert kind == "rollback"
    assert json.loads(payload) == {
        "fork": False,
        "ledger": {"entry": 3, "hash": before.found.hash},
        "witness": {"entry": 5, "hash": before.seen.hash},
    }
    assert disagreement(older) is None
    with closing(Ledger(older)) as opened:
        assert ledger_problems(opened) == []
    assert seen() == [4]
    assert disagreement(ledger).is_fork, "the one that was given up"
    assert accept(older) is None
    assert len(kinds(older)) == 4, "nothing is recorded where nothing is to be accepted"


def test_ledgers_are_told_apart_though_they_began_in_the_same_moment(tmp_path):
    for name in ("one", "two"):
        grow(tmp_path / f"{name}.sqlite", 10)
    assert seen() == [2, 2]


def test_a_conversion_begins_a_line_of_its_own(ledger):
    copy = copied(ledger, "converted.sqlite")
    with closing(Ledger(copy)) as opened:
        opened.record_store("cd" * 16, {"manifest": "ef" * 32, "made_by": "convert", "from": "ab" * 16})
    for path in (ledger, copy, ledger, copy):
        grow(path, *range(20, 24))
        assert disagreement(path) is None
    assert len(seen()) == 2
    # In a ledger that stores share, a conversion copies nothing.
    with closing(Ledger(copy)) as opened:
        assert Witness(opened, own=False).disagreement().is_fork


def test_the_witness_is_never_lowered_by_builders_side_by_side(tmp_path):
    path = tmp_path / "ledger.sqlite"
    grow(path, 1)

    def build(worker: int) -> None:
        for turn in range(5):
            grow(path, 100 + 10 * worker + turn)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(build, range(4)))
    assert seen() == [len(kinds(path))]
    assert not list(witness_folder().glob(".*.partial"))


def test_without_a_witness_it_is_said_once_and_nothing_is_compared(ledger, monkeypatch, caplog):
    older = copied(ledger, "older.sqlite")
    grow(ledger, 12)
    monkeypatch.setenv("CKD_WITNESS", "off")
    assert disagreement(older) is None
    grow(older, 20)
    said = [record.message for record in caplog.records]
    assert said == [f"no witness is kept of the ledger at sqlite:///{older}: CKD_WITNESS is off"]


def test_a_missing_home_is_a_warning(ledger, monkeypatch, caplog):
    for name in ("CKD_WITNESS", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    grow(ledger, 12)
    assert "there is no home folder; name one in CKD_WITNESS" in caplog.text
    assert len(caplog.records) == 1


def test_where_the_witness_is(monkeypatch, tmp_path):
    monkeypatch.delenv("CKD_WITNESS")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert witness_folder() == tmp_path / ".local" / "state" / "ckd"
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    assert witness_folder() == tmp_path / ".local" / "state" / "ckd"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert witness_folder() == tmp_path / "state" / "ckd"
    monkeypatch.setenv("CKD_WITNESS", str(tmp_path / "mounted"))
    assert witness_folder() == tmp_path / "mounted"


def test_a_folder_that_cannot_be_written_to_is_a_warning(ledger, monkeypatch, caplog, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CKD_WITNESS", str(tmp_path / "file" / "below"))
    grow(ledger, 12)
    require_newest(ledger)
    assert "was not advanced" in caplog.text


def test_a_damaged_witness_is_a_sentence_and_not_believed(ledger):
    (file,) = witness_folder().glob("*.json")
    for content in ("{", json.dumps(json.loads(file.read_text()) | {"genesis": "0" * 64})):
        file.write_text(content)
        with pytest.raises(InvalidInput, match=r"is damaged \(.*\); bring it back from a copy, or delete it"):
            require_newest(ledger)


def test_a_hash_that_names_another_file_is_not_followed(ledger):
    with closing(Ledger(ledger)) as opened, opened.reading() as connection:
        connection.execute(sa.update(entries).where(entries.c.seq == 1).values(hash="../../elsewhere"))
        connection.commit()
    with pytest.raises(StoreUnreadable, match="without a hash that any release wrote"):
        require_newest(ledger)
