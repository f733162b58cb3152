"""Bugs to be planted in whole nodes, each as a programmer's mistake would look."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.core import admission, quorum, verdicts
from p2pgrid.core.care_events import Trim
from p2pgrid.core.ledger import Ledger
from p2pgrid.core.lineage import Lineage
from p2pgrid.core.replication import Replication
from p2pgrid.core.worker import Worker
from p2pgrid.dht import base, records, table
from p2pgrid.dht.lost import LostContacts
from p2pgrid.dht.records import Record, RecordStore
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.membership import Membership
from p2pgrid.model.reasons import Reason
from p2pgrid.net.heart import Heart
from p2pgrid.net.pool import Pool
from p2pgrid.node import Node
from p2pgrid.services import absorbing, leading, leasing, recruiting, results
from p2pgrid.services.caring import Caring
from p2pgrid.services.files import Files
from p2pgrid.services.following import Follower
from p2pgrid.services.joblog import JobFile
from p2pgrid.services.keeping import Keeping
from p2pgrid.services.leading import Leading
from p2pgrid.services.membership import Judge
from p2pgrid.services.peers import Peers
from p2pgrid.services.submitting import Submitting
from p2pgrid.services.succession import Succession
from p2pgrid.services.tasks import Tasks
from p2pgrid.store import blobs
from p2pgrid.store.accounts import Accounts
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.disk import Disk
from p2pgrid.store.ledger import JobLog
from p2pgrid.wire import envelope
from p2pgrid.wire.codec import decode
from p2pgrid.wire.messages import DeltaReply, Payload
from p2pgrid.wire.owner import FileReply

Patch = pytest.MonkeyPatch


def _ignored(*_: Any, **__: Any) -> None:
    """Nothing is done, and nobody is told."""


def none(patch: Patch) -> None:
    """The product as it is."""


# -- what is believed -----------------------------------------------------------------------


def signature_skipped(patch: Patch) -> None:
    """Statements are decoded and never verified."""
    patch.setattr(envelope, "verify", _ignored)


def record_signature_skipped(patch: Patch) -> None:
    """Records of the DHT are."""

    def open_record(raw: bytes, grid: Any, now_ms: int, limits: Any) -> Any:
        outer = envelope.peek(raw)
        record = envelope.Signed(decode(outer.body, Record), outer.author, envelope.statement_id(outer.author, outer.body), raw)
        records.check_record(record, now_ms, limits)
        return record

    patch.setattr(records, "open_record", open_record)


def payload_unchecked(patch: Patch) -> None:
    """A lead takes values without comparing them with what their worker signed."""
    patch.setattr(leading, "check_payload", lambda receipt, encoded: decode(encoded, Payload))


def known_records_kept_again(patch: Patch) -> None:
    """A keeper writes down what it has once more."""
    plain = absorbing.merge

    def merge(kept: Any, record: Any, grid: Any, now_ms: int | None) -> bool:
        return plain(kept, record, grid, now_ms) or record.kind in absorbing.STATEMENTS

    patch.setattr(absorbing, "merge", merge)


def membership_not_bound(patch: Patch) -> None:
    """A membership that somebody showed counts, whoever shows it."""
    plain = Judge.judge

    def judge(self: Judge, node: Any, chain: Any) -> Any:
        leaf = envelope.peek(chain[-1])
        return plain(self, NodeKey(decode(leaf.body, Membership).node), chain)

    patch.setattr(Judge, "judge", judge)


def corrupt_copies_trusted(patch: Patch) -> None:
    """Chunks are read without being verified."""
    patch.setattr(blobs, "check_chunk", _ignored)


# -- decisions and values --------------------------------------------------------------------


def quorum_not_asked(patch: Patch) -> None:
    """The first answer decides."""
    plain = quorum.judge
    patch.setattr(verdicts, "judge", lambda answers, wanted: plain(answers, min(1, wanted)))


def units_from_one(patch: Patch) -> None:
    """Readers are told the number of a unit as people count."""
    plain = Follower._columns

    def columns(self: Follower, span: Any, payload: Payload) -> Any:
        found = plain(self, span, payload)
        return msgspec.structs.replace(found, first=found.first + 1)

    patch.setattr(Follower, "_columns", columns)


def shown_before_synced(patch: Patch) -> None:
    """A lead does not wait for its disk before it tells results."""

    async def wait(self: JobFile, cursor: int) -> None:
        await asyncio.sleep(0)

    patch.setattr(JobFile, "wait", wait)


def root_out_of_order(patch: Patch) -> None:
    """The root of a job goes over its batches from the last to the first."""
    plain = results.root_of
    for module in (leading, absorbing):
        patch.setattr(module, "root_of", lambda ledger, batches: plain(ledger, list(batches)[::-1]))


# -- what the owner lends -----------------------------------------------------------------------


def policy_ignored(patch: Patch) -> None:
    """That native code of others is refused is noted, and it runs."""
    plain = admission.refuse_work

    def refuse_work(*terms: Any) -> Reason | None:
        reason = plain(*terms)
        return None if reason is Reason.NATIVE_REFUSED else reason

    patch.setattr(leasing, "refuse_work", refuse_work)
    patch.setattr(leasing, "choose_runtime", lambda job, *terms: job.runtime)


def one_core_more(patch: Patch) -> None:
    """A machine that lends two cores runs three tasks."""
    plain = Worker._start

    def start(self: Worker) -> Any:
        self.slots += 1
        try:
            return plain(self)
        finally:
            self.slots -= 1

    patch.setattr(Worker, "_start", start)


def quota_unchecked(patch: Patch) -> None:
    """Room is set aside whether there is any or not."""

    def reserve(self: Accounts, size_bytes: int) -> None:
        self.reserved_bytes += size_bytes
        self.reserved_blobs += 1

    patch.setattr(Accounts, "reserve", reserve)


# -- what was acknowledged ------------------------------------------------------------------------


def ledger_unsynced(patch: Patch) -> None:
    """A log is written and acknowledged, and the disk may write it when it likes."""

    def write(self: Any, data: bytes) -> None:
        descriptor = self._disk.modify(self._path)
        try:
            self._disk.write_at(descriptor, data, self._end)
        finally:
            self._disk.close(descriptor)

    patch.setattr(JobLog, "_write", write)


def renamed_before_synced(patch: Patch) -> None:
    """A blob gets its name before its content is on the disk."""

    plain, plain_write = BlobStore._copy, Disk.write_file

    def copy(self: Any, source: int, size_bytes: int, target: Path) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self._disk, "sync", _ignored)
            return plain(self, source, size_bytes, target)

    def write_file(self: Disk, path: Path, data: bytes) -> None:
        if path.parent.name != "tmp":
            return plain_write(self, path, data)
        descriptor = self.create(path)
        try:
            self.truncate(descriptor, 0)
            self.write_at(descriptor, data, 0)
        finally:
            self.close(descriptor)

    patch.setattr(BlobStore, "_copy", copy)
    patch.setattr(Disk, "write_file", write_file)


def keys_unsynced(patch: Patch) -> None:
    """The private files of a home get their names before their content is on the disk."""

    def replace_file(self: Disk, path: Path, data: bytes, *, sync_name: bool = True) -> None:
        temporary = path.with_name(path.name + ".tmp")
        descriptor = self.create(temporary)
        self.write_at(descriptor, data, 0)
        self.close(descriptor)
        self.rename(temporary, path)

    patch.setattr(Disk, "replace_file", replace_file)


def records_dropped(patch: Patch) -> None:
    """A keeper acknowledges every delta but the first, and keeps nothing of it."""
    plain = Keeping._on_delta

    async def on_delta(self: Keeping, session: Any, request: Any) -> DeltaReply:
        if request.job in self.jobs:
            return DeltaReply()
        return await plain(self, session, request)

    patch.setattr(Keeping, "_on_delta", on_delta)


def logs_forgotten(patch: Patch) -> None:
    """A keeper that starts again does not look which logs it has."""
    plain = Keeping.start

    async def start(self: Keeping) -> None:
        await plain(self)
        self._ids.clear()

    patch.setattr(Keeping, "start", start)


def acknowledged_before_stored(patch: Patch) -> None:
    """What somebody puts is given its address, and gets lost on its way into the store."""

    async def copy(self: Files, blob: Any, header: Any) -> FileReply:
        self._context.blobs.delete(blob)
        return FileReply(blob, header.size_bytes, 1, wanted=1)

    patch.setattr(Files, "_copy", copy)


def leases_in_seconds(patch: Patch) -> None:
    """The time at which leases end is compared with one a thousand times as large."""
    plain = BlobStore.expire
    patch.setattr(BlobStore, "expire", lambda self, now_ms: plain(self, now_ms * 1000))


# -- the DHT -----------------------------------------------------------------------------------------


def expiry_ignored(patch: Patch) -> None:
    """Records are served for ever."""
    patch.setattr(RecordStore, "purge", _ignored)


def lower_sequence_taken(patch: Patch) -> None:
    """Whatever record came last counts."""

    def replace(self: Any, kept: Any, record: Any, slot: Any) -> None:
        kept.copied_at = self._clock()
        kept.record = record
        self._expect(record, slot)

    patch.setattr(RecordStore, "_replace", replace)


def bucket_off_by_one(patch: Patch) -> None:
    """A bucket takes one contact more than it has places."""
    plain = base.KBucket.add_node

    def add_node(self: Any, contact: Any) -> bool:
        self.ksize += 1
        try:
            return bool(plain(self, contact))
        finally:
            self.ksize -= 1

    patch.setattr(table.GridBucket, "add_node", add_node)


def neighbours_off_by_one(patch: Patch) -> None:
    """The nearest contact is left out of every answer."""
    plain = table.GridTable.find_neighbors

    def find_neighbors(self: Any, target: Any, k: int | None = None, exclude: Any = None) -> Any:
        wanted = self.ksize if k is None else k
        return plain(self, target, wanted + 1, exclude)[1:]

    patch.setattr(table.GridTable, "find_neighbors", find_neighbors)


def lost_not_remembered(patch: Patch) -> None:
    """Who did not answer is never asked again."""
    patch.setattr(LostContacts, "remember", _ignored)


# -- coming, going and ending ----------------------------------------------------------------------------


def restart_unnoticed(patch: Patch) -> None:
    """A peer that has started again counts as the one it was."""
    patch.setattr(Peers, "_note_instance", _ignored)


def tasks_left(patch: Patch) -> None:
    """Whoever owns tasks stops to take new ones, and leaves the others running."""

    async def close(self: Any, timeout_s: float = 5.0) -> None:
        self._closing = True

    patch.setattr(Tasks, "close", close)


def timer_left(patch: Patch) -> None:
    """The heart beats on."""
    patch.setattr(Heart, "stop", _ignored)


def sessions_left(patch: Patch) -> None:
    """The pool is closed, and its sessions are not."""

    async def close(self: Any) -> None:
        self._closed = True
        self._heart.stop()
        for task in [*self._tasks, *self._dials.values()]:
            task.cancel()

    patch.setattr(Pool, "close", close)


def error_in_the_background(patch: Patch) -> None:
    """A key is taken for granted in a task that nobody waits for."""

    async def announce(self: Keeping, job: Any) -> None:
        await asyncio.sleep(0.5)
        del self._opening[job]

    patch.setattr(Keeping, "_announce", announce)


def written_outside(patch: Patch) -> None:
    """The list of peers is written beside the home."""

    def save_peers(self: Node) -> None:
        self.machine.disk.write_file(self.home.folder.parent / "peers.json", b"{}")

    patch.setattr(Node, "_save_peers", save_peers)


def keepers_in_any_order(patch: Patch) -> None:
    """Keepers are drawn from a set of keys as it happens to lie in memory."""

    def draw_keepers(candidates: Any, have: tuple[bytes, ...], rng: Any, k: int = 3) -> tuple[bytes, ...]:
        rest = list(set(candidates) - set(have))
        rng.shuffle(rest)
        return (*have, *rest[: max(0, k - len(have))])

    patch.setattr(recruiting, "draw_keepers", draw_keepers)


# -- whoever leads, and whoever is to -------------------------------------------------------------------


def nobody_takes_over(patch: Patch) -> None:
    """A silent lead is noticed, and that is that."""
    patch.setattr(Succession, "_begin", _ignored)


def lead_begins_anew(patch: Patch) -> None:
    """A new lead knows the keepers of its job, and nothing of what was decided."""
    plain = Leading.take_over

    async def take_over(self: Leading, kept: Any, *terms: Any) -> Any:
        known, kept.ledger = kept.ledger, Ledger(kept.job)
        for keepers in known.lineage.chain():
            kept.ledger.add(keepers)
        return await plain(self, kept, *terms)

    patch.setattr(Leading, "take_over", take_over)


def stale_lead_goes_on(patch: Patch) -> None:
    """Who hears of a newer lead goes on all the same."""
    patch.setattr(Leading, "step_down", _ignored)


def anybody_names_keepers(patch: Patch) -> None:
    """A keeper set counts whoever signed it."""
    plain = Lineage.add

    def add(self: Lineage, keepers: Any) -> bool:
        by_submitter = [one for one in self.sets.values() if one.author == self._submitter]
        if by_submitter:
            self._named_in.setdefault(keepers.author, by_submitter[0])
        return plain(self, keepers)

    patch.setattr(Lineage, "add", add)


def keepers_not_replaced(patch: Patch) -> None:
    """A job goes on with the keepers that are left."""
    patch.setattr(Leading, "_replace_keeper", _ignored)


def detached_at_once(patch: Patch) -> None:
    """Whoever submits a job and goes is told that it is kept before it is."""

    async def entrust(self: Submitting, led: Any, copying: Any) -> None:
        return

    patch.setattr(Submitting, "_entrust", entrust)
    patch.setattr(Leading, "reached", lambda self, led: len(led.keepers))


def conflict_not_shown(patch: Patch) -> None:
    """A second answer to a unit is dropped in silence."""
    plain = Ledger._apply_one

    def apply_one(self: Ledger, *terms: Any) -> None:
        plain(self, *terms)
        self.conflicts.clear()

    patch.setattr(Ledger, "_apply_one", apply_one)


# -- copies -------------------------------------------------------------------------------------------


def copies_never_made(patch: Patch) -> None:
    """A holder that is gone is missed by nobody."""

    async def copied_to(self: Caring, copy: Any) -> str:
        return str(Reason.BUSY)

    patch.setattr(Caring, "_copied_to", copied_to)


def last_copy_let_go(patch: Patch) -> None:
    """Of just enough holders the last lets its copy go, as if there were one too many."""
    plain = Replication._judge

    def judge(self: Replication, care: Any, grace_s: float = 0.0) -> None:
        plain(self, care, grace_s)
        if care.count() == care.replicas == self._before(care) + 1 and not care.fixed:
            self._all.effects.append(Trim(care.blob))

    patch.setattr(Replication, "_judge", judge)
