"""The systems that p2pgrid is measured beside: ProcessPoolExecutor(2), and Dask with two worker processes."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

WORKERS = 2


def noop(number: int) -> int:
    """The unit of work of all systems."""
    return number


class _Peer:
    """What the peers have in common: nothing to audit, nothing to profile."""

    inherited = "workers"

    def roles(self) -> Mapping[int, str]:
        return {os.getpid(): "submitter"}

    def audit(self) -> dict[str, int]:
        return {}

    def profile(self, *, on: bool) -> None:
        return


class ProcessPool(_Peer):
    """The standard library's pool on pipes: no network, no encryption, nothing survives it."""

    chunksize = 1

    def start(self) -> None:
        self._pool = ProcessPoolExecutor(WORKERS)
        list(self._pool.map(noop, range(4 * WORKERS)))

    def many(self, units: int) -> None:
        assert list(self._pool.map(noop, range(units), chunksize=self.chunksize)) == list(range(units))

    def one(self, number: int) -> float:
        assert self._pool.submit(noop, number).result() == number
        return time.perf_counter()

    def close(self) -> None:
        self._pool.shutdown()


class ProcessPoolChunks(ProcessPool):
    """The same with its caller cutting the work by hand."""

    chunksize = 64


class Dask(_Peer):
    """distributed's LocalCluster: a scheduler in this process, two worker processes of one thread."""

    security: bool | None = None

    def start(self) -> None:
        distributed: Any = importlib.import_module("distributed")

        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        protocol = "tls://" if self.security else None
        self._cluster: Any = distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, security=self.security, protocol=protocol
        )
        self._client: Any = distributed.Client(self._cluster)
        self._client.wait_for_workers(WORKERS)

    def many(self, units: int) -> None:
        assert self._client.gather(self._client.map(noop, range(units), pure=False)) == list(range(units))

    def one(self, number: int) -> float:
        assert self._client.submit(noop, number, pure=False).result() == number
        return time.perf_counter()

    def close(self) -> None:
        self._client.close()
        self._cluster.close()


class DaskTls(Dask):
    """The same with encrypted connections."""

    security = True


def missing(name: str) -> str:
    """What to say when a peer is not installed; empty when it is."""
    if name.startswith("dask") and importlib.util.find_spec("distributed") is None:
        return "distributed is not installed (pip install 'p2pgrid[bench]')"
    return ""
