"""What the owner reads about a pause: lines for people, documents for programs, and the table of nodes."""

from __future__ import annotations

from p2pgrid.model.node import NodeInfo
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.messages import NodeStatus
from p2pgrid.wire.owner import OwnPause, PeerLine
from p2pgrid_cli.pausing import pause_document, pause_lines
from p2pgrid_cli.render import paused_state, peer_document

NOW_MS = 10_000_000
SINCE_MS = NOW_MS - 600_000
PAUSED = OwnPause("paused", "owner-active", Reason.OWNER_ACTIVE.sentence, SINCE_MS, 0, "when it is idle", NOW_MS)


def peer(path: str, paused: str = "") -> PeerLine:
    status = NodeStatus(0, 0, 0, 5, 0, 1.0, 0.5, 0, paused, SINCE_MS if paused else 0)
    return PeerLine(b"n" * 32, NodeInfo(), status, 0.0, path)


def test_a_pause_is_told_with_its_reason_its_age_and_its_end() -> None:
    assert pause_lines(PAUSED) == ["paused for 10 min: the owner is at the machine (owner-active)", "it ends when it is idle"]
    assert pause_lines(OwnPause("running", wall_ms=NOW_MS)) == ["running: this node takes work"]
    assert pause_lines(OwnPause("paused", "paused", "s", NOW_MS, 0, "", NOW_MS)) == ["paused from now on: s (paused)"]


def test_a_document_says_nothing_as_null() -> None:
    assert pause_document(PAUSED) == {
        "state": "paused",
        "reason": "owner-active",
        "sentence": "the owner is at the machine",
        "since_ms": SINCE_MS,
        "until_ms": None,
        "ends": "when it is idle",
    }
    assert pause_document(OwnPause("running"))["reason"] is None


def test_paused_nodes_are_shown_with_their_reason() -> None:
    assert paused_state(peer("self", "on-battery")) == "this node, on-battery"
    assert paused_state(peer("direct", "paused")) == "live, paused"
    assert paused_state(peer("direct")) == "live"
    assert paused_state(peer("direct", "\x1b[31mred")) == "live, ?[31mred", "what others say must not reach the terminal as it is"
    document = peer_document(peer("direct", "paused"))
    assert (document["paused"], document["paused_since_ms"]) == ("paused", SINCE_MS)
    document = peer_document(peer("direct"))
    assert (document["paused"], document["paused_since_ms"]) == (None, None)
