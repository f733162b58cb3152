"""A real node made to lie about digests: what it says a result hashes to is not what it hashes to.

The lie is put on the instance, where its receipts leave it: the node itself knows nothing of it, and the product has no
switch for it. Liars about values are :class:`p2pgrid.testing.parts.runtime.Behaviour`'s; a runtime cannot lie about digests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import DIGEST_BYTES, NodeKey
from p2pgrid.model.work import Receipt
from p2pgrid.node import Node
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.envelope import peek, seal
from p2pgrid.wire.messages import Delivered, Delivery, Payload

R = TypeVar("R", bound=msgspec.Struct)
NIL = encode(None)


class DigestLiar:
    """Makes one node lie from now on. Has to be told before the node works.

    ``poison`` is told the bytes of each lying receipt before it leaves: it may never be believed. Only values that
    travel inside receipts are lied about: nothing shows that a blob which nobody holds was never there.
    """

    def __init__(self, node: Node, poison: Callable[[bytes], None]) -> None:
        self.node = node
        self.lies = 0
        """Receipts that were falsified."""
        self._poison = poison
        self._call = node.peers.call
        vars(node.peers)["call"] = self._lying_call

    async def _lying_call(
        self, peer: NodeKey, method: str, request: msgspec.Struct, reply: type[R], *, timeout_s: float | None = None
    ) -> R:
        if method == "job.deliver" and isinstance(request, Delivery):
            request = msgspec.structs.replace(request, items=tuple([self._falsified(item) for item in request.items]))
        return await self._call(peer, method, request, reply, timeout_s=timeout_s)

    def _falsified(self, item: Delivered) -> Delivered:
        try:
            receipt = decode(peek(item.receipt).body, Receipt)
            values: list[Any] = decode(item.payload, Payload).values
        except P2PGridError:
            return item
        digests = bytearray(receipt.digests)
        for number, value in enumerate(values):
            if bytes(value) != NIL:
                digests[number * DIGEST_BYTES] ^= 0xFF
        if bytes(digests) == receipt.digests:
            return item
        body = msgspec.structs.replace(receipt, digests=bytes(digests))
        raw = seal(body, self.node.key, self.node.membership.grid.id).raw
        self.lies += 1
        self._poison(raw)
        return Delivered(raw, item.payload)
