"""What the watchdog counts: folders that somebody made to be hard to look at, files without names, and trees of processes."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pgrid.runtimes.tasks import BatchTask, Code, JobKey, PoolPolicy
from p2pgrid.runtimes.watchdog import (
    DEPTH_MAX,
    HIDDEN_MAX,
    LOOK_MAX_S,
    LOOK_S,
    THREADS_FACTOR,
    Bounds,
    Watchdog,
    size_text,
    tree_of,
    weigh_folder,
    weigh_nameless,
)

Process = subprocess.Popen[str]
MIB = 1 << 20
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="processes are found by Linux's process table")


@contextmanager
def running(program: str, *, ready: int = 1) -> Iterator[Process]:
    """A Python process that runs ``program``, which prints as many lines as it is ``ready`` for. Its group is ended."""
    command = [sys.executable, "-I", "-S", "-c", textwrap.dedent(program)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        for _ in range(ready):
            assert process.stdout.readline()
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.stdin.close()
        process.wait()


def test_bytes_are_those_on_the_disk_and_names_are_counted(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "a").mkdir(parents=True)
    (tmp_path / "scratch" / "a" / "file").write_bytes(os.urandom(MIB))
    (tmp_path / "scratch" / "hole").touch()
    os.truncate(tmp_path / "scratch" / "hole", 1 << 40)
    weight = weigh_folder(tmp_path, 2 * MIB, 100)
    assert weight.entries == 4
    assert MIB <= weight.size_bytes < MIB + (64 << 10)
    assert not weight.trouble
    assert "more than the 1 MiB allowed" in weigh_folder(tmp_path, MIB, 100).trouble


def test_space_behind_the_end_of_a_file_is_counted(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux can allocate behind the end")
    import ctypes

    with (tmp_path / "short").open("wb") as file:
        if ctypes.CDLL(None, use_errno=True).fallocate(file.fileno(), 1, ctypes.c_long(0), ctypes.c_long(4 * MIB)):
            pytest.skip("this file system does not allocate in advance")
        assert os.path.getsize(tmp_path / "short") == 0
        assert weigh_folder(tmp_path, MIB, 100).trouble


def test_too_many_names_end_the_count_early(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / str(number)).touch()
    weight = weigh_folder(tmp_path, MIB, 20)
    assert weight.entries == 21
    assert "more than the 20 files" in weight.trouble
    assert not weigh_folder(tmp_path, MIB, 50).trouble


def test_what_the_node_gave_is_not_counted_and_the_same_name_further_down_is(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "input").write_bytes(bytes(MIB))
    (tmp_path / "scratch" / "given").mkdir(parents=True)
    (tmp_path / "scratch" / "given" / "own").write_bytes(b"x")
    assert weigh_folder(tmp_path, MIB // 2, 100).entries == 3
    (tmp_path / "scratch" / "given" / "own").write_bytes(os.urandom(MIB))
    assert weigh_folder(tmp_path, MIB // 2, 100).trouble


def test_links_are_counted_as_such_and_never_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "big").write_bytes(bytes(2 * MIB))
    (folder / "out").symlink_to(outside)
    (folder / "self").symlink_to(folder)
    (folder / "file").symlink_to(outside / "big")
    weight = weigh_folder(folder, MIB, 100)
    assert (weight.entries, weight.trouble) == (3, "")
    assert weight.size_bytes < MIB


def test_a_private_folder_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
    assert weigh_folder(tmp_path / "folder", 1, 1).entries == 0


def test_a_file_with_many_names_takes_its_place_once(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(os.urandom(MIB))
    for number in range(1, 10):
        os.link(tmp_path / "0", tmp_path / str(number))
    weight = weigh_folder(tmp_path, 2 * MIB, 100)
    assert weight.entries == 10
    assert MIB <= weight.size_bytes < MIB + (64 << 10)


def test_pipes_and_sockets_do_not_hold_up_the_count(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert weigh_folder(tmp_path, MIB, 10).entries == 1


def test_a_tree_without_an_end_is_told_and_not_walked() -> None:
    # Not below pytest's own folder, whose cleaning cannot cope with it.
    folder = Path(tempfile.mkdtemp(prefix="p2pgrid-test-"))
    here = os.getcwd()
    try:
        os.chdir(folder)
        for _ in range(2 * DEPTH_MAX):  # Much longer than any path may be.
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        os.chdir(here)
        before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        weight = weigh_folder(folder, MIB, 10_000)
        assert weight.entries == DEPTH_MAX
        assert "inside of each other" in weight.trouble
        assert before == (len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0)
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root looks into every folder")
def test_a_folder_that_cannot_be_looked_into_is_told(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    try:
        assert "cannot be looked into" in weigh_folder(tmp_path, MIB, 10).trouble
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_folder_that_is_gone_is_nobodys_fault(tmp_path: Path) -> None:
    assert weigh_folder(tmp_path / "gone", MIB, 10) == (0, 0, "")


def test_a_walk_is_over_before_long_whatever_changes_meanwhile(tmp_path: Path) -> None:
    program = f"""
        import os
        os.chdir({str(tmp_path)!r})
        print("ready", flush=True)
        while True:
            os.mkdir("a"); os.mkdir("a/b"); os.rename("a", "c"); os.symlink("/", "a"); os.rmdir("c/b"); os.rmdir("c"); os.unlink("a")
    """
    with running(program):
        for _ in range(200):
            weight = weigh_folder(tmp_path, MIB, 100)
            assert not weight.trouble
            assert weight.entries <= 4


@LINUX
def test_files_without_a_name_are_counted_while_they_are_open(tmp_path: Path) -> None:
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.write(os.urandom(MIB))
        file.flush()
        assert weigh_folder(tmp_path, MIB // 2, 10).size_bytes == 0
        assert "removed the names" in weigh_nameless([os.getpid()], MIB // 2).trouble
        assert not weigh_nameless([os.getpid()], 1 << 40).trouble


@LINUX
def test_files_without_a_name_that_are_only_mapped_are_few_or_trouble(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    maps = []

    def hide(number: int) -> None:
        path = tmp_path / "scratch" / str(number)
        path.write_bytes(bytes(4096))
        program_side = os.open(path, os.O_RDWR)
        maps.append(map_page(program_side))
        os.close(program_side)
        path.unlink()

    for number in range(HIDDEN_MAX):
        hide(number)
    assert not weigh_nameless([os.getpid()], 1 << 40).trouble
    hide(HIDDEN_MAX)
    assert f"{HIDDEN_MAX + 1} files without names" in weigh_nameless([os.getpid()], 1 << 40).trouble
    for address in maps:
        unmap_page(address)


def map_page(number: int) -> int:
    """Unlike Python's mmap, this keeps no copy of the file number."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    address: int = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, number, 0)
    return address


def unmap_page(address: int) -> None:
    import ctypes

    ctypes.CDLL(None).munmap(ctypes.c_void_p(address), ctypes.c_size_t(4096))


FAMILY = """
    import os, time, ctypes
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # Adopt orphans, as a runner does.
    def child(*, orphan=False):
        if os.fork() == 0:
            if orphan and os.fork():
                os._exit(0)
            os.setsid()
            print("up", flush=True)
            time.sleep(1000)
    child()
    child(orphan=True)
    print("up", flush=True)
    time.sleep(1000)
"""


@LINUX
def test_a_tree_holds_what_was_orphaned_and_what_left_the_session() -> None:
    with running(FAMILY, ready=3) as process:
        tree = tree_of(process.pid, 100)
        assert len(tree) == 4  # The middle one is a zombie, and counts.
        assert tree[0] == process.pid
        assert len(tree_of(process.pid, 1)) == 2
        for member in tree[1:]:
            os.kill(member, signal.SIGKILL)


@LINUX
def test_children_of_threads_belong_to_the_tree() -> None:
    program = """
        import subprocess, threading, time
        def start():
            subprocess.Popen(["/bin/sleep", "1000"])
            print("up", flush=True)
            time.sleep(1000)
        threading.Thread(target=start).start()
    """
    with running(program) as process:
        assert len(tree_of(process.pid, 100)) == 2


def command_watchdog(folder: Path, process_id: int, **bounds: int) -> Watchdog:
    return Watchdog(folder, process_id, Bounds(1 << 30, 1000, **bounds))


GROWING = """
    import os, sys, threading, time
    print("up", flush=True)
    input()
    held = []
    for _ in range(3):
        if os.fork() == 0:
            held.append(bytearray(b"x" * (30 << 20)))
            print("up", flush=True)
            time.sleep(1000)
    time.sleep(1000)
"""


def go_on(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@LINUX
def test_processes_and_memory_are_those_of_the_commands_and_not_of_the_runner(tmp_path: Path) -> None:
    with running(GROWING) as process:
        dogs = {
            name: command_watchdog(tmp_path, process.pid, **bounds)
            for name, bounds in {
                "fine": {"processes": 3, "memory_bytes": 400 * MIB},
                "processes": {"processes": 2, "memory_bytes": 400 * MIB},
                "memory": {"processes": 3, "memory_bytes": 60 * MIB},
            }.items()
        }
        assert [dog.look() for dog in dogs.values()] == ["", "", ""]
        go_on(process)
        until = time.monotonic() + 30
        while not all(dogs[name].look() for name in ("processes", "memory")):
            assert time.monotonic() < until
        assert "3 processes or more" in dogs["processes"].look()
        assert "60 MiB are allowed" in dogs["memory"].look()
        assert dogs["fine"].look() == ""


@LINUX
def test_pages_that_processes_share_count_once(tmp_path: Path) -> None:
    program = """
        import os, time
        print("up", flush=True)
        input()
        held = bytes(os.urandom(1 << 20)) * 100
        if os.fork() == 0:
            for _ in range(3):
                os.fork()
            print("up", flush=True)
            time.sleep(1000)
        time.sleep(1000)
    """
    with running(program) as process:
        dog = command_watchdog(tmp_path, process.pid, processes=20, memory_bytes=220 * MIB)
        go_on(process)
        until = time.monotonic() + 30
        while len(tree_of(process.pid, 100)) < 9:
            assert time.monotonic() < until
        assert dog.look() == ""  # Eight times 100 MiB, all of them the same.


@LINUX
def test_threads_are_bounded_too(tmp_path: Path) -> None:
    program = f"""
        import os, threading, time
        print("up", flush=True)
        input()
        if os.fork() == 0:
            threading.stack_size(65536)
            for _ in range({THREADS_FACTOR + 1}):
                threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
        time.sleep(1000)
    """
    with running(program) as process:
        dog = command_watchdog(tmp_path, process.pid, processes=1)
        go_on(process)
        until = time.monotonic() + 30
        while not (found := dog.look()):
            assert time.monotonic() < until
        assert "threads in one process" in found


def test_looks_come_after_so_much_running_however_it_is_cut(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path, os.getpid(), Bounds(MIB, 10))
    assert dog.due_s == LOOK_S
    for _ in range(4):
        dog.ran(LOOK_S / 4)
    assert dog.due_s == pytest.approx(0, abs=1e-9)
    dog.looked(0.001)
    assert dog.due_s == LOOK_S
    dog.looked(0.1)
    assert dog.due_s == pytest.approx(1.0)
    dog.looked(60.0)
    assert dog.due_s == LOOK_MAX_S


def test_only_commands_are_counted_as_processes() -> None:
    policy = PoolPolicy(processes_max=7, memory_bytes=5, folder_bytes_max=3, folder_entries_max=4)
    native = BatchTask(job=JobKey(b"s", b"j"), code=Code(), inputs=b"\x90", memory_bytes=9)
    assert Bounds.of(native, policy) == Bounds(3, 4)
    command = BatchTask(job=JobKey(b"s", b"j"), code=Code(), inputs=b"\x90", runtime="command")
    assert Bounds.of(command, policy) == Bounds(3, 4, 7, 5)


def test_sizes_are_for_people() -> None:
    assert [size_text(size) for size in (0, 1023, 1024, 1 << 30, 2255 << 20)] == ["0 bytes", "1023 bytes", "1 KiB", "1 GiB", "2.2 GiB"]
