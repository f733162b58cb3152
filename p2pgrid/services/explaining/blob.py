"""Why a blob is as it is: who holds it, how many copies it has and should have, and what that rests on (docs/spec/owner.md#files)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from p2pgrid.core.availability import TARGET, away_chance
from p2pgrid.model.folder import FOLDER
from p2pgrid.model.ids import BlobId, NodeKey
from p2pgrid.model.reasons import Reason
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.files import Files
from p2pgrid.services.peers import Peers
from p2pgrid.services.pins import Pins
from p2pgrid.store.index import HELD
from p2pgrid.wire.messages import BlobInfo, BlobRequest
from p2pgrid.wire.owner import HolderLine, LeaseLine, WhyBlob, WhyRequest

ASK_S = 3.0
ASKED_MAX = 64
FILES_A_TURN = 200


class BlobState:
    """Serves ``own.why``."""

    def __init__(self, context: Context, peers: Peers, files: Files, pins: Pins) -> None:
        self._context = context
        self._peers = peers
        self._files = files
        self._pins = pins
        context.methods.on("own.why", WhyRequest, self._on_why, owner_only=True)

    async def _on_why(self, session: Session, request: WhyRequest) -> WhyBlob:
        context, blob = self._context, BlobId(request.id)
        run = context.offload.run
        (line,) = await self._pins.lines([blob])
        leases = [LeaseLine(lease.owner, lease.expires_ms, lease.replicas) for lease in await run(context.index.leases, blob)]
        care = self._files.care(blob)
        holders, size_bytes = (dict(care.holders), line.size_bytes) if care else await self._ask(blob)
        if line.state == HELD:
            holders.setdefault(context.me, context.wall_ms())
        lines = tuple(self._holder(node, holders[node]) for node in sorted(holders))
        order = [node for node in self._files.order(blob) if node not in holders]
        reasons = list(care.reasons) if care else []
        wanted = care.wanted if care else line.wanted
        if wanted > len(lines) and not reasons:
            reasons.append(self._too_few(wanted, len(order)))
        if line.kind == FOLDER and line.state == HELD:
            reasons += await self._short_files(blob, wanted)
        return WhyBlob(
            line=msgspec.structs.replace(line, size_bytes=line.size_bytes or size_bytes),
            state=line.state,
            holders=lines,
            leases=tuple(leases),
            reasons=tuple(reasons),
            short_since_ms=care.short_since_ms if care else 0,
            away_chance=away_chance(holder.share for holder in lines),
            target=TARGET,
            copies_for_target=self._files.plan([*_others(lines, context.me), *order]).copies,
            wall_ms=context.wall_ms(),
        )

    async def _ask(self, blob: BlobId) -> tuple[dict[bytes, int], int]:
        """Who of those that are recorded or near has a blob, by what they say now, and how large it is."""
        recorded = await self._files.holders(blob)
        asked = [NodeKey(node) for node in dict.fromkeys((*recorded, *sorted(self._peers.live()))) if node != self._context.me]
        calls = [self._peers.call(node, "blob.info", BlobRequest(blob), BlobInfo, timeout_s=ASK_S) for node in asked[:ASKED_MAX]]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        now_ms = self._context.wall_ms()
        found = {node: answer for node, answer in zip(asked, answers, strict=False) if isinstance(answer, BlobInfo)}
        return dict.fromkeys(found, now_ms), max((info.size_bytes for info in found.values()), default=0)

    def _holder(self, node: bytes, confirmed_ms: int) -> HolderLine:
        return HolderLine(node, self._peers.is_live(node), self._files.share(node), confirmed_ms)

    def _too_few(self, wanted: int, candidates: int) -> tuple[str, str]:
        if not candidates:
            return Reason.FEW_COPIES, f"{wanted} copies are wanted, and no other node with the role 'store' can be reached"
        return Reason.FEW_COPIES, f"{wanted} copies are wanted; {candidates} other nodes could be asked"

    async def _short_files(self, folder: BlobId, wanted: int) -> list[tuple[str, str]]:
        """Files of a folder that have fewer copies than its list is to have, as far as this node looks after them."""
        files, short = (await self._files.manifest(folder)).files, 0
        for number, entry in enumerate(files):
            care = self._files.care(BlobId(entry.blob))
            short += care is not None and len(care.holders) < wanted
            if number % FILES_A_TURN == 0:
                await asyncio.sleep(0)
        return [(Reason.FEW_COPIES, f"{short} of {len(files)} files have fewer than {wanted} copies")] if short else []


def _others(lines: Iterable[HolderLine], me: bytes) -> list[bytes]:
    return [line.node for line in lines if line.node != me]
