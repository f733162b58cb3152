"""The small files of a home on a disk that loses its power anywhere, and what a damaged one makes of the node."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from p2pgrid.dht.server import GridServer
from p2pgrid.errors import ConfigError, P2PGridError
from p2pgrid.model.blob import address_of
from p2pgrid.store import shelf
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.disk import read_at
from p2pgrid.store.home import Home
from p2pgrid.store.index import Index, Lease
from p2pgrid.store.shelf import ORPHAN_MS
from p2pgrid.testing.parts.disk import SimulatedDisk, temporary_folder
from p2pgrid_cli import exits

BEFORE, AFTER = b"the old content", b"what is written in its place, and is longer"


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder


def test_a_small_file_is_the_old_or_the_new_one_wherever_the_power_goes(folder: Path) -> None:
    seen = set[bytes]()
    for by_byte, seed in itertools.product((True, False), range(4)):
        for number in itertools.count():
            path = folder / f"{by_byte}-{seed}-{number}"
            path.mkdir()
            disk = SimulatedDisk(path, random.Random(seed))
            Home(path, random.randbytes, disk=disk).write_private("membership", BEFORE)
            (disk.crash_at if by_byte else disk.crash_before)(number)
            written = False
            with suppress(P2PGridError):
                Home(path, random.randbytes, disk=disk).write_private("membership", AFTER)
                written = True
            ended = not disk.dead
            disk.crash()
            disk = disk.revived()
            found = Home(path, random.randbytes, disk=disk).read_private("membership")
            assert found == AFTER if written else found in (BEFORE, AFTER)
            seen.add(found or b"")
            Home(path, random.randbytes, disk=disk).write_private("membership", AFTER)
            assert [left.name for left in path.iterdir()] == ["membership"]
            if ended:
                break
    assert seen == {BEFORE, AFTER}


def test_a_migration_that_is_cut_off_anywhere_is_done_again(folder: Path) -> None:
    for seed in range(4):
        for operations in itertools.count():
            path = folder / f"{seed}-{operations}"
            path.mkdir()
            disk = SimulatedDisk(path, random.Random(seed))
            disk.write_file(path / "format", b"p2pgrid-home 0\n")
            disk.settle()
            disk.crash_before(operations)
            with suppress(P2PGridError):
                migrated(path, disk).prepare()
            ended = not disk.dead
            disk.crash()
            disk = disk.revived()
            migrated(path, disk).prepare()
            assert (path / "format").read_text() == "p2pgrid-home 1\n"
            assert (path / "migrated").read_bytes() == b"yes"
            if ended:
                break


def migrated(path: Path, disk: SimulatedDisk) -> Home:
    return Home(path, random.randbytes, disk=disk, migrations={0: lambda folder: disk.replace_file(folder / "migrated", b"yes")})


@pytest.mark.parametrize("text", ["p2pgrid-home 2\n", "p2pgrid-home", "", "\0\0\0\0"])
def test_a_home_of_another_format_ends_with_the_code_for_a_bad_configuration(folder: Path, text: str) -> None:
    home = Home(folder, random.randbytes)
    home.prepare()
    (folder / "format").write_text(text)
    with pytest.raises(ConfigError) as caught:
        home.prepare()
    assert exits.code_of(caught.value) == 78
    assert caught.value.hint
    assert (folder / "format").read_text() == text


@pytest.mark.parametrize(
    "saved",
    [
        {},
        [],
        [{}],
        [1, None, "x", [[]]],
        [{"host": "127.0.0.1", "port": 99999999, "key": "x"}],
        [{"host": "no number", "port": 1, "key": "aaaa"}],
        [{"host": None, "port": "1", "key": 7}],
        [{"host": "127.0.0.1", "port": 4000, "key": "ä" * 52}],
        [{"host": "127.0.0.1", "port": 1e300, "key": ""}],
        {"peers": [[[]]]},
    ],
)
def test_saved_peers_that_make_no_sense_are_passed_over(saved: object) -> None:
    assert GridServer.peers_from_persisted(json.loads(json.dumps(saved))) == []


# -- metadata of blobs on bad sectors ---------------------------------------------------------------


@pytest.fixture
def stored(folder: Path) -> Path:
    """A blob store with one small blob under a lease; returns its metadata."""
    index, _ = Index.open(folder / "index.sqlite", sync=False)
    blob = BlobStore(folder / "blobs", 1 << 20, index, now_ms=0).put_bytes(b"content", owner=b"me", expires_ms=9)
    index.abandon()
    return folder / "blobs" / blob.hex()[:2] / f"{blob.hex()}.meta"


@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "garbage", "bad sector", "gone"])
def test_a_blob_whose_metadata_is_beyond_use_is_kept_for_a_week_and_that_is_said(
    folder: Path, stored: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = stored.read_bytes()
    if harm == "gone":
        stored.unlink()
    elif harm == "bad sector":
        sectors = iter([errno.EIO])
        monkeypatch.setattr(shelf, "read_at", lambda *words: fail(number) if (number := next(sectors, 0)) else read_at(*words))
    else:
        flipped = bytes([*raw[:40], raw[40] ^ 1, *raw[41:]])
        stored.write_bytes({"cut": raw[:40], "empty": b"", "flipped": flipped, "garbage": b"?" * 5000}[harm])
    index, _ = Index.open(folder / "index.sqlite", sync=False)
    store = BlobStore(folder / "blobs", 1 << 20, index, now_ms=5)
    blob = address_of(b"content")[0]
    assert store.read_all(blob, 10) == b"content"
    assert store.leases(blob) == [Lease(b"", 5 + ORPHAN_MS)]
    assert (store.recovery.orphans, store.recovery.why) == (1, "blobs that lost their leases, kept for a week: 1")
    assert store.usage().used_bytes == 7
    index.abandon()


def fail(number: int) -> bytes:
    raise OSError(number, os.strerror(number))


def test_damage_that_starting_finds_in_blobs_is_said(folder: Path, stored: Path) -> None:
    content = stored.with_suffix("")
    content.write_bytes(b"conten")
    index, _ = Index.open(folder / "index.sqlite", sync=False)
    assert BlobStore(folder / "blobs", 1 << 20, index, now_ms=5).recovery.why == "damaged blobs, to be healed: 1"
    stored.unlink()
    content.with_suffix(".part").rename(content)
    assert BlobStore(folder / "blobs", 1 << 20, index, now_ms=5).recovery.why == "blobs beyond use, now gone: 1"
    assert BlobStore(folder / "blobs", 1 << 20, index, now_ms=5).recovery.why == ""
    index.abandon()
