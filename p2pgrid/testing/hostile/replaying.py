"""The replayer: a member that says again what others have said, later, elsewhere and under its own name.

Nothing it sends is forged: every datagram was signed by a node, every statement by its author, every membership by an
inviter. What was good once must not count twice, nor for somebody else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from p2pgrid.dht.contact import Place
from p2pgrid.model import log as kinds
from p2pgrid.net.messages import Hello
from p2pgrid.testing.hostile.adversary import Adversary, Target
from p2pgrid.wire.messages import CancelRequest, Delivered, Delivery, DeliveryReply, DeltaReply, DeltaRequest, LogRecord, Ok

DATAGRAMS_MAX = 512
LOGGED_MAX = 512
RECORDS_MAX = 64
"""Records of one call to the log that are remembered."""
BYTES_MAX = 256 << 10
"""Larger calls to the log are not remembered."""
SHARE_SEEN = 0.25
"""How much of the grid's traffic the replayer can hear."""


class Heard(NamedTuple):
    """A datagram that passed."""

    data: bytes
    source: tuple[str, int]
    destination: tuple[str, int]


class Logged(NamedTuple):
    """What some node wrote into the log of a job."""

    job: bytes
    records: tuple[LogRecord, ...]


class Replayer(Adversary):
    """See the module."""

    kind = "replay"

    def prepare(self) -> None:
        self._datagrams: deque[Heard] = deque(maxlen=DATAGRAMS_MAX)
        self._logged: deque[Logged] = deque(maxlen=LOGGED_MAX)
        self._hellos: dict[bytes, Hello] = {}

    # -- listening ----------------------------------------------------------------------

    def on_datagram(self, data: bytes, source: tuple[str, int], destination: tuple[str, int]) -> None:
        if self.rng.random() < SHARE_SEEN:
            self._datagrams.append(Heard(data, (source[0], source[1]), (destination[0], destination[1])))

    def on_log(self, name: str, job: bytes, records: Sequence[tuple[int, bytes]]) -> None:
        if len(records) <= RECORDS_MAX and sum(len(data) for _, data in records) <= BYTES_MAX:
            self._logged.append(Logged(job, tuple([LogRecord(kind, data) for kind, data in records])))

    # -- saying it again -------------------------------------------------------------------

    def attack(self) -> None:
        target = self.target()
        if target is None:
            return
        roll = self.rng.random()
        if roll < 0.4 and self._datagrams:
            self._replay_datagram(target)
        elif roll < 0.9 and self._logged:
            self._replay_records(target)
        elif roll >= 0.9:
            self._try("hello", self._borrow_hello(target))

    def _try(self, what: str, work: Any) -> None:
        self.sent[what] += 1
        if not self.spawn(work):
            self.sent["skipped"] += 1

    def _replay_datagram(self, target: Target) -> None:
        """To whom it was sent, from elsewhere or as if from its author; or to somebody else."""
        heard, way = self.rng.choice(self._datagrams), self.rng.randrange(3)
        self.sent["datagram"] += 1
        if way == 0:
            self.datagram(target, heard.data)
        elif way == 1 and self.host.spoof is not None:
            self.host.spoof(*heard)
        else:
            self._carrier.sendto(heard.data, Place(*heard.destination))

    def _replay_records(self, target: Target) -> None:
        logged = self.rng.choice(self._logged)
        receipts = [number for number, record in enumerate(logged.records) if record.kind == kinds.RECEIPT]
        cancels = [record.data for record in logged.records if record.kind == kinds.CANCEL]
        if cancels and self.rng.random() < 0.5:
            self._try("cancel", self.call(target, "job.cancel", CancelRequest(cancels[0]), Ok))
        elif receipts and self.rng.random() < 0.5:
            self._try("receipt", self._replay_receipt(target, logged, self.rng.choice(receipts)))
        else:
            self._try("log", self.call(target, "job.delta", DeltaRequest(logged.job, logged.records), DeltaReply))

    async def _replay_receipt(self, target: Target, logged: Logged, number: int) -> None:
        """A result that was delivered already, by somebody who did not compute it."""
        receipt, rest = logged.records[number], logged.records[number + 1 : number + 2]
        payload = rest[0].data if rest and rest[0].kind == kinds.PAYLOAD else b""
        reply = await self.call(target, "job.deliver", Delivery(logged.job, (Delivered(receipt.data, payload),)), DeliveryReply)
        self.answers.update(reason for reason in reply.refused if reason)

    async def _borrow_hello(self, target: Target) -> None:
        """Show the membership that another node showed; a session proves a key, and the membership is of another."""
        others = [hello for key, hello in self._hellos.items() if key != target.key]
        if not others:
            session = await self.session(target)
            if session.hello is not None:
                self._hellos[target.key] = session.hello
            return
        borrowed = self.rng.choice(others)
        said = msgspec.structs.replace(borrowed, wall_ms=self.host.wall_ms())
        session = await self.open(target, lambda: said)
        session.close()
        self.believed += 1
