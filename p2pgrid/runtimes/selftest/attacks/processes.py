"""Attacks on other processes: seeing them, stopping them, reading them, changing how they run; and starting more."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess

from p2pgrid.runtimes.selftest.attacks.base import HIDDEN, USUAL, Canary, Refused, attack, system_call, tokens_in

_FOREIGN = (*USUAL, errno.ESRCH)
_PTRACE_SEIZE = 0x4206


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1 << 16)


@attack(*_FOREIGN)
def signal_process(canary: Canary) -> str:
    os.kill(canary["process"], signal.SIGURG)
    return "it was sent a signal"


@attack(*_FOREIGN)
def signal_thread(canary: Canary) -> str:
    system_call("tgkill", canary["process"], canary["process"], int(signal.SIGURG))
    return "its thread was sent a signal"


@attack(*_FOREIGN)
def queue_signal(canary: Canary) -> str:
    information = ctypes.create_string_buffer(128)
    ctypes.c_int.from_buffer(information, 0).value = int(signal.SIGURG)
    ctypes.c_int.from_buffer(information, 8).value = -1
    system_call("rt_sigqueueinfo", canary["process"], int(signal.SIGURG), information)
    return "a signal was queued for it"


@attack(*_FOREIGN, commands=False)
def signal_parent(canary: Canary) -> str:
    if os.getppid() <= 0:
        raise Refused("it has no parent that it could name")
    os.kill(os.getppid(), signal.SIGURG)
    return "the parent was sent a signal"


@attack(*_FOREIGN)
def trace_process(canary: Canary) -> str:
    system_call("ptrace", _PTRACE_SEIZE, canary["process"], 0, 0)
    return "it is traced"


@attack(*_FOREIGN)
def read_process_memory(canary: Canary) -> str:
    return tokens_in(_peek(canary), canary)


def _peek(canary: Canary) -> bytes:
    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]

    size = len(canary["token"])
    buffer = ctypes.create_string_buffer(size)
    ours, theirs = Piece(ctypes.addressof(buffer), size), Piece(canary["address"], size)
    system_call("process_vm_readv", canary["process"], ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    return buffer.raw


@attack(*HIDDEN, errno.ESRCH)
def open_process_memory(canary: Canary) -> str:
    number = os.open(f"/proc/{canary['process']}/mem", os.O_RDONLY)
    try:
        return tokens_in(os.pread(number, len(canary["token"]), canary["address"]), canary)
    finally:
        os.close(number)


@attack(*_FOREIGN, accepted=("command-landlock",))
def open_process_handle(canary: Canary) -> str:
    os.close(system_call("pidfd_open", canary["process"], 0))
    return "a handle was opened"


@attack(*HIDDEN)
def read_process_environment(canary: Canary) -> str:
    return tokens_in(_read(f"/proc/{canary['process']}/environ"), canary)


@attack(*HIDDEN)
def read_process_arguments(canary: Canary) -> str:
    return tokens_in(_read(f"/proc/{canary['process']}/cmdline"), canary)


@attack(*HIDDEN)
def list_processes(canary: Canary) -> str:
    if str(canary["process"]) in os.listdir("/proc"):
        return "its number was found"
    raise Refused("its number is not listed")


@attack(*_FOREIGN)
def change_process_limits(canary: Canary) -> str:
    soft, hard = resource.prlimit(canary["process"], resource.RLIMIT_NOFILE)
    resource.prlimit(canary["process"], resource.RLIMIT_NOFILE, (soft, hard))
    return "its limits could be set"


@attack(*_FOREIGN)
def renice_process(canary: Canary) -> str:
    os.setpriority(os.PRIO_PROCESS, canary["process"], 5)
    return "its priority was lowered"


@attack(*_FOREIGN)
def pin_process(canary: Canary) -> str:
    os.sched_setaffinity(canary["process"], {min(os.sched_getaffinity(canary["process"]))})
    return "it was bound to one processor"


@attack(*_FOREIGN)
def reschedule_process(canary: Canary) -> str:
    os.sched_setscheduler(canary["process"], os.SCHED_BATCH, os.sched_param(0))
    return "its scheduling was changed"


@attack(*_FOREIGN)
def deprioritise_disk_of_process(canary: Canary) -> str:
    system_call("ioprio_set", 1, canary["process"], 3 << 13)
    return "its place at the disk was changed"


@attack(*USUAL, errno.EAGAIN, commands=False, spoils=True)
def fork(canary: Canary) -> str:
    child = int(ctypes.CDLL(None, use_errno=True).fork())
    if child == 0:
        os._exit(0)
    if child < 0:
        raise OSError(ctypes.get_errno(), "fork")
    os.waitpid(child, 0)
    return "a child was made"


@attack(*USUAL, errno.EAGAIN, commands=False, errors=(subprocess.SubprocessError,))
def start_program(canary: Canary) -> str:
    subprocess.run(["/bin/sh", "-c", "exit 0"], check=True, timeout=2)
    return "a program was run"


@attack(*HIDDEN, commands=False)
def execute_program(canary: Canary) -> str:
    """Arguments at an address that cannot be read: a kernel that would run the program complains about them only then."""
    try:
        system_call("execve", ctypes.c_char_p(b"/bin/sh"), 1, 0)
    except OSError as error:
        if error.errno == errno.EFAULT:
            return "the program would have been run"
        raise
    return "a program was run"


@attack(*USUAL, control="root", spoils=True)
def run_in_real_time(canary: Canary) -> str:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return "it ran before everybody else"


@attack(*USUAL, control="root", spoils=True)
def raise_own_priority(canary: Canary) -> str:
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 5)
    return "its priority was raised"


@attack(*USUAL, errors=(ValueError,), control="nowhere")
def raise_own_limits(canary: Canary) -> str:
    """To one file more than allowed. Without a cage it takes a privilege that containers often lack, even for root."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
    return "more files may be open"
