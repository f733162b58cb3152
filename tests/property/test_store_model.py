"""The blob store against a dictionary: any sequence of calls, restarts and losses of the index, quota to the byte."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pgrid.errors import RefusedError
from p2pgrid.model.blob import CHUNK_BYTES, address_of
from p2pgrid.model.ids import BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.index import Index
from p2pgrid.store.uploads import ChunkWriter

QUOTA = 3 * CHUNK_BYTES
OWNER_QUOTA = 2 * CHUNK_BYTES + 100
CONTENTS = [b"", b"a", b"b" * 99, b"c" * CHUNK_BYTES, b"d" * (CHUNK_BYTES + 1), b"e" * (2 * CHUNK_BYTES), b"f" * (CHUNK_BYTES - 1)]
ADDRESSES = [address_of(content) for content in CONTENTS]
contents = st.integers(0, len(CONTENTS) - 1)
large = st.sampled_from([4, 5])
owners = st.sampled_from([b"me", b"you"])
times = st.integers(1, 30)


class StoreMachine(RuleBasedStateMachine):
    """``leases`` is the whole truth: content number -> owner -> expiry; ``parts`` holds the chunks of uploads."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.leases: dict[int, dict[bytes, int]] = {}
        self.parts: dict[int, set[int]] = {}
        self.writers: dict[int, tuple[bytes, ChunkWriter]] = {}
        self.now_ms = 0
        self.open()

    def open(self) -> None:
        self.index, report = Index.open(self.folder / "index")
        scan = report.rebuilt or not report.was_clean
        self.store = BlobStore(self.folder / "blobs", QUOTA, self.index, now_ms=0, scan=scan, owner_quota=lambda _: OWNER_QUOTA)

    def used(self, owner: bytes | None = None) -> int:
        return sum(len(CONTENTS[n]) for n, leases in self.leases.items() if owner is None or owner in leases)

    def fits(self, number: int, owner: bytes) -> bool:
        size = len(CONTENTS[number])
        fresh = owner not in self.leases.get(number, {})
        return (number in self.leases or self.used() + size <= QUOTA) and not (fresh and self.used(owner) + size > OWNER_QUOTA)

    def attempt(self, number: int, owner: bytes, expires_ms: int, call: Callable[[], object]) -> bool:
        """Make a call that takes a lease; it must succeed exactly when there is room."""
        fits = self.fits(number, owner)
        try:
            call()
        except RefusedError as error:
            assert error.reason == Reason.STORE_FULL  # noqa: PT017  # the model says which calls fail
            assert not fits
            return False
        assert fits
        mine = self.leases.setdefault(number, {})
        mine[owner] = max(mine.get(owner, 0), expires_ms)
        return True

    @rule(number=contents, owner=owners, expires_ms=times)
    def put(self, number: int, owner: bytes, expires_ms: int) -> None:
        call = lambda: self.store.put_bytes(CONTENTS[number], owner=owner, expires_ms=expires_ms)  # noqa: E731
        if self.attempt(number, owner, expires_ms, call):
            self.parts.pop(number, None)

    @rule(number=contents, owner=owners, expires_ms=times)
    def lease(self, number: int, owner: bytes, expires_ms: int) -> None:
        if number in self.leases:
            self.attempt(number, owner, expires_ms, lambda: self.store.lease(ADDRESSES[number][0], owner, expires_ms))

    @rule(number=contents, owner=owners)
    def release(self, number: int, owner: bytes) -> None:
        had = self.leases.get(number, {}).pop(owner, None) is not None
        assert self.store.release(ADDRESSES[number][0], owner) == had

    @rule(number=contents)
    def delete(self, number: int) -> None:
        assert self.store.delete(ADDRESSES[number][0]) == (self.leases.pop(number, None) is not None)
        self.parts.pop(number, None)
        if number in self.writers:
            self.writers.pop(number)[1].close()

    @rule(step=st.integers(0, 10))
    def expire(self, step: int) -> None:
        self.now_ms += step
        due = {n for n, leases in self.leases.items() if n not in self.writers and all(end <= self.now_ms for end in leases.values())}
        assert sorted(self.store.expire(self.now_ms)) == sorted(ADDRESSES[n][0] for n in due)
        for number in due:
            del self.leases[number]
            self.parts.pop(number, None)
        for number, leases in self.leases.items():
            if number not in self.writers:
                self.leases[number] = {owner: end for owner, end in leases.items() if end > self.now_ms}

    @rule(number=large, owner=owners, expires_ms=times)
    def upload(self, number: int, owner: bytes, expires_ms: int) -> None:
        if number in self.writers:
            return
        known = number in self.leases
        writers = list[ChunkWriter]()
        blob, root = ADDRESSES[number]
        call = lambda: writers.append(self.store.writer(blob, len(CONTENTS[number]), root, owner=owner, expires_ms=expires_ms))  # noqa: E731
        if self.attempt(number, owner, expires_ms, call):
            self.writers[number] = (owner, writers[0])
            if not known:
                self.parts[number] = set()

    @rule(number=large, index=st.integers(0, 1))
    def chunk(self, number: int, index: int) -> None:
        if number in self.writers:
            data = CONTENTS[number][index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            fresh = number in self.parts and index not in self.parts[number]
            assert self.writers[number][1].write_chunk(index, data) == fresh
            if fresh:
                self.parts[number].add(index)

    @rule(number=large, how=st.sampled_from(["commit", "close", "abort"]))
    def end_upload(self, number: int, how: str) -> None:
        if number not in self.writers or (how == "commit" and len(self.parts.get(number, {0, 1})) < 2):
            return
        owner, writer = self.writers.pop(number)
        getattr(writer, how)()
        if how == "commit":
            self.parts.pop(number, None)
        elif how == "abort" and number in self.parts:
            self.leases[number].pop(owner, None)
            if not self.leases[number]:
                del self.leases[number], self.parts[number]

    @rule(way=st.sampled_from(["clean", "crash", "index lost"]))
    def restart(self, way: str) -> None:
        for _, writer in self.writers.values():
            if way == "clean":
                writer.close()
        self.writers.clear()
        old = self.index
        if way != "crash":
            old.close()
        if way == "index lost":
            for path in self.folder.glob("index*"):
                path.unlink()
        self.open()
        if way == "crash":
            # Closing late marks the index clean, but its rows are those of the files by now.
            old._database.close()
        # Leases that have ended may come back from the sidecars until the next expiry.
        self.store.expire(self.now_ms)
        self.leases = {n: {o: e for o, e in leases.items() if e > self.now_ms} for n, leases in self.leases.items()}
        self.leases = {n: leases for n, leases in self.leases.items() if leases}
        self.parts = {n: part for n, part in self.parts.items() if n in self.leases}

    @precondition(lambda self: hasattr(self, "store"))
    @invariant()
    def the_books_agree(self) -> None:
        usage = self.store.usage()
        assert (usage.used_bytes, usage.blobs, usage.reserved_bytes) == (self.used(), len(self.leases), 0)
        assert usage.used_bytes <= QUOTA
        for owner in (b"me", b"you"):
            assert self.store.owner_bytes(owner) == self.used(owner) <= OWNER_QUOTA
        for number, content in enumerate(CONTENTS):
            blob = BlobId(ADDRESSES[number][0])
            held = number in self.leases and number not in self.parts
            assert self.store.has(blob) == held
            assert {lease.owner: lease.expires_ms for lease in self.store.leases(blob)} == self.leases.get(number, {})
            if held:
                assert self.store.read_all(blob, len(content)) == content

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.index.close()
            shutil.rmtree(self.folder)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
