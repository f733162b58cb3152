"""The filter of system calls, run by a small machine of this file: what it answers for each call, on both kinds of processor."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from p2pgrid.runtimes.sandbox.seccomp import Profile, filter_for
from p2pgrid.runtimes.sandbox.syscalls import AUDIT_ARCH, numbers
from tests.native import needs

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, EACCES, ENOSYS, ENOTSUP = 1, 13, 38, 95
OWN = 4321
MACHINES = sorted(AUDIT_ARCH)
CLONE_THREADS = 0x3D0F00
CLONE_FORK = 0x01200011
INSTRUCTIONS_MAX = 4096
"""What the kernel takes."""


def verdict(program: bytes, arch: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel would do with a call."""
    words = [argument & (1 << 64) - 1 for argument in (*arguments, *[0] * (6 - len(arguments)))]
    data = struct.pack("<iIQ6Q", number, arch, 0, *words)
    steps = list(struct.iter_unpack("<HBBI", program))
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x15:
            at += if_true if accumulator == value else if_false
        elif code == 0x35:
            at += if_true if accumulator >= value else if_false
        else:
            assert code == 0x06, code
            return int(value)


class Filter:
    """One profile on one machine."""

    def __init__(self, machine: str, kind: str = "function", *, metadata: bool = False, truncates: bool = True) -> None:
        self.program = filter_for(Profile(kind, OWN, metadata, truncates), machine)
        self.arch = AUDIT_ARCH[machine]
        self.numbers = numbers(machine)

    def __call__(self, name: str, *arguments: int) -> int:
        """0 when the call is allowed, else its error number."""
        answer = verdict(self.program, self.arch, self.numbers[name], arguments)
        assert answer == ALLOW or answer >> 16 == 5, hex(answer)
        return 0 if answer == ALLOW else answer & 0xFFFF


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("kind", ["function", "command", "engine"])
def test_every_jump_of_a_filter_stays_inside_and_it_is_short_enough_for_the_kernel(machine: str, kind: str) -> None:
    program = Filter(machine, kind, truncates=False).program
    steps = list(struct.iter_unpack("<HBBI", program))
    assert 200 < len(steps) < INSTRUCTIONS_MAX
    for at, (_, if_true, if_false, _) in enumerate(steps):
        assert at + 1 + max(if_true, if_false) <= len(steps)
    assert steps[-1][0] == 0x06


def test_the_calls_of_other_machines_kill(machine: str) -> None:
    program = Filter(machine).program
    other = AUDIT_ARCH["aarch64" if machine == "x86_64" else "x86_64"]
    assert verdict(program, other, 0) == KILL
    assert verdict(program, 0x40000003, 4) == KILL  # 32-bit x86
    assert verdict(program, AUDIT_ARCH[machine], 0x40000000) == KILL  # x32


def test_what_is_younger_than_the_table_is_missing_and_what_is_not_listed_is_refused(machine: str) -> None:
    program, arch = Filter(machine).program, AUDIT_ARCH[machine]
    assert verdict(program, arch, 452) & 0xFFFF == ENOSYS
    assert verdict(program, arch, 449) == ALLOW
    mount, ptrace, setuid = {"x86_64": (165, 101, 105), "aarch64": (40, 117, 146)}[machine]
    for number in (mount, ptrace, setuid, 444, 442):
        assert verdict(program, arch, number) & 0xFFFF == EPERM


def test_a_function_has_threads_and_no_processes(machine: str) -> None:
    function, command = Filter(machine), Filter(machine, "command")
    assert function("clone", CLONE_THREADS) == 0
    assert function("clone", CLONE_FORK) == EPERM
    assert command("clone", CLONE_FORK) == 0
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert function("clone", CLONE_THREADS | namespace) == EPERM
        assert command("clone", CLONE_FORK | namespace) == EPERM
    assert function("execve") == EPERM
    assert command("execve") == 0
    assert function("clone3") == command("clone3") == ENOSYS


def test_an_engine_may_what_a_function_may(machine: str) -> None:
    assert Filter(machine, "engine").program == Filter(machine, "function").program


def test_a_function_signals_itself_alone(machine: str) -> None:
    function = Filter(machine)
    assert function("kill", OWN, 9) == function("tgkill", OWN, 77, 9) == 0
    for other in (1, 0, OWN + 1, -1, -OWN):
        assert function("kill", other, 0) == EPERM
        assert function("tgkill", other, other, 0) == EPERM
    assert function("tkill", OWN) == EPERM
    assert Filter(machine, "command")("kill", 1, 9) == 0


def test_upper_halves_of_registers_do_not_get_past_a_rule(machine: str) -> None:
    function = Filter(machine)
    # The kernel takes a process id as 32 bits: rubbish above does not make it another one.
    assert function("kill", OWN | 1 << 40, 0) == 0
    assert function("kill", 1 | OWN << 32, 0) == EPERM
    # A pointer counts as a whole.
    assert function("prlimit64", 0, 7, 0) == 0
    assert function("prlimit64", 0, 7, 1 << 32) == EPERM
    assert function("prlimit64", OWN, 7, 0) == EPERM


def test_memory_that_no_limit_counts_cannot_be_mapped(machine: str) -> None:
    function = Filter(machine)
    shared, private, anonymous = 1, 2, 32
    assert function("mmap", 0, 1, 3, private | anonymous) == 0
    assert function("mmap", 0, 1, 3, shared) == 0  # The shared file of the node has a fixed size.
    assert function("mmap", 0, 1, 3, shared | anonymous) == EPERM
    assert function("mmap", 0, 1, 3, 3 | anonymous) == EPERM
    assert function("mmap", 0, 1, 3, private | anonymous | 0x100) == function("mmap", 0, 1, 3, private | 0x100) == EPERM
    assert function("mmap", 0, 1, 3, private | anonymous | 0x20000) == 0  # The stack of a thread.
    assert function("memfd_create") == ENOSYS


def test_sockets_are_streams_inside_of_the_process(machine: str) -> None:
    function = Filter(machine)
    unix, internet, stream, datagram, nonblocking = 1, 2, 1, 2, 0o4000
    assert function("socket", unix, stream) == EACCES
    assert function("socketpair", unix, stream | nonblocking) == 0
    assert function("socketpair", unix, datagram) == EACCES
    assert function("socketpair", internet, stream) == EACCES
    assert Filter(machine, "command")("socket", internet, stream) == EACCES


@pytest.mark.parametrize("kind", ["function", "command"])
def test_controls_that_reach_out_are_refused(machine: str, kind: str) -> None:
    filtered = Filter(machine, kind)
    assert filtered("ioctl", 0, 0x5401) == 0
    for request in (0x5412, 0x541C, 0x40049409):  # Typing into a terminal, its other characters, sharing blocks of files.
        assert filtered("ioctl", 0, request) == EPERM
    assert filtered("fcntl", 0, 1030) == 0
    for request in (8, 10, 15, 1026, 1024, 1031):  # Owners of signals, changes of folders, leases, sizes of pipes.
        assert filtered("fcntl", 0, request) == EPERM
    assert filtered("prctl", 15) == 0
    for option in (4, 22, 24, 28, 35, 36, 47):
        assert filtered("prctl", option) == EPERM
    for name in ("sched_getaffinity", "sched_getscheduler", "getpriority"):
        assert filtered(name, 0, 0) == 0
        assert filtered(name, OWN + 1, OWN + 1) == EPERM


def test_modes_and_times_change_only_where_nothing_else_can_be_named(machine: str) -> None:
    plain, own = Filter(machine), Filter(machine, metadata=True)
    assert plain("fchmodat", 0, 0, 0o755) == plain("utimensat") == EPERM
    assert own("fchmodat", 0, 0, 0o755) == own("utimensat") == 0
    assert own("fchmodat", 0, 0, 0o4755) == own("fchmod", 0, 0o2755) == EPERM
    assert own("getxattr") == ENOTSUP


def test_nobody_makes_a_file_that_runs_as_its_owner(machine: str) -> None:
    function = Filter(machine, metadata=True)
    make, temporary = 0o101, 0o20000001
    assert function("openat", 0, 0, make, 0o644) == function("openat", 0, 0, 0, 0o6777) == 0
    assert function("openat", 0, 0, make, 0o4755) == function("openat", 0, 0, temporary, 0o2755) == EPERM
    assert function("mkdirat", 0, 0, 0o2755) == EPERM
    command = Filter(machine, "command")
    assert command("mknodat", 0, 0, 0o010644) == 0
    for kind in (0o020644, 0o060644, 0o140644, 0o014644):  # Devices, a socket, a pipe with its owner's rights.
        assert command("mknodat", 0, 0, kind) == EPERM


def test_the_filter_stands_in_where_landlock_does_not_speak_of_cutting_files_short(machine: str) -> None:
    old, new = Filter(machine, truncates=False), Filter(machine)
    cut, write = 0o1000, 1
    assert new("truncate") == new("openat", 0, 0, cut) == 0
    assert old("truncate") == old("openat", 0, 0, cut) == EPERM
    assert old("openat", 0, 0, cut | write) == old("openat", 0, 0, 0) == 0
    assert old("openat", 0, 0, cut | write | 0o100, 0o4644) == EPERM


def test_the_table_agrees_with_the_headers_of_the_system() -> None:
    header = Path(f"/usr/include/{os.uname().machine}-linux-gnu/asm/unistd_64.h")
    needs(sys.platform == "linux" and header.is_file(), "the headers of the kernel are not installed")
    known = {line.split()[1][5:]: int(line.split()[2]) for line in header.read_text().splitlines() if line.startswith("#define __NR_")}
    for name, number in numbers(os.uname().machine).items():
        assert known.get(name, number) == number, name
    assert len(known.keys() & numbers(os.uname().machine).keys()) > 180
