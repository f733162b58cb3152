"""Attacks on files: reading and finding what is the owner's, writing outside, changing what may be named."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

from p2pgrid.runtimes.selftest.attacks.base import HIDDEN, USUAL, Canary, Refused, attack, tokens_in

_LOOPED = (*HIDDEN, errno.ELOOP, errno.ENOTDIR)


def _read(path: str) -> bytes:
    number = os.open(path, os.O_RDONLY)
    try:
        return os.read(number, 1 << 16)
    finally:
        os.close(number)


@attack(*HIDDEN)
def read_home_file(canary: Canary) -> str:
    return tokens_in(_read(canary["home_file"]), canary)


@attack(*HIDDEN)
def read_absolute_path(canary: Canary) -> str:
    return tokens_in(_read(canary["open_file"]), canary)


@attack(*HIDDEN)
def read_system_accounts(canary: Canary) -> str:
    return f"{len(_read('/etc/passwd'))} bytes"


@attack(*HIDDEN)
def read_through_own_root(canary: Canary) -> str:
    return tokens_in(_read(f"/proc/self/root{canary['open_file']}"), canary)


@attack(*HIDDEN)
def read_through_process_root(canary: Canary) -> str:
    return tokens_in(_read(f"/proc/{canary['process']}/root{canary['open_file']}"), canary)


@attack(*HIDDEN)
def read_through_parent_folders(canary: Canary) -> str:
    return tokens_in(_read("../" * 40 + canary["open_file"].lstrip("/")), canary)


@attack(*_LOOPED)
def read_through_link(canary: Canary) -> str:
    link = Path("link-to-secret")
    link.symlink_to(canary["open_file"])
    try:
        return tokens_in(_read(str(link)), canary)
    finally:
        link.unlink()


@attack(*HIDDEN, errno.EXDEV, errno.ELOOP)
def read_through_hard_link(canary: Canary) -> str:
    link = Path("second-name")
    os.link(canary["open_file"], link)
    try:
        return tokens_in(_read(str(link)), canary)
    finally:
        link.unlink()


@attack(*HIDDEN)
def list_home(canary: Canary) -> str:
    return f"{len(os.listdir(str(Path(canary['home_file']).parent)))} names"


@attack(*HIDDEN, accepted=("landlock",))
def find_home_file(canary: Canary) -> str:
    return f"{os.stat(canary['home_file']).st_size} bytes"


@attack(*HIDDEN)
def write_outside(canary: Canary) -> str:
    place = Path(canary["open_folder"]) / "planted"
    place.write_text("planted")
    place.unlink()
    return "a file was made"


@attack(*HIDDEN)
def change_file(canary: Canary) -> str:
    number = os.open(canary["writable_file"], os.O_WRONLY | os.O_APPEND)
    os.close(number)
    return "it was opened for writing"


@attack(*HIDDEN)
def cut_file(canary: Canary) -> str:
    os.truncate(canary["writable_file"], os.stat(canary["writable_file"]).st_size)
    return "its length could be set"


@attack(*HIDDEN, errno.EXDEV)
def move_file_away(canary: Canary) -> str:
    taken = Path(canary["open_folder"]) / "taken"
    os.rename(canary["movable_file"], taken)
    os.rename(taken, canary["movable_file"])
    return "it was renamed"


@attack(*HIDDEN)
def write_shared_folders(canary: Canary) -> str:
    home = str(Path(canary["home_file"]).parent)
    for folder in ("/tmp", "/var/tmp", "/dev/shm", "/dev", "/", "/run", "/scratch", home):  # noqa: S108 - these are tried, not used
        if os.path.realpath(folder) == os.path.realpath(os.getcwd()):
            continue  # A cage may call its own folder so.
        place = Path(folder) / f"planted-{canary['token']}"
        try:
            place.write_text("planted")
        except OSError as error:
            if error.errno not in HIDDEN:
                raise
            continue
        place.unlink()
        return f"a file was made in {folder}"
    raise Refused("no shared folder could be written")


@attack(*HIDDEN, control="root")
def poison_interpreter(canary: Canary) -> str:
    folders = [str(Path(os.__file__).parent), *(entry for entry in sys.path if entry.startswith("/"))]
    refused: OSError | None = None
    for folder in folders:
        place = Path(folder) / f"planted_{canary['token']}.py"
        try:
            place.write_text("planted = True\n")
        except OSError as error:
            refused = error
            continue
        place.unlink()
        return f"a module was made in {folder}"
    assert refused is not None
    raise refused


@attack(*HIDDEN)
def change_mode(canary: Canary) -> str:
    os.chmod(canary["writable_file"], stat.S_IMODE(os.stat(canary["writable_file"]).st_mode))
    return "its mode could be set"


@attack(*HIDDEN)
def change_times(canary: Canary) -> str:
    os.utime(canary["writable_file"], (1, 1))
    return "its times were set"


@attack(*HIDDEN)
def change_owner(canary: Canary) -> str:
    os.chown(canary["writable_file"], -1, -1)
    return "its owner could be set"


@attack(*HIDDEN, errno.ENOTSUP)
def change_attribute(canary: Canary) -> str:
    os.setxattr(canary["writable_file"], "user.planted", b"x")
    os.removexattr(canary["writable_file"], "user.planted")
    return "an attribute was set"


@attack(*USUAL, control="root")
def make_device(canary: Canary) -> str:
    os.mknod("device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.unlink("device")
    return "a device node was made"


@attack(*HIDDEN, errno.ENXIO, errno.ENODEV)
def open_device(canary: Canary) -> str:
    refused: OSError | None = None
    for name in ("ptmx", "kmsg", "mem", "sda", "vda", "nvme0n1", "fuse", "kvm", "net/tun", "tty", "loop-control"):
        try:
            os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
        except OSError as error:
            refused = error
            continue
        return f"/dev/{name} was opened"
    assert refused is not None
    raise refused


@attack(control="plain")
def use_inherited_files(canary: Canary) -> str:
    """Any open file that shows the secret, or any folder from which a path leads to it."""
    relative = "../" * 40 + canary["open_file"].lstrip("/")
    for number in range(3, 256):
        try:
            kind = os.fstat(number).st_mode
        except OSError:
            continue
        if stat.S_ISDIR(kind):
            try:
                return tokens_in(os.read(os.open(relative, os.O_RDONLY, dir_fd=number), 1 << 16), canary)
            except (OSError, Refused):
                continue
        if stat.S_ISREG(kind):
            try:
                return tokens_in(os.pread(number, 1 << 16, 0), canary)
            except (OSError, Refused):
                continue
    raise Refused("no open file leads outside")


@attack(control="plain")
def use_inherited_environment(canary: Canary) -> str:
    return tokens_in("\0".join(os.environ.values()).encode(), canary)
