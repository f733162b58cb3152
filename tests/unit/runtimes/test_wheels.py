"""Archives from strangers, read before anything unpacks them: what is odd in any way is refused, what people publish is not."""

from __future__ import annotations

import os
import random
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pgrid.errors import IntegrityError, UnreachableError
from p2pgrid.model.environment import Wheel
from p2pgrid.model.reasons import Reason
from p2pgrid.runtimes.wheels import WheelBounds, check_wheel
from tests.unit.runtimes.wheel_maker import make_wheel, wheel_of

BOUNDS = WheelBounds()


def refused(path: Path, why: str, bounds: WheelBounds = BOUNDS, wheel: Wheel | None = None) -> None:
    with pytest.raises(IntegrityError, match=why) as caught:
        check_wheel(path, wheel or wheel_of(path), bounds)
    assert caught.value.reason == Reason.BAD_PACKAGE
    assert path.name in caught.value.message


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def changed(path: Path, change: Callable[[bytearray], None]) -> Path:
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_ordinary_wheel_is_taken_and_measured(tmp_path: Path, compression: int) -> None:
    path = make_wheel(tmp_path, files={"toy_data/table.bin": os.urandom(600_000), "tüte.py": "x = 1\n"}, compression=compression)
    found = check_wheel(path, wheel_of(path), BOUNDS)
    with zipfile.ZipFile(path) as archive:
        assert found == (len(archive.infolist()), sum(info.file_size for info in archive.infolist()))


def test_a_wheel_whose_sizes_stand_behind_its_entries_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "toy-1.0-py3-none-any.whl"

    class Pipe:
        """A file that cannot be sought, so that sizes come after the content."""

        def __init__(self) -> None:
            self.raw = bytearray()

        def write(self, data: bytes) -> int:
            self.raw += data
            return len(data)

        def flush(self) -> None: ...

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        for name in ("toy.py", "toy-1.0.dist-info/METADATA", "toy-1.0.dist-info/WHEEL"):
            archive.writestr(name, "x" * 100)
    path.write_bytes(pipe.raw)
    assert check_wheel(path, wheel_of(path), BOUNDS).entries == 3


@pytest.mark.parametrize(
    "name", ["../evil.py", "/etc/evil.py", "a/../../evil.py", "a\\..\\evil.py", "C:evil.py", "./a.py", "a//b.py", "a\nb.py"]
)
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    refused(make_wheel(tmp_path, files={name: "x"}), "leads out")


@pytest.mark.parametrize("part", ["scripts", "data", "headers", "purelib"])
def test_data_folders_cannot_lead_out_either(tmp_path: Path, part: str) -> None:
    refused(make_wheel(tmp_path, files={f"toy-1.0.data/{part}/../../../evil": "x"}), "leads out")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFDIR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    refused(make_wheel(tmp_path, odd=[(entry("toy_link", kind | 0o777), b"/etc/passwd")]), "link or a device")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    refused(make_wheel(tmp_path, odd=[(entry("toy.py"), b"evil")]), "one name")


def test_an_entry_below_a_file_is_refused(tmp_path: Path) -> None:
    refused(make_wheel(tmp_path, files={"toy.py/evil.py": "x"}), "below a file")


def test_another_distribution_in_the_file_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "other")
    refused(path.rename(tmp_path / "toy-1.0-py3-none-any.whl"), "another distribution")
    refused(make_wheel(tmp_path, files={"evil-1.0.dist-info/METADATA": "x"}), "several")


def test_bytes_that_are_not_those_of_the_lock_are_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path)
    wheel = wheel_of(path)
    changed(path, lambda raw: raw.__setitem__(40, raw[40] ^ 1))
    refused(path, "SHA-256", wheel=wheel)
    path.write_bytes(path.read_bytes() + b"x")
    refused(path, "another size", wheel=wheel)
    path.unlink()
    with pytest.raises(UnreachableError):
        check_wheel(path, wheel, BOUNDS)


def test_a_bomb_is_refused_before_and_while_it_unpacks(tmp_path: Path) -> None:
    bomb = make_wheel(tmp_path, files={"zeros.bin": bytes(40 << 20)})
    assert bomb.stat().st_size < 100_000
    refused(bomb, "100 times its size")
    refused(bomb, "more than 1000000 bytes", WheelBounds(unpacked_bytes=1_000_000, ratio=10_000))
    many = make_wheel(tmp_path, files={f"m/{number}": b"" for number in range(300)})
    refused(many, "more than 200 entries", WheelBounds(entries=200))


def test_an_entry_that_claims_less_than_it_unpacks_to_is_refused(tmp_path: Path) -> None:
    """The directory and the entry's own header agree on a lie; only unpacking shows it."""
    path = make_wheel(tmp_path, files={"zeros.bin": bytes(4 << 20)})
    true_size, small = struct.pack("<L", 4 << 20), struct.pack("<L", 1000)

    def lie(raw: bytearray) -> None:
        assert raw.count(true_size) == 2
        raw[:] = raw.replace(true_size, small)

    refused(changed(path, lie), "unpacks to more than it claims")


def test_content_that_does_not_match_its_checksum_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, files={"x.bin": b"A" * 1000}, compression=zipfile.ZIP_STORED)
    refused(changed(path, lambda raw: raw.__setitem__(raw.index(b"AAAA") + 9, 66)), "checksum")


def test_two_stories_about_one_entry_are_refused(tmp_path: Path) -> None:
    def rename(raw: bytearray) -> None:
        place = raw.index(b"toy.py")
        raw[place : place + 6] = b"tox.py"

    refused(changed(make_wheel(tmp_path), rename), "contradicts")

    def repack(raw: bytearray) -> None:
        raw[8] = 0  # The header says stored, the directory deflated.

    refused(changed(make_wheel(tmp_path), repack), "contradicts")


@pytest.mark.parametrize("where", ["before", "between", "behind"])
def test_something_that_only_some_programs_would_read_is_refused(tmp_path: Path, where: str) -> None:
    path = make_wheel(tmp_path)
    raw = path.read_bytes()
    hidden = b"PK\3\4" + bytes(60)
    if where == "behind":
        path.write_bytes(raw + hidden)
    elif where == "before":
        with zipfile.ZipFile(path) as archive:
            contents = [(info.filename, archive.read(info)) for info in archive.infolist()]
        path.write_bytes(hidden)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents:
                archive.writestr(name, content)
    else:
        start = struct.unpack("<L", raw[-6:-2])[0]
        path.write_bytes(raw[:start] + hidden + raw[start:-6] + struct.pack("<L", start + len(hidden)) + raw[-2:])
    refused(path, "plain archive|before its first|hide something")


def test_a_comment_or_a_second_name_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\5\6" + bytes(18)
    refused(path, "plain archive")
    other = entry("plain.py")
    other.extra = struct.pack("<HHBL", 0x7075, 12, 1, zlib.crc32(b"plain.py")) + b"evil.py"
    refused(make_wheel(tmp_path, odd=[(other, b"x")]), "second name")


def test_encrypted_entries_and_rare_methods_are_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path)

    def encrypt(raw: bytearray) -> None:
        raw[raw.index(b"PK\1\2") + 8] |= 1

    refused(changed(path, encrypt), "encrypted")
    refused(make_wheel(tmp_path, compression=zipfile.ZIP_BZIP2), "unusual way")


@pytest.mark.parametrize("raw", [b"", b"x", b"PK\5\6" + bytes(18), bytes(5000)])
def test_what_is_no_wheel_at_all_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "toy-1.0-py3-none-any.whl"
    path.write_bytes(raw)
    wheel = wheel_of(path) if raw else wheel_of(make_wheel(tmp_path / "honest"))
    refused(path, "no archive|no plain archive|another size|is empty|no .dist-info", wheel=wheel)


def test_no_damage_gets_past_unnoticed(tmp_path: Path) -> None:
    """Random damage: each file is refused, or unpacks to exactly what an ordinary reader finds in it."""
    rng = random.Random(7)
    path = make_wheel(tmp_path, files={"a/b.txt": "text " * 50})
    raw = path.read_bytes()
    taken = 0
    for _ in range(600):
        damaged = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.choice((0, 1, 0x50, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        path.write_bytes(damaged)
        try:
            found = check_wheel(path, wheel_of(path), BOUNDS)
        except IntegrityError:
            continue
        taken += 1
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert found == (len(archive.infolist()), sum(info.file_size for info in archive.infolist()))
    assert taken < 400
