"""What the owner put or pinned here, with the names it had: a table in one file of the home (docs/spec/disk.md).

It is for people. A node that loses it loses no blob and no lease, only names; so a damaged one is begun anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from p2pgrid.errors import P2PGridError
from p2pgrid.model.reasons import Reason
from p2pgrid.services.context import Context
from p2pgrid.store.home import Home

TABLE_FILE = "files.json"
ROWS_MAX = 4096
NAME_CHARS_MAX = 200


class FileRow(msgspec.Struct, frozen=True, kw_only=True):
    """One file or folder."""

    blob: bytes
    name: str = ""
    kind: str = "file"
    """``file`` or ``folder``."""
    size_bytes: int = 0
    """Of a folder: of all its files."""
    replicas: int = 1
    """Copies wanted in all."""
    copies: int = 1
    """Made when it was put."""
    put_ms: int = 0
    expires_ms: int = 0
    pinned: bool = False


class FileTable:
    """The rows in memory and on the disk. Bounded: among too many, the oldest that is not pinned loses its name."""

    def __init__(self, context: Context, home: Home) -> None:
        self._context = context
        self._home = home
        self._rows: dict[bytes, FileRow] | None = None
        self._lock = asyncio.Lock()

    async def rows(self) -> dict[bytes, FileRow]:
        """All rows by blob, without those whose time is over."""
        async with self._lock:
            rows = await self._loaded()
            now_ms = self._context.wall_ms()
            over = [row.blob for row in rows.values() if row.expires_ms <= now_ms and not row.pinned]
            for blob in over:
                del rows[blob]
            return dict(rows)

    async def note(self, row: FileRow) -> None:
        """Insert or replace a row, durably. A disk that fails costs the name, and is told."""
        async with self._lock:
            rows = await self._loaded()
            rows.pop(row.blob, None)
            while len(rows) >= ROWS_MAX:
                del rows[next((known.blob for known in rows.values() if not known.pinned), next(iter(rows)))]
            rows[row.blob] = msgspec.structs.replace(row, name=row.name[:NAME_CHARS_MAX])
            await self._save(rows.values())

    async def forget(self, blob: bytes) -> bool:
        """Remove a row; False when there was none."""
        async with self._lock:
            rows = await self._loaded()
            if rows.pop(blob, None) is None:
                return False
            await self._save(rows.values())
            return True

    async def _loaded(self) -> dict[bytes, FileRow]:
        if self._rows is None:
            raw = await self._context.offload.run(self._home.read_private, TABLE_FILE)
            try:
                found = msgspec.json.decode(raw, type=list[FileRow]) if raw else []
            except (msgspec.MsgspecError, ValueError):
                self._context.tell(Reason.CORRUPT, "the names of the files that were put here cannot be read; the files are not touched")
                found = []
            self._rows = {row.blob: row for row in found[:ROWS_MAX]}
        return self._rows

    async def _save(self, rows: Iterable[FileRow]) -> None:
        raw = msgspec.json.encode(list(rows))
        try:
            await self._context.offload.run(self._home.write_private, TABLE_FILE, raw)
        except P2PGridError as error:
            self._context.tell(error.reason, f"the names of the files that were put here were not written: {error}")
