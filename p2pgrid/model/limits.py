"""Every bound of the protocol and of a node, in one frozen struct (DESIGN: limits to start from)."""

from __future__ import annotations

import msgspec

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds in bytes (``_bytes``), seconds (``_s``), milliseconds (``_ms``) and counts. What is over is refused with a reason."""

    # Frames and messages
    control_frame_bytes: int = 64 * KIB
    """Largest message on the control stream of a connection; larger ones take a stream of their own."""
    bulk_message_bytes: int = 8 * MIB
    """Largest single message on a stream of its own."""
    bulk_write_bytes: int = 256 * KIB
    """Size of one write of bulk bytes."""
    stream_window_bytes: int = 1 * MIB
    """Bytes in flight on one stream before its reader must take some."""
    statement_bytes: int = 4 * MIB
    """Largest signed statement, envelope included."""

    # Connections
    connections: int = 128
    """Live connections of a node; idle ones are closed, least recently used first."""
    connections_per_peer: int = 2
    unauthenticated: int = 16
    """Connections that have not yet shown a valid membership."""
    unauthenticated_s: float = 10.0
    unauthenticated_bytes: int = 64 * KIB
    requests_per_peer: int = 32
    """Requests of one peer being answered at one time; more are answered `busy`."""
    streams_per_connection: int = 64
    dial_s: float = 5.0
    heartbeat_s: float = 5.0
    dead_after_s: float = 15.0
    call_s: float = 10.0
    """Default time-out of a call."""

    # Time
    clock_skew_ms: int = 5 * 60 * 1000

    # Jobs
    batch_units: int = 1024
    batch_bytes: int = 1 * MIB
    job_units: int = 10_000_000
    input_inline_bytes: int = 64 * KIB
    """A unit's input above this is sent as a blob."""
    result_inline_bytes: int = 16 * KIB
    """A unit's result above this is stored as a blob before its receipt counts."""
    result_bytes: int = 64 * MIB
    """Largest result of one unit."""
    ledger_bytes: int = 1 * GIB
    """Largest ledger of one job at one keeper."""
    jobs_kept: int = 1024
    jobs_led: int = 64

    # Storage
    chunk_bytes: int = 1 * MIB
    blob_bytes: int = 32 * GIB

    # DHT
    datagram_bytes: int = 1200
    record_bytes: int = 900
    records: int = 20_000
    records_per_key: int = 64
    records_per_author: int = 256


DEFAULT_LIMITS = Limits()
