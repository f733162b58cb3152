"""Whether a node could take more: a copy that nobody can take need not be made, a keeper without room need not be named."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2pgrid.node import Node

MARGIN_BYTES = 1 << 20
"""Logs, the list of leases and the index beside the blobs."""


def has_room(node: Node, size_bytes: int = 0) -> bool:
    """Whether a node lends so many bytes more, to anybody, and its disk has them. In doubt it is said to have no room."""
    if "store" not in node.member.roles:
        return False
    lent_bytes = node.config.policy.storage_bytes
    used_bytes = node.blobs.usage().used_bytes + node.keeping.log_bytes
    # Nobody may fill more than half of what is lent.
    if used_bytes + size_bytes > lent_bytes // 2 - MARGIN_BYTES // 8:
        return False
    free_bytes = getattr(node.machine.disk, "free_bytes", None)
    return free_bytes is None or free_bytes >= 2 * size_bytes + MARGIN_BYTES
