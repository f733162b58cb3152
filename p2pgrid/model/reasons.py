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
    BAD_SIGNATURE = "bad-signature", "a signature does not hold", "the message was damaged or forged: look at the node that sent it"
    WRONG_PEER = "wrong-peer", "another node answers at that address", "its address changed; look it up again"
    VERSION = "version", "the two nodes share no protocol version", "update p2pgrid"
    UNSUPPORTED = "unsupported", "the peer does not know this call", "update p2pgrid at the peer"
    MALFORMED = (
        "malformed",
        "the message does not parse or is over a limit",
        "update p2pgrid where it came from; if it stays, its sender is broken",
    )
    BUSY = "busy", "too many requests of this peer are being answered", "try again in a moment"
    TIMEOUT = "timeout", "no answer in time", "try again"
    DEAD = "dead", "the peer stopped answering", "wait: it is dialled again; or see that its machine and its network are up"
    CLOSED = "closed", "the connection was closed", "wait: it is opened again when it is needed"
    TOO_MANY = "too-many-connections", "the node has no room for another connection", "try again later"
    BUG = "bug", "the peer failed in a way it did not expect", "look into the log of the peer"
    IDLE = "idle", "the connection was not in use, and its place was needed", ""
    SHUTDOWN = "shutdown", "the node is stopping", "start it again with p2pgrid join"
    OWNER_ONLY = "owner-only", "only the owner of a node may ask this", "ask at your own node, with its --home"
    NO_ROLE = "no-role", "the membership does not grant the role this needs", "ask for an invite with that role"

    # Work
    NO_SLOT = "no-slot", "the node lends no cores", "join with --cpus 1 or more there"
    NO_RUNTIME = "no-runtime", "the node does not offer the job's runtime", "p2pgrid why me says there why not; or use another --runtime"
    NO_RUNNER = (
        "no-runner",
        "the Python runner of the grid is not known or not here",
        "see that the founder of the grid is there, and run p2pgrid doctor",
    )
    CAGE_BROKEN = (
        "cage-broken",
        "the cage of this runtime did not hold when the node attacked it",
        "run p2pgrid doctor there: it says which wall is missing",
    )
    UNTESTED = "untested", "the node has not yet attacked the cage of this runtime", "wait some seconds"
    NO_MEMORY = "no-memory", "the job wants more memory a unit than the node lends a core", "ask for less with --memory, or lend more there"
    NATIVE_REFUSED = (
        "native-refused",
        "the node runs no machine code of others, or not of this member",
        "use --runtime python, or an invite with the role native",
    )
    NO_CAGE = "no-cage", "no cage holds on this machine for units of others", "run p2pgrid doctor there to see why"
    UNKNOWN_JOB = "unknown-job", "the node does not know the job", "check the id"
    TOOK_OVER = "took-over", "the lead of a job passed to another of its keepers", ""
    STOPPED = "stopped", "the job cannot go on at the node that leads it", "look at the note of the job"
    JOB_OVER = "job-over", "the job has ended or was cancelled", "p2pgrid results shows what it came to"
    BAD_GRANT = "bad-grant", "the lease does not match the job, the worker or its deadline", "look at the node that leads the job"
    DRAINED = "drained", "the node is leaving and hands its work back", ""
    NOT_GRANTED = "not-granted", "the receipt speaks of units that were not leased to its author", ""
    TIMED_OUT = "timed-out", "the unit ran longer than its time-out", "raise --timeout, or make the units smaller"
    DIED = "died", "the process that ran the unit died", "look for crashes in native extensions, or memory limits"
    RAISED = "raised", "the unit raised an exception", "see the traceback"
    TOO_LARGE = "too-large", "the result is larger than the job allows, or could not be stored", "return less, or a file"
    NO_INPUT = "no-input", "an input of the unit could not be fetched", "p2pgrid why BLOB says who holds it; submit it again if nobody does"
    NO_ENVIRONMENT = "no-environment", "the node sets up no packages for jobs", "its owner may allow them with --packages"
    PACKAGE_REFUSED = (
        "package-refused",
        "a package of the job is not on the list of the node's owner",
        "ask the owner to list it, or do without it",
    )
    NO_WHEEL = "no-wheel", "a package of the job has no file for this kind of machine", "see what the submitter was told about it"
    BAD_PACKAGE = (
        "bad-package",
        "a file of the job's packages is damaged, hostile or over a limit",
        "submit the job again; if it stays, pin another version",
    )
    BUILD_FAILED = "build-failed", "the job's packages could not be set up at the node", "look at its disk and its log"
    NO_PACKAGE_ROOM = (
        "no-package-room",
        "packages of running jobs fill the room that the node has for them",
        "wait until another job there has ended",
    )
    DISAGREED = (
        "disagreed",
        "workers gave different answers, and too few gave the same",
        "see that work() gives the same for the same item: no time, no chance, no order of sets",
    )
    MISSING_MODULE = (
        "missing-module",
        "the unit imports a module that is not there",
        "add it to dependencies in the script's header (# /// script); with --runtime python only pure packages work",
    )
    OVER_MEMORY = (
        "over-memory",
        "the unit wanted more memory than it may have",
        "let a unit use less, or raise --memory (memory in the script's header)",
    )

    # Why a job stands as it does
    NO_WORKERS = "no-workers", "no node that is there may run the job", "see each node's reason; more nodes may join with p2pgrid invite"
    QUORUM_SHORT = (
        "quorum-short",
        "fewer nodes may run the job than must agree on each unit",
        "wait for more nodes, or use a smaller --quorum",
    )
    KEEPS_IT = "keeps-it", "the node keeps the job, and so gives no answers that others compare", ""
    OTHER_WORK = "other-work", "the cores of the node run units of other jobs", "wait, or let more nodes join"
    NOT_ASKING = "not-asking", "the node was invited and has asked for no units", "wait some seconds; then p2pgrid why me at that node"
    NOTHING_LEFT = "nothing-left", "the node waits: what is left is leased to others, or is not ready", ""
    ANSWERS_DIFFER = (
        "answers-differ",
        "answers to a unit differ, so more nodes are asked",
        "see that work() gives the same for the same item",
    )
    DECLINED = "declined", "a worker takes no units of the job, and says why", "p2pgrid why JOB says what to do about each node's reason"
    RETRIED = "retried", "an attempt at a unit failed, and another node tries it", ""
    WORKER_LOST = "worker-lost", "a worker went away; what it had is given to others", ""
    LEASE_LATE = "lease-late", "a worker took far longer than others; what it had is given to others too", ""
    KEEPER_LOST = "keeper-lost", "a node that kept the job is gone or refused", "nothing: another one is named when there is one"
    LEAD_AWAY = "lead-away", "the node that leads the job does not answer", "wait: one of its keepers takes over"
    NO_KEEPER_THERE = "no-keeper-there", "nobody who keeps the job can be reached", "start one of its keepers again: the job goes on then"
    SUBMITTER_AWAY = "submitter-away", "the submitter's node is away, and the job goes on without it", ""
    INCOMPLETE = "incomplete", "results are missing that were settled", "start a node that kept the job again: it brings them back"
    CANCELLED = "cancelled", "the job was cancelled by its submitter", "submit it again if that was a mistake"
    CONFLICT = (
        "conflict",
        "two leads decided differently on a unit, and the earlier decision stands",
        "compare p2pgrid results with what you expect",
    )
    INDEX_ONLY = "index-only", "only a line about the job is left here, and nobody who is there has more", "start a node that kept the job"

    # The owner's terms
    NOT_LISTED = (
        "not-listed",
        "the owner of the node takes work of other submitters only",
        "ask the owner to list your submitter key with --accept-from",
    )
    PAUSED = "paused", "the owner paused the node", "p2pgrid resume lets it work again"
    OWNER_ACTIVE = "owner-active", "the owner is at the machine", "wait: it works again when nobody has touched it for a while"
    ON_BATTERY = "on-battery", "the machine runs on its battery", "plug it in, or join with --on-battery"
    OUTSIDE_HOURS = "outside-hours", "this is not one of the hours in which the node works", "wait, or join with other --hours"
    MACHINE_BUSY = "machine-busy", "other programs of the machine need its processors", "wait, or join with a higher --busy"
    FINISHING = "finishing", "the node ends what it has leased, and then pauses", "p2pgrid resume lets it take work again"

    # A node and its machine
    ALONE = "alone", "no other node is in the grid", "p2pgrid invite prints an invite; p2pgrid join INVITE uses it on another machine"
    NO_CONTACT = (
        "no-contact",
        "no node of the grid answers",
        "see that one of them runs and that its port is open: nc -vz HOST PORT from this machine",
    )
    UNREACHABLE = (
        "unreachable",
        "other nodes cannot begin a connection to this one",
        "open its port for TCP and UDP in the firewall and at the router; until then it works over connections that it begins itself",
    )
    NO_DATAGRAMS = "no-datagrams", "nobody answers this node over UDP", "let UDP through, at the same port as TCP, in both directions"
    LOOPBACK_ONLY = "loopback-only", "the node listens for this machine only", "join with --listen 0.0.0.0:PORT to be reached by others"
    PORT_TAKEN = "port-taken", "another program uses the port", "choose another with --listen HOST:PORT, or stop that program"
    BAD_INVITE = "bad-invite", "the invite cannot be used", "copy the whole line that p2pgrid invite printed"
    EXPIRES_SOON = "expires-soon", "the membership ends soon", "ask for a new invite, and use it: p2pgrid join INVITE"
    NEVER_JOINED = "never-joined", "this home has not joined a grid", "p2pgrid join INVITE, or p2pgrid join to found a grid"
    NOT_RUNNING = "not-running", "no node runs in this home", "p2pgrid join --detach starts it again"
    KILLED = (
        "killed",
        "the node ended without a word",
        "see whether the system ended it for want of memory, or lost power; then start it again",
    )
    BAD_HOME = "bad-home", "the folder of the node cannot be used", "check its permissions and its disk, or choose another with --home"

    # Keeping and storing
    KEEPER_FULL = "keeper-full", "the node has no room to keep another job", "share more with --storage there"
    STORE_FULL = "store-full", "the node's shared storage is full", "share more with --storage, or wait"
    DISK_FULL = "disk-full", "the disk of the node is full", "free some space"
    NO_BLOB = "no-blob", "the node does not hold this blob", "p2pgrid why BLOB says who does"
    FEW_COPIES = "few-copies", "there are fewer copies than wanted", "more are made when nodes with room can be reached"
    HEALED = "healed", "stored bytes were damaged and were fetched anew", ""
    REPAIRING = "repairing", "copies that are missing are being made", ""
    HOLDER_AWAY = "holder-away", "a node that held a copy is away or leaving, or has not answered yet", "wait: another copy is made soon"
    CORRUPT = "corrupt", "the stored bytes do not match their address", "look at the disk of the node that sent them"
    REBUILT = "rebuilt", "what this node keeps was damaged; it goes on with all that is whole", "look at the disk"
    STALE = "stale", "a newer statement is known", ""
    DISK_FAILED = "disk-failed", "the disk of the node failed while writing", "look at the disk, then restart the node"
    BAD_NAME = "bad-name", "a file name is not plain, relative and portable, or is no regular file", "use simple names inside the folder"


CODES = {reason.value: reason for reason in Reason}
"""The reasons by their codes: what came over the wire is looked up here, and may be in it or not."""
