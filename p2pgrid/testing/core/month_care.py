"""The product's replication on every machine of a simulated month.

What a node's service does around :class:`p2pgrid.core.replication.Replication`: sessions that come and go, questions that take a
while or are lost, copies over the uplink, a wake-up when one is due. A machine that goes off loses all of it but its disk: when it is
back it begins anew with the blobs that it finds there, and looks for who else has them. Asking everybody who is near, and the records of
holders in the DHT, would find all that are on; so whoever is back is told of them, and asks those. The other answers of such a search,
that somebody has nothing, are not simulated.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2pgrid.core import care_events as core
from p2pgrid.core.replication import Replication
from p2pgrid.model.reasons import Reason
from p2pgrid.testing.core.month_grid import MonthGrid
from p2pgrid.testing.core.month_machines import Member

PROBED_S = 60.0
"""How often co-holders ask one another for all they share."""
LEASE_S = 1e9
EXPIRES_MS = 1 << 50
"""Nothing ends within the month."""
NO_ANSWER_S = 10.0
"""How long a question waits that finds no answer."""
NO_DIAL_S = 5.0
"""How long a peer is dialled in vain."""
ASK_BYTES, ASK_BLOB_BYTES, PROOF_BYTES = 60, 45, 40
"""What a question and its answer take on the wire: at all, for each blob, for each proof (the chunk is not sent)."""


@dataclass(slots=True)
class _Node:
    """One machine in its present life."""

    member: Member
    life: int
    machine: Replication
    wake_at: float = math.inf


class CoreCare:
    """Takes care of the blobs of a grid."""

    def __init__(self, grid: MonthGrid) -> None:
        self._grid = grid
        self._heap = grid.heap
        self._nodes: dict[bytes, _Node] = {}
        """Of the machines that are on."""
        grid.care = self
        for member in grid.members.living.values():
            self._up(member)
        for one in list(self._nodes.values()):
            for key in list(self._nodes):
                if key != one.member.key:
                    self._feed(one, core.Came(key, True))
        grid.members.on_up.append(self._up)
        grid.members.on_down.append(self._down)
        grid.members.on_met.append(self._met)
        grid.members.on_missed.append(self._missed)

    # -- machines ------------------------------------------------------------------

    def _up(self, member: Member) -> None:
        plan, heap = self._grid.plan, self._heap
        rng = random.Random(f"{plan.seed}/care/{member.number}/{member.life}")
        machine = Replication(member.key, rng, plan.terms, lambda peer: member.availability.score(peer, heap.now))
        node = self._nodes[member.key] = _Node(member, member.life, machine)
        for blob in member.disk:
            self._feed(node, self._cared(member, blob, found=True))

    def _down(self, member: Member) -> None:
        del self._nodes[member.key]

    def _met(self, member: Member) -> None:
        node = self._nodes[member.key]
        for key, other in list(self._nodes.items()):
            if key != member.key:
                self._feed(node, core.Came(key, True))
                self._feed(other, core.Came(member.key, True, anew=True))
        for blob in list(member.disk):
            others = tuple(key for key in self._grid.holders[blob] if key != member.key and key in self._nodes)
            if others:
                self._feed(node, core.Heard(blob, others))

    def _missed(self, member: Member) -> None:
        for node in list(self._nodes.values()):
            self._feed(node, core.Gone(member.key))

    def stored(self, member: Member, blob: bytes, holders: Sequence[bytes]) -> None:
        """A member has a copy now."""
        node = self._nodes[member.key]
        self._feed(node, self._cared(member, blob))
        if holders:
            self._feed(node, core.Heard(blob, tuple(holders)))

    def acknowledged(self, source: Member, blob: bytes) -> None:
        """Whoever put a blob knows who has it, and tells them."""
        others = tuple(key for key in self._grid.holders[blob] if key != source.key)
        self._feed(self._nodes[source.key], core.Heard(blob, others, sure=True))

    def _cared(self, member: Member, blob: bytes, *, found: bool = False) -> core.Cared:
        plan = self._grid.plan
        fixed = plan.owners_keep and self._grid.sources[blob] is member
        return core.Cared(blob, self._grid.sizes[blob], plan.replicas, EXPIRES_MS, LEASE_S, fixed=fixed, found=found)

    # -- the loop of one node ------------------------------------------------------------

    def _feed(self, node: _Node, event: core.Event) -> None:
        for effect in node.machine.handle(event, self._heap.now):
            match effect:
                case core.Ask():
                    self._ask(node, effect)
                case core.Copy():
                    self._copy(node, effect)
                case core.Tell():
                    self._tell(node, effect)
                case core.Trim():
                    self._trim(node, effect.blob)
        self._wake(node)

    def _wake(self, node: _Node) -> None:
        at = node.machine.wakes_at()
        if at < node.wake_at:
            node.wake_at = at
            self._heap.after(at - self._heap.now, lambda: self._woken(node, at), b"wake")

    def _woken(self, node: _Node, at: float) -> None:
        if node.wake_at == at and self._is_on(node):
            node.wake_at = math.inf
            self._feed(node, core.Tick())

    def _is_on(self, node: _Node) -> bool:
        return self._nodes.get(node.member.key) is node

    def _later(self, node: _Node, delay_s: float, call: Callable[[], None], label: bytes) -> None:
        self._heap.after(delay_s, lambda: call() if self._is_on(node) else None, label)

    def probe_bytes_s(self) -> float:
        """What it takes at this moment to probe all co-holders every minute: bytes a second of a machine that is on."""
        total = 0.0
        for key, node in self._nodes.items():
            asked = {other for blob in node.member.disk for other in self._grid.holders[blob] if other in self._nodes and other != key}
            shared = sum(other in self._nodes for blob in node.member.disk for other in self._grid.holders[blob]) - len(node.member.disk)
            total += 2 * ASK_BYTES * len(asked) + (ASK_BLOB_BYTES + 1) * shared
        return total / max(1, len(self._nodes)) / PROBED_S

    # -- effects ----------------------------------------------------------------------------

    def _count(self, size_bytes: int) -> None:
        self._grid.tally.messages += 1
        self._grid.tally.message_bytes += size_bytes

    def _ask(self, node: _Node, ask: core.Ask) -> None:
        self._count(ASK_BYTES + ASK_BLOB_BYTES * len(ask.blobs))
        plan = self._grid.plan
        if ask.peer not in self._nodes:
            self._later(node, NO_DIAL_S, lambda: self._feed(node, core.Silent(ask.peer, ask.blobs, gone=True)), b"gone")
        elif self._heap.rng.random() < plan.lost:
            self._later(node, NO_ANSWER_S, lambda: self._feed(node, core.Silent(ask.peer, ask.blobs, gone=False)), b"silent")
        else:
            self._heap.after(plan.latency_s, lambda: self._asked(node, ask), b"ask")

    def _asked(self, node: _Node, ask: core.Ask) -> None:
        """The question is at its peer, which answers and learns from it."""
        other = self._nodes.get(ask.peer)
        if other is None:
            self._later(node, NO_ANSWER_S, lambda: self._feed(node, core.Silent(ask.peer, ask.blobs, gone=True)), b"gone")
            return
        kept = bytes(map(other.machine.kept, ask.blobs, ask.until_ms))
        proved = tuple(place for place in ask.prove if ask.blobs[place] in other.member.disk)
        failed = tuple(place for place in ask.prove if kept[place] and ask.blobs[place] not in other.member.disk)
        self._count(ASK_BYTES + len(kept) + PROOF_BYTES * len(proved))
        self._feed(other, core.Asked(node.member.key, ask.blobs))
        answer = core.Answered(ask.peer, ask.blobs, kept, proved, failed)
        self._later(node, self._grid.plan.latency_s, lambda: self._feed(node, answer), b"answer")

    def _copy(self, node: _Node, copy: core.Copy) -> None:
        receiver = self._grid.members.by_key[copy.peer]
        size_bytes = self._grid.sizes[copy.blob]

        def done(stored: bool) -> None:
            reason = "" if stored else Reason.STORE_FULL if receiver.on else Reason.DEAD
            self._grid.repaired(node.member, size_bytes if not reason else 0)
            self._feed(node, core.Copied(copy.blob, copy.peer, reason))

        self._grid.copy(node.member, receiver, copy.blob, (node.member.key,), done)

    def _trim(self, node: _Node, blob: bytes) -> None:
        """Its co-holders hear of it by their next probe. Of all those of every minute only the one that tells something new is an event."""
        self._grid.trim(node.member, blob)
        for key in self._grid.holders[blob]:
            other = self._nodes.get(key)
            if other is not None:
                self._later(other, PROBED_S * self._heap.rng.random(), self._probed(other, node.member, blob), b"probe")

    def _probed(self, other: _Node, member: Member, blob: bytes) -> Callable[[], None]:
        def answer() -> None:
            if blob not in member.disk and member.on:
                self._feed(other, core.Answered(member.key, (blob,), bytes(1)))

        return answer

    def _tell(self, node: _Node, tell: core.Tell) -> None:
        for peer in tell.peers:
            other = self._nodes.get(peer)
            if other is not None:
                self._count(ASK_BYTES + 32 * len(tell.holders))
                self._later(other, self._grid.plan.latency_s, self._heard(other, node.member.key, tell), b"tell")

    def _heard(self, other: _Node, by: bytes, tell: core.Tell) -> Callable[[], None]:
        return lambda: self._feed(other, core.Heard(tell.blob, tell.holders, by=by))
