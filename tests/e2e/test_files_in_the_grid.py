"""Files and folders as their owner meets them: put, get, list, keep, give up, and what is said when it cannot be."""

from __future__ import annotations

import filecmp
import json
import os
import random
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.e2e.grids import PROGRAM, Grid, Member, environment, until

ID_CHARS = 52


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with everything that one may have."""
    folder = tmp_path / "tree"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "nothing").mkdir()
    (folder / "empty.txt").touch()
    (folder / "deep" / "big.bin").write_bytes(random.Random(3).randbytes((2 << 20) + 77))
    (folder / "deep" / "er" / "ünï.txt").write_text("words", encoding="utf-8")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("deep/er")
    (folder / "deep" / "er" / "up").symlink_to("../big.bin")
    return folder


def put(member: Member, *words: str | Path) -> str:
    done = member.run("put", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert len(done.stdout.strip()) == ID_CHARS
    return done.stdout.strip()


def got(member: Member, *words: str | Path) -> None:
    done = member.run("get", *words)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def same(left: Path, right: Path) -> bool:
    names = sorted(path.relative_to(left).as_posix() for path in left.rglob("*"))
    if names != sorted(path.relative_to(right).as_posix() for path in right.rglob("*")):
        return False
    for name in names:
        one, two = left / name, right / name
        if one.is_symlink() or two.is_symlink():
            if os.readlink(one) != os.readlink(two):
                return False
        elif one.is_dir() != two.is_dir() or (one.is_file() and not alike(one, two)):
            return False
    return True


def alike(one: Path, two: Path) -> bool:
    """Content, and whether it can be run."""
    return filecmp.cmp(one, two, shallow=False) and one.stat().st_mode & 0o111 == two.stat().st_mode & 0o111


def test_a_folder_comes_back_as_it_was_from_another_node(five: Grid, tree: Path, tmp_path: Path) -> None:
    blob = put(five[0], tree)
    assert put(five[0], tree) == blob
    got(five[3], blob, "-o", tmp_path / "copy")
    assert same(tree, tmp_path / "copy")
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "there").mkdir()
    got(five[4], blob, "-o", tmp_path / "there")
    assert same(tree, tmp_path / "there")


def test_a_folder_is_never_mixed_with_what_is_there(five: Grid, tree: Path, tmp_path: Path) -> None:
    blob = put(five[0], tree, "--replicas", "1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    done = five[0].run("get", blob, "-o", tmp_path / "full")
    assert done.returncode == 65
    assert "is not empty" in done.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    nowhere = five[0].run("get", blob)
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert "this is a folder" in nowhere.stderr
    got(five[0], "--raw", blob, "-o", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes().startswith(b"p2pgrid folder\n")


@pytest.mark.parametrize("made", ["fifo", "link out", "absolute link", "case", "windows"])
def test_what_cannot_be_kept_in_a_folder_is_said_before_anything_is_sent(five: Grid, tmp_path: Path, made: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "fine").write_text("fine")
    if made == "fifo":
        os.mkfifo(folder / "pipe")
    elif made == "link out":
        (folder / "link").symlink_to("../secret")
    elif made == "absolute link":
        (folder / "link").symlink_to("/etc/passwd")
    elif made == "case":
        (folder / "FINE").write_text("other")
    else:
        (folder / "aux.txt").write_text("other")
    done = five[0].run("put", folder)
    assert (done.returncode, done.stdout) == (65, ""), done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("  hint: ")]


def test_special_files_are_refused_and_never_waited_for(five: Grid, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = five[0].run("put", tmp_path / "pipe")
    assert done.returncode == 65
    assert "is no regular file" in done.stderr
    device = five[0].run("put", "/dev/zero")
    assert device.returncode == 65
    missing = five[0].run("put", tmp_path / "nothing")
    assert (missing.returncode, missing.stdout) == (65, "")


def test_what_was_put_is_listed_with_its_name_copies_and_end(five: Grid, tree: Path) -> None:
    member = five[1]
    (tree / "deep" / "big.bin").write_bytes(os.urandom((2 << 20) + 77))
    file = put(member, tree / "deep" / "big.bin", "--ttl", "2d", "--replicas", "2")
    assert {line["copies"] for line in member.document("blobs")["blobs"] if line["blob"] == file} == {2}
    folder = put(member, tree)
    listed = {line["blob"]: line for line in member.document("blobs")["blobs"]}
    assert (listed[file]["name"], listed[file]["kind"], listed[file]["size_bytes"]) == ("big.bin", "file", (2 << 20) + 77)
    assert (listed[file]["copies_wanted"], listed[file]["state"]) == (3, "held")
    days = (listed[file]["expires_ms"] - listed[file]["put_ms"]) / 86_400_000
    assert 1.9 < days <= 2.1
    assert (listed[folder]["name"], listed[folder]["kind"]) == ("tree", "folder")
    assert listed[folder]["size_bytes"] == (2 << 20) + 77 + 5 + 10
    table = member.run("blobs").stdout
    assert file[:8] in table
    assert "big.bin" in table
    everything = member.document("blobs", "--all")["blobs"]
    assert len(everything) > len(listed)
    assert member.run("get", file[:12], "-o", tree.parent / "again").returncode == 0


def test_pinned_is_kept_here_and_given_up_when_asked(five: Grid, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(os.urandom(3000))
    (tmp_path / "folder" / "b").write_bytes(os.urandom(3000))
    shared = tmp_path / "folder" / "b"
    blob = put(five[0], tmp_path / "folder", "--replicas", "1", "--ttl", "1h")
    pinned = five[2].run("pin", blob)
    assert (pinned.returncode, pinned.stdout) == (0, ""), pinned.stderr
    line = next(line for line in five[2].document("blobs")["blobs"] if line["blob"] == blob)
    assert (line["pinned"], line["kind"], line["size_bytes"]) == (True, "folder", 6000)
    file = put(five[2], shared, "--replicas", "1")
    five[0].run("unpin", blob)
    assert blob not in [line["blob"] for line in five[0].document("blobs")["blobs"]]
    got(five[3], blob, "-o", tmp_path / "copy")
    assert same(tmp_path / "folder", tmp_path / "copy")
    assert five[2].run("unpin", blob).returncode == 0
    leases = five[2].document("why", file)["leases"]
    assert len(leases) == 1
    twice = five[2].run("unpin", blob)
    assert twice.returncode == 77
    assert "neither put nor pinned here" in twice.stderr
    unknown = five[2].run("pin", "a" * ID_CHARS)
    assert unknown.returncode == 69


def test_why_shows_copies_holders_formula_and_cost(five: Grid, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(100_000))
    blob = put(five[0], path, "--replicas", "3")
    until(lambda: len(five[0].document("why", blob)["holders"]) >= 3, "three holders are known")
    document = five[0].document("why", blob)
    assert document["copies_wanted"] == 3
    assert document["stored_bytes"] == 300_000
    product = 1.0
    for holder in document["holders"]:
        assert holder["live"]
        product *= 1 - holder["share"]
    assert document["available"] == pytest.approx(1 - product)
    said = five[0].run("why", blob).stdout
    assert "available: 1 - (1 - 0." in said
    assert "copies: 3 of 3 wanted" in said
    unknown = five[0].run("why", "a" * ID_CHARS)
    assert unknown.returncode == 69


def test_auto_makes_as_many_copies_as_the_availability_asks_for(five: Grid, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1000))
    done = five[0].run("put", path, "--replicas", "auto")
    assert done.returncode == 0, done.stderr
    line = next(line for line in five[0].document("blobs")["blobs"] if line["blob"] == done.stdout.strip())
    assert 3 <= line["copies_wanted"] <= 5
    assert line["copies"] == line["copies_wanted"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--replicas", "many"), "'many' is no number of copies"),
        (("--replicas", "0"), "'0' is no number of copies"),
        (("--ttl", "7"), "'7' is no span of time"),
        (("--ttl", "9000d"), "longer than nodes keep anything"),
    ],
)
def test_mistakes_in_the_options_of_put(five: Grid, tmp_path: Path, words: tuple[str, str], says: str) -> None:
    (tmp_path / "file").touch()
    done = five[0].run("put", tmp_path / "file", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_a_target_that_cannot_be_written_is_said_and_nothing_is_left(five: Grid, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2000))
    blob = put(five[0], path, "--replicas", "1")
    for target, says in ((tmp_path / "no" / "x", "No such file"), (path / "x", "Not a directory")):
        done = five[0].run("get", blob, "-o", target)
        assert done.returncode == 77, done.stderr
        assert says in done.stderr
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file"]
    (tmp_path / "into").mkdir()
    got(five[0], blob, "-o", tmp_path / "into")
    assert [item.name for item in (tmp_path / "into").iterdir()] == ["file"]


def test_a_full_disk_at_the_target_is_said_and_the_next_run_goes_on(five: Grid, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(5 << 20))
    blob = put(five[0], path, "--replicas", "1")
    # A limit on the size of files is met like a full disk, and needs no disk of its own.
    words = shlex.join([*PROGRAM, "get", blob, "-o", str(tmp_path / "copy")])
    chosen = environment() | {"P2PGRID_HOME": str(five[0].home)}
    script = f"trap '' XFSZ; ulimit -f 4096; exec {words}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=chosen, timeout=30, check=False)
    assert done.returncode == 77, done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert not (tmp_path / "copy").exists()
    got(five[0], blob, "-o", tmp_path / "copy")
    assert filecmp.cmp(path, tmp_path / "copy", shallow=False)
    assert not list(tmp_path.glob(".copy*"))


def test_json_of_blobs_is_one_document(five: Grid) -> None:
    done = five[4].run("blobs", "--json")
    assert json.loads(done.stdout) == {"blobs": json.loads(done.stdout)["blobs"]}
