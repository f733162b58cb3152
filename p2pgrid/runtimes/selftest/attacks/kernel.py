"""Attacks on the kernel's less used doors: namespaces, mounts, keyrings, and calls that no unit needs."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import signal

from p2pgrid.runtimes.selftest.attacks.base import HIDDEN, USUAL, Absent, Canary, Refused, attack, system_call

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
_SESSION_KEYRING = -3
_LATEST_ERRORS = (*USUAL, errno.ENOSPC, errno.EUSERS)


@attack(*HIDDEN, control="root")
def mount_folder(canary: Canary) -> str:
    os.makedirs("mounted", exist_ok=True)
    system_call("mount", ctypes.c_char_p(b"none"), ctypes.c_char_p(b"mounted"), ctypes.c_char_p(b"tmpfs"), 0, ctypes.c_char_p(b""))
    system_call("umount2", ctypes.c_char_p(b"mounted"), 0)
    return "a file system was mounted"


@attack(*USUAL, control="root", spoils=True)
def leave_namespaces(canary: Canary) -> str:
    system_call("unshare", _CLONE_NEWNET)
    return "a network namespace was made"


@attack(*_LATEST_ERRORS, spoils=True)
def make_user_namespace(canary: Canary) -> str:
    system_call("unshare", _CLONE_NEWUSER | _CLONE_NEWNS)
    return "a user namespace was made, and with it all privileges inside"


@attack(*_LATEST_ERRORS, spoils=True)
def clone_user_namespace(canary: Canary) -> str:
    arguments = (ctypes.c_uint64 * 8)(_CLONE_NEWUSER, 0, 0, 0, int(signal.SIGCHLD), 0, 0, 0)
    child = system_call("clone3", ctypes.byref(arguments), ctypes.sizeof(arguments))
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return "a child in a user namespace was made"


@attack(*HIDDEN, control="root", spoils=True)
def enter_namespace(canary: Canary) -> str:
    number = os.open(f"/proc/{canary['process']}/ns/uts", os.O_RDONLY)
    try:
        system_call("setns", number, 0)
    finally:
        os.close(number)
    return "the namespace of another process was entered"


@attack(*USUAL, control="root", spoils=True)
def change_root(canary: Canary) -> str:
    system_call("chroot", ctypes.c_char_p(b"."))
    return "the root was changed"


@attack(*USUAL, control="root")
def open_file_system(canary: Canary) -> str:
    os.close(system_call("fsopen", ctypes.c_char_p(b"tmpfs"), 0))
    return "a file system was opened"


@attack(*USUAL, control="root")
def open_tree(canary: Canary) -> str:
    os.close(system_call("open_tree", -100, ctypes.c_char_p(b"."), 1))
    return "a mount was copied"


@attack(*USUAL)
def add_key(canary: Canary) -> str:
    payload = ctypes.create_string_buffer(b"planted")
    key = system_call("add_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"p2pgrid"), payload, 7, _SESSION_KEYRING)
    system_call("keyctl", 9, key, _SESSION_KEYRING)
    return "a key was added to the owner's session"


@attack(*USUAL)
def read_keyring(canary: Canary) -> str:
    return f"keyring {system_call('keyctl', 0, _SESSION_KEYRING, 1)}"


@attack(*USUAL)
def make_ring(canary: Canary) -> str:
    os.close(system_call("io_uring_setup", 4, ctypes.create_string_buffer(120)))
    return "an io_uring was made: calls through it pass no filter"


@attack(*USUAL, control="root")
def load_kernel_program(canary: Canary) -> str:
    arguments = (ctypes.c_uint32 * 32)(2, 4, 4, 1)
    os.close(system_call("bpf", 0, ctypes.byref(arguments), ctypes.sizeof(arguments)))
    return "a map of kernel programs was made"


@attack(*USUAL)
def measure_kernel(canary: Canary) -> str:
    """A software clock of its own: what any program may measure at first."""
    arguments = ctypes.create_string_buffer(112)
    ctypes.c_uint32.from_buffer(arguments, 0).value = 1
    ctypes.c_uint32.from_buffer(arguments, 4).value = 112
    ctypes.c_uint64.from_buffer(arguments, 40).value = 0b1100001  # Disabled, not of the kernel, not of a hypervisor.
    os.close(system_call("perf_event_open", arguments, 0, -1, -1, 0))
    return "a performance counter was opened"


@attack(*USUAL)
def handle_page_faults(canary: Canary) -> str:
    os.close(system_call("userfaultfd", 1))
    return "page faults of its own can be held up"


@attack(*USUAL, ends=True, spoils=True)
def old_system_calls(canary: Canary) -> str:
    """The 32-bit gate of the processor: its numbers mean other calls than those that a filter was written for."""
    if platform.machine() != "x86_64":
        raise Absent("this processor has no such gate")
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20 (getpid); int 0x80; ret
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    number = ctypes.CFUNCTYPE(ctypes.c_long)(address)()
    if number != os.getpid():
        raise Refused(f"the gate answered {number}")
    return "the old gate answered"


_HARMLESS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("bpf", (-1, 0, 0)),
    ("fanotify_init", (-1, 0)),
    ("fsopen", (0, -1)),
    ("init_module", (0, 0, 0)),
    ("inotify_init1", (-1,)),
    ("io_uring_setup", (0, 0)),
    ("kexec_load", (0, 0, 0, -1)),
    ("keyctl", (-1, 0, 0, 0, 0)),
    ("memfd_secret", (-1,)),
    ("mount", (0, 0, 0, 0, 0)),
    ("mount_setattr", (-1, 0, -1, 0, 0)),
    ("move_mount", (-1, 0, -1, 0, -1)),
    ("mq_open", (0, 0, 0, 0)),
    ("open_by_handle_at", (-1, 0, 0)),
    ("open_tree", (-1, 0, -1)),
    ("perf_event_open", (0, 0, -1, -1, -1)),
    ("pidfd_getfd", (-1, -1, 0)),
    ("pidfd_send_signal", (-1, 0, 0, 0)),
    ("pivot_root", (0, 0)),
    ("process_madvise", (-1, 0, 0, 0, 0)),
    ("process_vm_writev", (-1, 0, 0, 0, 0, 0)),
    ("ptrace", (-1, 0, 0, 0)),
    ("quotactl", (-1, 0, 0, 0)),
    ("request_key", (0, 0, 0, 0)),
    ("setns", (-1, 0)),
    ("shmget", (0, 0, 0)),
    ("umount2", (0, 0)),
    ("userfaultfd", (-1,)),
)
"""Calls with arguments that no kernel accepts: an answer about the arguments shows that the call got through."""


@attack(*USUAL)
def reach_rare_calls(canary: Canary) -> str:
    reached = []
    for name, arguments in _HARMLESS:
        try:
            system_call(name, *arguments)
        except OSError as error:
            if error.errno in USUAL:
                continue
        reached.append(name)
    if not reached:
        raise Refused(f"none of {len(_HARMLESS)} calls came through")
    return f"came through: {', '.join(reached)}"
