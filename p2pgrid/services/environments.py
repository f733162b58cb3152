"""The packages of a job, from its lock and wheels in the grid to a folder on this disk (docs/spec/environments.md).

What a job names is a blob from a stranger: it is read with a bound, decoded strictly, and the owner's policy is asked before a
single wheel is fetched. Who needs the same environment waits for the one that is being built. One that cannot be built here is
not tried again with every lease.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path

from p2pgrid.errors import P2PGridError, RefusedError, RemoteError, TryAgainError
from p2pgrid.model.environment import ENVIRONMENT_BYTES_MAX, Environment
from p2pgrid.model.ids import BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.runtimes.packages import Environments
from p2pgrid.services.announcing import Step
from p2pgrid.services.context import Context
from p2pgrid.services.storing import Storing
from p2pgrid.services.tasks import Tasks, Turns
from p2pgrid.wire.codec import decode

FAILURES_KEPT = 256
FAILURE_S = 120.0
"""How long an environment that failed is refused without another try, unless the failure may pass by itself."""
PASSING = frozenset({Reason.NO_PACKAGE_ROOM, Reason.STORE_FULL, Reason.DISK_FULL})
BUILDS_AT_ONCE = 2
KNOWN_MAX = 16
"""Decoded environments that are remembered."""


class JobEnvironments:
    """Sets up what jobs depend on. Belongs to one event loop."""

    def __init__(self, context: Context, storing: Storing, environments: Environments) -> None:
        self._context = context
        self._storing = storing
        self._environments = environments
        self._tasks = Tasks("environments")
        self._builds = asyncio.Semaphore(BUILDS_AT_ONCE)
        self._turns = Turns(1)
        self._running: dict[bytes, asyncio.Task[None]] = {}
        """By blob, not by folder: a job that names files it does not send must not fail another with the same lock."""
        self._waiting: Counter[bytes] = Counter()
        self._known: OrderedDict[bytes, Environment] = OrderedDict()
        self._failed: OrderedDict[bytes, tuple[float, P2PGridError]] = OrderedDict()
        self._steps: dict[bytes, Step] = {}

    async def start(self) -> None:
        """Raises ConfigError when the folder for packages cannot be used."""
        await self._environments.start()

    async def close(self) -> None:
        """End what is being set up."""
        await self._tasks.close()

    async def folder(self, environment: bytes, sources: Sequence[bytes], *, own: bool = False) -> Path:
        """The folder with a job's packages, for ``sys.path``; to be handed to :meth:`release` when the task has ended.

        ``environment``: what the job names. ``sources``: nodes that may hold the job's blobs. ``own``: the job is the owner's, whom
        no policy binds. Raises RefusedError (``no-environment``, ``package-refused``, ``no-wheel``, ``build-failed``, ``too-large``,
        ``no-package-room``), MalformedError and IntegrityError (``bad-package``) for what no node should take, UnreachableError and
        TryAgainError for what may go better later.
        """
        self._raise_again(environment)
        known = await self._read(environment, sources)
        self._environments.check(known, own=own)
        while True:
            self._raise_again(environment)
            task = self._running.get(environment) or self._begin(environment, known, tuple(sources))
            await self._wait_for(environment, task)
            if task.cancelled():
                continue  # Those who wanted it had gone just before; or the node stops, which beginning anew tells.
            task.result()
            folder = await self._environments.find(known)
            if folder is not None:
                return folder

    def step(self, environment: bytes) -> Step | None:
        """How far the environment of this blob is, while it is set up."""
        return self._steps.get(environment)

    def release(self, folder: Path) -> None:
        """A task that used this folder has ended."""
        self._environments.release(folder)

    def _begin(self, blob: bytes, environment: Environment, sources: tuple[bytes, ...]) -> asyncio.Task[None]:
        task = self._tasks.spawn(self._set_up(blob, environment, sources), "set up packages")
        if task is None:
            raise TryAgainError("the node is stopping", reason=Reason.SHUTDOWN)
        self._running[blob] = task
        task.add_done_callback(lambda _: self._running.pop(blob, None))
        return task

    async def _wait_for(self, blob: bytes, task: asyncio.Task[None]) -> None:
        """Until it has ended; it ends early when the last of those who wait goes."""
        self._waiting[blob] += 1
        try:
            await asyncio.wait({task})
        finally:
            self._waiting[blob] -= 1
            if not self._waiting[blob]:
                del self._waiting[blob]
                task.cancel()

    async def _set_up(self, blob: bytes, environment: Environment, sources: Sequence[bytes]) -> None:
        """Have the folder there; whoever waits acquires it."""
        key = self._environments.key(environment)
        try:
            async with self._turns.of(key.encode()), self._builds:
                folder = await self._environments.find(environment)
                if folder is None:
                    wheels: dict[str, Path] = {}
                    wanted = await self._context.offload.run(self._environments.wanted, environment)
                    for wheel in wanted:
                        self._steps[blob] = Step("packages", len(wheels), len(wanted))
                        wheels[wheel.file_name] = await self._storing.path(BlobId(wheel.blob), sources)
                    self._steps[blob] = Step("unpacking")
                    folder = await self._environments.build(environment, wheels)
                self._environments.release(folder)
        except (RefusedError, RemoteError) as error:
            self._note_failure(blob, error)
            raise
        finally:
            self._steps.pop(blob, None)

    def _note_failure(self, blob: bytes, error: P2PGridError) -> None:
        if error.reason not in PASSING:
            self._failed[blob] = self._context.clock(), _anew(error)
            while len(self._failed) > FAILURES_KEPT:
                self._failed.popitem(last=False)

    async def _read(self, blob: bytes, sources: Sequence[bytes]) -> Environment:
        known = self._known.get(blob)
        if known is None:
            raw = await self._storing.read(BlobId(blob), sources, ENVIRONMENT_BYTES_MAX)
            try:
                # Up to a thousand markers are parsed: not between the heartbeats.
                known = await self._context.offload.run(decode, raw, Environment)
            except RemoteError as error:
                self._note_failure(blob, error)
                raise
        self._known[blob] = known
        self._known.move_to_end(blob)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return known

    def _raise_again(self, blob: bytes) -> None:
        """A failure that will not pass by itself is not looked into with every lease."""
        when, error = self._failed.get(blob, (0.0, None))
        if error is not None and self._context.clock() - when < FAILURE_S:
            raise _anew(error)
        self._failed.pop(blob, None)


def _anew(error: P2PGridError) -> P2PGridError:
    """The same error without what its frames had in memory."""
    return type(error)(error.message, reason=error.reason, hint=error.hint)
