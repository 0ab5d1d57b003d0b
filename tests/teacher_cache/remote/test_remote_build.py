"""Builds with a teacher that is elsewhere: every attempt is on the record, and none is made that the budget forbids."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from itertools import chain, repeat

import numpy as np
import pytest

from benchmarks.stand_ins import scripted_teacher as scripted
from benchmarks.stand_ins.scripted_teacher import PRICE, REFUSAL, TOKENS_IN, TOKENS_OUT, cost_of, logits_of, some_faults
from ground.errors import (
    BudgetRefused,
    InvalidInput,
    StoreUnreadable,
    TeacherChanged,
    TeacherDoubted,
    TeacherFailed,
)
from storage.answers import AnswerForm, Kind, top1
from storage.canaries import CANARIES_FILE, CanaryRecord
from storage.ledger_report import list_calls
from storage.price import Price
from storage.rows import Rows
from storage.store import Store
from teacher_cache.convert import convert
from teacher_cache.prepare import prepare_build
from teacher_cache.remote.policy import BreakerPolicy
from teacher_cache.worklist import WorkList
from tests.teacher_cache.remote.conftest import asked, asking, in_ledger, problems, summary

N = 40
CANARIES = 4
COST = PRICE.cost(TOKENS_IN, TOKENS_OUT)
UPPER = PRICE.upper(2 * TOKENS_IN, 2 * TOKENS_OUT)


def logits(store):
    return Store.open(store).read("train/logits")[:, 0]


def test_a_build_keeps_what_the_teacher_says_and_owes_what_it_used(tmp_path, runs):
    teacher = runs.teacher()
    report = runs.build(tmp_path / "s", teacher)
    images = Store.open(tmp_path / "s").read("train/images")
    np.testing.assert_array_equal(logits(tmp_path / "s"), logits_of(images.transpose(0, 3, 1, 2)))
    total = summary(tmp_path / "s")
    assert (report.new_calls, report.canary_calls, report.rows_valid) == (N, CANARIES, N)
    assert (total.committed, total.reserved, total.lost, total.returned) == (N + CANARIES, 0, 0, 0)
    assert total.cost_micros == report.cost_micros == (N + CANARIES) * COST == cost_of(teacher.billed)
    assert total.reserved_micros == 0
    assert problems(tmp_path / "s") == []
    assert teacher.is_closed


def test_a_finished_build_asks_nothing(tmp_path, runs):
    runs.build(tmp_path / "s", runs.teacher())
    again = runs.teacher()
    assert runs.build(tmp_path / "s", again).new_calls == 0
    assert not again.attempts


@pytest.mark.parametrize("fault", scripted.EVERY_FAULT, ids=lambda fault: fault.why)
def test_an_input_is_asked_again_after_a_failure_of_any_kind(tmp_path, runs, fault):
    teacher = runs.teacher(faults=chain(repeat(None, CANARIES + 5), [fault]))
    report = runs.build(tmp_path / "s", teacher)
    total, is_free = summary(tmp_path / "s"), fault.billed == "no"
    assert (report.returned_calls, report.unanswered_calls) == (int(is_free), int(not is_free))
    assert (total.committed, total.lost, total.returned) == (N + CANARIES, int(not is_free), int(is_free))
    assert total.cost_micros >= cost_of(teacher.billed)
    assert sorted(teacher.attempts.values()) == [1] * (len(teacher.attempts) - 1) + [2]
    assert problems(tmp_path / "s") == []


def test_a_store_built_with_faults_is_the_one_built_without_bit_for_bit(tmp_path, runs):
    runs.build(tmp_path / "plain", runs.teacher())
    # Never twice for one input where it may be billed, as that ends a build.
    kinds = (scripted.NOT_SENT, scripted.RATE_LIMITED, scripted.REJECTED)
    teacher = runs.teacher(faults=some_faults(0.3, 1, kinds), latency=0.002)
    runs.build(tmp_path / "faulty", teacher)
    assert summary(tmp_path / "faulty").returned > 5
    stores = [Store.open(tmp_path / name) for name in ("plain", "faulty")]
    assert {*stores[0].arrays.specs} == {*stores[1].arrays.specs}
    for name in stores[0].arrays.specs:
        np.testing.assert_array_equal(*(store.read(name) for store in stores), err_msg=name)
    assert max(teacher.billed.values()) == 1


def test_answers_may_come_in_any_order(tmp_path, runs, monkeypatch):
    teacher, random = runs.teacher(), np.random.default_rng(3)
    ask = type(teacher).ask

    async def late(self, images, deadline):
        self.latency = random.random() * 0.02
        return await ask(self, images, deadline)

    monkeypatch.setattr(type(teacher), "ask", late)
    runs.build(tmp_path / "s", teacher)
    images = Store.open(tmp_path / "s").read("train/images")
    np.testing.assert_array_equal(logits(tmp_path / "s"), logits_of(images.transpose(0, 3, 1, 2)))


def test_so_many_requests_are_under_way_and_no_more(tmp_path, runs):
    teacher = runs.teacher(latency=0.01)
    runs.build(tmp_path / "s", teacher, asking=asking(in_flight=6))
    assert teacher.most_at_once == 6


def test_a_request_holds_several_images_where_the_protocol_has_batches(tmp_path, runs):
    sizes, teacher = [], runs.teacher(max_batch=8)
    ask = type(teacher).ask

    class Batched(type(teacher)):
        async def ask(self, images, deadline):
            sizes.append(len(images))
            return await ask(self, images, deadline)

    teacher.__class__ = Batched
    runs.build(tmp_path / "s", teacher)
    assert sum(sizes) == N + CANARIES
    assert max(sizes) == 8
    assert summary(tmp_path / "s").committed == N + CANARIES


def test_an_attempt_that_may_have_been_billed_is_made_again_once(tmp_path, runs):
    teacher = runs.teacher(faults=chain(repeat(None, CANARIES + 20), repeat(scripted.CUT)))
    with pytest.raises(TeacherFailed, match="2 attempts for one image may have been billed.*the connection was cut"):
        # However slowly failures are looked at, there are never so many in a row that nothing is sent any more.
        runs.build(tmp_path / "s", teacher, asking=asking(breaker=BreakerPolicy(failures=1000)))
    assert max(teacher.maybe_billed.values()) == 2
    total = summary(tmp_path / "s")
    assert total.reserved == 0
    assert total.lost == sum(teacher.maybe_billed.values())
    assert total.cost_micros == (CANARIES + 20) * COST + total.lost * UPPER
    # What was answered is kept, and the same command goes on.
    runs.build(tmp_path / "s", runs.teacher())
    assert summary(tmp_path / "s").committed == N + 2 * CANARIES
    assert problems(tmp_path / "s") == []


def test_what_cannot_be_helped_ends_the_build_at_once(tmp_path, runs):
    teacher = runs.teacher(faults=chain(repeat(None, CANARIES + 8), repeat(scripted.FINAL)), latency=0.01)
    with pytest.raises(TeacherFailed, match="401 Unauthorized; asking again cannot help"):
        runs.build(tmp_path / "s", teacher)
    # Those that were under way with it, and none after them.
    assert teacher.attempts.total() <= CANARIES + 8 + 4
    total = summary(tmp_path / "s")
    assert (total.committed, total.lost, total.reserved) == (CANARIES + 8, 0, 0)
    assert total.returned > 0


def test_an_input_that_is_never_answered_ends_the_build(tmp_path, runs):
    teacher = runs.teacher()
    images, last = [], set()

    class Stubborn(type(teacher)):
        def _outcome(self, image):
            images.append(image.tobytes())
            # The last one that is asked about, so that however slow the machine is all others are under way by then.
            if len({*images[CANARIES:]}) == N and not last:
                last.add(images[-1])
            return scripted.REJECTED if images[-1] in last else super()._outcome(image)

    teacher.__class__ = Stubborn
    with pytest.raises(TeacherFailed, match="6 attempts for one image failed, the last because 503"):
        runs.build(tmp_path / "s", teacher)
    total = summary(tmp_path / "s")
    assert (total.returned, total.lost, total.reserved) == (total.returned, 0, 0)
    assert total.returned >= 6
    assert total.committed == CANARIES + N - 1


def test_a_server_that_is_gone_is_left_alone_then_asked_once_then_given_up(tmp_path, runs):
    teacher = runs.teacher(faults=chain(repeat(None, CANARIES + 8), repeat(scripted.NOT_SENT)))
    with pytest.raises(TeacherFailed, match="8 times in a row, and again after it was left alone"):
        runs.build(tmp_path / "s", teacher)
    failed = teacher.attempts.total() - CANARIES - 8
    # Eight, those that were under way with the eighth, and two to see.
    assert 8 + 2 <= failed <= 8 + 3 + 2
    total = summary(tmp_path / "s")
    assert (total.committed, total.lost, total.reserved) == (CANARIES + 8, 0, 0)


def test_a_server_that_comes_back_is_asked_on(tmp_path, runs):
    teacher = runs.teacher(faults=chain(repeat(None, CANARIES + 8), repeat(scripted.NOT_SENT, 9)))
    assert runs.build(tmp_path / "s", teacher).rows_valid == N


@pytest.mark.parametrize("fault", [scripted.RATE_LIMITED, scripted.REJECTED], ids=["429", "503"])
def test_a_server_that_puts_requests_off_is_obeyed(tmp_path, runs, fault):
    later, at = replace(fault, retry_after=0.3), []
    teacher = runs.teacher(
        faults=chain(repeat(None, CANARIES + 8), [later]), on_attempt=lambda _: at.append(time.monotonic())
    )
    runs.build(tmp_path / "s", teacher, asking=asking(in_flight=1))
    gaps = np.diff(at[CANARIES:])
    assert gaps[8] >= 0.3
    assert summary(tmp_path / "s").returned == 1


def test_a_server_that_puts_everything_off_ends_the_build(tmp_path, runs):
    teacher = runs.teacher(faults=chain(repeat(None, CANARIES), repeat(scripted.RATE_LIMITED)))
    with pytest.raises(TeacherFailed, match="it put requests off 6 times in a row; ask less of it, with --max-rpm"):
        runs.build(tmp_path / "s", teacher)
    total = summary(tmp_path / "s")
    assert (total.committed, total.lost, total.reserved, total.cost_micros) == (CANARIES, 0, 0, CANARIES * COST)


def test_a_refusal_is_paid_for_once_and_its_cell_is_whole_and_empty(tmp_path, runs):
    teacher = runs.teacher(faults=chain(repeat(None, CANARIES + 3), [REFUSAL]))
    report = runs.build(tmp_path / "s", teacher)
    empty = np.isnan(logits(tmp_path / "s")).all(axis=1)
    assert empty.sum() == 1
    assert report.refused_calls == 1
    assert report.rows_valid == N
    assert summary(tmp_path / "s").committed == N + CANARIES
    assert set(teacher.attempts.values()) == {1}
    assert problems(tmp_path / "s") == []
    assert runs.build(tmp_path / "s", runs.teacher()).new_calls == 0


@pytest.mark.parametrize("spare", [0, 1, 7])
def test_the_budget_in_money_is_never_passed_and_used_to_the_last_call(tmp_path, runs, spare):
    most = 20 * COST + UPPER - COST + spare * 10
    teacher = runs.teacher(latency=0.002)
    with pytest.raises(BudgetRefused, match="--budget-cost"):
        runs.build(tmp_path / "s", teacher, budget_micros=most)
    total = summary(tmp_path / "s")
    assert total.cost_micros == cost_of(teacher.billed) == 20 * COST
    assert (total.committed, total.reserved) == (20, 0)
    runs.build(tmp_path / "s", runs.teacher(), budget_micros=10**9)
    assert problems(tmp_path / "s") == []


def test_bills_above_their_bound_pass_a_budget_by_what_was_charged_at_once_and_no_further(tmp_path, runs):
    upper = PRICE.upper(1, 1)
    most = 10 * COST
    with pytest.raises(BudgetRefused, match="--budget-cost"):
        runs.build(tmp_path / "s", runs.teacher(max_tokens_in=1, max_tokens_out=1), n=200, budget_micros=most)
    total = summary(tmp_path / "s")
    # Four requests in flight are charged three times ahead, at the bound.
    assert most - upper < total.cost_micros <= most + 12 * (COST - upper)
    assert (total.reserved, total.remaining_micros) == (0, most - total.cost_micros)
    again = runs.teacher()
    with pytest.raises(BudgetRefused):
        runs.build(tmp_path / "s", again, n=200)
    assert not again.attempts


def test_the_budget_in_calls_is_never_passed_by_attempts_that_were_lost(tmp_path, runs):
    teacher = runs.teacher(faults=chain(repeat(None, CANARIES), [scripted.CUT, None] * 3))
    with pytest.raises(BudgetRefused, match=f"--budget {N + CANARIES + 1}"):
        runs.build(tmp_path / "s", teacher, budget=N + CANARIES)
    total = summary(tmp_path / "s")
    assert (total.spent, total.lost, total.reserved) == (N + CANARIES, 3, 0)
    assert sum(teacher.attempts.values()) == N + CANARIES


def test_a_build_that_cannot_fit_with_its_canaries_is_refused_before_any_call(tmp_path, runs):
    teacher = runs.teacher()
    with pytest.raises(BudgetRefused, match=f"asked for {N + CANARIES} calls"):
        runs.build(tmp_path / "s", teacher, budget=N + CANARIES - 1)
    assert not teacher.attempts


def test_another_model_in_the_middle_ends_the_build_and_is_named(tmp_path, runs):
    teacher = runs.teacher()

    def change(count: int) -> None:
        teacher.model = "scripted-2" if count > CANARIES + 20 else "scripted-1"

    teacher.on_attempt = change
    with pytest.raises(TeacherChanged, match="answers as scripted-2, and answered as scripted-1 before"):
        runs.build(tmp_path / "s", teacher)
    total = summary(tmp_path / "s")
    # What the other model said is paid for and of no use.
    assert total.committed == CANARIES + 20
    assert total.lost == sum(teacher.billed.values()) - CANARIES - 20 > 0
    assert total.cost_micros == cost_of(teacher.billed)
    with pytest.raises(TeacherChanged, match="scripted-2"):
        runs.build(tmp_path / "s", runs.teacher(model="scripted-2"))
    runs.build(tmp_path / "s", runs.teacher())
    assert problems(tmp_path / "s") == []


def test_a_builder_that_finishes_what_others_left_expects_the_model_of_the_store(tmp_path, runs, monkeypatch):
    """All was reserved by others when it began, so that it asked about no canary; then they died."""
    runs.build(tmp_path / "s", runs.teacher())

    class BegunBesideOthers(WorkList):
        num_unpaid = property(lambda self: 0, lambda self, count: None)

    monkeypatch.setattr("teacher_cache.builder.WorkList", BegunBesideOthers)
    with pytest.raises(TeacherChanged, match="answers as scripted-2, and answered as scripted-1 before"):
        runs.build(tmp_path / "s", runs.teacher(model="scripted-2"), n=N + 10)
    assert summary(tmp_path / "s").committed == N + CANARIES


def test_the_record_of_other_images_is_none_of_this_store(tmp_path, runs):
    runs.build(tmp_path / "s", runs.teacher())
    recorded = CanaryRecord.load(tmp_path / "s")
    (tmp_path / "s" / CANARIES_FILE).unlink()
    others = tuple(bytes(16) for _ in recorded.inputs)
    replace(recorded, teacher="ab" * 32, inputs=others).create(tmp_path / "s")
    with pytest.raises(TeacherChanged, match="images that openai:scripted is compared by are others"):
        runs.build(tmp_path / "s", runs.teacher(), n=N + 10)


def test_canaries_that_answer_otherwise_end_the_build_before_anything_else_is_asked(tmp_path, runs):
    runs.build(tmp_path / "s", runs.teacher())
    other = runs.teacher(shift=0.01)
    with pytest.raises(TeacherChanged, match=r"another teacher now.*canary 0\) its logits differs by 0.01"):
        runs.build(tmp_path / "s", other, n=N + 10)
    assert other.attempts.total() == CANARIES
    assert runs.build(tmp_path / "s", runs.teacher(shift=0.01, tolerance=0.02), n=N + 10).new_calls == 10


def test_canaries_are_calls_of_their_own_purpose(tmp_path, runs):
    runs.build(tmp_path / "s", runs.teacher())
    runs.build(tmp_path / "s", runs.teacher(), n=N + 10)

    def by_purpose(ledger):
        return Counter((call["purpose"], call["status"]) for call in list_calls(ledger))

    assert in_ledger(tmp_path / "s", by_purpose) == {
        ("canary", "committed"): 2 * CANARIES,
        ("build", "committed"): N + 10,
    }


def test_a_price_that_the_user_says_goes_before_the_teachers_own(tmp_path, runs):
    price = Price(call=Decimal("0.5"))
    runs.build(tmp_path / "s", runs.teacher(), asking=asking(price=price))
    assert summary(tmp_path / "s").cost_micros == (N + CANARIES) * 500_000


def test_a_budget_in_money_needs_a_price_whoever_set_it(tmp_path, runs):
    teacher = runs.teacher(price=None)
    with pytest.raises(InvalidInput, match="scripted has a budget in money, and nobody says what its calls cost"):
        runs.build(tmp_path / "s", teacher, budget_micros=10**6)
    runs.build(tmp_path / "s", runs.teacher(), n=10, budget_micros=10**6)
    # The ledger knows it from then on; a finished build buys nothing.
    runs.build(tmp_path / "s", teacher, n=10, budget_micros=10**6)
    with pytest.raises(InvalidInput, match="would hold nothing back; say it, with --price-call"):
        runs.build(tmp_path / "s", teacher, n=20)
    assert not teacher.attempts
    free = asking(price=Price.parse(call="0"))
    assert runs.build(tmp_path / "s", teacher, n=20, asking=free).new_calls == 10


@pytest.mark.parametrize("what", ["in", "out"])
def test_a_price_by_tokens_needs_a_limit_of_them(tmp_path, runs, what):
    teacher = runs.teacher(**{f"max_tokens_{what}": 0})
    with pytest.raises(InvalidInput, match=f"{what}put tokens, and nothing says how many.*max_tokens_{what}, or"):
        runs.build(tmp_path / "s", teacher)
    assert not teacher.attempts


def test_a_teacher_of_no_price_costs_nothing(tmp_path, runs):
    runs.build(tmp_path / "s", runs.teacher(price=None))
    assert summary(tmp_path / "s").cost_micros == 0


def test_an_error_of_ours_while_asking_keeps_its_traceback_and_counts_as_spent(tmp_path, runs):
    teacher = runs.teacher()

    def fail(count: int) -> None:
        if count == CANARIES + 10:
            raise ZeroDivisionError

    teacher.on_attempt = fail
    with pytest.raises(ZeroDivisionError):
        runs.build(tmp_path / "s", teacher)
    total = summary(tmp_path / "s")
    assert (total.lost, total.reserved) == (1, 0)


def test_a_dry_run_says_what_it_costs_at_most_and_how_long_it_takes_under_the_limits(tmp_path, runs):
    config = asked(tmp_path / "s", n=996, asking=asking(max_rpm=500))
    prepared = prepare_build(config, runs.digits, runs.teacher())
    assert prepared.upper_micros() == 1000 * UPPER
    assert prepared.seconds() == pytest.approx(120)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("keep", ["top:3", "sampled:5", "label", "log_probs"])
def test_answers_are_kept_in_the_form_that_is_asked_for_and_refusals_without_content(tmp_path, runs, keep):
    teacher = runs.teacher(faults=chain(repeat(None, CANARIES + 3), [REFUSAL]))
    form = AnswerForm.read(keep)
    runs.build(tmp_path / "s", teacher, keep=form)
    store = Store.open(tmp_path / "s")
    said = store.read_outputs(form.names, Rows.first(N))
    named = top1(form, {name: values[:, 0] for name, values in said.items()})
    assert (named == -1).sum() == 1
    expected = logits_of(store.read("train/images").transpose(0, 3, 1, 2)).argmax(axis=1)
    if form.kind is not Kind.SAMPLED:
        np.testing.assert_array_equal(named[named >= 0], expected[named >= 0])
    assert problems(tmp_path / "s") == []


def test_a_copy_in_another_format_is_held_to_the_same_canaries(tmp_path, runs):
    runs.build(tmp_path / "s", runs.teacher())
    convert(tmp_path / "s", "hdf5", tmp_path / "copy")
    assert problems(tmp_path / "copy") == []
    with pytest.raises(TeacherChanged, match="canary 0"):
        runs.build(tmp_path / "copy", runs.teacher(shift=1.0), n=N + 5, array_format="hdf5")
    assert runs.build(tmp_path / "copy", runs.teacher(), n=N + 5, array_format="hdf5").new_calls == 5


def test_a_damaged_record_of_the_canaries_is_refused_before_any_call(tmp_path, runs):
    runs.build(tmp_path / "s", runs.teacher())
    path = tmp_path / "s" / CANARIES_FILE
    path.write_text(path.read_text().replace("scripted-1", "scripted-9"))
    teacher = runs.teacher()
    with pytest.raises(StoreUnreadable, match="does not match its own digest"):
        runs.build(tmp_path / "s", teacher, n=N + 5)
    assert not teacher.attempts


def test_nothing_is_asked_beyond_the_gate_before_its_verdict(tmp_path, runs):
    teacher = runs.teacher(latency=0.005)
    with pytest.raises(TeacherDoubted, match="first 64 answers look wrong"):
        runs.build(tmp_path / "s", teacher, n=120, trust_teacher=False)
    assert teacher.attempts.total() == CANARIES + 64
    total = summary(tmp_path / "s")
    assert (total.committed, total.reserved, total.returned) == (CANARIES + 64, 0, 0)
    assert runs.build(tmp_path / "s", runs.teacher(), n=120).rows_valid == 120


@pytest.mark.parametrize(
    ("name", "noted"),
    [
        ("http:https://host:8443/hooks/s3cretPath", "http:https://host:8443/PATH"),
        ("v2:http://host/s3cretPath/model", "v2:http://host/PATH"),
        ("openai:owner/model", "openai:owner/model"),
    ],
)
def test_a_manifest_names_a_server_and_not_what_comes_after(tmp_path, runs, name, noted):
    prepared = prepare_build(replace(asked(tmp_path / "s"), teacher=name), runs.digits, runs.teacher())
    assert prepared.plan.sources["teacher"] == noted
