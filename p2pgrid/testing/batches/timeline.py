"""What happened to one unit, one node or one blob of a simulated grid, as lines that people read.

A timeline is asked for by a word: ``unit:JOB/NUMBER`` (JOB is a job's name in the scenario, or the beginning of its id),
``node:NAME``, ``blob:ID``, or ``fault``. It keeps only what may belong to that, at most ``ENTRIES_MAX`` entries. Which
job a name means is known only once the job was accepted, so that is decided when the timeline is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from p2pgrid.core.layout import Layout
from p2pgrid.errors import P2PGridError, UsageError
from p2pgrid.model import log
from p2pgrid.model.ids import DIGEST_BYTES, short, to_text
from p2pgrid.model.job import Job, KeeperSet, Settled
from p2pgrid.model.work import DIED, DISAGREED, NO_INPUT, OK, RAISED, TIMED_OUT, TOO_LARGE, Decision, Grant, Receipt, UnitRange
from p2pgrid.testing.observe import Onlooker
from p2pgrid.wire.codec import decode
from p2pgrid.wire.envelope import Envelope, peek, statement_id

if TYPE_CHECKING:
    from p2pgrid.node import Node
    from p2pgrid.runtimes.tasks import BatchChunk, BatchTask
    from p2pgrid.testing.plans.scenario import FaultEvent, JobPlan

T = TypeVar("T", bound=msgspec.Struct)

ENTRIES_MAX = 100_000
SEEN_MAX = 1_000_000
SUBJECTS = "unit:JOB/NUMBER, node:NAME, blob:ID or fault"
FAULT = "fault"
"""What entries about faults have among their tags."""
OUTCOMES = {
    OK: "ok",
    RAISED: "raised",
    TIMED_OUT: "timed out",
    DIED: "died",
    TOO_LARGE: "too large",
    NO_INPUT: "no input",
    DISAGREED: "disagreed",
}


class Entry(NamedTuple):
    """One line. ``about``: tags as ``job:ID``, ``unit:ID/NUMBER``, ``blob:ID`` (ids as text) and ``fault``."""

    at_s: float
    node: str
    kind: str
    text: str
    about: tuple[str, ...]


class Timeline:
    """Entries about one thing, in the order they were added."""

    def __init__(self, what: str) -> None:
        """``what``: see the module. Raises UsageError for anything else."""
        subject, _, name = what.partition(":")
        job, _, number = name.rpartition("/")
        is_unit = subject == "unit" and job and number.isascii() and number.isdigit()
        if not (is_unit or (subject in ("node", "blob") and name) or what == FAULT):
            raise UsageError(f"'{what}' is nothing that has a timeline", hint=f"one of {SUBJECTS}")
        self.what, self.subject = what, subject
        self.number = int(number) if is_unit else -1
        """The unit that is asked for, -1 for none."""
        self._name = _id_text(job if is_unit else name)
        self._called: dict[str, str] = {}
        self._entries: list[Entry] = []
        self.dropped = 0
        """How many entries found no room."""

    def call(self, job: str, name: str) -> None:
        """A job's id, as text, has this name in the scenario."""
        self._called[job] = name

    def add(self, at_s: float, node: str, kind: str, text: str, about: tuple[str, ...] = ()) -> None:
        """Keep an entry if it may belong to what was asked for. ``at_s``: virtual seconds since the run began."""
        if not self._may_belong(node, about):
            return
        if len(self._entries) >= ENTRIES_MAX:
            self.dropped += 1
        else:
            self._entries.append(Entry(at_s, node, kind, text, about))

    def _may_belong(self, node: str, about: tuple[str, ...]) -> bool:
        if self.subject == "node":
            return node == self._name
        if self.subject == "blob":
            return any(tag.startswith(f"blob:{self._name}") for tag in about)
        if self.subject == FAULT:
            return FAULT in about
        return any(tag.startswith("job:") or (tag.startswith("unit:") and tag.endswith(f"/{self.number}")) for tag in about)

    def _belongs(self, entry: Entry) -> bool:
        if self.subject != "unit":
            return True
        jobs = (tag.partition(":")[2].partition("/")[0] for tag in entry.about if tag.startswith(("job:", "unit:")))
        return any(job.startswith(self._name) or self._called.get(job) == self._name for job in jobs)

    def entries(self) -> Iterator[Entry]:
        """What belongs to what was asked for."""
        return (entry for entry in self._entries if self._belongs(entry))

    def render(self) -> str:
        """Lines of virtual time, node, event and text; the last one ends without a newline."""
        entries = list(self.entries())
        nodes = max((len(entry.node) for entry in entries), default=0)
        kinds = max((len(entry.kind) for entry in entries), default=0)
        lines = [f"{entry.at_s:10.3f} s  {entry.node:{nodes}}  {entry.kind:{kinds}}  {entry.text}".rstrip() for entry in entries]
        if not lines:
            lines.append(f"nothing happened to {self.what}")
        if self.dropped:
            lines.append(f"... and {self.dropped} more entries, which found no room")
        return "\n".join(lines)


def _id_text(name: str) -> str:
    """Verdicts have ids in hex, people the text form: a whole id in hex is turned into text."""
    try:
        raw = bytes.fromhex(name) if len(name) == 2 * DIGEST_BYTES else b""
    except ValueError:
        raw = b""
    return to_text(raw) if raw else name


class TimelineOnlooker(Onlooker):
    """Fills a timeline with what an onlooker is told, reading the records of jobs' logs."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self.timeline = timeline
        self._names: dict[bytes, str] = {}
        self._layouts: dict[bytes, Layout] = {}
        self._place: dict[bytes, tuple[int, int]] = {}
        """Where in its job the unit that is asked for lies: (batch, index)."""
        self._seen: set[bytes] = set()
        self._leased: dict[str, str] = {}
        """Machines that were given the unit, with the tag to mention when they fall."""

    def _add(self, node: str, kind: str, text: str, *about: str) -> None:
        self.timeline.add(self.view.now, node, kind, text, about)

    def _name(self, key: bytes) -> str:
        return self._names.get(key, short(key))

    # -- machines

    def on_start(self, name: str, node: Node) -> None:
        """Learn the key behind the name; a second start is a return."""
        key = node.key.public
        back = key in self._names
        self._names[key] = name
        self._add(name, "restarted" if back else "started", f"node {short(key)}", *((FAULT,) if back else ()))

    def on_crash(self, name: str) -> None:
        self._add(name, "crashed", "", *self._fallen(name))

    def on_close(self, name: str, node: Node) -> None:
        self._add(name, "left", "in good order", *self._fallen(name))

    def _fallen(self, name: str) -> tuple[str, ...]:
        return (FAULT, self._leased[name]) if name in self._leased else (FAULT,)

    def on_disk_damage(self, name: str, path: str) -> None:
        stem = PurePath(path).name.partition(".")[0]
        blob = _id_text(stem)
        self._add(name, "damaged", path, FAULT, *((f"blob:{blob}",) if blob != stem else ()))

    def on_fault(self, event: FaultEvent, struck: int) -> None:
        machines = f"{struck} machine{'' if struck == 1 else 's'}"
        lasts = f" for {event.for_s:.1f} s" if event.for_s else ""
        self._add("", event.kind, f"{machines}{f' of {event.of}' if event.of else ''}{lasts}, strength {event.strength:g}", FAULT)

    def on_calm(self) -> None:
        self._add("", "calm", "no more faults from here", FAULT)

    # -- the ledger

    def on_log(self, name: str, job: bytes, records: Sequence[tuple[int, bytes]]) -> None:
        """What a node learned of a job. Damaged or forged records are no event: they are not in any log."""
        tellers: dict[int, Callable[[str, bytes, Envelope, bool], None]] = {
            log.JOB: self._job,
            log.KEEPERS: self._keepers,
            log.GRANT: self._grant,
            log.RECEIPT: self._receipt,
            log.DECISION: self._decision,
            log.CANCEL: self._cancel,
            log.SETTLED: self._settled,
        }
        for kind, raw in records:
            if kind in tellers:
                try:
                    envelope = peek(raw)
                    tellers[kind](name, job, envelope, self._is_new(envelope))
                except P2PGridError as error:
                    self._add(name, "unreadable", f"a record of kind {log.NAMES[kind]}: {error}", f"job:{to_text(job)}")

    def _is_new(self, envelope: Envelope) -> bool:
        """Whether nobody had this statement before: later ones hold a copy."""
        statement = statement_id(envelope.author, envelope.body)
        new = statement not in self._seen
        if len(self._seen) < SEEN_MAX:
            self._seen.add(statement)
        return new

    def _job(self, name: str, job: bytes, envelope: Envelope, new: bool) -> None:
        if job not in self._layouts:
            body = decode(envelope.body, Job)
            layout = self._layouts[job] = Layout(body)
            number = self.timeline.number
            for level in reversed(layout.levels):
                first = layout.number(level.first_batch, 0)
                if number >= first:
                    if number - first < level.units:
                        self._place[job] = layout.locate(layout.levels.index(level), number - first)
                    break
        layout = self._layouts[job]
        text = f"job {short(job)}, {layout.units} units, quorum {layout.job.quorum}"
        self._add(name, "submitted" if new else "keeps", text, f"job:{to_text(job)}")

    def _keepers(self, name: str, job: bytes, envelope: Envelope, new: bool) -> None:
        body = decode(envelope.body, KeeperSet)
        keepers = ", ".join(self._name(key) for key in body.keepers)
        self._told(name, job, new, "keepers", f"epoch {body.epoch}, lead {self._name(body.lead)}, keepers {keepers}")

    def _grant(self, name: str, job: bytes, envelope: Envelope, new: bool) -> None:
        body = decode(envelope.body, Grant)
        unit = self._unit_tag(job, body.ranges)
        if unit and new:
            self._leased[self._name(body.worker)] = unit
        left_s = (body.expires_ms - self.view.wall_ms()) / 1000
        attempts = sorted({part.attempt for part in body.ranges})
        text = f"{self._units(job, body.ranges)} to {self._name(body.worker)} for {left_s:.1f} s, "
        text += f"attempt {', '.join(map(str, attempts))}, epoch {body.epoch}"
        self._told(name, job, new, "leased", text, unit)

    def _receipt(self, name: str, job: bytes, envelope: Envelope, new: bool) -> None:
        body = decode(envelope.body, Receipt)
        unit, position = self._unit_tag(job, body.ranges), self._position(job, body.ranges)
        outcomes = body.outcomes[position : position + 1] if unit else body.outcomes
        text = f"{self._units(job, body.ranges)} by {self._name(envelope.author)}: {_outcomes(outcomes)}"
        self._told(name, job, new, "answered", text, unit)

    def _decision(self, name: str, job: bytes, envelope: Envelope, new: bool) -> None:
        body = decode(envelope.body, Decision)
        entries, unit = body.entries, ""
        if job in self._place:
            batch, index = self._place[job]
            entries = tuple(entry for entry in entries if entry.batch == batch and entry.start <= index < entry.start + entry.units)
            unit = self._tag(job) if entries else ""
        for entry in entries:
            text = f"{self._units(job, [UnitRange(entry.batch, entry.start, entry.units)])} by {self._name(envelope.author)}: "
            text += f"{_outcomes(bytes([entry.outcome]))}, {len(entry.cited)} agree, {len(entry.dissent)} dissent, epoch {body.epoch}"
            self._told(name, job, new, "decided", text, unit)

    def _cancel(self, name: str, job: bytes, envelope: Envelope, new: bool) -> None:
        self._told(name, job, new, "cancelled", f"job {short(job)}")

    def _settled(self, name: str, job: bytes, envelope: Envelope, new: bool) -> None:
        body = decode(envelope.body, Settled)
        self._told(name, job, new, "settled", f"job {short(job)}: {body.done} done, {body.failed} failed")

    def _told(self, name: str, job: bytes, new: bool, kind: str, text: str, unit: str | None = None) -> None:
        """``unit`` None: of interest to every unit of the job; empty: to none."""
        tags = (f"job:{to_text(job)}",) if unit is None else (unit,) if unit else ()
        self._add(name, kind if new else "learned", text if new else f"{kind}: {text}", *tags)

    def on_log_durable(self, name: str, job: bytes, records: Sequence[tuple[int, bytes]], error: str) -> None:
        if error:
            self._add(name, "disk", f"{len(records)} records of job {short(job)} could not be written: {error}", f"job:{to_text(job)}")

    def on_log_removed(self, name: str, job: bytes) -> None:
        self._add(name, "forgot", f"job {short(job)}", f"job:{to_text(job)}")

    # -- work

    def on_units_start(self, name: str, task: BatchTask) -> None:
        inputs = task.inputs if isinstance(task.inputs, list) else decode(task.inputs, list[msgspec.Raw])
        self._add(name, "runs", _numbers(task.first, len(inputs)), *self._numbered(task, task.first, len(inputs)))

    def on_chunk(self, name: str, task: BatchTask, chunk: BatchChunk) -> None:
        tags = self._numbered(task, chunk.first, len(chunk.outcomes))
        index = self.timeline.number - chunk.first
        outcomes = chunk.outcomes[index : index + 1] if tags else chunk.outcomes
        self._add(name, "ran", f"{_numbers(chunk.first, len(chunk.outcomes))}: {_outcomes(outcomes)}", *tags)

    def _numbered(self, task: BatchTask, first: int, units: int) -> tuple[str, ...]:
        return (self._tag(task.job.job),) if first <= self.timeline.number < first + units else ()

    # -- what clients were told

    def on_job(self, name: str, job: bytes, plan: JobPlan, keepers: int, expected: Sequence[object]) -> None:
        self.timeline.call(to_text(job), plan.name)
        self._add(name, "accepted", f"job {short(job)} '{plan.name}', kept by {keepers}", f"job:{to_text(job)}")

    def on_value(self, name: str, job: bytes, number: int, value: object) -> None:
        layout = self._layouts.get(job)
        if layout is not None:
            # Readers count within the last level, everybody else within the job.
            number = layout.number(*layout.locate(len(layout.levels) - 1, number))
        if self.timeline.subject != "unit" or number == self.timeline.number:
            self._add(name, "read", f"unit {number} of job {short(job)}: {repr(value)[:60]}", f"unit:{to_text(job)}/{number}")

    def on_stored(self, name: str, blob: bytes, size_bytes: int, holders: Sequence[bytes], replicas: int = 3) -> None:
        where = ", ".join(self._name(key) for key in holders)
        self._add(name, "stored", f"blob {short(blob)}, {size_bytes} bytes, held by {where}", f"blob:{to_text(blob)}")

    def on_read(self, name: str, blob: bytes, ok: bool, text: str) -> None:
        self._add(name, "got" if ok else "not got", f"blob {short(blob)} {text}".rstrip(), f"blob:{to_text(blob)}")

    # -- units and ranges

    def _tag(self, job: bytes) -> str:
        return f"unit:{to_text(job)}/{self.timeline.number}"

    def _position(self, job: bytes, ranges: Iterable[UnitRange]) -> int:
        """Where in the columns of these ranges the unit that is asked for stands; -1 when it does not."""
        if job not in self._place:
            return -1
        (batch, index), base = self._place[job], 0
        for part in ranges:
            if part.batch == batch and part.start <= index < part.start + part.units:
                return base + index - part.start
            base += part.units
        return -1

    def _unit_tag(self, job: bytes, ranges: Iterable[UnitRange]) -> str:
        return self._tag(job) if self._position(job, ranges) >= 0 else ""

    def _units(self, job: bytes, ranges: Iterable[UnitRange]) -> str:
        layout = self._layouts.get(job)
        if layout is None:
            return f"{sum(part.units for part in ranges)} units of job {short(job)}"
        return ", ".join(_numbers(layout.number(part.batch, part.start), part.units) for part in ranges) + f" of job {short(job)}"


def _numbers(first: int, units: int) -> str:
    return f"unit {first}" if units == 1 else f"units {first} to {first + units - 1}"


def _outcomes(outcomes: bytes) -> str:
    counts = Counter(OUTCOMES.get(outcome, str(outcome)) for outcome in outcomes)
    return next(iter(counts)) if len(counts) == len(outcomes) == 1 else ", ".join(f"{count} {name}" for name, count in counts.items())
