"""A timeline keeps what belongs to one unit, node, blob or to the faults, and says it in lines."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from p2pgrid.errors import UsageError
from p2pgrid.model import log
from p2pgrid.model.ids import GridId, JobId, to_text
from p2pgrid.model.job import BatchRef, Derive, Job, Settled
from p2pgrid.model.statement import Statement
from p2pgrid.model.work import Decision, DecisionEntry, Grant, Receipt, UnitRange
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey
from p2pgrid.testing.batches import timeline as module
from p2pgrid.testing.batches.timeline import Timeline, TimelineOnlooker
from p2pgrid.testing.plans.scenario import FaultEvent, JobPlan
from p2pgrid.wire.envelope import seal
from p2pgrid.wire.keys import SigningKey

GRID = GridId(bytes(32))
FOUNDER, WORKER = (SigningKey(bytes([number]) * 32) for number in (1, 2))
BLOB = bytes(range(32))


class FakeView:
    now = 0.0

    def wall_ms(self, name: str = "") -> int:
        return int(self.now * 1000)


class Story:
    """A job of two batches of five units with a reduce, told to an onlooker as a grid would."""

    def __init__(self, what: str) -> None:
        self.timeline = Timeline(what)
        self.onlooker = TimelineOnlooker(self.timeline)
        self.view = FakeView()
        self.onlooker.attach(self.view)  # type: ignore[arg-type]
        manifest = (BatchRef(b"a" * 32, 5, 10), BatchRef(b"b" * 32, 5, 10))
        job = Job(9_000_000, b"n" * 16, 0, "squares.py", "native", b"", b"", manifest, Derive(reduce=True, fan_in=10))
        self.job_raw = seal(job, FOUNDER, GRID)
        self.job = JobId(self.job_raw.id)
        for name, key in (("founder-1", FOUNDER), ("worker-1", WORKER)):
            self.onlooker.on_start(name, SimpleNamespace(key=key))  # type: ignore[arg-type]

    def log(self, at_s: float, name: str, kind: int, statement: Statement, key: SigningKey = FOUNDER) -> bytes:
        self.view.now = at_s
        signed = seal(statement, key, GRID)
        self.onlooker.on_log(name, self.job, [(kind, signed.raw), (log.PAYLOAD, b"no statement")])
        return signed.id

    def tell(self) -> Story:
        self.onlooker.on_log("founder-1", self.job, [(log.JOB, self.job_raw.raw)])
        self.onlooker.on_job("founder-1", self.job, JobPlan(name="squares"), 3, [])
        ranges = (UnitRange(0, 0, 5), UnitRange(1, 0, 2))
        grant = self.log(1.0, "founder-1", log.GRANT, Grant(13_000, self.job, 0, WORKER.public, b"g", ranges))
        task = BatchTask(job=JobKey(b"s", self.job), code=Code(), first=5, inputs=[msgspec.Raw(b"\x01")] * 2)
        self.view.now = 1.5
        self.onlooker.on_units_start("worker-1", task)
        self.onlooker.on_chunk("worker-1", task, BatchChunk(5, bytes([0, 1]), [msgspec.Raw(b"\x01")] * 2, 10))
        receipt = Receipt(9_000_000, self.job, grant, ranges, bytes([0, 0, 0, 0, 0, 0, 1]), bytes(7 * 32), 0, b"p" * 32)
        answered = self.log(2.0, "founder-1", log.RECEIPT, receipt, WORKER)
        self.log(2.0, "worker-1", log.RECEIPT, receipt, WORKER)
        entries = (
            DecisionEntry(0, 0, 5, 0, b"r" * 32, (0,)),
            DecisionEntry(1, 0, 1, 0, b"r" * 32, (0,)),
            DecisionEntry(1, 1, 1, 1, b"r", (0,)),
        )
        self.log(3.0, "founder-1", log.DECISION, Decision(9_000_000, self.job, 0, (answered,), entries))
        self.view.now = 4.0
        self.onlooker.on_crash("worker-1")
        self.onlooker.on_start("worker-1", SimpleNamespace(key=WORKER))  # type: ignore[arg-type]
        self.log(5.0, "founder-1", log.SETTLED, Settled(9_000_000, self.job, 10, 1, bytes(32)))
        return self

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(entry.kind, entry.node) for entry in self.timeline.entries()]


def test_the_life_of_a_unit_is_told_once_and_copies_are_learned() -> None:
    story = Story("unit:squares/6").tell()
    assert story.kinds == [
        ("submitted", "founder-1"),
        ("accepted", "founder-1"),
        ("leased", "founder-1"),
        ("runs", "worker-1"),
        ("ran", "worker-1"),
        ("answered", "founder-1"),
        ("learned", "worker-1"),
        ("decided", "founder-1"),
        ("crashed", "worker-1"),
        ("settled", "founder-1"),
    ]
    text = story.timeline.render()
    assert "     1.000 s  founder-1  leased" in text
    assert "units 0 to 4, units 5 to 6 of job" in text
    assert "to worker-1 for 12.0 s, attempt 0, epoch 0" in text
    assert "units 5 to 6: raised" in text
    assert "by worker-1: raised" in text
    assert "unit 6 of job" in text
    assert "raised, 1 agree, 0 dissent, epoch 0" in text


def test_a_unit_is_found_by_its_jobs_id_too_and_not_in_another_job() -> None:
    by_name = Story("unit:squares/6").tell().kinds
    job = Story("fault").job
    for name in (to_text(job), to_text(job)[:6], job.hex()):
        assert Story(f"unit:{name}/6").tell().kinds == by_name
    assert Story("unit:cubes/6").tell().timeline.render() == "nothing happened to unit:cubes/6"


def test_a_unit_that_was_not_leased_has_the_story_of_its_job_only() -> None:
    assert [kind for kind, _ in Story("unit:squares/8").tell().kinds] == ["submitted", "accepted", "settled"]


def test_a_derived_unit_has_a_number_behind_those_of_the_map() -> None:
    story = Story("unit:squares/10").tell()
    story.log(6.0, "founder-1", log.GRANT, Grant(13_000, story.job, 0, WORKER.public, b"g", (UnitRange(2, 0, 1),)))
    story.onlooker.on_value("worker-1", story.job, 0, 285)
    assert [kind for kind, _ in story.kinds] == ["submitted", "accepted", "settled", "leased", "read"]
    assert "unit 10 of job" in story.timeline.render()
    assert "285" in story.timeline.render()


def test_a_node_has_everything_that_happened_at_it() -> None:
    kinds = Story("node:worker-1").tell().kinds
    assert kinds == [(kind, "worker-1") for kind in ("started", "runs", "ran", "learned", "crashed", "restarted")]


def test_faults_are_those_of_all_nodes() -> None:
    story = Story("fault").tell()
    story.timeline.add(7.0, "", "partition", "three from five", ("fault",))
    story.onlooker.on_fault(FaultEvent("slow", 1.0, 5.0, 2, 0.0, "", "", 3.0, 1, 1), 2)
    story.onlooker.on_disk_damage("founder-1", f"blobs/00/{BLOB.hex()}")
    story.onlooker.on_calm()
    assert [kind for kind, _ in story.kinds] == ["crashed", "restarted", "partition", "slow", "damaged", "calm"]
    assert "slow       2 machines for 5.0 s, strength 3" in story.timeline.render()


@pytest.mark.parametrize("name", [to_text(BLOB), to_text(BLOB)[:8], BLOB.hex()])
def test_a_blob_is_followed_by_its_id(name: str) -> None:
    story = Story(f"blob:{name}").tell()
    story.onlooker.on_stored("founder-1", BLOB, 7, [FOUNDER.public, WORKER.public])
    story.onlooker.on_stored("founder-1", b"x" * 32, 7, [])
    story.onlooker.on_disk_damage("worker-1", f"blobs/00/{BLOB.hex()}.part")
    story.onlooker.on_read("worker-1", BLOB, False, "corrupt")
    story.onlooker.on_read("worker-1", BLOB, True, "")
    assert [kind for kind, _ in story.kinds] == ["stored", "damaged", "not got", "got"]
    assert "held by founder-1, worker-1" in story.timeline.render()


def test_bytes_that_are_no_statement_are_told_as_such() -> None:
    story = Story("node:worker-1")
    story.onlooker.on_log("worker-1", story.job, [(log.GRANT, b"\xff garbage"), (log.BATCH, b"\xff")])
    assert [kind for kind, _ in story.kinds] == ["started", "unreadable"]


@pytest.mark.parametrize(
    "what", ["", "unit", "unit:", "unit:5", "unit:squares", "unit:squares/x", "unit:/5", "node", "node:", "blob:", "fault:x", "job:1"]
)
def test_what_has_no_timeline_is_refused(what: str) -> None:
    with pytest.raises(UsageError, match="nothing that has a timeline"):
        Timeline(what)


def test_a_timeline_is_bounded_and_says_what_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRIES_MAX", 3)
    timeline: Any = Timeline("node:n")
    for number in range(5):
        timeline.add(float(number), "n", "event", str(number))
    assert len(list(timeline.entries())) == 3
    assert timeline.render().splitlines()[-1] == "... and 2 more entries, which found no room"
