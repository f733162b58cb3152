"""What nodes say to each other over a session: one struct a message (docs/spec/messages.md).

Signed statements travel as raw envelopes (``bytes``), so that what is verified is what was sent.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base: positions are the schema, new fields are appended with a default."""


class Ok(Message, frozen=True):
    """Done; nothing to say."""


class InfoNotice(Message, frozen=True):
    """``node.info``, one-way: the sender's offer has changed."""

    info: bytes
    """The encoded NodeInfo, as in a hello."""


class CharterNotice(Message, frozen=True):
    """``grid.charter``, one-way: the sender has learnt of a newer charter of the grid."""

    charter: bytes


# -- jobs: lead and worker ---------------------------------------------------


class JobInvite(Message, frozen=True):
    """``job.invite``, lead to worker, one-way: there is work for the next two seconds."""

    job: bytes
    runtime: str
    memory_bytes: int
    expires_ms: int


class PullRequest(Message, frozen=True):
    """``job.pull``, worker to lead."""

    job: bytes
    slots: int
    want: int
    need_job: bool
    """The worker does not have the signed job yet."""
    have: tuple[int, ...] = ()
    """Batches it still holds."""
    epoch: int = -1
    """Of the newest keeper set it knows; -1: none."""
    leases: tuple[bytes, ...] = ()
    """Leases of the job that it still answers. A lead whose keeper set is newer than ``epoch`` gives the others up."""


class PullReply(Message, frozen=True):
    """A lease with the batches it needs, or nothing now (empty ``grant``)."""

    over: bool
    grant: bytes = b""
    job: bytes = b""
    keepers: tuple[bytes, ...] = ()
    """From a keeper set that the submitter signed to the newest, each after the first by somebody named before.

    Empty unless the worker's newest is older.
    """
    batches: tuple[tuple[int, bytes], ...] = ()


class LeasesReturned(Message, frozen=True):
    """``job.returned``, worker to whoever granted, one-way: nothing more will be answered under these leases."""

    job: bytes
    grants: tuple[bytes, ...]
    reason: str


class JobDeclined(Message, frozen=True):
    """``job.declined``, worker to lead, one-way: why it takes no units of a job that it was invited to."""

    job: bytes
    reason: str
    """A reason code."""


class JobPreparing(Message, frozen=True):
    """``job.preparing``, worker to lead, one-way: what keeps it from running units of the job yet. At most once a second."""

    job: bytes
    what: str
    """``packages``, ``unpacking``, ``runner``, ``module`` or ``inputs``."""
    done: int = 0
    total: int = 0
    """Of what can be counted; 0: it cannot."""
    elapsed_s: float = 0.0


class Payload(Message, frozen=True):
    """The results of a receipt's units, in order; nil (with another digest than nil's) where the result is a blob."""

    values: list[msgspec.Raw]


class Delivered(NamedTuple):
    """A receipt's envelope and its encoded payload."""

    receipt: bytes
    payload: bytes


class Delivery(Message, frozen=True):
    """``job.deliver``, worker to lead or keeper. Answered when it is on disk."""

    job: bytes
    items: tuple[Delivered, ...]
    grants: tuple[bytes, ...] = ()
    """The leases of the receipts, for a receiver that did not grant them: their author may be gone before it told anybody."""


class DeliveryReply(Message, frozen=True):
    """``refused`` has a reason code for each item that does not count, else an empty string."""

    refused: tuple[str, ...]


# -- jobs: lead and keeper -----------------------------------------------------


class LogRecord(NamedTuple):
    """A line of a job's log: kind (p2pgrid.model.log) and content."""

    kind: int
    data: bytes


class DeltaRequest(Message, frozen=True):
    """``job.delta``, lead to keeper: records of the log, the first ever beginning with the job. Answered when on disk."""

    job: bytes
    records: tuple[LogRecord, ...]


class DeltaReply(Message, frozen=True):
    """``keepers``: the chain to a newer keeper set than the sender's, when the receiver knows one: others lead the job by now."""

    keepers: tuple[bytes, ...] = ()


class HandOver(Message, frozen=True):
    """``job.handover``, lead to keeper: lead the job from now on. Answered when the new keeper set is on disk."""

    job: bytes


class LeadingQuestion(Message, frozen=True):
    """``job.leading``, keeper to lead: does it lead these jobs?"""

    jobs: tuple[bytes, ...]


class LeadingAnswer(Message, frozen=True):
    """``leads`` has a byte for each job asked about: 1 if it is led there now."""

    leads: bytes


class NodeLeaving(Message, frozen=True):
    """``node.leaving``, to everybody, one-way: takes no more work, and will be gone within ``within_s`` seconds."""

    within_s: float


class CancelRequest(Message, frozen=True):
    """``job.cancel``, anybody to anybody who leads, keeps or works: the submitter's signed cancel."""

    cancel: bytes


class JobReadRequest(Message, frozen=True):
    """``job.read``: the log of a job, from a cursor (0: the beginning)."""

    job: bytes
    cursor: int


class JobReadReply(Message, frozen=True):
    """A part of the log; ``cursor`` is where the next part begins, ``end`` whether there is none yet."""

    records: tuple[LogRecord, ...]
    cursor: int
    end: bool


# -- blobs ---------------------------------------------------------------------


class BlobRequest(Message, frozen=True):
    """``blob.info``."""

    blob: bytes


class BlobInfo(Message, frozen=True):
    """``root`` is the encoded list of chunks, empty for a blob of one chunk."""

    size_bytes: int
    root: bytes


class BlobRead(Message, frozen=True):
    """``blob.read``, a stream: chunks ``first .. first + count - 1`` follow, each with its number and its size (4 bytes each)."""

    blob: bytes
    first: int
    count: int


class BlobWrite(Message, frozen=True):
    """``blob.write``, a stream: the framed root follows (empty for one chunk).

    The receiver answers with BlobWant, then the wanted chunks follow.
    """

    blob: bytes
    size_bytes: int
    expires_ms: int
    announce: bool
    """Record the receiver as a holder in the DHT."""
    replicas: int = 1
    """Copies wanted in all; more than one: the receiver cares with the other holders that as many stay."""


class BlobWant(Message, frozen=True):
    """Answer within a blob.write stream: a reason to refuse, or the chunks still needed."""

    refused: str
    message: str
    runs: tuple[tuple[int, int], ...] = ()
    """(first, count) of the chunks still needed, ascending; at most 1,024 of them."""


class BlobHeld(Message, frozen=True):
    """Last word of a blob.write stream: the blob is verified and on disk."""

    held: bool
    reason: str = ""


class ProofWanted(NamedTuple):
    """A question within :class:`BlobHolds`: the digest of a nonce and a chunk, of the blob at a place."""

    place: int
    chunk: int
    nonce: bytes


class BlobHolds(Message, frozen=True):
    """``blob.holds``, holder to holder: which of these do you keep? The sender keeps them itself, or has until now."""

    blobs: bytes
    """Ids of 32 bytes, joined; at most 1,024."""
    until_ms: tuple[int, ...]
    """For how long each is wanted (Unix)."""
    proofs: tuple[ProofWanted, ...] = ()
    """At most 32."""


class BlobHoldsReply(Message, frozen=True):
    """The answer to ``blob.holds``."""

    kept: bytes
    """A byte for each blob: 0 no, 1 yes, 2 for a shorter time only."""
    proofs: tuple[bytes, ...] = ()
    """The BLAKE3 digest of nonce and chunk for each wanted proof, in order; empty where there is none."""


class HoldersOf(NamedTuple):
    """Who keeps one blob."""

    blob: bytes
    holders: tuple[bytes, ...]


class BlobHolders(Message, frozen=True):
    """``blob.holders``, holder to holder, one-way: who else keeps these, by what the sender knows."""

    items: tuple[HoldersOf, ...]


# -- nodes -----------------------------------------------------------------------


class StatusRequest(Message, frozen=True):
    """``node.status``."""


class NodeStatus(Message, frozen=True):
    """The live state of a node."""

    free_cores: int
    running: int
    queued: int
    done: int
    storage_used_bytes: int
    uptime_s: float
    load: float
    jobs_kept: int
    paused: str = ""
    """Why it takes no work now: a reason code; empty while it does."""
    paused_since_ms: int = 0
