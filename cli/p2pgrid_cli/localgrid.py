"""The node processes of ``run --local N``: real nodes with homes of their own, gone when the command ends.

Where the system can fork, they are forked from this process after it has imported everything and before it runs any
thread or event loop: four nodes then start in the time of one. Elsewhere each is a fresh interpreter. Either way
a node ends by itself when this process is gone.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Protocol

from p2pgrid.errors import NoPeersError

STORAGE = "4G"
INVITE_BYTES_MAX = 16 << 10


class _Process(Protocol):
    """A node process that waits for its invite."""

    def invite(self, text: str) -> None: ...

    def ended(self) -> bool: ...

    def kill(self) -> None: ...


class LocalNodes:
    """``nodes`` processes, started at once; they join when :meth:`invite` is called. ``close`` leaves nothing behind."""

    def __init__(self, nodes: int) -> None:
        self._processes: list[_Process] = []
        self._folder = Path(tempfile.mkdtemp(prefix="p2pgrid-local-"))
        # Ctrl-C may come before anybody has this object to close it.
        atexit.register(self._end)
        cpus = max(1, (os.cpu_count() or 1) // nodes)
        start = _Forked if hasattr(os, "fork") and threading.active_count() == 1 else _Spawned
        for number in range(1, nodes + 1):
            home = self._home(number)
            home.mkdir(parents=True)
            arguments = ["--home", str(home), "--listen", "127.0.0.1:0", "--cpus", str(cpus), "--storage", STORAGE]
            arguments += ["--name", f"local-{number}", "--parent", str(os.getpid()), "--for-owner"]
            self._processes.append(start(arguments, home / "node.log"))

    def _home(self, number: int) -> Path:
        return self._folder / f"node-{number}"

    def __len__(self) -> int:
        return len(self._processes)

    def invite(self, text: str) -> None:
        """Let the nodes join."""
        for process in self._processes:
            process.invite(text)

    def check(self) -> None:
        """Raise NoPeersError if a node has ended, with the last line of what it said."""
        for number, process in enumerate(self._processes, 1):
            if process.ended():
                lines = (self._home(number) / "node.log").read_text(errors="replace").strip().splitlines()
                raise NoPeersError(f"a local node did not start: {lines[-1] if lines else 'it said nothing'}")

    async def close(self) -> None:
        """End the processes. Nothing in their homes is worth a polite end."""
        await asyncio.to_thread(self._end)
        atexit.unregister(self._end)

    def _end(self) -> None:
        while self._processes:
            self._processes.pop().kill()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Forked:
    """A child of this process, forked while it has a single thread."""

    _writes: ClassVar[list[int]] = []
    """Ends of the pipes of all children: one that a later child kept open would hide this process's end from the others."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        read, self._write = os.pipe()
        self._writes.append(self._write)
        self._code: int | None = None
        # A child that heard Ctrl-C before it is on its own would go on with the parent's program.
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._pid = os.fork()
            if self._pid == 0:
                for write in self._writes:
                    os.close(write)
                _be_a_node(arguments, log, read, heard)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        os.close(read)

    def invite(self, text: str) -> None:
        self._writes.remove(self._write)
        with open(self._write, "w", encoding="ascii") as pipe:
            pipe.write(text)

    def ended(self) -> bool:
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = status if pid else None
        return self._code is not None

    def kill(self) -> None:
        if not self.ended():
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._code = -signal.SIGKILL


def _be_a_node(arguments: list[str], log: Path, invite: int, heard: Collection[int]) -> None:
    """The child's whole life. It must never return into the parent's program. ``heard``: signals that were held back before."""
    code = 70
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        with open(invite, encoding="ascii") as pipe:
            text = pipe.read(INVITE_BYTES_MAX)
        if text:
            from p2pgrid_cli.main import main

            sys.argv = ["p2pgrid", "join", text, *arguments]
            main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        os._exit(code)


class _Spawned:
    """A fresh interpreter, started when there is an invite for it."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._arguments = arguments
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def invite(self, text: str) -> None:
        with self._log.open("wb") as log:
            command = [sys.executable, "-P", "-m", "p2pgrid_cli", "join", text, *self._arguments]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
