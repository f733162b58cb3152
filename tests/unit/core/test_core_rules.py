"""Quorum, layout, admission and keeping: the small rules."""

from __future__ import annotations

import random

import msgspec
import pytest

from p2pgrid.core.admission import KEPT_MS_MAX, Policy, check_job, choose_runtime, refuse_for_sender, refuse_keeping, refuse_work
from p2pgrid.core.keeping import PushBook, draw_keepers, workers_of
from p2pgrid.core.layout import Layout
from p2pgrid.core.quorum import Answer, judge
from p2pgrid.errors import MalformedError, RefusedError
from p2pgrid.model.job import BatchRef, Derive, Job, UnitLimits
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.model.membership import Member
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import DIED, OK, RAISED
from tests.unit.core.core_builders import job_of

MEMBER = Member(b"m" * 32, frozenset({"submit", "native"}), b"i" * 32, 1 << 50)


def answer(name: str, value: str = "x", outcome: int = OK, group: str = "") -> Answer:
    return Answer(name.encode(), (group or name).encode(), outcome, value.encode(), 0)


# -- quorum -------------------------------------------------------------------------


def test_nobody_answered_is_no_verdict_and_misses_are_no_answers() -> None:
    assert judge([], 1) is None
    assert judge([answer("a", outcome=DIED)], 1) is None


@pytest.mark.parametrize(
    ("said", "quorum", "missing"),
    [("x", 1, 0), ("x", 2, 1), ("xx", 2, 0), ("xy", 2, 2), ("xxy", 2, 1), ("xxxy", 2, 0), ("xyz", 2, 3), ("xxxxyy", 2, 0), ("xxxyy", 2, 1)],
)
def test_the_strongest_side_needs_q_and_one_more_for_each_dissenter(said: str, quorum: int, missing: int) -> None:
    verdict = judge([answer(f"w{number}", value) for number, value in enumerate(said)], quorum)
    assert verdict is not None
    assert (verdict.missing, verdict.digest) == (missing, verdict.agree[0].digest)


def test_a_worker_and_a_group_count_once() -> None:
    for twice in ([answer("a"), answer("a")], [answer("a", group="g"), answer("b", group="g")]):
        verdict = judge(twice, 2)
        assert verdict is not None
        assert verdict.missing == 1


def test_raising_is_an_answer_that_must_agree() -> None:
    verdict = judge([answer("a", outcome=RAISED), answer("b", outcome=OK)], 2)
    assert verdict is not None
    assert len(verdict.dissent) == 1


# -- layout --------------------------------------------------------------------------


def test_a_tree_of_reductions_ends_with_one_unit_and_finish_takes_all_of_the_last_level() -> None:
    layout = Layout(job_of(5, 4, derive=Derive(True, True, 4)).body)
    assert [(level.kind, level.first_batch, level.batches) for level in layout.levels] == [
        ("map", 0, 2),
        ("reduce", 2, 3),
        ("reduce", 5, 1),
        ("finish", 6, 1),
    ]
    assert layout.units == 9 + 3 + 1 + 1
    assert [layout.inputs_of(batch) for batch in (2, 3, 4, 5, 6)] == [range(4), range(4, 8), range(8, 9), range(3), range(1)]
    assert [layout.locate(0, unit) for unit in range(9)] == [(0, unit) for unit in range(5)] + [(1, unit) for unit in range(4)]
    assert [layout.level_of(batch) for batch in range(7)] == [0, 0, 1, 1, 1, 2, 3]


def test_one_result_is_not_reduced() -> None:
    assert len(Layout(job_of(1, derive=Derive(True, False, 2)).body).levels) == 1


@pytest.mark.parametrize("fan_in", [-1, 0, 1, 1025, 2**62])
def test_a_layout_that_would_not_end_is_refused(fan_in: int) -> None:
    with pytest.raises(MalformedError):
        Layout(job_of(5, derive=Derive(True, False, fan_in)).body)


@pytest.mark.parametrize("units", [(0,), (-1,), (2**62,), (10_000_000, 1)])
def test_a_layout_that_fits_no_memory_is_refused(units: tuple[int, ...]) -> None:
    with pytest.raises(MalformedError):
        Layout(job_of(*units).body)


# -- admission -------------------------------------------------------------------------


def changed(**fields: object) -> Job:
    return msgspec.structs.replace(job_of(4).body, **fields)


@pytest.mark.parametrize(
    "job",
    [
        changed(manifest=()),
        changed(manifest=(BatchRef(b"b" * 32, 0, 1),)),
        changed(manifest=(BatchRef(b"b" * 32, 1025, 1),)),
        changed(manifest=(BatchRef(b"b" * 32, 1, -1),)),
        changed(manifest=(BatchRef(b"b" * 32, 1, 2 << 20),)),
        changed(manifest=(BatchRef(b"b" * 32, 1024, 1),) * 9766),
        changed(quorum=0),
        changed(quorum=65),
        changed(attempts=0),
        changed(derive=Derive(fan_in=1)),
        *(changed(limits=UnitLimits(timeout_s=bad)) for bad in (0.0, -1.0, float("nan"), float("inf"), 1e12)),
        changed(limits=UnitLimits(memory_bytes=-1)),
        changed(limits=UnitLimits(result_bytes=-1)),
    ],
)
def test_a_job_outside_the_limits_is_refused(job: Job) -> None:
    with pytest.raises(RefusedError):
        check_job(job, DEFAULT_LIMITS)


def test_an_ordinary_job_is_within_the_limits() -> None:
    check_job(job_of(1024, 1, derive=Derive(True, True)).body, DEFAULT_LIMITS)


def test_work_is_refused_with_its_reason() -> None:
    job, policy = job_of(4).body, Policy(cores=2)

    def why(
        job: Job = job, submitter: Member | None = MEMBER, own: bool = False, policy: Policy = policy, now_ms: int = 0
    ) -> Reason | None:
        return refuse_work(job, submitter, own, policy, now_ms)

    assert why() is None
    assert why(policy=Policy(cores=0)) == Reason.NO_SLOT
    assert why(now_ms=1 << 60) == Reason.EXPIRED
    assert why(policy=Policy(cores=1, runtimes=("command",))) == Reason.NO_RUNTIME
    assert why(changed(limits=UnitLimits(memory_bytes=2)), policy=Policy(memory_bytes=1)) == Reason.NO_MEMORY
    assert why(submitter=None) == Reason.NO_ROLE
    assert why(submitter=msgspec.structs.replace(MEMBER, roles=frozenset({"native"}))) == Reason.NO_ROLE
    assert why(submitter=msgspec.structs.replace(MEMBER, roles=frozenset({"submit"}))) == Reason.NATIVE_REFUSED
    assert why(policy=Policy(native=False)) == Reason.NATIVE_REFUSED
    assert why(submitter=None, own=True, policy=Policy(native=False)) is None
    two = Policy(cores=2, memory_bytes=10)
    assert why(changed(limits=UnitLimits(memory_bytes=6)), policy=two) == Reason.NO_MEMORY, "two of them would run"
    assert why(changed(limits=UnitLimits(memory_bytes=6)), own=True, policy=two) is None


def test_auto_is_native_for_the_trusted_and_python_for_others() -> None:
    trusted, other = MEMBER, msgspec.structs.replace(MEMBER, roles=frozenset({"submit"}))
    job = changed(runtime="auto", runner=b"r" * 32)
    assert choose_runtime(job, trusted, False, Policy()) == "native"
    assert choose_runtime(job, trusted, False, Policy(native=False)) == "python"
    assert choose_runtime(job, trusted, False, Policy(runtimes=("python", "wasm"))) == "python"
    assert choose_runtime(job, other, False, Policy()) == "python"
    assert choose_runtime(changed(runtime="auto"), other, False, Policy()) == Reason.NATIVE_REFUSED
    assert choose_runtime(job, None, True, Policy(native=False)) == "native"


@pytest.mark.parametrize("runtime", ["native", "command", "auto"])
def test_machine_code_is_not_kept_for_who_may_not_have_it_run(runtime: str) -> None:
    job = changed(runtime=runtime)
    assert refuse_for_sender(job, {"submit", "store"}) == Reason.NATIVE_REFUSED
    assert refuse_for_sender(job, {"submit", "native"}) is None
    assert refuse_for_sender(changed(runtime="python"), {"submit"}) is None


def test_only_jobs_of_listed_submitters_are_worked_for_whoever_leads_them() -> None:
    job, listed = job_of(4).body, Policy(submitters=(b"a" * 32,))
    for author, reason in ((b"a" * 32, None), (b"b" * 32, Reason.NOT_LISTED), (b"", Reason.NOT_LISTED)):
        assert refuse_work(job, MEMBER, False, listed, 0, author) == reason
    assert refuse_work(job, None, True, listed, 0, b"b" * 32) is None, "the owner's own jobs always run"
    assert refuse_work(job, None, False, listed, 0, b"a" * 32) == Reason.NO_ROLE, "a list gives no role"


def test_keeping_is_bounded_by_jobs_storage_and_time() -> None:
    job = job_of(4).body
    policy = Policy(storage_bytes=1000)
    now_ms = job.expires_ms - 1000
    assert refuse_keeping(job, 0, 0, policy, DEFAULT_LIMITS, now_ms) is None
    assert refuse_keeping(job, 0, 950, policy, DEFAULT_LIMITS, now_ms) == Reason.KEEPER_FULL
    assert refuse_keeping(job, DEFAULT_LIMITS.jobs_kept, 0, policy, DEFAULT_LIMITS, now_ms) == Reason.KEEPER_FULL
    assert refuse_keeping(job, 0, 0, policy, DEFAULT_LIMITS, now_ms - KEPT_MS_MAX) == Reason.MALFORMED
    assert refuse_keeping(job, 0, 0, policy, DEFAULT_LIMITS, 1 << 60) == Reason.EXPIRED


# -- keeping --------------------------------------------------------------------------


def test_keepers_are_filled_up_at_random_and_those_there_stay() -> None:
    names = [bytes([number]) for number in range(20)]
    drawn = {draw_keepers(names, (b"x",), random.Random(seed)) for seed in range(20)}
    assert len(drawn) > 10
    assert all(keepers[0] == b"x" and len(set(keepers)) == 3 for keepers in drawn)
    assert draw_keepers([], (), random.Random(1)) == ()


def test_keepers_compute_only_where_answers_are_not_compared_or_others_are_few() -> None:
    known = frozenset((b"a", b"b", b"c", b"k"))
    assert workers_of(known, (b"k",), 2) == known - {b"k"}
    assert workers_of(known, (b"k",), 3) == known
    assert workers_of(known, (b"k",), 1) == known
    # Somebody who never asks for units is not there.
    assert workers_of(known, (b"k",), 2, frozenset({b"a"})) == known


def test_one_push_a_keeper_is_under_way_and_progress_is_kept() -> None:
    book = PushBook()
    book.add(b"k")
    assert book.due(5) == [(b"k", 0)]
    assert book.due(6) == []
    book.on_acknowledged(b"k", 5)
    assert not book.complete(6)
    assert book.due(6) == [(b"k", 5)]
    assert (book.on_failed(b"k"), book.on_failed(b"nobody")) == (1, 0)
    book.add(b"k")
    assert book.due(6) == [(b"k", 5)]
    book.on_acknowledged(b"k", 2)
    assert book.due(6) == [(b"k", 5)]
    book.remove(b"k")
    book.on_acknowledged(b"k", 6)
    assert book.complete(6)
