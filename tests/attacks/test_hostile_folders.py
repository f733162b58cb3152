"""Manifests that somebody made by hand: whatever could leave the folder, or hit a file twice, is refused before anything is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.client import folders
from p2pgrid.client.placing import Part
from p2pgrid.client.transfer import Incoming
from p2pgrid.errors import BadDataError, RefusedError
from p2pgrid.model.folder import (
    ENTRIES_MAX,
    FILE,
    FOLDER,
    LINK,
    MAGIC,
    MANIFEST_BYTES_MAX,
    VERSION,
    FolderEntry,
    Manifest,
    decode_manifest,
    encode_manifest,
)
from p2pgrid.offload import InlineOffload
from p2pgrid.wire.owner import FileReply

BLOB = b"b" * 32


def file(path: str, **fields: object) -> FolderEntry:
    return msgspec.structs.replace(FolderEntry(path, FILE, 3, BLOB), **fields)


def folder(path: str) -> FolderEntry:
    return FolderEntry(path, FOLDER)


def link(path: str, target: str) -> FolderEntry:
    return FolderEntry(path, LINK, target=target)


def content_of(*entries: FolderEntry, version: int = VERSION) -> bytes:
    """As a liar encodes it: nothing is checked."""
    return MAGIC + msgspec.msgpack.encode(Manifest(version, entries))


ESCAPES = [
    "/etc/passwd",
    "../x",
    "a/../../x",
    "..",
    ".",
    "",
    "a//b",
    "a/./b",
    "a/",
    "C:/x",
    "C:x",
    "\\\\server\\x",
    "a\\..\\..\\x",
    "x\0y",
    "a\nb",
    "con",
    "AUX.txt",
    "lpt1",
    "dot.",
    "space ",
    " space",
    "a" * 256,
    "/".join("a" * 40),
]


@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize("make", [file, folder, lambda path: link(path, "x")], ids=["file", "folder", "link"])
def test_names_that_leave_the_folder_or_mean_something_are_refused(path: str, make: object) -> None:
    with pytest.raises(BadDataError):
        decode_manifest(content_of(make(path)))  # type: ignore[operator]


TARGETS = ["/etc", "..", "../x", "../../x", "a/../../x", "a/..", "./a", "", "x/", "C:/x", "\\x", "a\0b", "a//b", ".", "con"]


@pytest.mark.parametrize("target", TARGETS)
def test_links_that_lead_out_are_refused(target: str) -> None:
    with pytest.raises(BadDataError):
        decode_manifest(content_of(link("link", target)))


@pytest.mark.parametrize("target", ["../..", "../../x", "../x/../../y", "../../../x"])
def test_links_in_a_folder_that_lead_out_are_refused(target: str) -> None:
    with pytest.raises(BadDataError):
        decode_manifest(content_of(folder("a"), link("a/link", target)))


def test_links_that_stay_inside_are_accepted() -> None:
    good = content_of(folder("a"), folder("a/b"), link("a/b/one", "../../x"), link("a/two", ".."), link("three", "a/b"), file("x"))
    assert len(decode_manifest(good).entries) == 6


TREES = {
    "a file through a link": [link("a", "b"), file("a/x"), folder("b")],
    "a file through a file": [file("a"), file("a/x")],
    "a file in no folder": [file("a/x")],
    "the same name twice": [file("a"), file("a")],
    "the same name as file and folder": [file("a"), folder("a")],
    "names that differ in case": [file("A"), file("a")],
    "folders that differ in case": [folder("A"), file("A/x"), folder("a"), file("a/y")],
    "names that differ in composition": [file("e\u0301"), file("\u00e9")],
    "a sharp s and two": [file("stra\u00dfe"), file("strasse")],
    "out of order": [file("b"), file("a")],
    "a folder behind its file": [file("a/x"), folder("a")],
    "an unknown kind": [FolderEntry("a", "device")],
    "a file without address": [file("a", blob=b"")],
    "a file with a short address": [file("a", blob=b"x")],
    "a file of a negative size": [file("a", size_bytes=-1)],
    "a file of an absurd size": [file("a", size_bytes=1 << 62)],
    "a file with a target": [file("a", target="x")],
    "a folder with content": [FolderEntry("a", FOLDER, 1, BLOB)],
    "a link with content": [FolderEntry("a", LINK, 1, BLOB, target="b")],
    "a folder that can be run": [FolderEntry("a", FOLDER, executable=True)],
}


@pytest.mark.parametrize("entries", TREES.values(), ids=TREES.keys())
def test_trees_that_cannot_be_are_refused(entries: Sequence[FolderEntry]) -> None:
    with pytest.raises(BadDataError):
        decode_manifest(content_of(*entries))


def test_bombs_and_bytes_that_are_no_manifest_are_refused() -> None:
    for content in (
        b"",
        MAGIC,
        MAGIC + b"\xc1",
        b"x" + MAGIC,
        content_of(version=2),
        MAGIC + b"\x92\x01\xdd\xff\xff\xff\xff",
        MAGIC + b"\x91" * 5000,
    ):
        with pytest.raises(BadDataError):
            decode_manifest(content)
    with pytest.raises(BadDataError, match="too much"):
        decode_manifest(MAGIC + bytes(MANIFEST_BYTES_MAX))
    with pytest.raises(BadDataError, match="too much"):
        encode_manifest([folder(str(number)) for number in range(ENTRIES_MAX + 1)])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_do_anything_but_raise_our_error(body: bytes) -> None:
    try:
        decode_manifest(MAGIC + body)
    except BadDataError:
        return


NAMES = st.sampled_from(["a", "b", "A", "..", "c.txt", "é", "e\u0301", "", "x y"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
ENTRIES = st.one_of(
    PATHS.map(file),
    PATHS.map(folder),
    st.builds(link, PATHS, st.lists(st.sampled_from(["..", "a", "b", ".", ""]), max_size=4).map("/".join)),
)


@given(st.lists(ENTRIES, max_size=8))
def test_what_is_accepted_stays_inside_when_it_is_built(tmp_path_factory: pytest.TempPathFactory, entries: list[FolderEntry]) -> None:
    try:
        manifest = decode_manifest(encode_manifest(entries))
    except BadDataError:
        return
    base = tmp_path_factory.mktemp("built")
    building, target = base / "building", base / "target"
    folders._prepare(building, manifest)
    for entry in manifest.files:
        descriptor = os.open(building / "tree" / entry.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
        os.close(descriptor)
    folders._finish(building, manifest, target)
    assert sorted(path.name for path in base.iterdir()) == ["target"]
    assert len(list(target.rglob("*"))) >= len([entry for entry in manifest.entries if "/" not in entry.path])
    for entry in manifest.entries:
        if entry.kind == LINK:
            resolved = Path(os.path.realpath(target / entry.path))
            assert resolved == target or target in resolved.parents


def incoming(content: bytes = b"abc") -> Incoming:
    from p2pgrid.model.blob import blob_id_of

    reply = FileReply(blob_id_of(content), len(content), 1)
    return Incoming(None, reply, InlineOffload())  # type: ignore[arg-type]


def test_a_file_in_progress_is_never_written_through_somebodys_link_or_second_name(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / "part").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic link"):
        Part(tmp_path / "part", incoming())
    os.link(secret, tmp_path / "second")
    with pytest.raises(RefusedError):
        Part(tmp_path / "second", incoming())
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RefusedError):
        Part(tmp_path / "pipe", incoming())
    assert secret.read_text() == "secret"


def test_a_folder_in_progress_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    manifest = decode_manifest(content_of(file("a")))
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(elsewhere)
    for path in (open_to_all, tmp_path / "link"):
        with pytest.raises(RefusedError):
            folders._prepare(path, manifest)
    assert not list(elsewhere.iterdir())


def test_what_an_interrupted_run_left_is_checked_before_it_is_believed(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"abX")
    part = Part(tmp_path / "part", incoming())
    assert part.first_missing() == 0
    part.write([(0, b"abc")])
    assert part.first_missing() == 1
    part.place(tmp_path / "target")
    part.close()
    assert (tmp_path / "target").read_bytes() == b"abc"
    (tmp_path / "part").write_bytes(b"abcdefgh")
    longer = Part(tmp_path / "part", incoming())
    assert longer.first_missing() == 1
    longer.place(tmp_path / "target")
    longer.close()
    assert (tmp_path / "target").read_bytes() == b"abc"
