"""The home folder of a node: its layout, its keys, its lock.

    format          which version of this layout; a newer one is refused, an older one migrated
    lock            held by the running node; says its pid and where the owner's channel listens
    node.key        32 secret bytes: who this node is. Never moved, never overwritten
    submitter.key   32 secret bytes: who signs jobs. May be copied to other machines
    blobs/ ledger/ index.sqlite   see the other modules of this package

Everything is private (0700 and 0600). A key file that looks wrong stops the node: making a new key would
silently turn it into somebody else.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from p2pgrid.errors import ConfigError, TryAgainError, UsageError
from p2pgrid.model.ids import KEY_BYTES
from p2pgrid.model.reasons import Reason
from p2pgrid.store.disk import READ_FLAGS, Disk, disk_errors, read_at
from p2pgrid.store.locks import is_locked, try_lock
from p2pgrid.store.paths import safe_join
from p2pgrid.wire.keys import SigningKey

FORMAT = 1
FOLDERS = ("blobs", "ledger", "work")
PRIVATE_BYTES_MAX = 16 << 20
_FORMAT_PREFIX = "p2pgrid-home "
_FOREIGN_ALLOWED = (".log", ".toml", ".tmp")

Migration = Callable[[Path], None]
"""Brings a home from one format to the next. Must be safe to run again after a crash in its middle."""


class RunningNode(msgspec.Struct, frozen=True):
    """The node that runs in a home, and where its owner's channel listens."""

    pid: int
    host: str
    port: int


class Home:
    """One node's folder. Made, inspected and locked by the methods; the constructor touches nothing."""

    def __init__(
        self,
        folder: Path,
        random_bytes: Callable[[int], bytes],
        *,
        disk: Disk | None = None,
        migrations: Mapping[int, Migration] | None = None,
    ) -> None:
        """``random_bytes``: the system's secret randomness (os.urandom), for new keys."""
        self.folder = folder
        self._random_bytes, self._disk = random_bytes, disk or Disk()
        self._migrations = migrations or {}
        self._lock: int | None = None
        self._writing = threading.Lock()

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    @property
    def work(self) -> Path:
        """Where units run. Nothing in it outlives the node."""
        return self.folder / "work"

    @property
    def index(self) -> Path:
        return self.folder / "index.sqlite"

    def exists(self) -> bool:
        """Whether the folder is a p2pgrid home already."""
        return (self.folder / "format").exists()

    def prepare(self) -> None:
        """Create or migrate the layout. Raises ConfigError: a newer format, or a folder of something else."""
        with disk_errors(f"preparing the home '{self.folder}'"):
            self._disk.make_folder(self.folder)
            version = self._format()
            if version is None:
                self._refuse_foreign()
            self._disk.make_private(self.folder)
            if version is None:
                # The name of the home itself. Who may not read the folder it lies in must leave that to the system.
                with suppress(PermissionError):
                    self._disk.sync_folder(self.folder.parent)
                self._write_format(FORMAT)
            for step in range(FORMAT if version is None else version, FORMAT):
                self._migrate(step)
            for name in FOLDERS:
                self._disk.make_folder(self.folder / name)
            # Also what an earlier life made and was killed before it synced, the keys above all.
            self._disk.sync_folder(self.folder)

    def _format(self) -> int | None:
        try:
            text = (self.folder / "format").read_text("ascii", "replace")
        except FileNotFoundError:
            return None
        number = text.removeprefix(_FORMAT_PREFIX).strip()
        if not text.startswith(_FORMAT_PREFIX) or not number.isdigit() or len(number) > 6:
            raise ConfigError(f"'{self.folder / 'format'}' is damaged", hint=f"it should say '{_FORMAT_PREFIX}{FORMAT}'")
        if int(number) > FORMAT:
            raise ConfigError(f"the home '{self.folder}' was made by a newer p2pgrid", hint="update p2pgrid, or use another --home")
        return int(number)

    def _refuse_foreign(self) -> None:
        """Somebody may point us at their whole home directory; that must not become 0700 and full of our files."""
        ours = {*FOLDERS, "lock", "node.key", "submitter.key"}
        for path in self.folder.iterdir():
            if path.name not in ours and path.suffix not in _FOREIGN_ALLOWED:
                raise ConfigError(
                    f"'{self.folder}' is not empty and no p2pgrid home ('{path.name}' is in it)", hint="choose an empty folder with --home"
                )

    def _migrate(self, version: int) -> None:
        if version not in self._migrations:
            raise ConfigError(
                f"the home '{self.folder}' is of format {version}, which this p2pgrid cannot migrate", hint="use another --home"
            )
        self._migrations[version](self.folder)
        self._write_format(version + 1)

    def _write_format(self, version: int) -> None:
        self._disk.replace_file(self.folder / "format", f"{_FORMAT_PREFIX}{version}\n".encode())

    # The lock

    def lock(self) -> None:
        """Become the one node of this home. Raises TryAgainError while another one runs."""
        with disk_errors("locking the home"):
            descriptor = try_lock(self.folder / "lock", self._disk)
            if descriptor is None:
                running = self.running()
                who = f" (pid {running.pid})" if running else ""
                raise TryAgainError(f"a node already runs in '{self.folder}'{who}", reason=Reason.BUSY, hint="p2pgrid leave stops it")
            self._lock = descriptor
            # What a dead node left behind must not be taken for this one before announce().
            self._disk.truncate(descriptor, 0)

    def announce(self, host: str, port: int) -> None:
        """Say in the lock file where the owner's channel of this node listens. Needs the lock."""
        if self._lock is None:
            raise UsageError("announce() needs lock()")
        raw = msgspec.json.encode(RunningNode(os.getpid(), host, port)) + b"\n"
        with disk_errors("writing the lock file"):
            self._disk.truncate(self._lock, 0)
            self._disk.write_at(self._lock, raw, 0)

    def announced(self) -> RunningNode | None:
        """The node that announced itself last and has not taken that back: one that runs, or that was killed."""
        try:
            return msgspec.json.decode((self.folder / "lock").read_bytes()[:4096], type=RunningNode)
        except (OSError, msgspec.MsgspecError, ValueError):
            return None

    def running(self) -> RunningNode | None:
        """The node that runs here now and has announced itself; None when there is none, or its process is dead."""
        path, node = self.folder / "lock", self.announced()
        if node is None:
            return None
        # The pid is asked first: then only a number that was given to another process costs a look at the lock,
        # and that look, which holds the lock for an instant, cannot get in the way of a node that is starting.
        if not _alive(node.pid):
            return None
        with disk_errors("looking at the lock file"):
            return node if self._lock is not None or is_locked(path, self._disk) else None

    def close(self) -> None:
        """Give the lock up. Idempotent."""
        if self._lock is not None:
            with suppress(OSError):
                self._disk.truncate(self._lock, 0)
            self._disk.close(self._lock)
            self._lock = None

    # Keys and small files

    def node_key(self) -> SigningKey:
        """This node's key, created on the first call ever. Raises ConfigError when the file is damaged or readable by others."""
        return SigningKey(self._seed("node.key"))

    def submitter_key(self) -> SigningKey:
        """The key that signs jobs, created on the first call ever. Raises ConfigError as node_key."""
        return SigningKey(self._seed("submitter.key"))

    def _seed(self, name: str) -> bytes:
        path = self.folder / name
        with disk_errors(f"reading the key '{path}'"):
            if not path.is_symlink() and not path.exists():
                self._create_key(path)
            descriptor = os.open(path, READ_FLAGS | getattr(os, "O_NOFOLLOW", 0))
            try:
                status = os.fstat(descriptor)
                seed = read_at(descriptor, KEY_BYTES + 1, 0)
            finally:
                os.close(descriptor)
        if os.name != "nt" and stat.S_IMODE(status.st_mode) & 0o077:
            raise ConfigError(
                f"the key '{path}' can be read by others", hint=f"chmod 600 '{path}'; if others use this machine, make a new key"
            )
        if len(seed) != KEY_BYTES or seed == bytes(KEY_BYTES):
            raise ConfigError(
                f"the key '{path}' is damaged", hint="restore it from a backup; or move it away, and a new key with a new identity is made"
            )
        return seed

    def _create_key(self, path: Path) -> None:
        """Two processes may come here at once: the first one's key stays, because a link never replaces."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        self._disk.write_file(temporary, self._random_bytes(KEY_BYTES))
        try:
            self._disk.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            self._disk.unlink(temporary)
        self._disk.sync_folder(self.folder)

    def write_private(self, name: str, data: bytes) -> None:
        """Replace a small file of the home atomically, mode 0600. Raises RefusedError when the disk is full."""
        # Two threads that replace the same file would share one temporary file.
        with self._writing, disk_errors(f"writing '{name}'"):
            self._disk.replace_file(safe_join(self.folder, name), data)

    def read_private(self, name: str) -> bytes | None:
        """A small file of the home, at most 16 MiB of it, or None when there is none."""
        with disk_errors(f"reading '{name}'"):
            try:
                descriptor = os.open(safe_join(self.folder, name), READ_FLAGS)
            except FileNotFoundError:
                return None
            try:
                return read_at(descriptor, PRIVATE_BYTES_MAX, 0)
            finally:
                os.close(descriptor)


def _alive(pid: int) -> bool:
    """Whether there is a process with this id. Windows cannot be asked harmlessly; there the lock alone decides."""
    if os.name == "nt":
        return True
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
