"""Snapshots of a node: the next one is made of the last, and what has changed since (docs/spec/owner.md#looking)."""

from __future__ import annotations

import msgspec

from p2pgrid.wire.owner import Snapshot


def joined(last: Snapshot, news: Snapshot) -> Snapshot:
    """The whole of a snapshot that has, of its peers, what has changed since ``last``. One that has them all is returned as it is."""
    if not news.since:
        return news
    me = news.status.node
    lines = {line.node: line for line in last.peers}
    for key in news.gone:
        lines.pop(key, None)
    count = len(lines)
    for line in news.peers:
        lines[line.node] = line
    peers = tuple(lines.values())
    if len(lines) != count:
        peers = tuple(sorted(peers, key=lambda line: (line.node != me, line.node)))
    return msgspec.structs.replace(news, peers=peers, since=0, gone=())
