"""What a grid has agreed on: the charter that its founder signs, and how it reaches every member (docs/spec/membership.md).

1. Only the root key of the grid signs a charter, so nobody else can make members run another Python runner.
2. The newest one counts. It travels in the hello of every connection, and whoever learns a newer one tells the neighbours at once.
3. The runner it names is a blob. A node that has the same bytes in its own installation need not fetch them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from p2pgrid.errors import P2PGridError, RefusedError, UnreachableError
from p2pgrid.model.ids import BlobId, NodeKey
from p2pgrid.model.membership import Charter
from p2pgrid.model.reasons import Reason
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.membership import FOUNDER_YEARS, YEAR_MS
from p2pgrid.services.peers import Peers
from p2pgrid.services.storing import Storing
from p2pgrid.services.tasks import Tasks
from p2pgrid.store.home import Home
from p2pgrid.wire.envelope import Signed, open_envelope, seal
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import CharterNotice
from p2pgrid.wire.owner import RunnerReply, RunnerRequest

FILE = "charter"
CHARTER_BYTES_MAX = 1024
RUNNER_COPIES = 3


class Charters:
    """Knows the grid's charter; the founder makes it."""

    def __init__(
        self,
        context: Context,
        peers: Peers,
        storing: Storing,
        home: Home,
        root_seed: bytes,
        installed: Callable[[], Path | None],
        *,
        keeps: bool = True,
        at_start: bool = False,
    ) -> None:
        """``root_seed``: of the grid, at its founder only. ``installed``: finds the runner of this installation.

        ``keeps``: save what is learnt. ``at_start``: make the charter then, not when the runner is first asked for.
        """
        self._context = context
        self._peers = peers
        self._storing = storing
        self._home = home
        self._root_seed = root_seed
        self._installed = installed
        self._keeps = keeps
        self._at_start = at_start
        self._tasks = Tasks("charter")
        self._current: Signed[Charter] | None = None
        self._own_runner: tuple[BlobId, Path] | None = None
        self._changed: list[Callable[[], None]] = []
        context.methods.on_notify("grid.charter", CharterNotice, self._on_charter)
        context.methods.on("own.runner", RunnerRequest, self._on_runner, owner_only=True)
        peers.on_came(self._on_came)

    async def start(self) -> None:
        """Read what was known; at the founder make a charter as soon as there is something to name."""
        raw = await self._context.offload.run(self._home.read_private, FILE)
        if raw:
            with suppress(P2PGridError):
                self._adopt(raw)
        if self._root_seed and self._at_start:
            self._tasks.spawn(self._make(), "charter")

    async def close(self) -> None:
        await self._tasks.close()

    def on_changed(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever the grid names another runner."""
        self._changed.append(callback)

    @property
    def raw(self) -> bytes:
        """The signed charter, empty while none is known: for the hello."""
        return self._current.raw if self._current is not None else b""

    @property
    def runner(self) -> bytes:
        """The blob id of the grid's Python runner; empty while none is named."""
        return self._current.body.runner if self._current is not None else b""

    async def ensure(self) -> bytes:
        """The blob id of the grid's runner, which is on this node when this returns.

        Raises RefusedError when the grid names none, UnreachableError when nobody has it.
        """
        if not self.runner and self._root_seed:
            await self._make()
        if not self.runner:
            raise RefusedError(
                "this grid names no Python runner",
                reason=Reason.NO_RUNNER,
                hint="its founder must start a node whose installation has one (p2pgrid doctor tells)",
            )
        if not await self._is_stored():
            await self._take_own(BlobId(self.runner), ())
        return self.runner

    async def path(self, runner: bytes, sources: tuple[bytes, ...]) -> Path:
        """The file of a runner that a job names. Raises RefusedError for another one than the grid's."""
        if runner != self.runner:
            raise RefusedError("the job names another Python runner than the grid", reason=Reason.NO_RUNNER)
        own = await self._own()
        if own is not None and own[0] == runner:
            return own[1]
        return await self._storing.path(BlobId(runner), sources)

    async def _is_stored(self) -> bool:
        return await self._context.offload.run(self._context.blobs.has, BlobId(self.runner))

    async def _take_own(self, runner: BlobId, sources: tuple[bytes, ...]) -> None:
        """Have the bytes in the store of this node: from its own installation, else from others."""
        context = self._context
        own = await self._own()
        if own is None or own[0] != runner:
            await self._storing.fetch(runner, sources, self._expires_ms())
        else:
            raw = await context.offload.run(own[1].read_bytes)
            await context.offload.run(context.blobs.put_bytes, raw, owner=context.me, expires_ms=self._expires_ms(), replicas=RUNNER_COPIES)
        with suppress(P2PGridError):
            await self._storing.announce(runner)

    async def _own(self) -> tuple[BlobId, Path] | None:
        """The runner of this installation and its address."""
        if self._own_runner is None:
            path = self._installed()
            if path is None:
                return None
            self._own_runner = (await self._context.offload.run(_address, path), path)
        return self._own_runner

    def _expires_ms(self) -> int:
        return self._context.wall_ms() + YEAR_MS

    async def _make(self) -> None:
        """At the founder: name the runner of this installation, unless one is named that can still be had."""
        own = await self._own()
        if own is None:
            return
        if not self.runner:
            now_ms = self._context.wall_ms()
            charter = Charter(now_ms + FOUNDER_YEARS * YEAR_MS, now_ms, own[0])
            self._adopt(seal(charter, SigningKey(self._root_seed), self._context.grid.id).raw)
            await self._save()
        if self.runner == own[0] and not await self._is_stored():
            try:
                await self._take_own(own[0], ())
            except (P2PGridError, OSError) as error:
                self._context.tell(Reason.NO_RUNNER, f"the Python runner could not be stored: {error}")

    def _adopt(self, raw: bytes) -> bool:
        """Take a charter if it is newer than the one known. Raises P2PGridError for one that does not hold."""
        if len(raw) > CHARTER_BYTES_MAX:
            raise RefusedError("the charter is too long", reason=Reason.MALFORMED)
        if raw == self.raw:
            return False
        signed = open_envelope(raw, Charter, self._context.grid.id, self._context.wall_ms())
        if signed.author != self._context.grid.root:
            raise RefusedError("a charter that the grid's founder did not sign", reason=Reason.BAD_SIGNATURE)
        if self._current is not None and signed.body.created_ms <= self._current.body.created_ms:
            return False
        self._current = signed
        for peer in self._peers.live():
            self._peers.notify(NodeKey(peer), "grid.charter", CharterNotice(raw))
        for changed in self._changed:
            changed()
        return True

    async def _save(self) -> None:
        if self._keeps:
            with suppress(P2PGridError):
                await self._context.offload.run(self._home.write_private, FILE, self.raw)

    def learn(self, raw: bytes) -> None:
        """A peer showed this charter. What does not hold is passed over: it may be from another version."""
        if not raw:
            return
        try:
            if self._adopt(raw):
                self._tasks.spawn(self._save(), "save")
        except P2PGridError as error:
            self._context.tell(error.reason, f"a charter was not taken: {error}")

    def _on_charter(self, session: Session, notice: CharterNotice) -> None:
        self.learn(notice.charter)

    async def _on_runner(self, session: Session, request: RunnerRequest) -> RunnerReply:
        return RunnerReply(await self.ensure() if request.have else self.runner)

    def _on_came(self, peer: NodeKey) -> None:
        session = self._peers.live().get(peer)
        if session is not None and session.hello is not None:
            self.learn(session.hello.charter)


def _address(path: Path) -> BlobId:
    """The blob id of a file. Raises UnreachableError when it cannot be read."""
    from p2pgrid.model.blob import BlobHasher

    hasher = BlobHasher()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                hasher.update(piece)
    except OSError as error:
        raise UnreachableError(f"the installed Python runner cannot be read: {error}", reason=Reason.NO_RUNNER) from error
    return hasher.finish()[0]
