"""The wall around the first two, where the kernel lets us: a process sees a file system of its own, no network, and nobody's processes.

The root is a small tmpfs that ends up read-only; what may be read is bound into it at its own path, read-only, and the private folder,
writable. There is no ``/proc`` and no ``/sys``. What is not bound cannot even be asked about, which Landlock alone does not give.

1. A root process with the capability makes them directly, anybody else in a user namespace of its own.
2. A pid namespace holds the children of who makes it, so only a process that forks afterwards is in one; a process that will have
   threads and no children gets none: the kernel starts no threads in between.
3. Nothing opened before may lead out: folders are opened afterwards, and the working directory is left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct

from . import kernel

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8
_AT_FDCWD, _AT_RECURSIVE, _MNT_DETACH = -100, 0x8000, 2
_PR_SET_DUMPABLE = 4
NOBODY = 65534
"""Who a process is inside of a user namespace."""
_ROOT_OPTIONS = b"size=1m,nr_inodes=1024,mode=755"
_OLD = "/.old"
_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 (where programs expect to be able to write)
_BASES = (*_TEMPORARY, "/run", "/mnt", "/usr")
"""Where the new root may lie for a moment; in our own view of the mounts only."""

DEVICES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")
"""The devices a cage has. Not ``/dev/zero``: mapped shared, it is memory that no limit counts."""


def separate(*, processes: bool, privileged: bool) -> None:
    """Leave the namespaces of the machine. ``processes``: children will be in a pid namespace; ``privileged``: without a user namespace.

    Raises OSError when the kernel refuses.
    """
    flags = _NEWNS | _NEWCGROUP | _NEWUTS | _NEWIPC | _NEWNET | (_NEWPID if processes else 0)
    user, group = os.geteuid(), os.getegid()
    if not privileged:
        flags |= _NEWUSER
        kernel.prctl(_PR_SET_DUMPABLE, 1)  # Else the maps below belong to root.
    kernel.checked(kernel.libc().unshare(flags), "no namespaces can be made")
    if not privileged:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {user} 1"), ("gid_map", f"{NOBODY} {group} 1")):
            number = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(number, text.encode())
            finally:
                os.close(number)


def enter_root(folder: str, read: list[str], *, runs_programs: bool) -> None:
    """Build the root and make it ours. ``folder``: the private folder, with ``given`` in it; ``read``: what else is there, read-only.

    ``runs_programs``: whether files in the private folder may be executed. Raises OSError.
    """
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    base = next(place for place in _BASES if os.path.isdir(place))
    _mount(b"tmpfs", base, b"tmpfs", _MS_NOSUID | _MS_NODEV, _ROOT_OPTIONS)
    os.mkdir(base + _OLD)
    os.chdir(base)
    libc = kernel.libc()
    number = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
    kernel.checked(kernel.syscall(number, ctypes.c_char_p(b"."), ctypes.c_char_p(_OLD[1:].encode())), "the root cannot be changed")
    os.chdir("/")
    for path in _without_covered(read):
        _bring(path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
    for path in DEVICES:
        _bring(path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NOEXEC)
    os.symlink("full", "/dev/zero")  # It gives zeros as well, and cannot be mapped.
    _bring(folder, _ATTR_NOSUID | _ATTR_NODEV | (0 if runs_programs else _ATTR_NOEXEC))
    _bring(os.path.join(folder, "given"), _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
    for path in _TEMPORARY:
        if not os.path.lexists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(os.path.join(folder, "scratch"), path)
    kernel.checked(libc.umount2(_OLD.encode(), _MNT_DETACH), "the old root cannot be left")
    os.rmdir(_OLD)
    _set_attributes("/", _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV | _ATTR_NOEXEC, recursive=False)
    # By the path, not by what was open: the working directory of before lies outside.
    os.chdir("/")


def stands() -> str:
    """What is wrong with the root this process sees; empty when nothing is."""
    if not os.statvfs("/").f_flag & os.ST_RDONLY:
        return "the root can be written"
    for path in ("/proc/self", "/sys/kernel", _OLD, "/etc/passwd"):
        if os.path.lexists(path):
            return f"{path} is still there"
    return ""


def _without_covered(paths: list[str]) -> list[str]:
    """Without those that lie below another one: it brings them along."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path == other or path.startswith(other.rstrip("/") + "/") for other in kept):
            kept.append(path)
    return kept


def _bring(path: str, attributes: int) -> None:
    """Bind a path of the old root to the same place in the new one, if it exists. A link is made again as a link."""
    source = _OLD + path
    try:
        state = os.lstat(source)
    except (FileNotFoundError, NotADirectoryError):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if stat.S_ISLNK(state.st_mode):
        with contextlib.suppress(FileExistsError):
            os.symlink(os.readlink(source), path)
        return
    if stat.S_ISDIR(state.st_mode):
        os.makedirs(path, exist_ok=True)
    elif not os.path.lexists(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
    _mount(source.encode(), path, None, _MS_BIND | _MS_REC, None)
    _set_attributes(path, attributes, recursive=True)


def _mount(source: bytes | None, target: str, kind: bytes | None, flags: int, options: bytes | None) -> None:
    result = kernel.libc().mount(source, os.fsencode(target), kind, ctypes.c_ulong(flags), options)
    kernel.checked(result, f"{target} cannot be mounted")


def _set_attributes(path: str, attributes: int, *, recursive: bool) -> None:
    wanted = ctypes.create_string_buffer(struct.pack("=4Q", attributes, 0, 0, 0), 32)
    flags = _AT_RECURSIVE if recursive else 0
    result = kernel.syscall(kernel.MOUNT_SETATTR, _AT_FDCWD, ctypes.c_char_p(os.fsencode(path)), flags, wanted, 32)
    kernel.checked(result, f"{path} cannot be made read-only")
