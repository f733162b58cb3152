"""Rounds of real nodes at work that are killed at any moment, and of looking at what they promised before.

Two nodes: the first is at its owner's service without a pause, with files going in and out and jobs being computed. The
second holds copies, keeps the jobs and computes. Each round both are killed, each at a moment of its own, and sometimes
the command that is writing a file. What they had promised by then is looked for on their disks, and again when they are back.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from p2pgrid.client.channel import Channel
from p2pgrid.client.jobs import JobBuilder, JobOptions
from p2pgrid.client.running import collect
from p2pgrid.errors import P2PGridError
from p2pgrid.model import log as kinds
from p2pgrid.model.blob import address_of
from p2pgrid.model.ids import BlobId, GridId, JobId, StatementId, from_text, to_text
from p2pgrid.model.job import Job
from p2pgrid.model.script import parse_script
from p2pgrid.services.absorbing import KeptJob, absorb
from p2pgrid.store.home import Home
from p2pgrid.store.ledger import Ledgers, Record
from p2pgrid.wire.envelope import open_envelope, seal
from p2pgrid.wire.messages import LogRecord
from tests.e2e.grids import SLEEPERS, Member, start_cli, start_node, until

KIB, MIB, DAY_MS = 1 << 10, 1 << 20, 86_400_000
SIZES = (4 * KIB, 4 * KIB, 5000, 64 * KIB, 64 * KIB, MIB, MIB + 1, 3 * MIB, 8 * MIB)
WORK_S = 1.2
"""A round's work is cut off within so long."""
UNITS = 24
UNIT_S = "0.01"
CHECKED_MAX = 6
"""Of the latest, and of all others, so many blobs and jobs are looked at in one round; in the last one all."""
SCRIPT = parse_script(SLEEPERS.read_text().partition("def finish")[0], SLEEPERS.name)
"""Without its end each unit's result is reported as soon as it is decided."""


@lru_cache(maxsize=32)
def _content(seed: int, size_bytes: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


T = TypeVar("T")


class File(NamedTuple):
    """What was put: made again from its seed."""

    seed: int
    size_bytes: int
    copies: int

    @property
    def content(self) -> bytes:
        return _content(self.seed, self.size_bytes)


@dataclass
class Promises:
    """All that was acknowledged, over all lives."""

    files: dict[BlobId, File] = field(default_factory=dict)
    jobs: dict[JobId, dict[int, Any]] = field(default_factory=dict)
    """By job: the results that were reported."""
    detached: list[JobId] = field(default_factory=list)
    """Jobs whose ids the command printed."""
    kept: set[JobId] = field(default_factory=set)
    """Jobs that the second node keeps."""


class Command(NamedTuple):
    """A command of the owner that runs while the nodes work."""

    what: str
    process: subprocess.Popen[str]
    promise: Callable[[str], None] | None
    """Told the line that it printed."""
    target: Path = Path()
    file: File | None = None
    """What it writes to ``target``."""


class Rounds:
    """The two nodes, and what they promised."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        self.promises = Promises()
        self.moments: Counter[str] = Counter()
        """How many kills fell into what."""
        self.kills = 0
        self._flying: Counter[str] = Counter()
        self._ports = [_free_port(), _free_port()]
        self._homes = [folder / "first", folder / "second"]
        self.members: dict[int, Member] = {}
        self._seeds = 0
        self._killed = False

    # -- lives ---------------------------------------------------------------------------

    async def found(self) -> None:
        """The first life of both."""
        await self._start(0)
        invite = self.members[0].run("invite").stdout.strip()
        await self._start(1, invite)

    async def _start(self, number: int, *words: str) -> None:
        listen = f"127.0.0.1:{self._ports[number]}"
        member = start_node(self._homes[number], *words, "--listen", listen, "--storage", "2G")
        self.members[number] = member
        await asyncio.to_thread(until, lambda: member.ready, f"{member.home.name} is ready")

    async def _meet(self) -> None:
        """Until the first node has the second among those that answer."""
        async with await self._channel(0) as channel, asyncio.timeout(20.0):
            while sum(peer.status is not None for peer in (await channel.peers()).peers) < 2:
                await asyncio.sleep(0.02)

    async def _channel(self, number: int) -> Channel:
        return await Channel.open(Home(self._homes[number], os.urandom), wall_ms)

    async def round(self) -> None:
        """Work until both were killed; look at their disks; start them and look again."""
        await self._meet()
        async with _closed_at_the_end(await self._channel(0)) as channel:
            await self._work(channel)
        self._look_at_logs()
        await asyncio.gather(self._start(0), self._start(1))
        await self._look(0, list(self.promises.files))
        await self._look(1, [blob for blob, file in self.promises.files.items() if file.copies > 1])

    def close(self) -> None:
        for member in self.members.values():
            if member.process.poll() is None:
                member.kill()

    # -- work ----------------------------------------------------------------------------

    async def _work(self, channel: Channel) -> None:
        self._killed = False
        tasks = [asyncio.ensure_future(self._again(action, channel)) for action in (self._put, self._get, self._compute)]
        command = self._start_command()
        try:
            await asyncio.gather(self._kill(0), self._kill(1), self._end_command(command))
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _again(self, action: Callable[[Channel], Awaitable[None]], channel: Channel) -> None:
        """Do something over and over until the node is gone, which alone excuses an error."""
        try:
            while not self._killed:
                await action(channel)
        except (P2PGridError, OSError):
            if not self._killed and self.members[0].process.poll() is None:
                raise

    @contextmanager
    def _during(self, what: str) -> Iterator[None]:
        self._flying[what] += 1
        try:
            yield
        finally:
            self._flying[what] -= 1

    async def _kill(self, number: int) -> None:
        await asyncio.sleep(self._chance.uniform(0.0, WORK_S))
        self.kills += 1
        flying = [what for what, count in sorted(self._flying.items()) if count]
        self.moments.update(flying or ["the other's absence" if self._killed else "rest"])
        if number == 0:
            self._killed = True
        self.members[number].process.kill()
        await asyncio.to_thread(self.members[number].process.wait)

    async def _put(self, channel: Channel) -> None:
        file = self._new_file(self._chance.choice((1, 2)))
        path = self._write(file)
        with self._during("put"):
            reply = await channel.put(path, replicas=file.copies, expires_ms=wall_ms() + DAY_MS, listed=True)
        assert reply.size_bytes == file.size_bytes
        self.promises.files[BlobId(reply.blob)] = file._replace(copies=reply.copies)
        path.unlink()

    def _new_file(self, copies: int) -> File:
        self._seeds += 1
        return File(self._seeds, self._chance.choice(SIZES), copies)

    def _write(self, file: File) -> Path:
        path = self._folder / f"file-{file.seed}"
        path.write_bytes(file.content)
        return path

    async def _get(self, channel: Channel) -> None:
        if not self.promises.files:
            await asyncio.sleep(0.01)
            return
        blob = self._chance.choice(list(self.promises.files))
        with self._during("get"):
            await _check_readable(channel, blob, self.promises.files[blob])

    async def _compute(self, channel: Channel) -> None:
        builder = JobBuilder(JobOptions(), wall_ms, os.urandom)
        plan = builder.script(SCRIPT, [[number, float(UNIT_S)] for number in range(UNITS)])
        signed = seal(plan.job, channel.submitter, channel.grid.id)
        with self._during("ledger"):
            detach = self._chance.random() < 0.5
            job, keepers = await channel.submit(signed.raw, plan.batches, detach=detach)
            reported = self.promises.jobs.setdefault(job, {})
            if detach and keepers:
                self.promises.kept.add(job)
            await collect(channel, job, wait=True, on_value=reported.__setitem__)

    # -- commands ------------------------------------------------------------------------

    def _start_command(self) -> Command | None:
        """A command of the owner, begun with the work."""
        what = self._chance.choice(("get -o", "get -o", "put", "run --detach"))
        home = self._homes[0]
        if what == "run --detach":
            process = start_cli(home, "run", "--detach", SLEEPERS, str(UNITS), UNIT_S)
            return Command(what, process, lambda line: self.promises.detached.append(JobId(StatementId(from_text(line, what="job")))))
        if what == "put":
            file = self._new_file(1)
            process = start_cli(home, "put", "--replicas", "1", self._write(file))
            return Command(what, process, lambda line: self.promises.files.update({BlobId(from_text(line, what="blob")): file}))
        large = [blob for blob, file in self.promises.files.items() if file.size_bytes >= MIB]
        if not large:
            return None
        blob, target = self._chance.choice(large), self._folder / f"got-{self.kills}"
        return Command(what, start_cli(home, "get", to_text(blob), "-o", target), None, target, self.promises.files[blob])

    async def _end_command(self, command: Command | None) -> None:
        """Kill the command, or let it end. What it printed is promised; a file it writes is there as a whole or not at all."""
        if command is None:
            return
        process = command.process
        if self._chance.random() < 0.5:
            await asyncio.sleep(self._chance.uniform(0.0, WORK_S))
            if process.poll() is None:
                self.kills += 1
                self.moments.update([f"'{command.what}'"])
                process.kill()
        printed, said = await asyncio.to_thread(process.communicate, timeout=30)
        assert "Traceback" not in said, said
        if command.promise is not None and printed.endswith("\n"):
            command.promise(printed.strip())
        if command.file is not None and (process.returncode == 0 or command.target.exists()):
            assert command.target.read_bytes() == command.file.content, "half a file"

    # -- looking -------------------------------------------------------------------------

    def _some(self, promised: list[T]) -> list[T]:
        return list(dict.fromkeys([*promised[-CHECKED_MAX:], *self._chance.sample(promised, min(CHECKED_MAX, len(promised)))]))

    def _look_at_logs(self) -> None:
        """What the logs of the killed nodes say, before anybody repairs them: read from copies."""
        grid = _grid_of(self._homes[0])
        kept = [job for job in self.promises.jobs if job in self.promises.kept]
        for number, jobs in enumerate((list(self.promises.jobs), kept)):
            copies = self._folder / "logs"
            shutil.rmtree(copies, ignore_errors=True)
            shutil.copytree(self._homes[number] / "ledger", copies)
            ledgers = Ledgers(copies, os.urandom)
            for job in self._some(jobs):
                done = _done_in(ledgers, job, grid)
                reported = self.promises.jobs[job]
                assert done >= (len(reported) if number == 0 else 0), f"node {number}: {done} of {len(reported)} results are in the log"

    async def _look(self, number: int, blobs: list[BlobId]) -> None:
        """A node that is back has what it promised, and no leftovers."""
        home = self._homes[number]
        assert not list((home / "blobs" / "tmp").iterdir())
        # The node that runs writes such files, too: one that is left over stays.
        seen = set(home.rglob("*.tmp"))
        for _ in range(20):
            if not seen:
                break
            await asyncio.sleep(0.1)
            seen &= set(home.rglob("*.tmp"))
        assert not seen
        async with await self._channel(number) as channel:
            here = {line.blob: line.state for line in await channel.blobs(all=True)}
            assert {here.get(blob) for blob in blobs} <= {"held"}
            for blob in here.keys() - self.promises.files.keys():
                # Nobody was promised these: but what is shown is whole.
                assert here[blob] != "held" or address_of(_stored(home, blob))[0] == blob
            for blob in self._some(blobs):
                file = self.promises.files[blob]
                assert _digest(_stored(home, blob)) == _digest(file.content)
                await _check_readable(channel, blob, file)
            jobs = {*self.promises.jobs, *self.promises.detached} if number == 0 else self.promises.kept
            known = {line.job for line in await channel.jobs()}
            assert jobs <= known, f"{len(jobs - known)} of {len(jobs)} jobs are not known any more"
            if number == 0:
                for job in self._some(list(self.promises.jobs)):
                    await self._look_at_job(channel, job, wait=False)

    async def _look_at_job(self, channel: Channel, job: JobId, *, wait: bool) -> None:
        found: dict[int, Any] = {}
        async with asyncio.timeout(30.0):
            outcome = await collect(channel, job, wait=wait, on_value=found.__setitem__)
        assert found.items() >= self.promises.jobs[job].items()
        assert all(number == value for number, value in found.items())
        assert not wait or (outcome.line.state, len(found)) == ("done", UNITS), outcome

    async def finish(self) -> None:
        """In the end every job comes to its end, with every result, and every file is there."""
        await self._meet()
        async with await self._channel(0) as channel:
            for job in self.promises.jobs:
                await self._look_at_job(channel, job, wait=True)
            for job in self.promises.detached:
                printed: dict[int, Any] = {}
                async with asyncio.timeout(30.0):
                    await collect(channel, job, wait=True, on_value=printed.__setitem__)
                assert printed == {0: f"{UNITS} answers in order\n"}
            for blob, file in self.promises.files.items():
                await _check_readable(channel, blob, file)

    def report(self) -> str:
        jobs = len(self.promises.jobs) + len(self.promises.detached)
        promised = f"{len(self.promises.files)} files and {jobs} jobs were promised"
        met = ", ".join(f"{count} during {what}" for what, count in self.moments.most_common())
        return f"killed at {self.kills} moments: {met}; {promised}"


class _closed_at_the_end:  # noqa: N801 - used as a function
    """A channel whose node may be gone when it is closed."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def __aenter__(self) -> Channel:
        return self._channel

    async def __aexit__(self, *_: object) -> None:
        with suppress(P2PGridError, OSError):
            await self._channel.close()


async def _check_readable(channel: Channel, blob: BlobId, file: File) -> None:
    buffer = io.BytesIO()
    await channel.get(blob, buffer)
    assert _digest(buffer.getvalue()) == _digest(file.content)


def _digest(content: bytes) -> bytes:
    """Short, so that a difference is no page of bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _stored(home: Path, blob: bytes) -> bytes:
    """The content of a blob as it lies on the disk."""
    return (home / "blobs" / blob.hex()[:2] / blob.hex()).read_bytes()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return cast(int, taken.getsockname()[1])


def _grid_of(home: Path) -> GridId:
    from p2pgrid.services.membership import load

    membership = load(Home(home, os.urandom))
    assert membership is not None
    return membership.grid.id


def _done_in(ledgers: Ledgers, job: JobId, grid: GridId) -> int:
    """How many units of a job a log says are decided, with their values; -1 when it does not know the job."""
    records: list[Record] = []
    report = ledgers.open(job, lambda kind, data: records.append((kind, data)))
    assert not report.damaged, report.why
    if not records:
        return -1
    kept = KeptJob(open_envelope(records[0][1], Job, grid, None), cast(Any, _NoFile()))
    for kind, data in records[1:]:
        absorb(kept, [LogRecord(kind, data)], grid, None)
    payloads = {kind for kind, _ in records}
    assert kinds.PAYLOAD in payloads or not kept.ledger.done
    return kept.ledger.done


class _NoFile:
    """Stands for the file of a log that is only looked at."""

    end = 0
