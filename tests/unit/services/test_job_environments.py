"""The packages of jobs between nodes: wheels come from peers, each environment is built once, failures are not repeated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from p2pgrid.errors import IntegrityError, MalformedError, RefusedError, TryAgainError, UnreachableError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.environment import Environment
from p2pgrid.model.reasons import Reason
from p2pgrid.node import Node
from p2pgrid.runtimes import packages
from p2pgrid.runtimes.packages import EnvironmentPolicy, Environments
from p2pgrid.services import environments as services
from p2pgrid.services.environments import JobEnvironments
from p2pgrid.wire.codec import encode
from tests.unit.runtimes.wheel_maker import environment_of, make_wheel, pin_of, wheel_of
from tests.unit.services.grid_in_process import DAY_MS, Grid, wall_ms


class Worker:
    """The packages of one node of a grid."""

    def __init__(self, grid: Grid, folder: Path) -> None:
        self.grid = grid
        self.submitter, self.node = grid.nodes[:2]
        self.builder = Environments(folder, EnvironmentPolicy(), self.node.context.offload, time.monotonic)
        self.service = JobEnvironments(self.node.context, self.node.storing, self.builder)

    @property
    def sources(self) -> list[bytes]:
        return [self.submitter.context.me]

    def put(self, content: bytes) -> bytes:
        """Have the submitter hold a blob."""
        self.submitter.blobs.put_bytes(content, owner=self.submitter.context.me, expires_ms=wall_ms() + DAY_MS)
        return blob_id_of(content)

    def submit(self, *wheels: Path, environment: Environment | None = None) -> bytes:
        """Have the submitter hold an environment and its wheels; returns what a job would name."""
        for wheel in wheels:
            self.put(wheel.read_bytes())
        return self.put(encode(environment or environment_of(*wheels)))

    async def folder(self, blob: bytes) -> Path:
        async with asyncio.timeout(30):
            return await self.service.folder(blob, self.sources)


@pytest.fixture
async def worker(grid: Grid, tmp_path: Path) -> AsyncIterator[Worker]:
    await grid.grow(2)
    worker = Worker(grid, tmp_path / "environments")
    await worker.service.start()
    yield worker
    await worker.service.close()


def holds(node: Node, wheel: Path) -> bool:
    return node.blobs.has(blob_id_of(wheel.read_bytes()))


async def test_a_worker_gets_the_wheels_from_the_submitter_and_builds_once(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, tiny = make_wheel(tmp_path, files={"data.bin": bytes(range(256)) * 8000}), make_wheel(tmp_path, "tiny")
    blob = worker.submit(toy, tiny)
    folders = await asyncio.gather(*[worker.folder(blob) for _ in range(20)])
    assert len(set(folders)) == 1
    assert {"toy.py", "tiny.py", "data.bin"} <= {path.name for path in folders[0].iterdir()}
    monkeypatch.setattr(packages, "run_uv", None)
    assert await worker.folder(blob) == folders[0]
    for _ in range(21):
        worker.service.release(folders[0])
    assert not worker.builder._users


async def test_only_the_wheels_of_this_machine_are_fetched(worker: Worker, tmp_path: Path) -> None:
    toy, foreign = make_wheel(tmp_path), make_wheel(tmp_path, tags="cp311-cp311-win_amd64")
    blob = worker.submit(toy, foreign, environment=environment_of(toy, foreign, pins=[pin_of(toy, foreign)]))
    await worker.folder(blob)
    assert holds(worker.node, toy)
    assert not holds(worker.node, foreign)


async def test_the_policy_is_asked_before_a_wheel_is_fetched_and_does_not_bind_the_owner(worker: Worker, tmp_path: Path) -> None:
    worker.builder.policy = EnvironmentPolicy(mode="off")
    toy = make_wheel(tmp_path)
    blob = worker.submit(toy)
    with pytest.raises(RefusedError) as caught:
        await worker.folder(blob)
    assert caught.value.reason == Reason.NO_ENVIRONMENT
    assert not holds(worker.node, toy)
    assert (await worker.service.folder(blob, worker.sources, own=True)).is_dir()
    with pytest.raises(RefusedError):
        await worker.folder(blob)


async def test_what_is_no_environment_is_malformed(worker: Worker) -> None:
    for raw in (b"junk", msgspec.msgpack.encode(["--index-url http://host\n", "", []]), encode(environment_of_nothing())):
        with pytest.raises(MalformedError):
            await worker.folder(worker.put(raw))


def environment_of_nothing() -> list[object]:
    return ["", "", []]


async def test_a_failure_is_not_repeated_with_every_lease_but_only_for_its_own_job(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_wheel(tmp_path)
    honest = environment_of(toy)
    without = worker.submit(environment=msgspec.structs.replace(honest, wheels=()))
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            await worker.folder(without)
        assert caught.value.reason == Reason.NO_WHEEL
    with monkeypatch.context() as patch:
        patch.setattr(worker.service, "_set_up", None)
        with pytest.raises(RefusedError):
            await worker.folder(without)
    assert (await worker.folder(worker.submit(toy, environment=honest))).is_dir()
    monkeypatch.setattr(services, "FAILURE_S", 0.0)
    assert (await worker.folder(without)).is_dir(), "with this lock it is there by now"


async def test_a_blob_that_is_not_the_wheel_it_was_called_is_refused(worker: Worker, tmp_path: Path) -> None:
    toy, other = make_wheel(tmp_path), make_wheel(tmp_path, "other")
    forged = msgspec.structs.replace(wheel_of(toy), blob=worker.put(other.read_bytes()))
    environment = msgspec.structs.replace(environment_of(toy), wheels=(forged,))
    with pytest.raises(IntegrityError) as caught:
        await worker.folder(worker.submit(environment=environment))
    assert caught.value.reason == Reason.BAD_PACKAGE


async def test_a_wheel_that_nobody_holds_may_come_later(worker: Worker, tmp_path: Path) -> None:
    toy = make_wheel(tmp_path)
    blob = worker.submit(environment=environment_of(toy))
    with pytest.raises(UnreachableError):
        await worker.folder(blob)
    worker.put(toy.read_bytes())
    assert (await worker.folder(blob)).is_dir()


async def test_a_build_ends_when_the_last_of_those_who_wait_goes(worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slow(*arguments: object, **more: object) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with monkeypatch.context() as patch:
        patch.setattr(packages, "run_uv", slow)
        blob = worker.submit(make_wheel(tmp_path))
        waiters = [asyncio.create_task(worker.folder(blob)) for _ in range(3)]
        await asyncio.wait_for(begun.wait(), 30)
        for waiter in waiters[:2]:
            waiter.cancel()
        await asyncio.wait(waiters[:2])
        assert not ended.is_set()
        waiters[2].cancel()
        await asyncio.wait_for(ended.wait(), 30)
    assert (await worker.folder(blob)).is_dir()


async def test_closing_ends_what_is_being_built(worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def slow(*arguments: object, **more: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(packages, "run_uv", slow)
    waiter = asyncio.create_task(worker.folder(worker.submit(make_wheel(tmp_path))))
    await asyncio.wait_for(begun.wait(), 30)
    await worker.service.close()
    with pytest.raises(TryAgainError):
        await asyncio.wait_for(waiter, 30)
    assert list((tmp_path / "environments").iterdir()) == []
