"""The second wall: an allow-list of system calls, with rules for the arguments of those that could reach out.

1. What is not listed is refused, calls younger than the table as if they were missing, so that libraries fall back.
2. The calls of another machine (32 bit, x32) kill: their numbers mean other calls.
3. A function starts no process and signals only itself. A command may start programs and signal: its namespace, its uid or its
   Landlock domain holds who can be reached. An engine is a function; its threads and its executable memory need nothing more.
4. Nobody sends files over sockets: one that is only under way is in no folder and in no process, so nobody would count it.
5. Nobody opens a socket, makes a namespace, mounts, traces, changes limits, or maps shared memory that no limit counts.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from . import bpf, kernel
from .bpf import INT, WHOLE, Bits, Rule
from .syscalls import AUDIT_ARCH, NEWEST_KNOWN, numbers

_PR_SET_SECCOMP, _FILTER_MODE = 22, 2
_EPERM, _EACCES, _ENOSYS, _ENOTSUP = 1, 13, 38, 95

_ALWAYS = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range
stat fstat lstat newfstatat statx lseek access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir
rmdir unlink unlinkat rename renameat renameat2 symlink symlinkat ftruncate fsync fdatasync flock fadvise64
sendfile copy_file_range statfs fstatfs umask dup dup2 dup3 pipe pipe2 poll ppoll select pselect6
epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 timerfd_create timerfd_settime timerfd_gettime
munmap mprotect mremap madvise brk mincore msync membarrier
clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage alarm setitimer getitimer
timer_create timer_settime timer_gettime timer_getoverrun timer_delete
getpid gettid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp
sched_yield sched_get_priority_max sched_get_priority_min getrandom uname sysinfo getcpu capget exit exit_group
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack restart_syscall pause
set_tid_address set_robust_list futex futex_waitv rseq arch_prctl getrlimit
sendto recvfrom recvmsg recvmmsg shutdown getsockname getpeername getsockopt
"""
_COMMAND_TOO = "fork vfork execve wait4 waitid getpgid getsid setpgid setsid kill tkill tgkill link linkat splice tee pidfd_open"
_TIMES = "utime utimes utimensat futimesat"
_MODES = (("chmod", 1), ("fchmod", 1), ("fchmodat", 2))
"""Changing modes and times: only where every file that can be named is the cage's own. Landlock does not speak of them."""
_MISSING = "clone3 memfd_create openat2 io_uring_setup io_uring_enter io_uring_register"
_UNSUPPORTED = "getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr"

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020080
"""Mount, cgroup, UTS, IPC, user, pid, network and time."""
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 0x01, 0x20, 0x100
_AF_UNIX, _SOCK_STREAM = 1, 1
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)
"""Duplicates, flags, locks, the size of a pipe and seals: asked, but nothing that signals another process."""
_IOCTL = (0x5421, 0x5450, 0x5451, 0x541B, 0x5401, 0x5413)
"""FIONBIO, FIONCLEX, FIOCLEX, FIONREAD, TCGETS, TIOCGWINSZ."""
_PRCTL = (2, 3, 15, 16, 21, 23, 30, 39)
"""Names and reads."""
_S_IFMT, _S_IFREG, _S_IFIFO = 0o170000, 0o100000, 0o010000
_S_ISUGID = 0o6000
_O_ACCMODE, _O_CREAT, _O_TRUNC, _O_TMPFILE = 3, 0o100, 0o1000, 0o20000000


class Profile(NamedTuple):
    """What a filter depends on."""

    kind: str
    """``function``, ``command`` or ``engine``."""
    process_id: int
    """Of the process to confine, as it sees itself."""
    metadata: bool
    """Whether modes and times of files may be changed."""
    truncates: bool
    """Whether Landlock speaks of cutting files short (ABI 3); else the filter must."""


def filter_for(profile: Profile, machine: str) -> bytes:
    """The program for a profile. Raises KeyError for a machine without a table."""
    table = numbers(machine)
    rules = dict.fromkeys(_ALWAYS.split(), Rule())
    rules |= _argument_rules(profile.process_id)
    rules |= dict.fromkeys(_MISSING.split(), Rule((), _ENOSYS)) | dict.fromkeys(_UNSUPPORTED.split(), Rule((), _ENOTSUP))
    if profile.metadata:
        rules |= dict.fromkeys(_TIMES.split(), Rule()) | {name: Rule((_plain(at),)) for name, at in _MODES}
    rules |= _open_rules(profile.truncates)
    if profile.kind == "command":
        rules |= _command_rules()
    known = {table[name]: rule for name, rule in rules.items() if name in table}
    return bpf.program(AUDIT_ARCH[machine], known, newest_known=NEWEST_KNOWN, unknown_errno=_ENOSYS, default_errno=_EPERM)


def _argument_rules(process_id: int) -> dict[str, Rule]:
    itself = _one_of(0, (0, process_id))
    only_itself = _one_of(0, (process_id,))
    nobody_else = tuple((Bits(0, INT, 0), Bits(1, INT, who)) for who in (0, process_id))
    return {
        "clone": Rule(((Bits(0, _CLONE_THREAD | _CLONE_NAMESPACES, _CLONE_THREAD),),)),
        "kill": Rule(only_itself),
        "tgkill": Rule(only_itself),
        "prlimit64": Rule(((Bits(0, INT, 0), Bits(2, WHOLE, 0)),)),
        # What grows downwards counts as stack, and shared memory without a file as nobody's: no limit of data would hold them.
        "mmap": Rule(((Bits(3, _MAP_ANONYMOUS | _MAP_GROWSDOWN, 0),), (Bits(3, _MAP_SHARED | _MAP_GROWSDOWN, 0),))),
        # With another mode room is taken that no limit of file sizes is asked about.
        "fallocate": Rule(((Bits(1, INT, 0),),), _ENOTSUP),
        "socket": Rule((), _EACCES),
        # Streams only: a datagram socket could name whom it sends to.
        "socketpair": Rule(((Bits(0, INT, _AF_UNIX), Bits(1, 0xF, _SOCK_STREAM)),), _EACCES),
        "ioctl": Rule(_one_of(1, _IOCTL)),
        "prctl": Rule(_one_of(0, _PRCTL)),
        "fcntl": Rule(_one_of(1, _FCNTL)),
        "sched_getaffinity": Rule(itself),
        "sched_getparam": Rule(itself),
        "sched_getscheduler": Rule(itself),
        "getpgid": Rule(itself),
        "getsid": Rule(itself),
        "getpriority": Rule(nobody_else),
    }


def _open_rules(truncates: bool) -> dict[str, Rule]:
    """Opening and making files; nobody makes one that runs as its owner or group."""
    rules = {name: Rule((_plain(at),)) for name, at in (("creat", 1), ("mkdir", 1), ("mkdirat", 2))}
    # An open for reading that cuts the file short is not asked about by an old Landlock; one for writing is.
    for name, at in (("open", 1), ("openat", 2)):
        ways: list[bpf.Alternative] = [()]
        if not truncates:
            ways = [(Bits(at, _O_TRUNC, 0),), (Bits(at, _O_ACCMODE, 1),), (Bits(at, _O_ACCMODE, 2),)]
        # The mode is an argument only where something is made.
        rules[name] = Rule(tuple((*way, *made) for way in ways for made in ((Bits(at, _O_CREAT | _O_TMPFILE, 0),), _plain(at + 1))))
    return rules | ({"truncate": Rule()} if truncates else {})


def _plain(argument: int) -> bpf.Alternative:
    """A mode without the bits that give a program its owner's rights."""
    return (Bits(argument, _S_ISUGID, 0),)


def _command_rules() -> dict[str, Rule]:
    rules = dict.fromkeys(_COMMAND_TOO.split(), Rule())
    rules["clone"] = Rule(((Bits(0, _CLONE_NAMESPACES, 0),),))
    rules["prctl"] = Rule(_one_of(0, (1, *_PRCTL)))  # A program may tie its children to itself.
    rules["setpriority"] = Rule(((Bits(0, INT, 0), Bits(1, INT, 0)),))
    for name, at in (("mknod", 1), ("mknodat", 2)):
        rules[name] = Rule(tuple((Bits(at, _S_IFMT, kind), *_plain(at)) for kind in (0, _S_IFREG, _S_IFIFO)))
    return rules


def _one_of(argument: int, values: tuple[int, ...]) -> tuple[bpf.Alternative, ...]:
    return tuple((Bits(argument, INT, value),) for value in values)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(program: bytes) -> None:
    """Put the filter on this process, for ever. Needs no_new_privs. Raises OSError."""
    buffer = ctypes.create_string_buffer(program, len(program))
    kernel.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(_Program(len(program) // 8, ctypes.addressof(buffer))))


def available() -> str:
    """Why there is no filter on this machine; empty when there is."""
    machine = os.uname().machine
    if machine not in AUDIT_ARCH or ctypes.sizeof(ctypes.c_void_p) != 8:
        return f"there is no list of system calls for {machine}"
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail", encoding="ascii") as file:
            actions = file.read().split()
    except OSError:
        return "the kernel has no system call filter"
    return "" if {"allow", "errno", "kill_process"} <= set(actions) else "the kernel's system call filter is too old"
