"""S5: what was acknowledged survives, and every object with a surviving holder becomes readable.

1. A node that comes back with its disk has every record that was durable in its logs, but for one for each byte that
   the simulation flipped there. It holds the blobs it was acknowledged to hold, byte by byte.
2. A file that was acknowledged can be read after the faults, from somebody, while one of its holders lives.
3. Decisions that lay durable in the log of a node that lives at the end can be read after the faults, too.
4. Objects whose holders were all struck are counted as unlucky, beside what the formula for r copies expects.

A holder is struck when it crashed and does not run at the end. A single copy is when the simulation flipped a bit of it. Copies
that are lost are made again: so what somebody else holds is not lost, and blows that are further apart than a repair takes
stand each for itself in the formula. Liars lie about results; what their nodes hold counts like everybody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from p2pgrid.model import log as kinds
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import BlobId
from p2pgrid.model.work import OK, DecisionEntry
from p2pgrid.testing.checkers.facts import Facts
from p2pgrid.testing.checkers.journal import Entry, Journal, Log, Records
from p2pgrid.testing.checkers.objects import Objects, struck_chance, unlucky_bound
from p2pgrid.testing.checkers.weighing import DIGEST, said
from p2pgrid.testing.observe import OTHER_BYTES, Onlooker

if TYPE_CHECKING:
    from p2pgrid.node import Node
    from p2pgrid.testing.plans.scenario import JobPlan


REPAIR_S = 40.0
"""From the loss of a copy to another in its place: to notice it takes 15 s, a young blob is left alone for 20 s."""


class DurabilityChecker(Onlooker):
    """S5, for logs, files and results."""

    invariant = "S5"

    def __init__(self, journal: Journal, facts: Facts) -> None:
        super().__init__()
        self._journal = journal
        self._facts = facts
        self._durable: dict[tuple[str, bytes], dict[bytes, Entry]] = {}
        self._damaged: dict[str, None] = {}
        """Machines on whose disks bytes were flipped."""
        self._rotten: dict[bytes, set[bytes]] = {}
        """By blob: the keys of those whose copy has a flipped bit."""
        self._rotten_values = 0
        """Results that lie in blobs of which no living holder has a whole copy."""
        self._keys: dict[str, bytes] = {}
        self.files = Objects(repair=True)
        self.results = Objects(repair=True)
        self._crashed_s: dict[bytes, float] = {}
        """By node that crashed and has not come back: when."""
        self._sound: set[bytes] = set()
        """Blobs of which a node that runs at the end has a whole copy."""
        self._read: dict[bytes, bool] = {}
        """By file: whether its latest get gave it."""
        self._asked: dict[bytes, str] = {}
        self._values: dict[bytes, dict[int, None]] = {}
        """By job: numbers of units that readers were given."""
        self._due: dict[tuple[str, bytes], list[Entry]] = {}
        self._living: set[bytes] = set()
        """Keys of the nodes that run at the end."""
        self._population: dict[bytes, list[bytes]] = {}
        self.lost = 0
        """Objects with a surviving holder that could not be read; known after :meth:`finish`."""
        self.unlucky = 0
        self.unlucky_expected = 0.0

    # -- logs --------------------------------------------------------------------------------

    def on_log_durable(self, name: str, job: bytes, records: Records, error: str) -> None:
        if error:
            return
        durable = self._durable.setdefault((name, job), {})
        for entry in self._journal.entries(records):
            durable[entry.id] = entry

    def on_log_removed(self, name: str, job: bytes) -> None:
        self._durable.pop((name, job), None)

    def on_disk_damage(self, name: str, path: str) -> None:
        self._damaged[name] = None
        stem = PurePath(path).name.split(".")[0]
        if len(stem) == 2 * DIGEST and name in self._keys:
            self._rotten.setdefault(bytes.fromhex(stem), set()).add(self._keys[name])

    def on_crash(self, name: str) -> None:
        self._crashed_s.setdefault(self._keys.get(name, b""), self.view.now)

    def on_start(self, name: str, node: Node) -> None:
        self._crashed_s.pop(node.key.public, None)
        if self._keys.setdefault(name, node.key.public) != node.key.public:
            for known in [known for known in self._durable if known[0] == name]:
                del self._durable[known]
            self._keys[name] = node.key.public
        for log, found, _ in self._journal.reread:
            self._compare(log, found)
        self._look_for_blobs(name, node)

    def _compare(self, log: Log, found: Sequence[Entry]) -> None:
        here = {entry.id for entry in found}
        missing = [entry for known, entry in self._durable.get((log.name, log.job), {}).items() if known not in here]
        if len(missing) > log.damaged:
            what = f"{kinds.NAMES.get(missing[0].kind, 'record')} {missing[0].id.hex()[:8]}"
            text = f"{len(missing)} durable records of job {log.job.hex()[:8]} are gone after a restart, the first is a {what}"
            self.violate(log.name, text)
        for entry in missing:
            self._durable[log.name, log.job].pop(entry.id, None)

    def _look_for_blobs(self, name: str, node: Node) -> None:
        if name in self._damaged:
            return
        for blob in self.files.ids():
            if node.key.public not in self.files.holders(blob):
                continue
            if not node.blobs.has(BlobId(blob)):
                self.violate(name, f"blob {blob.hex()[:8]} was acknowledged and is gone after a restart")
            elif not _is_whole(node, blob):
                self.violate(name, f"blob {blob.hex()[:8]} was acknowledged and has other bytes after a restart")

    # -- objects ---------------------------------------------------------------------------------

    def _everybody(self) -> list[bytes]:
        return [node.key.public for node in self.view.living().values()]

    def on_stored(self, name: str, blob: bytes, size_bytes: int, holders: Sequence[bytes], replicas: int = 3) -> None:
        if not holders:
            self.violate(name, f"a put of blob {blob.hex()[:8]} was acknowledged, and nobody holds it")
        self.files.add(blob, holders, self._everybody())

    def on_read(self, name: str, blob: bytes, ok: bool, text: str) -> None:
        if text == OTHER_BYTES:
            self.violate(name, f"somebody asked for blob {blob.hex()[:8]}, and {text}")
        self._read[blob] = ok
        self._asked[blob] = text

    def on_job(self, name: str, job: bytes, plan: JobPlan, keepers: int, expected: Sequence[object]) -> None:
        self._values.setdefault(job, {})
        self._population[job] = self._everybody()
        if plan.detach:
            # It was promised that so many have all of it: more than what they decide later is at stake.
            there = [one for one in self._journal.logs if self._has_all(one, job)]
            self.results.add(job, [self._keys[one] for one in there], self._population[job])
            others = len([one for one in there if one != name])
            if others < keepers:
                self.violate(name, f"job {job.hex()[:8]} was said to be kept by {keepers} nodes, and {others} had all of it on their disks")

    def _has_all(self, name: str, job: bytes) -> bool:
        """Whether all that makes up a job has reached the disk of a machine, which may have gone since."""
        log, statement = self._journal.logs[name].get(job), self._journal.jobs.get(job)
        if log is None or statement is None or not log.whole(statement.body):
            return False
        return not any(entry.kind in (kinds.JOB, kinds.BATCH) for _, entry in log.pending.values())

    def on_value(self, name: str, job: bytes, number: int, value: object) -> None:
        self._values.setdefault(job, {})[number] = None

    def on_calm(self) -> None:
        """Only what is read from now on counts, and only what was durable by now is due."""
        self._read.clear()
        self._asked.clear()
        for values in self._values.values():
            values.clear()
        for (name, job), durable in self._durable.items():
            self._due[name, job] = [entry for entry in durable.values() if entry.kind == kinds.DECISION and entry.fault == ""]

    # -- the end -------------------------------------------------------------------------------------

    def at_end(self) -> None:
        self._living = set(self._everybody())
        values = [value for job in self._values for _, line, receipt in self._decided(job) for _, value in _values_of(line, receipt)]
        nodes = list(self.view.living().values())
        for blob in dict.fromkeys([*self.files.ids(), *values]):
            there = [node for node in nodes if node.blobs.has(BlobId(blob))]
            if any(blob not in self._rotten or _is_whole(node, blob) for node in there):
                self._sound.add(blob)

    def _strike(self) -> None:
        """Tell the objects which nodes are gone, blow by blow."""
        blows: list[tuple[float, list[bytes]]] = []
        for key, at_s in sorted(self._crashed_s.items(), key=lambda gone: gone[1]):
            if blows and at_s - blows[-1][0] < REPAIR_S:
                blows[-1] = at_s, [*blows[-1][1], key]
            else:
                blows.append((at_s, [key]))
        for objects in (self.files, self.results):
            for _, keys in blows:
                objects.struck(*keys)

    def finish(self) -> None:
        """Everything that can be read has been read: say what is lost."""
        living = self._living
        for job in self._values:
            self._add_results(job)
        self._strike()
        unread = [blob for blob in self.files.ids() if not self._read.get(blob, False)]
        there = {blob: living.intersection(self.files.survivors(blob)) for blob in unread}
        rotten = [blob for blob in unread if blob not in self._sound and self._all_rotten(blob, there[blob])]
        unlucky = [blob for blob in unread if blob not in self._sound and not there[blob]]
        for blob in unread:
            if blob not in rotten and blob not in unlucky:
                self.lost += 1
                if self._facts.expect.files_readable:
                    why = self._asked.get(blob, "nobody read it after the faults")
                    self.violate(blob.hex()[:8], f"a file with {len(there[blob])} living holders is lost: {why}")
        beyond = {known for known in self.results.unlucky if not self._copied(known)}
        for job in self._values:
            self._look_for_results(job, living, beyond)
        # Single results are counted by those who read them; here they only have to be explained.
        self.unlucky = len(unlucky) + len(beyond) + len(rotten)
        self.unlucky_expected = self.files.unlucky_expected + self.results.unlucky_expected + self._rotten_expected()
        most = self._facts.expect.unlucky_max
        bound = unlucky_bound(self.unlucky_expected) if most < 0 else most
        struck = self.unlucky + self._rotten_values
        if struck > bound:
            self.violate("grid", f"{struck} objects lost all their holders, {bound:.1f} are the most", "expect")

    def _copied(self, known: bytes) -> bool:
        """Whether all the values that a receipt says lie in blobs are held by somebody in the end."""
        statement = self._journal.statements.get(known)
        if statement is None or statement.kind != kinds.RECEIPT:
            return known in self._values and bool(self._journal.carriers_then.get(known))
        digests = statement.body.digests
        return all(digests[at : at + DIGEST] in self._sound for at in range(0, len(digests), DIGEST))

    def _all_rotten(self, blob: bytes, holders: Iterable[bytes]) -> bool:
        """Whether there are holders, and none of them has a whole copy."""
        there = set(holders)
        return bool(there) and there <= self._rotten.get(blob, set())

    def _rotten_expected(self) -> float:
        """How many objects lose all their copies where flipped bits hit copies at random."""
        copies = {blob: set(self.files.holders(blob)) for blob in self.files.ids()}
        for job in self._values:
            for _, line, receipt in self._decided(job):
                values = [value for _, value in _values_of(line, receipt)]
                if receipt.body.holders or any(value in self._rotten for value in values):
                    holders = {receipt.author, *receipt.body.holders}
                    copies.update(dict.fromkeys(values, holders))
        everywhere = sum(map(len, copies.values()))
        hit = sum(len(holders & self._rotten.get(blob, set())) for blob, holders in copies.items())
        return sum(struck_chance(len(holders), hit, everywhere) for holders in copies.values() if holders)

    def _decided(self, job: bytes) -> Iterator[tuple[bytes, DecisionEntry, Entry]]:
        """(key of the node, line of a decision, the receipt its values are read from) of all that was durable at the calm."""
        for (name, other), decisions in self._due.items():
            if other == job:
                for decision in decisions:
                    for line in decision.body.entries:
                        yield self._keys.get(name, b""), line, self._journal.statements[decision.body.receipts[line.cited[0]]]

    def _add_results(self, job: bytes) -> None:
        """The job's log is one object; so is each receipt whose results are blobs, for these lie elsewhere."""
        holders: dict[bytes, None] = {}
        population = self._population.get(job, ())
        for key, _, receipt in self._decided(job):
            holders[key] = None
            if receipt.body.holders:
                self.results.add(receipt.id, (receipt.author, *receipt.body.holders), population)
        if holders:
            self.results.add(job, list(holders), population)

    def _look_for_results(self, job: bytes, living: set[bytes], beyond: set[bytes]) -> None:
        """Every value that a living node had decided on its disk was given to somebody, or its blobs were struck."""
        levels = self._journal.levels.get(job)
        if levels is None:
            return
        missing: dict[int, None] = {}
        rotten: dict[int, None] = {}
        for key, line, receipt in self._decided(job):
            if line.outcome == OK and key in living and receipt.id not in beyond:
                holders = living & {receipt.author, *receipt.body.holders}
                for unit, value in _values_of(line, receipt):
                    number = levels.number(line.batch, unit)
                    if number >= 0 and number not in self._values[job]:
                        spoilt = value not in self._sound and self._all_rotten(value, holders)
                        (rotten if spoilt else missing)[number] = None
        self._rotten_values += len(rotten)
        if missing:
            self.lost += 1
            text = f"{len(missing)} results that living nodes hold were given to nobody, the first is unit {min(missing)}"
            self.violate(job.hex()[:8], text)


def _values_of(line: DecisionEntry, receipt: Entry) -> Iterator[tuple[int, bytes]]:
    """The units of a decision with the digests of their values: the ids of blobs, where they lie in blobs."""
    told = said(receipt.body, line.batch, line.start, line.units)
    if told is not None:
        for index in range(line.units):
            yield line.start + index, told[1][index * DIGEST : (index + 1) * DIGEST]


def _is_whole(node: Node, blob: bytes) -> bool:
    """Whether the content that lies on a node's disk is that of the blob (docs/spec/disk.md)."""
    name = blob.hex()
    try:
        return blob_id_of((node.home.blobs / name[:2] / name).read_bytes()) == blob
    except OSError:
        return False
