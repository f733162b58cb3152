"""More attacks than a node makes on itself: variants of its own, and those that take longer to think of than to run."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import signal
import socket
import stat
import threading
from pathlib import Path

from p2pgrid.runtimes.selftest.attacks.base import HIDDEN, USUAL, Absent, Canary, Refused, attack, attempt, system_call, tokens_in

_NO_SOCKET = (*USUAL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(1 << 16)


@attack(*HIDDEN, control="root")
def read_password_hashes(canary: Canary) -> str:
    return f"{len(_read('/etc/shadow'))} bytes"


@attack(*HIDDEN)
def read_kernel_symbols(canary: Canary) -> str:
    return f"{len(_read('/proc/kallsyms'))} bytes"


@attack(*HIDDEN)
def read_kernel_keys(canary: Canary) -> str:
    return f"{len(_read('/proc/keys'))} bytes"


@attack(*HIDDEN)
def read_mounts(canary: Canary) -> str:
    return f"{len(_read('/proc/self/mountinfo'))} bytes"


@attack(*HIDDEN)
def read_machine_id(canary: Canary) -> str:
    for name in ("/etc/machine-id", "/etc/hostname", "/sys/class/dmi/id/board_name", "/proc/sys/kernel/random/boot_id"):
        try:
            return f"{name}: {len(_read(name))} bytes"
        except OSError as error:
            if error.errno not in HIDDEN:
                raise
    raise Refused("nothing names the machine")


@attack(*USUAL, control="root")
def read_kernel_log(canary: Canary) -> str:
    buffer = ctypes.create_string_buffer(256)
    library = ctypes.CDLL(None, use_errno=True)
    if library.klogctl(3, buffer, 256) < 0:
        raise OSError(ctypes.get_errno(), "syslog")
    return "the kernel's messages were read"


@attack(*HIDDEN)
def read_through_current_folder(canary: Canary) -> str:
    return tokens_in(_read("/proc/self/cwd/" + "../" * 40 + canary["open_file"].lstrip("/")), canary)


@attack(*HIDDEN)
def read_through_parent_process(canary: Canary) -> str:
    return tokens_in(_read(f"/proc/{os.getppid()}/root{canary['open_file']}"), canary)


@attack(*HIDDEN)
def read_from_thread(canary: Canary) -> str:
    """A filter that holds for one thread alone would let another through."""
    said: list[tuple[str, object]] = []
    thread = threading.Thread(target=lambda: said.append(attempt("read-absolute-path", canary)), daemon=True)
    thread.start()
    thread.join(5)
    if not said or said[0][0] == "refused":
        raise Refused(str(said))
    return str(said)


@attack(*HIDDEN)
def map_file(canary: Canary) -> str:
    number = os.open(canary["open_file"], os.O_RDONLY)
    try:
        with mmap.mmap(number, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as view:
            return tokens_in(bytes(view), canary)
    finally:
        os.close(number)


@attack(*HIDDEN)
def watch_folder(canary: Canary) -> str:
    """What happens in a folder can be seen without the right to read it."""
    library = ctypes.CDLL(None, use_errno=True)
    number = library.inotify_init1(0)
    if number < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    try:
        if library.inotify_add_watch(number, canary["open_folder"].encode(), 0xFFF) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
    finally:
        os.close(number)
    return "the folder is watched"


@attack(*HIDDEN, accepted=("landlock",))
def measure_file_system(canary: Canary) -> str:
    return f"{os.statvfs(canary['open_folder']).f_blocks} blocks"


@attack(*HIDDEN)
def enter_folder(canary: Canary) -> str:
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(canary["open_folder"])
        return f"entered, and saw {os.listdir('.')}"
    finally:
        os.fchdir(here)
        os.close(here)


@attack(*HIDDEN)
def plant_folder(canary: Canary) -> str:
    place = Path(canary["open_folder"]) / "planted-folder"
    place.mkdir()
    place.rmdir()
    return "a folder was made"


@attack(*HIDDEN)
def plant_link(canary: Canary) -> str:
    place = Path(canary["open_folder"]) / "planted-link"
    place.symlink_to("/etc/passwd")
    place.unlink()
    return "a link was made"


@attack(*HIDDEN)
def plant_pipe(canary: Canary) -> str:
    place = Path(canary["open_folder"]) / "planted-pipe"
    os.mkfifo(place)
    place.unlink()
    return "a pipe was made"


@attack(*HIDDEN)
def plant_listener(canary: Canary) -> str:
    place = Path(canary["open_folder"]) / "planted-socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
    place.unlink()
    return "a listener was made"


@attack(*HIDDEN)
def remove_file(canary: Canary) -> str:
    place = Path(canary["movable_file"])
    state, text = place.stat(), place.read_bytes()
    place.unlink()
    place.write_bytes(text)
    place.chmod(stat.S_IMODE(state.st_mode))
    return "it was removed"


@attack(*HIDDEN)
def cut_on_opening(canary: Canary) -> str:
    text = Path(canary["writable_file"]).read_bytes()
    os.close(os.open(canary["writable_file"], os.O_WRONLY | os.O_TRUNC))
    Path(canary["writable_file"]).write_bytes(text)
    return "it was emptied"


@attack(*HIDDEN)
def change_mode_of_link(canary: Canary) -> str:
    Path("link-to-writable").symlink_to(canary["writable_file"])
    try:
        os.chmod("link-to-writable", 0o666)
    finally:
        os.unlink("link-to-writable")
    return "its mode was set"


@attack(*USUAL)
def make_setuid_file(canary: Canary) -> str:
    number = os.open("privileged", os.O_WRONLY | os.O_CREAT, 0o755)
    try:
        os.fchmod(number, 0o4755)
        if not os.fstat(number).st_mode & stat.S_ISUID:
            raise Refused("the bit was dropped")
        if canary["may_fork"]:
            raise Refused("a command may: nothing outside runs it")
    finally:
        os.close(number)
        os.unlink("privileged")
    return "a setuid file was made"


@attack(*_NO_SOCKET)
def open_machine_socket(canary: Canary) -> str:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM):
        return "a socket to the host of the machine was opened"


@attack(*_NO_SOCKET, control="nowhere")
def open_cipher_socket(canary: Canary) -> str:
    """Many kernels are built without them."""
    with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET):
        return "the kernel's ciphers were reached"


@attack(*USUAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL)
def broadcast(canary: Canary) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.sendto(b"attack", ("127.255.255.255", 9))
    return "a broadcast was sent"


@attack(*USUAL, errno.ESRCH)
def own_signals_of_process(canary: Canary) -> str:
    """Let the kernel send SIGIO to somebody else when data arrives here."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fcntl.fcntl(ours.fileno(), fcntl.F_SETOWN, canary["process"])  # Without O_ASYNC: the signal would end it.
    return "its signals can be caused"


@attack(*USUAL, errno.ESRCH, errno.EBADF)
def signal_by_handle(canary: Canary) -> str:
    number = system_call("pidfd_open", canary["process"], 0)
    try:
        system_call("pidfd_send_signal", number, int(signal.SIGURG), 0, 0)
    finally:
        os.close(number)
    return "it was sent a signal"


@attack(*USUAL, errno.ESRCH)
def take_file_of_process(canary: Canary) -> str:
    number = system_call("pidfd_open", canary["process"], 0)
    try:
        os.close(system_call("pidfd_getfd", number, 0, 0))
    finally:
        os.close(number)
    return "an open file of it was taken"


@attack(*USUAL, errno.ESRCH)
def write_process_memory(canary: Canary) -> str:
    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]

    text = ctypes.create_string_buffer(canary["token"].encode())
    size = len(canary["token"])
    ours, theirs = Piece(ctypes.addressof(text), size), Piece(canary["address"], size)
    system_call("process_vm_writev", canary["process"], ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    return "its memory was written"


@attack(*USUAL, errno.ESRCH)
def signal_everybody(canary: Canary) -> str:
    """With signal 0: it only asks whether it could. A process that may signal its own family alone finds somebody too."""
    os.kill(-1, 0)
    if canary["may_fork"]:
        raise Refused("a command may signal what it started")
    return "everybody could be signalled"


@attack(*USUAL, errno.EINVAL)
def change_personality(canary: Canary) -> str:
    before = system_call("personality", 0xFFFFFFFF)
    system_call("personality", before | 0x0040000)
    system_call("personality", before)
    return "addresses need not be random any more"


@attack(*USUAL, ends=True, spoils=True, control="nowhere")
def half_width_calls(canary: Canary) -> str:
    """The x32 numbers: the same calls under another number, past a filter that compares numbers only. Few kernels have them."""
    if platform.machine() != "x86_64":
        raise Absent("this processor has no such calls")
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    if library.syscall(ctypes.c_long(0x40000000 | 39)) < 0:
        raise OSError(ctypes.get_errno(), "getpid by its x32 number")
    return "the kernel answered"


@attack(*HIDDEN, commands=False)
def execute_nameless_file(canary: Canary) -> str:
    number = os.open(os.path.realpath("/bin/sh"), os.O_RDONLY)
    try:
        system_call("execveat", number, ctypes.c_char_p(b""), 1, 0, 0x1000)
    except OSError as error:
        if error.errno == errno.EFAULT:
            return "it would have been run"
        raise
    finally:
        os.close(number)
    return "it was run"


@attack(*USUAL, control="nowhere")
def gain_by_executing(canary: Canary) -> str:
    """Programs that raise privileges must not do so for a unit."""
    with_new = ctypes.CDLL(None, use_errno=True).prctl(39, 0, 0, 0, 0)
    if with_new == 1:
        raise Refused("no new privileges, for good")
    return "a setuid program would raise what it may do"


@attack(*USUAL, control="root")
def hold_privileges(canary: Canary) -> str:
    """Any capability at all, or being root."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capget(header, data) < 0:
        raise OSError(ctypes.get_errno(), "capget")
    if any(data):
        return f"capabilities {list(data)}"
    raise Refused("none")


@attack(*USUAL, ends=True, spoils=True, control="nowhere")
def run_for_ever(canary: Canary) -> str:
    """Deaf to every signal that can be ignored."""
    for number in range(1, 32):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue
    while True:
        pass


@attack(*USUAL, ends=True, control="nowhere", commands=False)
def return_pipe(canary: Canary) -> Path:
    os.mkfifo("pipe")
    return Path("pipe")


@attack(*USUAL, errno.EFBIG, ends=True, control="nowhere", commands=False)
def return_sparse_terabyte(canary: Canary) -> Path:
    with open("sparse", "wb") as file:
        file.truncate(1 << 40)
    return Path("sparse")


@attack(*USUAL, errno.EPERM, errno.EXDEV, errno.EMLINK, ends=True, control="nowhere", commands=False)
def return_second_name(canary: Canary) -> Path:
    Path("first").write_text("two names")
    os.link("first", "second")
    return Path("second")


@attack(*HIDDEN, ends=True, control="nowhere", commands=False)
def return_folder_link(canary: Canary) -> Path:
    Path("elsewhere").symlink_to(Path(canary["open_file"]).parent)
    return Path("elsewhere") / "open"
