"""Why something was refused, paused or tried again: one registry of reason codes.

A code is what crosses the wire and what ``--json`` shows; the sentence is what people read.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """A code; ``.sentence`` explains it and ``.next_step`` says what to do."""

    sentence: str
    next_step: str

    def __new__(cls, code: str, sentence: str, next_step: str = "") -> Reason:
        member = str.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        member.next_step = next_step
        return member

    # Connections and membership
    OTHER_GRID = "other-grid", "the peer belongs to another grid", "use an invite of this grid"
    NOT_MEMBER = "not-member", "the peer showed no valid membership of this grid", "join with a fresh invite"
    EXPIRED = "expired", "a signed statement is past its expiry", "ask for a new one"
    CLOCK_OFF = "clock-off", "the two clocks differ by more than five minutes", "set the clock"
    BAD_SIGNATURE = "bad-signature", "a signature does not hold", "the message was damaged or forged"
    WRONG_PEER = "wrong-peer", "another node answers at that address", "its address changed; look it up again"
    VERSION = "version", "the two nodes share no protocol version", "update p2pgrid"
    UNSUPPORTED = "unsupported", "the peer does not know this call", "update p2pgrid at the peer"
    MALFORMED = "malformed", "the message does not parse or is over a limit", ""
    BUSY = "busy", "too many requests of this peer are being answered", "try again in a moment"
    TIMEOUT = "timeout", "no answer in time", "try again"
    DEAD = "dead", "the peer stopped answering", ""
    CLOSED = "closed", "the connection was closed", ""
    TOO_MANY = "too-many-connections", "the node has no room for another connection", "try again later"
    BUG = "bug", "the peer failed in a way it did not expect", "look into the log of the peer"
    IDLE = "idle", "the connection was not in use, and its place was needed", ""
    SHUTDOWN = "shutdown", "the node is stopping", ""
    OWNER_ONLY = "owner-only", "only the owner of a node may ask this", ""
    NO_ROLE = "no-role", "the membership does not grant the role this needs", "ask for an invite with that role"

    # Work
    NO_SLOT = "no-slot", "no core is free", ""
    NO_RUNTIME = "no-runtime", "this node does not offer the job's runtime", ""
    NO_RUNNER = "no-runner", "the Python runner of the grid is not known or not here", "p2pgrid doctor"
    CAGE_BROKEN = "cage-broken", "the cage of this runtime did not hold when the node attacked it", "p2pgrid doctor"
    UNTESTED = "untested", "the node has not yet attacked the cage of this runtime", "wait some seconds"
    NO_MEMORY = "no-memory", "the job wants more memory than is shared here", ""
    NATIVE_REFUSED = "native-refused", "this node runs no native code of others", ""
    NO_CAGE = "no-cage", "no cage holds on this machine for units of others", "run p2pgrid doctor there to see why"
    UNKNOWN_JOB = "unknown-job", "this node does not know the job", "check the id"
    TOOK_OVER = "took-over", "the lead of a job passed to another of its keepers", ""
    STOPPED = "stopped", "the job cannot go on at the node that leads it", "look at the note of the job"
    JOB_OVER = "job-over", "the job has ended or was cancelled", ""
    BAD_GRANT = "bad-grant", "the lease does not match the job, the worker or its deadline", ""
    DRAINED = "drained", "the node is leaving and hands its work back", ""
    NOT_GRANTED = "not-granted", "the receipt speaks of units that were not leased to its author", ""
    TIMED_OUT = "timed-out", "the unit ran longer than its time-out", "raise --timeout"
    DIED = "died", "the process that ran the unit died", "look for crashes in native extensions, or memory limits"
    RAISED = "raised", "the unit raised an exception", "see the traceback"
    TOO_LARGE = "too-large", "the result is larger than the job allows", "return less, or a file"
    NO_INPUT = "no-input", "an input of the unit could not be fetched", ""
    NO_ENVIRONMENT = "no-environment", "this node sets up no packages for jobs", "its owner may allow them"
    PACKAGE_REFUSED = "package-refused", "a package of the job is not on the list of this node's owner", ""
    NO_WHEEL = "no-wheel", "a package of the job has no file for this kind of machine", "see what the submitter was told about it"
    BAD_PACKAGE = "bad-package", "a file of the job's packages is damaged, hostile or over a limit", ""
    BUILD_FAILED = "build-failed", "the job's packages could not be set up here", ""
    NO_PACKAGE_ROOM = "no-package-room", "packages of running jobs fill the room that this node has for them", ""
    DISAGREED = "disagreed", "workers gave different answers, and too few gave the same", "is the unit deterministic?"

    # The owner's terms
    NOT_LISTED = "not-listed", "the owner of this node takes work of other submitters only", "ask the owner to list your submitter key"
    PAUSED = "paused", "the owner paused this node", "p2pgrid resume lets it work again"
    OWNER_ACTIVE = "owner-active", "the owner is at the machine", "it works again when nobody has touched it for a while"
    ON_BATTERY = "on-battery", "the machine runs on its battery", "plug it in, or join with --on-battery"
    OUTSIDE_HOURS = "outside-hours", "this is not one of the hours in which the node works", "see --hours"
    MACHINE_BUSY = "machine-busy", "other programs of the machine need its processors", "see --busy"
    FINISHING = "finishing", "the node ends what it has leased, and then pauses", "p2pgrid resume lets it take work again"

    # Keeping and storing
    KEEPER_FULL = "keeper-full", "the node has no room to keep another job", ""
    STORE_FULL = "store-full", "the node's shared storage is full", "share more with --storage, or wait"
    DISK_FULL = "disk-full", "the disk of the node is full", "free some space"
    NO_BLOB = "no-blob", "the node does not hold this blob", ""
    FEW_COPIES = "few-copies", "there are fewer copies than wanted", "more are made when nodes with room can be reached"
    HEALED = "healed", "stored bytes were damaged and were fetched anew", ""
    REPAIRING = "repairing", "copies that are missing are being made", ""
    HOLDER_AWAY = "holder-away", "a node that held a copy is away or leaving, or has not answered yet", "wait: another copy is made soon"
    CORRUPT = "corrupt", "the stored bytes do not match their address", ""
    REBUILT = "rebuilt", "what this node keeps was damaged; it goes on with all that is whole", "look at the disk"
    STALE = "stale", "a newer statement is known", ""
    DISK_FAILED = "disk-failed", "the disk of the node failed while writing", "look at the disk, then restart the node"
    BAD_NAME = "bad-name", "a file name is not plain, relative and portable, or is no regular file", "use simple names inside the folder"
