"""Who keeps a job that this node leads: drawing keepers, replacing those that failed, naming them (docs/spec/keeping.md).

A keeper that failed is not named again for a while, so that a node without room costs no statement a second.
"""

from __future__ import annotations

from p2pgrid.core.keeping import draw_keepers
from p2pgrid.errors import P2PGridError
from p2pgrid.model import log as kinds
from p2pgrid.model.ids import short
from p2pgrid.model.job import KeeperSet
from p2pgrid.model.reasons import Reason
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.context import Context
from p2pgrid.services.ledjob import LedJob
from p2pgrid.services.peers import Peers
from p2pgrid.wire.envelope import Signed, seal
from p2pgrid.wire.messages import LogRecord

NOT_AGAIN_S = 60.0


class Recruiting:
    """Stateless but for what each led job remembers of failed keepers."""

    def __init__(self, context: Context, peers: Peers) -> None:
        self._context = context
        self._peers = peers

    def name(self, kept: KeptJob, have: tuple[bytes, ...], epoch: int, not_these: frozenset[bytes] = frozenset()) -> Signed[KeeperSet]:
        """A keeper set with this node as lead: ``have``, and others drawn at random.

        Signed with the submitter key if this home has it: the chain of sets then begins anew.
        """
        context = self._context
        willing = [
            key
            for key in sorted(self._peers.with_role("store"))
            if key != context.me and key not in not_these and self._peers.info(key).offer.storage_bytes
        ]
        statement = KeeperSet(kept.job.body.expires_ms, kept.id, epoch, context.me, draw_keepers(willing, have, context.rng))
        return seal(statement, context.key_for(kept.job.author), context.grid.id)

    def replace(self, led: LedJob, failed: bytes | None) -> Signed[KeeperSet] | None:
        """Name others for a keeper that failed (None: for places that are empty). None if nothing changes."""
        if led.ledger.keepers is None or led.broken or not led.kept.led or led.file.failed is not None:
            return None
        now_s = self._context.clock()
        if failed is not None:
            led.passed_over[failed] = now_s + NOT_AGAIN_S
        led.passed_over = {key: until_s for key, until_s in led.passed_over.items() if until_s > now_s}
        current = led.ledger.keepers.body
        have = tuple(key for key in current.keepers if key != failed)
        named = self.name(led.kept, have, current.epoch + 1, frozenset(led.passed_over))
        if named.body.keepers == current.keepers:
            return None
        try:
            led.file.post([LogRecord(kinds.KEEPERS, named.raw)])
        except P2PGridError as error:
            self._context.tell(error.reason, f"job {short(led.id)}: {error}", led.id)
            return None
        led.ledger.add(named)
        if failed is not None:
            text = f"{short(failed)} keeps job {short(led.id)} no longer: {len(named.body.keepers)} others do"
            self._context.tell(Reason.KEEPER_LOST, text, led.id, failed)
        return named
