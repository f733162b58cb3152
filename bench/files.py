"""``python -m bench files``: a file put into a grid of six nodes with three copies and got back, beside ``cp`` and plain TLS.

All four are done in turn in each round, with a fresh file each time, so that a machine that gets slower hits all alike. Every
one ends with the bytes synced: a copy that is only in the page cache is no copy.
"""

from __future__ import annotations

import filecmp
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench import audit, cpu, plain
from bench.grid import DAY_MS, Grid, wall_ms
from p2pgrid.client.channel import Channel
from p2pgrid.model.ids import BlobId

NODES = (("putting node", 0), ("other node", 0), ("other node", 0), ("other node", 0), ("other node", 0), ("other node", 0))
COPIES = 3
PIECE_BYTES = 4 << 20
MIB = 1 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PINNED_BYTES = 2 << 20
COPIES_IN_ALL = 6
"""The source, three copies, one more where it is got, and what the client gets."""


class Options(NamedTuple):
    """What the command line asks for."""

    size_bytes: int = 1 << 30
    rounds: int = 3
    folder: Path | None = None
    as_json: bool = False


class Sample(msgspec.Struct, kw_only=True):
    """One way of moving the file, once. Seconds throughout."""

    wall_s: float
    roles_s: dict[str, float]
    """CPU by role."""
    peak_bytes: int = 0
    """The most memory that one node had."""


class Files(Grid):
    """Six nodes that lend no cores, and the client in this process."""

    def __init__(self, folder: Path, storage_bytes: int) -> None:
        super().__init__(nodes=NODES, storage=str(storage_bytes), folder=folder)

    def put(self, path: Path) -> tuple[bytes, Sample]:
        """Put a file through the first node; returns its address. Three nodes hold it when this returns."""

        size_bytes = path.stat().st_size

        async def work() -> bytes:
            async with await self._channel(0) as channel:
                reply = await channel.put(path, replicas=COPIES, expires_ms=wall_ms() + DAY_MS)
            audit.require(reply.copies == COPIES and reply.size_bytes == size_bytes, "three copies are held")
            return reply.blob

        blob, sample = self._measured(work())
        audit.require(len(self.holders(blob)) == COPIES, "three nodes have the file in their stores")
        return blob, sample

    def get(self, blob: bytes, target: Path) -> Sample:
        """Get a file at a node that does not hold it."""
        number = next(number for number in range(len(NODES)) if number not in self.holders(blob))

        async def work() -> None:
            with target.open("wb") as file:
                async with await self._channel(number) as channel:
                    await channel.get(BlobId(blob), file)
                file.flush()
                os.fsync(file.fileno())

        return self._measured(work())[1]

    async def _channel(self, number: int) -> Channel:
        """One for each command, as people have it. Those of the grid die while this process writes files without its loop."""
        return await Channel.open(self._home(number), wall_ms)

    def holders(self, blob: bytes) -> list[int]:
        """The nodes in whose store the content lies under its name."""
        name = blob.hex()
        return [number for number in range(len(NODES)) if (self._home(number).blobs / name[:2] / name).exists()]

    def _measured(self, work: Coroutine[Any, Any, Any]) -> tuple[Any, Sample]:
        for process in self._processes:
            _forget_peak(process.pid)
        before, began = self._spent(), time.perf_counter()
        result = self._run(work)
        wall_s = time.perf_counter() - began
        roles_s = cpu.difference(self._spent(), before)
        return result, Sample(wall_s=wall_s, roles_s=roles_s, peak_bytes=max(_peak_bytes(process.pid) for process in self._processes))

    def _spent(self) -> dict[str, float]:
        return cpu.by_role(cpu.read_processes(), os.getpid(), {**self.roles(), os.getpid(): "client"}, self.inherited)


def _forget_peak(process_id: int) -> None:
    with suppress(OSError):
        Path(f"/proc/{process_id}/clear_refs").write_text("5")


def _peak_bytes(process_id: int) -> int:
    """The most memory a process had since its peak was forgotten."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def run(options: Options, say: Callable[[str], None]) -> int:
    """Measure and print; returns the exit code. ``say`` gets progress."""
    samples: dict[str, list[Sample]] = {}
    with tempfile.TemporaryDirectory(prefix="p2pgrid-bench-files-", dir=options.folder) as name:
        folder = Path(name)
        memory = Memory(3 * options.size_bytes * COPIES_IN_ALL)
        grid = Files(folder, options.size_bytes * options.rounds * 3 + (1 << 30))
        try:
            grid.start()
            for number in range(options.rounds):
                say(f"round {number + 1}/{options.rounds} (load {os.getloadavg()[0]:.1f})")
                for kind, sample in measure(grid, folder, options.size_bytes).items():
                    samples.setdefault(kind, []).append(sample)
        finally:
            grid.close()
            memory.close()
    if options.as_json:
        print(json.dumps(document(options.size_bytes, samples), indent=2))
    else:
        print(table(options.size_bytes, samples))
    return 0


def measure(grid: Files, folder: Path, size_bytes: int) -> dict[str, Sample]:
    """One round of all four, with a file nobody has seen."""
    source, target = folder / "source", folder / "target"
    with source.open("wb") as file:
        for start in range(0, size_bytes, PIECE_BYTES):
            file.write(os.urandom(min(PIECE_BYTES, size_bytes - start)))
    found: dict[str, Sample] = {}
    for name, way in (("cp", plain.copy), ("plain TLS", plain.copy_over_tls)):
        _at_rest(target)
        cost = way(source, target)
        found[name] = Sample(wall_s=cost.wall_s, roles_s={name: cost.cpu_s})
    _at_rest(target)
    blob, found["put, 3 copies"] = grid.put(source)
    _at_rest(target)
    found["get"] = grid.get(blob, target)
    audit.require(filecmp.cmp(source, target, shallow=False), "what was got is what was put")
    _let_go(folder)
    return found


def _at_rest(target: Path) -> None:
    """The same start for all: what others wrote is on the disk, so that nobody waits for somebody else's bytes."""
    target.unlink(missing_ok=True)
    os.sync()


def _let_go(folder: Path) -> None:
    """Take what a round left on the disk out of memory."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size >= MIB:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Memory:
    """Memory that this machine has, free for whoever needs it.

    A virtual machine asks for a page when it touches it and hands back what lies free in one piece: a page that must be asked
    for costs ten times the write into it, and who pays is chance. Here pages are touched and given up again but for one in
    each 2 MiB, so that what is free lies in pieces and stays.
    """

    def __init__(self, size_bytes: int) -> None:
        wanted = min(size_bytes, os.sysconf("SC_AVPHYS_PAGES") * PAGE_BYTES // 2) // PINNED_BYTES * PINNED_BYTES
        self._map = mmap.mmap(-1, wanted, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            self._map.madvise(mmap.MADV_NOHUGEPAGE)
        for start in range(0, wanted, PAGE_BYTES):
            self._map[start] = 1
        for start in range(0, wanted, PINNED_BYTES):
            self._map.madvise(mmap.MADV_DONTNEED, start + PAGE_BYTES, PINNED_BYTES - PAGE_BYTES)

    def close(self) -> None:
        self._map.close()


def _rate(size_bytes: int, samples: Sequence[Sample]) -> float:
    return statistics.median(size_bytes / 1e6 / sample.wall_s for sample in samples)


def _cost(size_bytes: int, samples: Sequence[Sample]) -> float:
    """CPU seconds per GB (1e9 bytes), all processes together."""
    return statistics.median(sum(sample.roles_s.values()) / (size_bytes / 1e9) for sample in samples)


def table(size_bytes: int, samples: Mapping[str, Sequence[Sample]]) -> str:
    """Medians over the rounds, as Markdown."""
    lines = [
        f"| {size_bytes / MIB:,.0f} MiB | MB/s (min-max) | beside cp | beside plain TLS | CPU s/GB | of which | peak MiB of a node |",
        "|---|--:|--:|--:|--:|---|--:|",
    ]
    for name, found in samples.items():
        rates = [size_bytes / 1e6 / sample.wall_s for sample in found]
        ratios = [f"{_ratio(samples, name, other):.2f} x" if other in samples else "" for other in ("cp", "plain TLS")]
        roles = {role for sample in found for role in sample.roles_s}
        parts = {role: statistics.median(sample.roles_s.get(role, 0.0) for sample in found) / (size_bytes / 1e9) for role in roles}
        shown = ", ".join(f"{role} {cost:.2f}" for role, cost in sorted(parts.items(), key=lambda item: -item[1]) if cost >= 0.005)
        peak = max(sample.peak_bytes for sample in found) // MIB
        lines.append(
            f"| {name} | {_rate(size_bytes, found):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) | {ratios[0]} | {ratios[1]}"
            f" | {_cost(size_bytes, found):.2f} | {shown if len(parts) > 1 else ''} | {peak or ''} |"
        )
    return "\n".join(lines)


def _ratio(samples: Mapping[str, Sequence[Sample]], name: str, other: str) -> float:
    """The median over the rounds of the speed beside another's in the same round."""
    return statistics.median(theirs.wall_s / mine.wall_s for mine, theirs in zip(samples[name], samples[other], strict=True))


def document(size_bytes: int, samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Everything, raw figures included, for ``--json``."""
    return {
        "size_bytes": size_bytes,
        "summaries": {
            name: {
                "mb_per_s": _rate(size_bytes, found),
                "cpu_s_per_gb": _cost(size_bytes, found),
                "beside_cp": _ratio(samples, name, "cp"),
                "beside_plain_tls": _ratio(samples, name, "plain TLS"),
                "peak_bytes": max(sample.peak_bytes for sample in found),
            }
            for name, found in samples.items()
        },
        "rounds": {name: msgspec.to_builtins(list(found)) for name, found in samples.items()},
    }
