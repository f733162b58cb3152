"""Who may lead and keep one job: the keeper sets, from the submitter's on (docs/spec/keeping.md#who-leads).

1. The submitter names a lead and keepers; whoever was named may name others, itself as lead among them.
2. The newest set, by (epoch, id), says who leads now. Nobody loses the right to speak: what an older lead signed stands.
3. Epoch 0 belongs to leads that the submitter named itself, later epochs to everybody on the chain.
"""

from __future__ import annotations

from p2pgrid.errors import MalformedError, RefusedError
from p2pgrid.model.job import Job, KeeperSet
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.envelope import Signed

EPOCH_MAX = 1 << 31
KEEPERS_MAX = 64


class Lineage:
    """Grow-only: sets are added in an order in which each author was named before."""

    def __init__(self, job: Signed[Job]) -> None:
        self._submitter = job.author
        self.sets: dict[bytes, Signed[KeeperSet]] = {}
        self.newest: Signed[KeeperSet] | None = None
        self._first: set[bytes] = {job.author}
        self._named_in: dict[bytes, Signed[KeeperSet]] = {}
        """For each node ever named, the set that gives it the right to name others: the submitter's if there is one."""

    def add(self, keepers: Signed[KeeperSet]) -> bool:
        """Take a set over; False if it is known. Raises RefusedError (who signed it was never named), MalformedError."""
        body = keepers.body
        if keepers.id in self.sets:
            return False
        by_submitter = keepers.author == self._submitter
        if not by_submitter and keepers.author not in self._named_in:
            raise RefusedError("keepers are named by the submitter, or by a keeper", reason=Reason.BAD_GRANT)
        if not (0 <= body.epoch <= EPOCH_MAX and len(body.keepers) <= KEEPERS_MAX):
            raise MalformedError("a keeper set outside the protocol's limits", reason=Reason.MALFORMED)
        self.sets[keepers.id] = keepers
        for node in (body.lead, *body.keepers):
            if by_submitter:
                self._named_in[node] = keepers
            else:
                self._named_in.setdefault(node, keepers)
        if by_submitter:
            self._first.add(body.lead)
        if self.newest is None or (self.newest.body.epoch, self.newest.id) < (body.epoch, keepers.id):
            self.newest = keepers
        return True

    def names(self, node: bytes) -> bool:
        """Whether a node was ever named lead or keeper."""
        return node in self._named_in

    def of_submitter(self, node: bytes) -> bool:
        """Whether a node is the submitter, or a lead that it named itself."""
        return node in self._first

    def check_lead(self, author: bytes, epoch: int) -> None:
        """Raise unless ``author`` may lease and decide in ``epoch``."""
        if epoch < 0:
            raise MalformedError("an epoch before the first", reason=Reason.MALFORMED)
        if author not in self._named_in or (epoch == 0 and author not in self._first):
            raise RefusedError("its author does not lead the job in this epoch", reason=Reason.BAD_GRANT)

    def chain(self) -> tuple[Signed[KeeperSet], ...]:
        """From a set that the submitter signed to the newest, each by somebody whom the one before it names."""
        chain = [self.newest] if self.newest is not None else []
        while chain and chain[-1].author != self._submitter:
            chain.append(self._named_in[chain[-1].author])
        return tuple(reversed(chain))

    def raw_chain(self) -> tuple[bytes, ...]:
        """The chain as it travels."""
        return tuple(keepers.raw for keepers in self.chain())
