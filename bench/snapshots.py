"""Snapshots as nodes would give them, made up: a busy small grid with everything that can be seen at once, and a crowd."""

from __future__ import annotations

import hashlib
import math

from msgspec.structs import replace

from p2pgrid.model.node import Address, NodeInfo, Offer
from p2pgrid.wire.faces import DhtHealth, Pulse
from p2pgrid.wire.messages import NodeStatus
from p2pgrid.wire.owner import EventLine, JobLine, OwnStatus, PeerLine, Snapshot

GIB = 1 << 30
WALL_MS = 1_700_000_000_000


def key(number: int) -> bytes:
    """Bytes like a node's key or a job's id."""
    return hashlib.sha256(b"%d" % number).digest()


ME, LAPTOP, CJK, EMOJI, PAUSED, LOST, AWAY, HOSTILE = (key(number) for number in range(8))


def info(name: str, cores: int, platform: str = "linux-x86_64") -> NodeInfo:
    """What a node says of itself."""
    offer = Offer(cores, 8 * GIB, 10 * GIB, platform, "3.12", ("native", "command", "wasm", "python"), ("gpu", "attic"))
    return NodeInfo(
        (Address("tls", "192.0.2.7", 7400), Address("tls", "2001:db8::7", 7400)), ("work", "store", "submit"), "0.1.0", name, offer
    )


def status(free: int, cores: int, *, done: int = 120, used: int = GIB, paused: str = "") -> NodeStatus:
    """How a node is."""
    since_ms = WALL_MS - 180_000 if paused else 0
    return NodeStatus(free, cores - free, 3, done, used, 11_400.0, 0.5, 1, paused, since_ms)


def peers() -> tuple[PeerLine, ...]:
    """One of each kind."""

    def peer(node: bytes, told: NodeInfo, state: NodeStatus | None, rtt_s: float, path: str, ago_s: float, trust: str) -> PeerLine:
        return PeerLine(node, told, state, rtt_s, path, WALL_MS - int(ago_s * 1000), trust)

    return (
        peer(ME, info("desk", 4), status(1, 4, done=1204), 0.0, "self", 11_400, "own"),
        peer(LAPTOP, info("a laptop whose name is rather long", 8), status(4, 8, used=2 * GIB), 0.0123, "direct", 3600, "native"),
        peer(CJK, info("東京の計算機", 16, "darwin-arm64"), status(0, 16, done=98_765, used=9 * GIB), 0.214, "relayed", 32_400, "native"),
        peer(EMOJI, info("🐙 octopus 👩‍🚀", 2), status(2, 2, done=0, used=0), 0.0007, "direct", 5, "guest"),
        peer(PAUSED, info("kitchen", 4), status(4, 4, paused="owner-active"), 0.0041, "direct", 144_000, "native"),
        peer(LOST, info("attic", 4), None, 0.0, "", 12, "native"),
        peer(AWAY, info("", 2), None, 0.0, "", 252_000, "native"),
        peer(HOSTILE, info("a\x1b[2J\x1b[31mb\nc", 1), status(1, 1), 0.033, "direct", 3600, "native"),
    )


def jobs() -> tuple[JobLine, ...]:
    """One in each state."""

    def job(number: int, name: str, state: str, units: int, done: int, failed: int = 0, disputed: int = 0, role: str = "led") -> JobLine:
        made_ms = WALL_MS - number * 60_000
        gone = state == "cancelled"
        return JobLine(
            job=key(100 + number),
            name=name,
            state=state,
            units=units,
            done=done,
            failed=failed,
            disputed=disputed,
            created_ms=made_ms,
            expires_ms=made_ms + 86_400_000,
            role=role,
            keepers=() if gone else (LAPTOP, CJK),
            workers={ME: done // 2, LAPTOP: done - done // 2} if done else {},
            runtime="native",
            map_units=units,
            lead=b"" if gone else ME,
        )

    return (
        replace(job(1, "wordcount.py", "running", 5120, 3021, 2, 1), rate=118.4, left_s=17.6),
        replace(job(2, "render the whole film.py", "running", 1_200_000, 410), rate=2.31, left_s=519_000.0),
        job(3, "動画を圧縮する", "running", 64, 0),
        job(4, "gzip -9kc {}", "done", 10, 10, role="kept"),
        job(5, "mandelbrot.wasm", "incomplete", 900, 899, 0, 3, role="kept"),
        job(6, "bad.py", "done", 20, 17, 3),
        job(7, "stopped.py", "stopped", 100, 33),
        job(8, "gone.py", "cancelled", 100, 12),
    )


def events(number: int = 60) -> tuple[EventLine, ...]:
    """Some that say something, after many that are alike."""
    many = [EventLine(WALL_MS - (number - index) * 7_000, "closed", f"connection {index} was closed") for index in range(number - 5)]
    said = (
        ("dead", f"{'attic'} stopped answering; 12 units of wordcount.py went back and are given to others", (LOST,)),
        ("owner-active", "kitchen takes no work now", (PAUSED,)),
        ("disagreed", "unit 812 of wordcount.py: two answers differ, a third is asked for", (key(101),)),
        ("raised", "unit 7 of bad.py raised ValueError: could not convert string to float: '東京'", (key(106),)),
        ("done", "gzip -9kc {} is done\x1b[5m", (key(104),)),
    )
    return (*many, *(EventLine(WALL_MS - (5 - index) * 3_000, code, text, about) for index, (code, text, about) in enumerate(said)))


def pulses(number: int = 60) -> tuple[Pulse, ...]:
    """Two minutes of a machine that works."""
    made, done, sent = [], 0.0, 0.0
    for index in range(number):
        wave = (math.cos((number - index) / 5 - 0.5) + 1) / 2
        done, sent = done + 120 * wave, sent + 2_000_000 * wave
        made.append(
            Pulse(
                wall_ms=WALL_MS - (number - 1 - index) * 2_000,
                peers=7 - (index > 50) * 2,
                running=round(3 * wave),
                queued=round(30 * (1 - wave)),
                done=int(done),
                cpu_share=0.1 + 0.8 * wave,
                memory_bytes=int(5 * GIB + GIB * wave),
                storage_bytes=GIB,
                sent_bytes=int(sent),
                received_bytes=int(sent / 3),
            )
        )
    return tuple(made)


def own_status(paused: str = "") -> OwnStatus:
    """The node that is asked."""
    return OwnStatus(
        node=ME,
        name="desk",
        grid="lab of friends",
        grid_id=key(99),
        roles=("work", "store"),
        info=info("desk", 4),
        status=status(1, 4, done=1204, paused=paused),
        pid=7,
        version="0.1.0",
        home="/srv/node",
        dht_server=True,
        dht_contacts=7,
        dht_records=9,
        expires_ms=0,
    )


def busy(paused: str = "") -> Snapshot:
    """A small grid with everything that can be seen at once."""
    return Snapshot(
        status=own_status(paused),
        peers=peers(),
        complete=True,
        jobs=jobs(),
        events=events(),
        wall_ms=WALL_MS,
        units_done=1204,
        pulses=pulses(),
        dht=DhtHealth(server=True, buckets=3, contacts=7, records=9, lookups=33, p50_ms=12.4, p95_ms=41.0),
        reach="dialled by 5 of 5 peers at 192.0.2.7:7400",
    )


def crowd(number: int = 1000, tick: int = 0) -> Snapshot:
    """Many peers, of which some change with each ``tick``."""
    base = busy()
    lines = [base.peers[0]]
    for index in range(1, number):
        moved = tick * (index % 5 == 0)
        free = (index * 7 + moved) % 9
        gone = (index + tick) % 97 == 0
        since_ms = WALL_MS - index * 1000
        state = None if gone else status(free, 8, done=index * 3 + moved, used=(index * GIB // 100) % (10 * GIB))
        path, rtt_s = ("", 0.0) if gone else ("direct", 0.001 + index / 5000)
        lines.append(PeerLine(key(index + 1000), info(f"machine-{index:04}", 8), state, rtt_s, path, since_ms, "native"))
    happened = events(200)[: 150 + tick % 50]
    return Snapshot(
        status=base.status,
        peers=tuple(lines),
        complete=False,
        jobs=base.jobs,
        events=happened,
        wall_ms=WALL_MS + tick * 500,
        units_done=tick,
        pulses=base.pulses,
        dht=base.dht,
        reach=base.reach,
    )
