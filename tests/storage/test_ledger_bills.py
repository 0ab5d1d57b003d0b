"""Attempts and money in the ledger: reserved at an upper bound, settled at a bill, never past a budget."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ground.errors import BudgetRefused, StoreBusy
from storage.bill import Bill, Billed, FailureKind
from storage.ledger import Ledger
from storage.ledger_check import ledger_problems
from storage.ledger_report import CallFilter, budget_history, count_calls, list_calls
from storage.ledger_spending import Spending, spending_by, spending_of_teachers, total_of
from tests.ledgers import TEACHER
from tests.running import begin_program
from tests.storage.test_ledger import SESSION, requests, tamper

UPPER = 50_000
RETURNED = Bill(billed=Billed.NO, failure=FailureKind.RATE_LIMITED)
UNKNOWN = Bill(billed=Billed.UNKNOWN, failure=FailureKind.UNKNOWN)


def paid(cost: int, **fields: object) -> Bill:
    return Bill(billed=Billed.YES, cost_micros=cost, **fields)


@pytest.fixture
def ledger(ledger_url):
    opened = Ledger(ledger_url, create=True)
    yield opened
    opened.close()


def reserve(ledger: Ledger, session: int, first: int, count: int, upper: int = UPPER) -> list[int]:
    return list(ledger.reserve(session, requests(first, count), upper_micros=upper).ids.values())


def commit(ledger: Ledger, ids: list[int], bills: dict[int, Bill]) -> None:
    ledger.commit(dict.fromkeys(ids, b"\1" * 16), 1.0, bills)


def amounts(ledger: Ledger) -> tuple[int, int]:
    summary = ledger.summary(TEACHER)
    return summary.cost_micros, summary.reserved_micros


def counts(ledger: Ledger) -> tuple[int, int, int, int]:
    summary = ledger.summary(TEACHER)
    return summary.committed, summary.reserved, summary.lost, summary.returned


def test_a_call_is_paid_at_its_upper_bound_until_its_bill_is_there(ledger):
    session = ledger.start_session(SESSION)
    ids = reserve(ledger, session, 0, 4)
    assert amounts(ledger) == (0, 4 * UPPER)
    commit(ledger, ids[:2], {ids[0]: paid(20_001), ids[1]: paid(0)})
    assert amounts(ledger) == (20_001, 2 * UPPER)
    commit(ledger, ids[2:3], {})
    ledger.lose(ids[3:])
    assert amounts(ledger) == (20_001 + 2 * UPPER, 0), "what nobody says anything of is paid at its upper bound"
    assert [row["billed"] for row in list_calls(ledger)] == ["yes", "yes", "unknown", "unknown"]
    assert ledger_problems(ledger) == []


def test_an_attempt_that_nobody_bills_is_given_back_and_its_input_asked_again(ledger):
    session = ledger.start_session(SESSION)
    ids = reserve(ledger, session, 0, 3)
    assert (
        ledger.fail({ids[0]: RETURNED, ids[1]: UNKNOWN, ids[2]: replace(UNKNOWN, billed=Billed.YES, cost_micros=7)})
        == 3
    )
    assert counts(ledger) == (0, 0, 2, 1)
    assert (ledger.summary().spent, amounts(ledger)) == (2, (UPPER + 7, 0))
    assert ledger.known_calls(TEACHER, "fp32", [request.input_digest for request in requests(0, 3)]) == {}
    again = reserve(ledger, session, 0, 3)
    assert again == [4, 5, 6]
    commit(ledger, again, dict.fromkeys(again, paid(1)))
    assert ledger.reserve(session, requests(0, 3), upper_micros=UPPER).ids == {}
    assert ledger_problems(ledger) == []


def test_settling_twice_has_the_effect_of_once(ledger):
    session = ledger.start_session(SESSION)
    ids = reserve(ledger, session, 0, 4)
    failed = {ids[0]: RETURNED, ids[1]: UNKNOWN}
    assert ledger.fail(failed) == 2
    assert ledger.fail(failed) == 0
    assert ledger.fail(failed | {ids[2]: RETURNED}) == 1
    commit(ledger, ids[3:], {ids[3]: paid(5)})
    commit(ledger, ids[3:], {ids[3]: paid(6)})
    assert (counts(ledger), amounts(ledger)) == ((1, 0, 1, 2), (UPPER + 5, 0))
    with pytest.raises(StoreBusy, match="its lease ended"):
        commit(ledger, ids[:1], {})
    assert ledger_problems(ledger) == []


def test_a_refusal_is_committed_with_its_bill(ledger):
    session = ledger.start_session(SESSION)
    (id_,) = reserve(ledger, session, 0, 1)
    commit(ledger, [id_], {id_: paid(30, failure=FailureKind.REFUSED, tokens_in=9, request_id="r-1", model="m-2")})
    (row,) = list_calls(ledger)
    said = {
        "billed": "yes",
        "cost_micros": 30,
        "tokens_in": 9,
        "tokens_out": None,
        "model": "m-2",
        "failure": "refused",
    }
    assert {name: row[name] for name in said} == said
    assert (row["status"], row["request_id"]) == ("committed", "r-1")
    assert ledger_problems(ledger) == []


def test_calls_without_price_and_bill_leave_nothing_in_the_bills(ledger):
    session = ledger.start_session(SESSION)
    ids = reserve(ledger, session, 0, 3, upper=0)
    commit(ledger, ids[:2], {})
    ledger.lose(ids[2:])
    with ledger.reading() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM bills")).scalar() == 0
        payloads = connection.execute(sa.text("SELECT payload FROM entries WHERE kind != 'genesis'")).scalars().all()
    assert not any("bills" in payload or "micros" in payload for payload in payloads)
    assert ledger_problems(ledger) == []


@pytest.mark.parametrize(
    "bill",
    [
        replace(RETURNED, cost_micros=1),
        replace(UNKNOWN, cost_micros=-1),
        replace(UNKNOWN, tokens_in=-1),
        replace(UNKNOWN, tokens_out=1 << 63),
        replace(UNKNOWN, failure=None),
    ],
)
def test_a_bill_that_contradicts_itself_is_refused(ledger, bill):
    (id_,) = reserve(ledger, ledger.start_session(SESSION), 0, 1)
    with pytest.raises(ValueError, match="bill"):
        ledger.fail({id_: bill})
    assert counts(ledger) == (0, 1, 0, 0)


def test_a_bill_of_another_call_is_refused(ledger):
    ids = reserve(ledger, ledger.start_session(SESSION), 0, 2)
    with pytest.raises(ValueError, match=r"calls that are not committed: \[2\]"):
        commit(ledger, ids[:1], {ids[1]: paid(1)})
    with pytest.raises(ValueError, match="cannot cost -1"):
        reserve(ledger, 1, 5, 1, upper=-1)


def test_texts_of_a_provider_are_kept_as_a_database_takes_them(ledger):
    (id_,) = reserve(ledger, ledger.start_session(SESSION), 0, 1)
    commit(ledger, [id_], {id_: paid(1, model="a\0b\ud800\n", request_id="r" * 999)})
    (row,) = list_calls(ledger)
    assert (row["model"], row["request_id"]) == (r"a\x00b\ud800\n", "r" * 256)
    assert ledger_problems(ledger) == []


def test_the_budget_in_money_is_checked_before_anything_is_charged(ledger):
    session = ledger.start_session(SESSION)
    ledger.set_budget(TEACHER, "gpt", None, cost_micros=1_000_000)
    ids = reserve(ledger, session, 0, 15)
    commit(ledger, ids[:5], dict.fromkeys(ids[:5], paid(10_000)))
    # 5 x 0.01 settled and 10 x 0.05 reserved: 0.45 of 1.00 remains, which is 9 calls.
    with pytest.raises(
        BudgetRefused,
        match=r"asked for 10 calls of wrn_40_2, which cost up to 0\.50 \(0\.05 each\); 0\.55 is already paid and 0\.45 "
        r"of the budget of 1\.00 remains; ask for fewer, with a smaller --n, or raise it, with: --budget-cost 1\.05",
    ):
        reserve(ledger, session, 20, 10)
    assert counts(ledger)[1] == 10
    assert len(reserve(ledger, session, 20, 9)) == 9
    summary = ledger.summary(TEACHER)
    assert (summary.budget_micros, summary.remaining_micros, summary.budget) == (1_000_000, 0, None)
    assert len(reserve(ledger, session, 40, 3, upper=0)) == 3, "what costs nothing is not stopped by it"
    with pytest.raises(
        BudgetRefused, match=r"a budget of 0\.50 is below the 1\.00 already paid for wrn_40_2; give 1\.00 "
    ):
        ledger.set_budget(TEACHER, "gpt", None, cost_micros=500_000)
    assert BudgetRefused.exit_code == 3
    assert ledger_problems(ledger) == []


def test_budgets_in_calls_and_in_money_are_set_by_themselves(ledger):
    ledger.start_session(SESSION)
    ledger.set_budget(TEACHER, "gpt", 10)
    ledger.set_budget(TEACHER, "gpt", None, cost_micros=5)
    ledger.set_budget(TEACHER, "gpt", 10, cost_micros=5)
    ledger.set_budget(TEACHER, "gpt", 12)
    summary = ledger.summary(TEACHER)
    assert (summary.budget, summary.budget_micros) == (12, 5)
    changes = [
        {name: value for name, value in change.items() if name != "at"} for change in budget_history(ledger, TEACHER)
    ]
    assert changes == [
        {"from": None, "to": 10},
        {"from": 10, "to": 10, "from_micros": None, "to_micros": 5},
        {"from": 10, "to": 12},
    ]
    assert ledger_problems(ledger) == []


def test_whichever_budget_is_first_stops(ledger):
    session = ledger.start_session(SESSION)
    ledger.set_budget(TEACHER, "gpt", 3, cost_micros=10 * UPPER)
    with pytest.raises(BudgetRefused, match="of the budget of 3 remain"):
        reserve(ledger, session, 0, 4)
    ledger.set_budget(TEACHER, "gpt", 30)
    with pytest.raises(BudgetRefused, match=r"of the budget of 0\.50 remains"):
        reserve(ledger, session, 0, 11)
    assert len(reserve(ledger, session, 0, 10)) == 10


def test_many_threads_share_a_budget_in_money_without_overshooting(ledger):
    session = ledger.start_session(SESSION)
    ledger.set_budget(TEACHER, "gpt", None, cost_micros=20 * UPPER)
    seen = []

    def work(worker: int) -> None:
        for batch in range(6):
            try:
                ids = reserve(ledger, session, 1000 * worker + 10 * batch, 3)
            except BudgetRefused:
                continue
            ledger.fail({ids[0]: RETURNED, ids[1]: UNKNOWN})
            commit(ledger, ids[2:], {ids[2]: paid(UPPER // 2)})
            summary = ledger.summary(TEACHER)
            seen.append(summary.cost_micros + summary.reserved_micros)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert max(seen) <= 20 * UPPER
    # Each batch of three leaves one and a half; another fits as long as three do.
    assert 17 * UPPER < ledger.summary().cost_micros <= 20 * UPPER
    assert ledger.summary().reserved_micros == 0
    assert ledger_problems(ledger) == []


@pytest.mark.slow
def test_processes_share_a_budget_in_money_to_the_last_call(ledger_url):
    with closing(Ledger(ledger_url, create=True)) as ledger:
        ledger.start_session(SESSION)
        ledger.set_budget(TEACHER, "gpt", None, cost_micros=50 * UPPER)
        builders = [begin_program("tests.storage.bill_builder", ledger_url, worker) for worker in range(8)]
        ended = [builder.completed() for builder in builders]
        made = [int(builder.stdout) for builder in ended]
        assert sum(made) == 50
        assert amounts(ledger) == (50 * UPPER, 0)
        assert ledger_problems(ledger) == []


def test_what_was_unknown_is_settled_by_a_providers_bill(ledger):
    session = ledger.start_session(SESSION)
    ids = reserve(ledger, session, 0, 5)
    ledger.fail(dict.fromkeys(ids[:3], replace(UNKNOWN, request_id="r")))
    commit(ledger, ids[3:], {ids[4]: paid(9)})
    before = list(list_calls(ledger))
    slow = list_calls(ledger)
    first = next(slow)
    decided = {
        ids[0]: Bill(billed=Billed.NO, failure=FailureKind.UNKNOWN),
        ids[1]: paid(20, failure=FailureKind.UNKNOWN),
        ids[3]: Bill(billed=Billed.NO),
        ids[4]: Bill(billed=Billed.NO),
    }
    assert ledger.settle_unknown(decided, "f" * 64) == 3, "what is known is not decided again"
    assert ledger.settle_unknown(decided, "f" * 64) == 0
    assert counts(ledger) == (2, 0, 2, 1)
    assert amounts(ledger) == (20 + UPPER + 9, 0)
    assert ledger_problems(ledger) == []
    assert [first, *slow] == before, "a list that was begun before says what was true then"
    assert [row["status"] for row in list_calls(ledger)] == ["returned", "lost", "lost", "committed", "committed"]
    assert [row["billed"] for row in list_calls(ledger)] == ["no", "yes", "unknown", "no", "yes"]
    assert count_calls(ledger, CallFilter(status="returned")) == 1
    assert len(reserve(ledger, session, 0, 5)) == 3
    with pytest.raises(ValueError, match="decides nothing"):
        ledger.settle_unknown({ids[2]: UNKNOWN}, "f" * 64)


def test_a_call_that_was_revoked_stays_lost_whatever_its_bill_says(ledger):
    session = ledger.start_session(SESSION)
    ids = reserve(ledger, session, 0, 1)
    commit(ledger, ids, {})
    ledger.revoke(ids)
    assert (counts(ledger), amounts(ledger)) == ((0, 0, 1, 0), (UPPER, 0))
    ledger.settle_unknown({ids[0]: Bill(billed=Billed.NO)}, "f" * 64)
    assert (counts(ledger), amounts(ledger)) == ((0, 0, 1, 0), (0, 0))
    assert ledger_problems(ledger) == []


def test_spending_is_summed_by_teacher_day_and_model(ledger):
    session = ledger.start_session(SESSION)
    other = ledger.start_session(replace(SESSION, teacher="cd" * 32, teacher_name="vgg8"))
    ids = reserve(ledger, session, 0, 5)
    commit(ledger, ids[:2], {id_: paid(10, tokens_in=3, tokens_out=2, model="m-1") for id_ in ids[:2]})
    ledger.fail({ids[2]: RETURNED, ids[3]: replace(UNKNOWN, model="m-2")})
    commit(ledger, reserve(ledger, other, 0, 3, upper=0), {})
    spent = Spending(committed=2, lost=1, returned=1, tokens_in=6, tokens_out=4, cost_micros=20 + UPPER)
    spent.billed, spent.failures = {"yes": 2, "no": 1, "unknown": 1}, {"rate_limited": 1, "unknown": 1}
    assert spending_of_teachers(ledger) == {TEACHER: spent}
    assert (spent.calls, spent.attempts) == (3, 4)
    by_model = spending_by(ledger, "model")
    assert list(by_model) == ["m-1", "m-2", "vgg8", "wrn_40_2"]
    assert (by_model["m-1"].cost_micros, by_model["m-2"].lost, by_model["vgg8"].committed) == (20, 1, 3)
    assert (by_model["wrn_40_2"].returned, by_model["wrn_40_2"].reserved) == (1, 1)
    (day,) = spending_by(ledger, "day").items()
    assert day[0] == next(list_calls(ledger))["reserved_at"][:10]
    assert day[1] == total_of(by_model.values())
    assert (day[1].attempts, day[1].calls) == (8, 7)


TAMPERINGS = {
    "a cost": "UPDATE bills SET cost_micros = cost_micros - 1 WHERE call = 1",
    "a cost, and the account with it": (
        "UPDATE bills SET cost_micros = cost_micros - 1 WHERE call = 1",
        "UPDATE accounts SET spent_micros = spent_micros - 1",
    ),
    "a request's id": "UPDATE bills SET request_id = 'r-7' WHERE call = 1",
    "a model": "UPDATE bills SET model = 'm' WHERE call = 1",
    "tokens": "UPDATE bills SET tokens_in = 2 WHERE call = 1",
    "tokens that nobody counted": "UPDATE bills SET tokens_out = 0 WHERE call = 2",
    "a failure": "UPDATE bills SET failure = 'unknown' WHERE call = 3",
    "whether it was billed": "UPDATE bills SET billed = 'no' WHERE call = 1",
    "a deleted bill": "DELETE FROM bills WHERE call = 1",
    "all bills of an entry": "DELETE FROM bills WHERE settled_in = (SELECT settled_in FROM calls WHERE id = 1)",
    "a bill of another call": "UPDATE bills SET call = 6 WHERE call = 1",
    "a bill nobody settled": "INSERT INTO bills (call, settled_in, billed, cost_micros) VALUES (6, 1, 'yes', 0)",
    "a bill that is replaced": "UPDATE bills SET replaced_in = 4 WHERE call = 1",
    "one that is not replaced any more": "UPDATE bills SET replaced_in = NULL WHERE call = 4",
    "a decision undone": (
        "DELETE FROM bills WHERE call = 4 AND replaced_in IS NULL",
        "UPDATE bills SET replaced_in = NULL WHERE call = 4",
    ),
    "an upper bound": "UPDATE calls SET upper_micros = 1 WHERE id = 6",
    "a sum that was paid": "UPDATE accounts SET spent_micros = 0",
    "a sum that is reserved": "UPDATE accounts SET reserved_micros = 0",
    "how many were returned": "UPDATE accounts SET returned = 0",
    "a budget": "UPDATE accounts SET budget_micros = 1 << 40",
    "a call that was returned, lost": "UPDATE calls SET status = 'lost' WHERE id = 3",
    "a call that was lost, returned": "UPDATE calls SET status = 'returned' WHERE id = 5",
    "a call that was given back, lost": "UPDATE calls SET status = 'lost' WHERE id = 4",
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_with_bills_is_found(ledger_url, tampering):
    with closing(Ledger(ledger_url, create=True)) as ledger:
        session = ledger.start_session(SESSION)
        ledger.set_budget(TEACHER, "gpt", None, cost_micros=100 * UPPER)
        ids = reserve(ledger, session, 0, 6)
        commit(ledger, ids[:2], {ids[0]: paid(10, tokens_in=3, request_id="r-1", model="m-1"), ids[1]: paid(4)})
        ledger.fail({ids[2]: RETURNED, ids[3]: UNKNOWN, ids[4]: UNKNOWN})
        ledger.settle_unknown({ids[3]: replace(RETURNED, failure=FailureKind.UNKNOWN)}, "f" * 64)
        assert ledger_problems(ledger) == []
    statements = TAMPERINGS[tampering]
    for statement in (statements,) if isinstance(statements, str) else statements:
        assert tamper(ledger_url, statement) != 0
    with closing(Ledger(ledger_url)) as ledger:
        assert ledger_problems(ledger) != []


class LedgerOfTwo(RuleBasedStateMachine):
    """Two builders, and what a plain account of their calls says."""

    @initialize()
    def begin(self) -> None:
        import tempfile
        from pathlib import Path

        self.folder = tempfile.TemporaryDirectory()
        self.ledger = Ledger(Path(self.folder.name) / "ledger.sqlite", create=True)
        self.sessions = [self.ledger.start_session(SESSION) for _ in range(2)]
        self.status: dict[int, str] = {}
        self.input: dict[int, int] = {}
        self.owner: dict[int, int] = {}
        self.cost: dict[int, int] = {}  # what each counts as: its upper bound, then its bill
        self.upper: dict[int, int] = {}
        self.unknown: set[int] = set()
        self.budget: int | None = None
        self.most: int | None = None

    def spent(self) -> int:
        return sum(status != "returned" for status in self.status.values())

    def of(self, status: str, session: int | None = None) -> list[int]:
        return [id_ for id_, now in self.status.items() if now == status and session in (None, self.owner[id_])]

    @rule(
        session=st.integers(0, 1), first=st.integers(0, 12), count=st.integers(1, 4), upper=st.sampled_from([0, 30, 70])
    )
    def reserve(self, session: int, first: int, count: int, upper: int) -> None:
        answered = {self.input[id_] for id_ in (*self.of("reserved"), *self.of("committed"))}
        new = [number for number in range(first, first + count) if number not in answered]
        too_many = self.budget is not None and self.spent() + len(new) > self.budget
        too_dear = self.most is not None and new and upper and sum(self.cost.values()) + len(new) * upper > self.most
        if new and (too_many or too_dear):
            with pytest.raises(BudgetRefused):
                self.ledger.reserve(self.sessions[session], requests(first, count), upper_micros=upper)
            return
        made = self.ledger.reserve(self.sessions[session], requests(first, count), upper_micros=upper)
        known = {id_ for id_ in self.of("reserved", session) if first <= self.input[id_] < first + count}
        charged = {int.from_bytes(digest, "big"): id_ for digest, id_ in made.ids.items() if id_ not in known}
        assert sorted(charged) == new
        for number, id_ in charged.items():
            self.status[id_], self.input[id_], self.owner[id_] = "reserved", number, session
            self.cost[id_] = self.upper[id_] = upper

    @precondition(lambda self: self.of("reserved"))
    @rule(data=st.data(), session=st.integers(0, 1))
    def settle(self, data: st.DataObject, session: int) -> None:
        ours = self.of("reserved", session)
        if not ours:
            return
        ids = data.draw(st.lists(st.sampled_from(ours), min_size=1, unique=True))
        what = data.draw(st.sampled_from(["commit", "fail", "lose"]))
        bills = {id_: data.draw(st.sampled_from([None, *Billed])) for id_ in ids}
        cost = data.draw(st.integers(0, 90))
        given = {
            id_: Bill(
                billed=billed,
                cost_micros=0 if billed is Billed.NO else cost,
                failure=None if what == "commit" else FailureKind.UNKNOWN,
            )
            for id_, billed in bills.items()
            if billed is not None
        }
        if what == "commit":
            self.ledger.commit(dict.fromkeys(ids, b"\1" * 16), 0.0, given)
        elif what == "lose":
            self.ledger.lose(ids)
            given = {}
        else:
            assert self.ledger.fail(given) == len(given)
            ids = list(given)
        for id_ in ids:
            is_unknown = id_ not in given or given[id_].billed is Billed.UNKNOWN
            stated = given[id_].cost_micros if id_ in given else 0
            self.cost[id_] = max(self.upper[id_], stated) if is_unknown else stated
            if is_unknown and (id_ in given or self.upper[id_]):
                self.unknown.add(id_)
            given_back = what == "fail" and given[id_].billed is Billed.NO
            self.status[id_] = "committed" if what == "commit" else "returned" if given_back else "lost"

    @precondition(lambda self: self.of("committed"))
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(self.of("committed")))
        assert self.ledger.revoke([id_]) == 1
        self.status[id_] = "revoked"

    @precondition(lambda self: self.unknown)
    @rule(data=st.data(), is_billed=st.booleans(), cost=st.integers(0, 90))
    def decide(self, data: st.DataObject, is_billed: bool, cost: int) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.unknown)))
        bill = paid(cost) if is_billed else Bill(billed=Billed.NO)
        assert self.ledger.settle_unknown({id_: bill}, "f" * 64) == 1
        self.unknown.discard(id_)
        self.cost[id_] = cost if is_billed else 0
        if not is_billed and self.status[id_] == "lost":
            self.status[id_] = "returned"

    @rule(more=st.integers(0, 6), rest=st.integers(0, 300))
    def limit(self, more: int, rest: int) -> None:
        self.budget, self.most = self.spent() + more, sum(self.cost.values()) + rest
        self.ledger.set_budget(TEACHER, "gpt", self.budget, cost_micros=self.most)

    @invariant()
    def totals_are_those_of_a_plain_account(self) -> None:
        if not hasattr(self, "status"):
            return
        summary = self.ledger.summary()
        assert summary.committed == len(self.of("committed"))
        assert summary.reserved == len(self.of("reserved"))
        assert summary.lost == len(self.of("lost")) + len(self.of("revoked"))
        assert summary.returned == len(self.of("returned"))
        reserved = sum(self.cost[id_] for id_ in self.of("reserved"))
        assert summary.reserved_micros == reserved
        assert summary.cost_micros == sum(self.cost.values()) - reserved

    def teardown(self) -> None:
        if hasattr(self, "status"):
            assert ledger_problems(self.ledger) == []
            self.ledger.close()
            self.folder.cleanup()


TestLedgerOfTwo = LedgerOfTwo.TestCase
TestLedgerOfTwo.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
