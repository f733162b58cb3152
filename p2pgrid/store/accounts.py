"""Who may still put how many bytes here: the sums behind every 'yes' and 'no' of the blob store. Pure.

1. A blob counts with the size of its content from the moment somebody starts to write it.
2. ``used + reserved`` never passes the quota, and an owner's leased bytes never pass the owner's quota.
3. Not safe for threads: the blob store calls under its lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2pgrid.errors import RefusedError
from p2pgrid.model.reasons import Reason

OwnerQuota = Callable[[bytes], int | None]
"""The bytes an owner may have under lease here; None for no limit but the store's own."""


class Accounts:
    """Bytes and counts. ``used`` lies in the store, ``reserved`` is being written."""

    def __init__(self, quota_bytes: int, blobs_max: int, owner_quota: OwnerQuota | None = None) -> None:
        self.quota_bytes, self._blobs_max = quota_bytes, blobs_max
        self._owner_quota = owner_quota
        self.used_bytes = self.used_blobs = 0
        self.reserved_bytes = self.reserved_blobs = 0
        self._owners: dict[bytes, int] = {}

    def load(self, blobs: int, used_bytes: int, owners: Mapping[bytes, int]) -> None:
        """Start from what lies on the disk. It may be over a quota that was lowered since: then nothing more goes in."""
        self.used_blobs, self.used_bytes, self._owners = blobs, used_bytes, dict(owners)

    def reserve(self, size_bytes: int) -> None:
        """Set room aside for one new blob. Raises RefusedError."""
        over = self.used_bytes + self.reserved_bytes + size_bytes > self.quota_bytes
        if over or self.used_blobs + self.reserved_blobs >= self._blobs_max:
            raise RefusedError(f"no room for {size_bytes} more bytes", reason=Reason.STORE_FULL, hint="share more with --storage, or wait")
        self.reserved_bytes += size_bytes
        self.reserved_blobs += 1

    def unreserve(self, size_bytes: int) -> None:
        """Give room back that was set aside."""
        self.reserved_bytes -= size_bytes
        self.reserved_blobs -= 1

    def store(self, size_bytes: int) -> None:
        """Turn room that was set aside into room that is used."""
        self.unreserve(size_bytes)
        self.used_bytes += size_bytes
        self.used_blobs += 1

    def free(self, size_bytes: int) -> None:
        """A blob is gone. Its leases are given back one by one with :meth:`unlease`."""
        self.used_bytes -= size_bytes
        self.used_blobs -= 1

    def lease(self, owner: bytes, size_bytes: int) -> None:
        """An owner takes a lease it did not have. Raises RefusedError over the owner's quota."""
        quota = self._owner_quota(owner) if self._owner_quota is not None else None
        total = self._owners.get(owner, 0) + size_bytes
        if quota is not None and total > quota:
            raise RefusedError(f"the owner's share of this store is {quota} bytes", reason=Reason.STORE_FULL, hint="release some blobs")
        self._owners[owner] = total

    def unlease(self, owner: bytes, size_bytes: int) -> None:
        """An owner's lease is gone."""
        total = self._owners.get(owner, 0) - size_bytes
        if total > 0:
            self._owners[owner] = total
        else:
            self._owners.pop(owner, None)

    def owner_bytes(self, owner: bytes) -> int:
        """What an owner has under lease."""
        return self._owners.get(owner, 0)
