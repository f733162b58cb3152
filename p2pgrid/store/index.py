"""A SQLite index over what lies on disk: jobs, blobs, leases. It answers questions; it is never the truth.

1. Blobs and leases are restored from the files beside the blobs, jobs from their logs. So the index may lose its last
   transactions (WAL, synchronous NORMAL), and a damaged one is moved aside and made anew, which :class:`IndexReport` says.
2. ``was_clean`` tells whether the last user closed it and not a byte changed since, see :mod:`p2pgrid.store.cleanmark`.
   If not, the files decide and the blob store reads them all.
3. One connection behind one lock: any thread may call, one at a time. Calls block on the disk, so coroutines come
   through an Offload.
"""

# ruff: noqa: S608 - what is put into queries are the constant column lists of this file, values are always bound.

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import msgspec

from p2pgrid.errors import ConfigError, P2PGridError, RefusedError, TryAgainError
from p2pgrid.model.ids import BlobId, JobId
from p2pgrid.model.reasons import Reason
from p2pgrid.store import cleanmark
from p2pgrid.store.disk import disk_errors

SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE jobs (
    id BLOB NOT NULL, role TEXT NOT NULL, name TEXT NOT NULL, submitter BLOB NOT NULL, created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL, state TEXT NOT NULL, units INTEGER NOT NULL, done INTEGER NOT NULL, failed INTEGER NOT NULL,
    detail BLOB NOT NULL, PRIMARY KEY (id, role)) WITHOUT ROWID;
CREATE INDEX jobs_expiry ON jobs (expires_ms);
CREATE TABLE blobs (id BLOB PRIMARY KEY, size_bytes INTEGER NOT NULL, state TEXT NOT NULL, until_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX blobs_until ON blobs (until_ms);
CREATE TABLE leases (
    blob BLOB NOT NULL, owner BLOB NOT NULL, expires_ms INTEGER NOT NULL, replicas INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (blob, owner)) WITHOUT ROWID;
CREATE INDEX leases_expiry ON leases (expires_ms);
"""

_UPGRADES = {1: "DROP TABLE meta; ALTER TABLE leases ADD COLUMN replicas INTEGER NOT NULL DEFAULT 1;"}
"""From each older schema to the next one. What has no way from here is made anew."""

HELD = "held"
PARTIAL = "partial"
DAMAGED = "damaged"


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the index knows of a job. One job may have several roles here: ``submitted``, ``led``, ``kept``."""

    id: JobId
    role: str
    name: str = ""
    submitter: bytes = b""
    created_ms: int = 0
    expires_ms: int = 0
    state: str = ""
    units: int = 0
    done: int = 0
    failed: int = 0
    detail: bytes = b""
    """Whatever the owner of the row wants to find again, encoded by it."""


class BlobRow(msgspec.Struct, frozen=True):
    """A blob here. ``state``: held, partial (an upload in progress) or damaged (waiting to be healed)."""

    id: BlobId
    size_bytes: int
    state: str
    until_ms: int


class Lease(msgspec.Struct, frozen=True, array_like=True):
    """``owner`` wants a blob kept until ``expires_ms`` (Unix milliseconds), in ``replicas`` copies in the whole grid."""

    owner: bytes
    expires_ms: int
    replicas: int = 1


class IndexReport(msgspec.Struct, frozen=True):
    """How opening went. ``rebuilt``: it is empty now and must be filled from the disk; ``why`` says so in words."""

    rebuilt: bool
    was_clean: bool
    why: str = ""
    set_aside: bool = False
    """There was one, and it is kept beside the new one."""


_JOB_FIELDS = ("id", "role", "name", "submitter", "created_ms", "expires_ms", "state", "units", "done", "failed", "detail")
_JOB_COLUMNS = ", ".join(_JOB_FIELDS)
_JOB_PUT = f"INSERT OR REPLACE INTO jobs ({_JOB_COLUMNS}) VALUES ({', '.join('?' * len(_JOB_FIELDS))})"
_BLOB_COLUMNS = "id, size_bytes, state, until_ms"


_NO_DAMAGE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)
"""Errors of opening that say nothing against the index itself."""


def _job(row: Sequence[Any]) -> JobRow:
    return JobRow(**dict(zip(_JOB_FIELDS, row, strict=True)))


def _mapped(error: sqlite3.Error) -> P2PGridError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return RefusedError(f"writing the index: {error}", reason=Reason.DISK_FULL, hint="free some space")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TryAgainError(f"the index is busy: {error}", reason=Reason.BUSY)
    return ConfigError(f"the index cannot be used: {error}", hint="restart the node: a damaged index is made anew from the disk")


class Index:
    """The open index. Made by :meth:`open`."""

    def __init__(self, database: sqlite3.Connection, path: Path, sync: bool = True) -> None:
        self._database, self._path, self._sync = database, path, sync
        self._lock = threading.RLock()
        self._depth = 0

    @classmethod
    def open(cls, path: Path, *, sync: bool = True) -> tuple[Index, IndexReport]:
        """Open or create the index. A damaged one, or one of another schema, is kept as ``.damaged`` and made anew.

        ``sync`` False: never wait for the medium, for folders that do not outlive their machine.
        Raises ConfigError or RefusedError (disk full) when not even a new one can be made.
        """
        why = ""
        with disk_errors("opening the index"):
            mark = cleanmark.take(path, sync=sync)
        if path.exists():
            try:
                return cls._open_existing(path, sync, mark)
            except (sqlite3.DatabaseError, ValueError) as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NO_DAMAGE:
                    raise _mapped(cast(sqlite3.Error, error)) from error
                why = f"it was damaged: {error}"
                _set_aside(path)
        try:
            database = _connect(path, sync)
            database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        except sqlite3.Error as error:
            raise _mapped(error) from error
        report = IndexReport(rebuilt=True, was_clean=False, why=why or "there was none", set_aside=bool(why))
        return cls(database, path, sync), report

    @classmethod
    def _open_existing(cls, path: Path, sync: bool, mark: bytes | None) -> tuple[Index, IndexReport]:
        if mark is not None and mark != cleanmark.digest_of(path):
            raise ValueError("its bytes changed while nobody used it")
        database = _connect(path, sync)
        try:
            version = _upgraded(database)
            if version != SCHEMA_VERSION:
                raise ValueError(f"its schema is {version}, not {SCHEMA_VERSION}")
            verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise ValueError(str(verdict))
            # An index that cannot be written to is of no use either.
            database.executescript("BEGIN IMMEDIATE; ROLLBACK;")
        except BaseException:
            database.close()
            raise
        return cls(database, path, sync), IndexReport(rebuilt=False, was_clean=mark is not None)

    def close(self) -> None:
        """Close the index and mark it clean. Idempotent."""
        with self._lock, suppress(sqlite3.Error, OSError):
            # Fails when it is closed already; then the file may have another user.
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._database.close()
            if not self._path.with_name(self._path.name + "-wal").exists():
                cleanmark.leave(self._path, sync=self._sync)

    def abandon(self) -> None:
        """Close without the mark of a clean end, as a crash would: the next user reads everything from the disk. Idempotent."""
        with self._lock, suppress(sqlite3.Error):
            self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Several calls of this index as one transaction; nests. Maps sqlite3 errors to ours."""
        with self._lock:
            try:
                if self._depth == 0:
                    self._database.execute("BEGIN IMMEDIATE")
                self._depth += 1
                try:
                    yield self._database
                except BaseException:
                    if self._depth == 1 and self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                    raise
                else:
                    if self._depth == 1:
                        self._commit()
                finally:
                    self._depth -= 1
            except sqlite3.Error as error:
                raise _mapped(error) from error

    def _commit(self) -> None:
        try:
            self._database.execute("COMMIT")
        except sqlite3.Error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            try:
                return self._database.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise _mapped(error) from error

    # Jobs

    def put_job(self, row: JobRow) -> None:
        """Insert or replace the row of (job, role)."""
        with self.transaction() as database:
            database.execute(_JOB_PUT, [getattr(row, name) for name in _JOB_FIELDS])

    def update_job(self, job: JobId, role: str, *, state: str | None = None, done: int | None = None, failed: int | None = None) -> bool:
        """Change the moving parts of a row; False when there is none."""
        query = (
            "UPDATE jobs SET state = coalesce(?, state), done = coalesce(?, done), failed = coalesce(?, failed) WHERE id = ? AND role = ?"
        )
        with self.transaction() as database:
            return database.execute(query, (state, done, failed, job, role)).rowcount > 0

    def job(self, job: JobId, role: str) -> JobRow | None:
        rows = self._rows(f"SELECT {_JOB_COLUMNS} FROM jobs WHERE id = ? AND role = ?", job, role)
        return _job(rows[0]) if rows else None

    def jobs(self, role: str = "", limit: int = 1000) -> list[JobRow]:
        """Job rows, newest first; of one role unless ``role`` is empty."""
        query = f"SELECT {_JOB_COLUMNS} FROM jobs WHERE ? IN ('', role) ORDER BY created_ms DESC, id, role LIMIT ?"
        return [_job(row) for row in self._rows(query, role, limit)]

    def expired_jobs(self, now_ms: int, limit: int = 1000) -> list[JobRow]:
        """Jobs past their expiry, oldest first."""
        query = f"SELECT {_JOB_COLUMNS} FROM jobs WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?"
        return [_job(row) for row in self._rows(query, now_ms, limit)]

    def delete_job(self, job: JobId, role: str) -> bool:
        with self.transaction() as database:
            return database.execute("DELETE FROM jobs WHERE id = ? AND role = ?", (job, role)).rowcount > 0

    # Blobs and leases: written by the blob store only

    def put_blob(self, blob: BlobId, size_bytes: int, state: str, leases: Iterable[Lease]) -> None:
        """Insert or replace a blob together with all its leases."""
        kept = list(leases)
        until_ms = max((lease.expires_ms for lease in kept), default=0)
        with self.transaction() as database:
            database.execute(f"INSERT OR REPLACE INTO blobs ({_BLOB_COLUMNS}) VALUES (?, ?, ?, ?)", (blob, size_bytes, state, until_ms))
            database.execute("DELETE FROM leases WHERE blob = ?", (blob,))
            rows = [(blob, lease.owner, lease.expires_ms, lease.replicas) for lease in kept]
            database.executemany("INSERT OR REPLACE INTO leases (blob, owner, expires_ms, replicas) VALUES (?, ?, ?, ?)", rows)

    def delete_blob(self, blob: BlobId) -> None:
        with self.transaction() as database:
            database.execute("DELETE FROM leases WHERE blob = ?", (blob,))
            database.execute("DELETE FROM blobs WHERE id = ?", (blob,))

    def clear_blobs(self) -> None:
        """Forget all blobs and leases, before they are restored from the disk."""
        with self.transaction() as database:
            database.execute("DELETE FROM leases")
            database.execute("DELETE FROM blobs")

    def blob(self, blob: BlobId) -> BlobRow | None:
        rows = self._rows(f"SELECT {_BLOB_COLUMNS} FROM blobs WHERE id = ?", blob)
        return BlobRow(*rows[0]) if rows else None

    def blobs(self, after: bytes = b"", limit: int = 1000, state: str = "") -> list[BlobRow]:
        """A page of blobs in the order of their ids, behind ``after``; of one state unless that is empty."""
        query = f"SELECT {_BLOB_COLUMNS} FROM blobs WHERE id > ? AND ? IN ('', state) ORDER BY id LIMIT ?"
        return [BlobRow(*row) for row in self._rows(query, after, state, limit)]

    def leases(self, blob: BlobId) -> list[Lease]:
        query = "SELECT owner, expires_ms, replicas FROM leases WHERE blob = ? ORDER BY owner"
        return [Lease(*row) for row in self._rows(query, blob)]

    def replicated_blobs(self, now_ms: int, after: bytes = b"", limit: int = 1000) -> list[BlobId]:
        """A page of held blobs of which a live lease wants more than one copy, in the order of their ids, behind ``after``."""
        query = (
            "SELECT DISTINCT blob FROM leases JOIN blobs ON blobs.id = leases.blob"
            " WHERE blob > ? AND replicas > 1 AND expires_ms > ? AND state = ? ORDER BY blob LIMIT ?"
        )
        return [row[0] for row in self._rows(query, after, now_ms, HELD, limit)]

    def unleased_blobs(self, now_ms: int, after: bytes = b"", limit: int = 1000) -> list[BlobRow]:
        """Blobs whose last lease has ended, in the order of their ids."""
        query = f"SELECT {_BLOB_COLUMNS} FROM blobs WHERE until_ms <= ? AND id > ? ORDER BY id LIMIT ?"
        return [BlobRow(*row) for row in self._rows(query, now_ms, after, limit)]

    def ended_leases(self, now_ms: int, limit: int = 1000) -> list[BlobId]:
        """Blobs with at least one lease that has ended."""
        return [row[0] for row in self._rows("SELECT DISTINCT blob FROM leases WHERE expires_ms <= ? LIMIT ?", now_ms, limit)]

    def usage(self) -> tuple[int, int]:
        """(blobs, bytes), uploads in progress and damaged blobs included."""
        row = self._rows("SELECT count(*), coalesce(sum(size_bytes), 0) FROM blobs")[0]
        return row[0], row[1]

    def owner_usage(self) -> dict[bytes, int]:
        """Bytes under lease for each owner."""
        query = "SELECT owner, sum(size_bytes) FROM leases JOIN blobs ON blobs.id = leases.blob GROUP BY owner"
        return dict(self._rows(query))


def _connect(path: Path, sync: bool) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        if not sync:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")  # Nobody else looks into such a folder: no lock is taken anew.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {'NORMAL' if sync else 'OFF'}")
        database.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        database.close()
        raise
    return database


def _upgraded(database: sqlite3.Connection) -> int:
    """The schema of an index, after every step that leads from it to a newer one."""
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    while version in _UPGRADES:
        database.executescript(f"BEGIN; {_UPGRADES[version]} PRAGMA user_version = {version + 1}; COMMIT;")
        version += 1
    return version


def _set_aside(path: Path) -> None:
    """Keep one damaged index for whoever wants to look; its journals must not meet the new one."""
    try:
        path.replace(path.with_name(path.name + ".damaged"))
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"the damaged index cannot be moved aside: {error}", hint=f"remove '{path}'") from error
