"""One thread writes all job logs, and one sync serves everybody who waited for it.

1. What is submitted while a sync runs goes into the next round: one write and one sync per job and round.
2. ``done`` is called once per submission, after the sync, from the writer thread (or inside ``submit`` for the inline
   writer). It must not block. Within a job the order of submissions is the order of records.
3. The queue is bounded in bytes; what is over is refused at once, so the caller can slow its peers down.
4. A round that fails is tried again one submission at a time, so that one submission that is too large for the
   log takes nobody else down.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from p2pgrid.errors import P2PGridError, RefusedError, TryAgainError
from p2pgrid.model.ids import JobId
from p2pgrid.model.limits import MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.store.ledger import FRAME_BYTES, Ledgers, Record

_log = logging.getLogger(__name__)
Done = Callable[[Exception | None], None]
"""Called with None once the records are durable, or with the error."""
QUEUE_BYTES_MAX = 64 * MIB
ROUND_BYTES_MAX = 16 * MIB


class LedgerPort(Protocol):
    """Where records of job logs go to become durable."""

    def submit(self, job: JobId, records: Sequence[Record], done: Done) -> None:
        """Append a batch to the log of a job. Raises TryAgainError when the queue is full or closed."""

    def remove(self, job: JobId, done: Done) -> None:
        """Delete the log of a job, after what was submitted before. Raises TryAgainError as submit."""

    def close(self, timeout_s: float) -> bool:
        """Write what is queued and stop. False if that did not end in time; the rest is then answered with an error."""


class _Submission(NamedTuple):
    job: JobId
    records: Sequence[Record] | None
    """None to remove the log."""
    size_bytes: int
    done: Done


def _size_bytes(records: Sequence[Record]) -> int:
    return sum(len(data) for _, data in records) + FRAME_BYTES * len(records)


def _commit(ledgers: Ledgers, group: list[_Submission]) -> list[Exception | None]:
    """Make the submissions of one job durable with one sync; one outcome for each."""
    try:
        log = ledgers.log(group[0].job)
        log.append([record for submission in group for record in submission.records or ()])
    except RefusedError as error:
        if len(group) == 1:
            return [error]
        return [outcome for submission in group for outcome in _commit(ledgers, [submission])]
    except Exception as error:  # noqa: BLE001  # the thread must outlive whatever a log throws; the caller is told
        return [error] * len(group)
    return [None] * len(group)


def _remove(ledgers: Ledgers, job: JobId) -> Exception | None:
    try:
        ledgers.remove(job)
    except P2PGridError as error:
        return error
    return None


def _tell(submission: _Submission, outcome: Exception | None) -> None:
    """A callback that raises is a bug of its owner; everybody else's records must still be written."""
    try:
        submission.done(outcome)
    except Exception:  # noqa: BLE001  # see above
        _log.exception("a callback of the ledger raised")


def _closed() -> TryAgainError:
    return TryAgainError("the ledger is closed", reason=Reason.SHUTDOWN)


class LedgerWriter:
    """The writer of a node: a thread of its own. Any thread may submit."""

    def __init__(self, ledgers: Ledgers, *, queue_bytes_max: int = QUEUE_BYTES_MAX) -> None:
        self._ledgers, self._queue_bytes_max = ledgers, queue_bytes_max
        self._queue: list[_Submission] = []
        self._queue_bytes = 0
        self._wake = threading.Condition()
        self._closing = False
        # A daemon, so that a disk that hangs for ever cannot keep the process from ending after close() gave up.
        self._thread = threading.Thread(target=self._run, name="p2pgrid-ledger", daemon=True)
        self._thread.start()

    def submit(self, job: JobId, records: Sequence[Record], done: Done) -> None:
        self._put(_Submission(job, records, _size_bytes(records), done))

    def remove(self, job: JobId, done: Done) -> None:
        self._put(_Submission(job, None, FRAME_BYTES, done))

    def _put(self, submission: _Submission) -> None:
        with self._wake:
            if self._closing:
                raise _closed()
            if self._queue and self._queue_bytes + submission.size_bytes > self._queue_bytes_max:
                raise TryAgainError("the disk cannot keep up with the job logs", reason=Reason.BUSY)
            self._queue.append(submission)
            self._queue_bytes += submission.size_bytes
            self._wake.notify()

    def _take(self) -> list[_Submission]:
        """Wait for work; an empty list means closed and done."""
        with self._wake:
            while not self._queue and not self._closing:
                self._wake.wait()
            count = size_bytes = 0
            for submission in self._queue:
                if count and size_bytes + submission.size_bytes > ROUND_BYTES_MAX:
                    break
                count += 1
                size_bytes += submission.size_bytes
            taken, self._queue = self._queue[:count], self._queue[count:]
            self._queue_bytes -= size_bytes
            return taken

    def _run(self) -> None:
        while taken := self._take():
            groups: dict[JobId, list[_Submission]] = {}
            for submission in taken:
                if submission.records is not None:
                    groups.setdefault(submission.job, []).append(submission)
                    continue
                self._finish(groups.pop(submission.job, []))
                _tell(submission, _remove(self._ledgers, submission.job))
            for group in groups.values():
                self._finish(group)

    def _finish(self, group: list[_Submission]) -> None:
        if group:
            for submission, outcome in zip(group, _commit(self._ledgers, group), strict=True):
                _tell(submission, outcome)

    def close(self, timeout_s: float = 5.0) -> bool:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        with self._wake:
            left, self._queue = self._queue, []
            self._queue_bytes = 0
        for submission in left:
            _tell(submission, _closed())
        return not self._thread.is_alive()


class InlineLedgerWriter:
    """The writer of a simulation: everything happens inside the call."""

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers
        self._closing = False

    def submit(self, job: JobId, records: Sequence[Record], done: Done) -> None:
        if self._closing:
            raise _closed()
        done(_commit(self._ledgers, [_Submission(job, records, 0, done)])[0])

    def remove(self, job: JobId, done: Done) -> None:
        if self._closing:
            raise _closed()
        done(_remove(self._ledgers, job))

    def close(self, timeout_s: float = 5.0) -> bool:
        self._closing = True
        return True
