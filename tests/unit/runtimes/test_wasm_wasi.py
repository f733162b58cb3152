"""Every call of WASI preview 1 as units get it: in memory, deterministic, and deaf to bad numbers."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.engine import Failure
from p2pgrid.runtimes.worker.tree import ENTRIES_MAX, Tree
from p2pgrid.runtimes.worker.wasi import CALLS, Exit
from p2pgrid.runtimes.worker.world import CALL_FUEL, EPOCH_NS, TICK_NS
from tests.unit.runtimes.wasm_units import Host

BADF, EXIST, FAULT, INVAL, ISDIR, MFILE, NAMETOOLONG = 8, 20, 21, 28, 31, 33, 37
ACCES, ILSEQ, NOENT, NOSPC, NOSYS, NOTDIR, NOTEMPTY, SPIPE, NOTCAPABLE = 2, 25, 44, 51, 52, 54, 55, 70, 76
CREATE, FOLDER, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8
READ, WRITE = 2, 64


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    source = tmp_path / "blob"
    source.write_bytes(b"0123456789")
    tree = Tree()
    tree.add_input("data.txt", str(source))
    tree.add_input("deep/er/data.txt", str(source))
    return tree


def test_arguments_are_handed_over_with_a_zero_byte_behind_each() -> None:
    host = Host(arguments=[b"unit", "größe".encode(), b""])
    assert host("args_sizes_get", 0, 4) == 0
    assert (host.u32(0), host.u32(4)) == (3, 5 + 8 + 1)
    assert host("args_get", 16, 100) == 0
    assert [host.u32(16), host.u32(20), host.u32(24)] == [100, 105, 113]
    assert host.get(100, 14) == "unit\0größe\0\0".encode()


def test_there_is_no_environment() -> None:
    host = Host()
    host.put(0, b"\xff" * 8)
    assert host("environ_sizes_get", 0, 4) == 0
    assert host.get(0, 8) == bytes(8)
    assert host("environ_get", 0, 0) == 0


def test_time_starts_at_a_fixed_moment_and_moves_with_each_look() -> None:
    host = Host()
    assert host("clock_time_get", 0, 0, 0) == 0
    assert host("clock_time_get", 1, 0, 8) == 0
    assert host.u64(0) == EPOCH_NS + TICK_NS
    assert host.u64(8) == 2 * TICK_NS
    assert host("clock_time_get", 4, 0, 0) == INVAL
    assert host("clock_res_get", 2, 16) == 0
    assert host.u64(16) == TICK_NS
    assert host("clock_res_get", 4, 16) == INVAL


def subscription(userdata: int, kind: int, subject: int, timeout: int = 0, flags: int = 0) -> bytes:
    return struct.pack("<QBxxxxxxxIxxxxQQHxxxxxx", userdata, kind, subject, timeout, 0, flags)


def test_sleeping_moves_the_clock_and_takes_no_time() -> None:
    host = Host()
    host.put(0, subscription(7, 0, 1, 3600 * 10**9) + subscription(8, 0, 1, 7200 * 10**9))
    assert host("poll_oneoff", 0, 200, 2, 300) == 0
    assert host.u32(300) == 1
    assert struct.unpack("<QHB", host.get(200, 11)) == (7, 0, 0)
    host("clock_time_get", 1, 0, 8)
    assert host.u64(8) == 3600 * 10**9 + TICK_NS


def test_sleeping_until_a_moment_of_the_calendar_ends_there() -> None:
    host = Host()
    host.put(0, subscription(1, 0, 0, EPOCH_NS + 5000, flags=1))
    assert host("poll_oneoff", 0, 200, 1, 300) == 0
    assert host.world.elapsed_ns == 5000
    host.put(0, subscription(1, 0, 0, 1, flags=1))
    assert host("poll_oneoff", 0, 200, 1, 300) == 0
    assert host.world.elapsed_ns == 5000, "time does not go back"


def test_sleeping_for_ever_stays_within_the_numbers() -> None:
    host = Host()
    host.put(0, subscription(1, 0, 0, (1 << 64) - 1))
    for _ in range(3):
        assert host("poll_oneoff", 0, 200, 1, 300) == 0
    assert host("clock_time_get", 0, 0, 400) == 0
    assert host.u64(400) < 1 << 63


def test_streams_are_ready_at_once_and_no_time_passes() -> None:
    host = Host(stdin=b"abc")
    host.put(
        0, subscription(1, 0, 1, 10**9) + subscription(2, 1, 0) + subscription(3, 2, 1) + subscription(4, 1, 99) + subscription(5, 9, 0)
    )
    assert host("poll_oneoff", 0, 400, 5, 300) == 0
    events = [struct.unpack("<QHBxxxxxQ", host.get(400 + 32 * place, 24)) for place in range(host.u32(300))]
    assert events == [(2, 0, 1, 3), (3, 0, 2, 0), (4, BADF, 1, 0), (5, INVAL, 9, 0)]
    assert host.world.elapsed_ns == 0


def test_a_poll_of_nothing_or_of_too_much_is_refused() -> None:
    host = Host()
    assert host("poll_oneoff", 0, 200, 0, 300) == INVAL
    assert host("poll_oneoff", 0, 200, 1 << 20, 300) == INVAL


def test_chance_comes_from_job_and_unit_and_goes_on_from_call_to_call() -> None:
    first, again, other, other_job = Host(), Host(), Host(index=1), Host(seed=b"another seed")
    seen = []
    for host in (first, again, other, other_job):
        assert host("random_get", 0, 40) == 0
        assert host("random_get", 40, 24) == 0
        seen.append(host.get(0, 64))
    assert seen[0] == seen[1]
    assert len({seen[0], seen[2], seen[3]}) == 3
    assert seen[0][:24] != seen[0][40:]


def test_chance_for_more_than_the_memory_is_refused() -> None:
    host = Host()
    assert host("random_get", 0, (1 << 32) - 1) == FAULT
    assert host("random_get", 0, 100_000) == 0


def test_stdin_is_read_to_its_end_and_cannot_be_wound_back() -> None:
    host = Host(stdin=b"hello world")
    assert host.read(0, 5) == b"hello"
    assert host.read(0) == b" world"
    assert host.read(0) == b""
    assert host("fd_seek", 0, 0, 0, 0) == SPIPE
    assert host("fd_tell", 0, 0) == SPIPE
    assert host("fd_pread", 0, 5000, 1, 0, 0) == SPIPE
    assert host.write(0, b"x") == BADF


def test_stdout_is_kept_and_stderr_to_its_last_part() -> None:
    host = Host()
    assert host.write(1, b"out") == 0
    assert host.u32(5008) == 3
    assert host.write(1, b"put") == 0
    assert bytes(host.world.output) == b"output"
    for place in range(100):
        assert host.write(2, b"%04d" % place * 25) == 0
    assert len(host.world.errors) == 4096
    assert host.world.errors.endswith(b"0099")
    assert host("fd_read", 1, 5000, 1, 5008) == BADF


def test_scattered_buffers_are_gathered_and_filled() -> None:
    host = Host(stdin=b"abcdefgh")
    host.put(0, struct.pack("<6I", 100, 3, 200, 0, 300, 2))
    assert host("fd_read", 0, 0, 3, 50) == 0
    assert host.u32(50) == 5
    assert (host.get(100, 3), host.get(300, 2)) == (b"abc", b"de")
    assert host("fd_write", 1, 0, 3, 50) == 0
    assert bytes(host.world.output) == b"abcde"


def test_more_output_than_allowed_ends_the_unit() -> None:
    host = Host(output_bytes_max=10)
    assert host.write(1, b"0123456789") == 0
    with pytest.raises(Failure) as caught:
        host.write(1, b"x")
    assert caught.value.outcome == frames.TOO_LARGE


def test_vectors_that_overlap_a_thousand_times_are_counted_before_anything_is_copied() -> None:
    host = Host(output_bytes_max=1 << 20)
    host.put(0, struct.pack("<II", 0, 100_000) * 1024)
    with pytest.raises(Failure) as caught:
        host("fd_write", 1, 0, 1024, 50)
    assert caught.value.outcome == frames.TOO_LARGE
    assert host("fd_write", 1, 0, 1025, 50) == INVAL


def test_the_one_folder_that_is_open_is_the_root() -> None:
    host = Host()
    assert host("fd_prestat_get", 3, 0) == 0
    assert host.get(0, 8) == struct.pack("<II", 0, 1)
    assert host("fd_prestat_dir_name", 3, 100, 1) == 0
    assert host.get(100, 1) == b"/"
    assert host("fd_prestat_dir_name", 3, 100, 0) == NAMETOOLONG
    assert host("fd_prestat_get", 4, 0) == BADF
    assert host("fd_prestat_get", 0, 0) == BADF


def test_input_files_are_read_at_any_place(tree: Tree) -> None:
    host = Host(tree=tree)
    number = host.open(b"data.txt")
    assert host.read(number, 4) == b"0123"
    assert host("fd_tell", number, 0) == 0
    assert host.u64(0) == 4
    assert host("fd_seek", number, (1 << 64) - 2, 2, 0) == 0  # Two before the end.
    assert host.read(number) == b"89"
    assert host("fd_seek", number, (1 << 64) - 11, 1, 0) == INVAL
    assert host("fd_seek", number, 0, 3, 0) == INVAL
    host.put(5000, struct.pack("<II", 8192, 3))
    assert host("fd_pread", number, 5000, 1, 6, 5008) == 0
    assert host.get(8192, host.u32(5008)) == b"678"
    assert host("fd_pread", number, 5000, 1, 1 << 63, 5008) == 0
    assert host.u32(5008) == 0
    assert host("fd_close", number) == 0
    assert host("fd_read", number, 5000, 1, 5008) == BADF


def test_input_files_cannot_be_written(tree: Tree) -> None:
    host = Host(tree=tree)
    assert host.open(b"data.txt", rights=READ | WRITE) == -ACCES
    assert host.open(b"data.txt", how=TRUNCATE) == -ACCES
    number = host.open(b"data.txt")
    assert host.write(number, b"x") == NOTCAPABLE
    assert host("fd_filestat_set_size", number, 0) == NOTCAPABLE
    assert host("fd_allocate", number, 0, 100) == NOTCAPABLE
    assert host.read(number) == b"0123456789"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"nothing", NOENT),
        (b"", NOENT),
        (b"/data.txt", NOTCAPABLE),
        (b"..", NOTCAPABLE),
        (b"deep/../../data.txt", NOTCAPABLE),
        (b"data.txt/x", NOTDIR),
        (b"data.txt/", NOTDIR),
        (b"deep/none/../../data.txt", NOENT),
        (b"a" * 5000, NAMETOOLONG),
        (b"da\0ta.txt", INVAL),
    ],
)
def test_paths_that_lead_nowhere_are_refused(tree: Tree, path: bytes, error: int) -> None:
    assert Host(tree=tree).open(path) == -error


@pytest.mark.parametrize("path", [b"data.txt", b"./data.txt", b"deep/er/../../data.txt", b"deep//er/./data.txt", b"deep/../data.txt"])
def test_paths_inside_are_followed(tree: Tree, path: bytes) -> None:
    host = Host(tree=tree)
    assert host.read(host.open(path)) == b"0123456789"


def test_a_path_relative_to_an_open_folder_stays_inside_of_it(tree: Tree) -> None:
    host = Host(tree=tree)
    folder = host.open(b"deep", how=FOLDER)
    assert host.read(host.open(b"er/data.txt", base=folder)) == b"0123456789"
    assert host.open(b"../data.txt", base=folder) == -NOTCAPABLE
    assert host.open(b"er", base=99) == -BADF
    assert host.open(b"er", base=host.open(b"data.txt")) == -NOTDIR
    assert host.open(b"data.txt", how=FOLDER) == -NOTDIR


def test_what_a_unit_writes_can_be_read_again_and_does_not_stay(tree: Tree) -> None:
    host = Host(tree=tree)
    number = host.open(b"deep/new", how=CREATE | EXCLUSIVE, rights=READ | WRITE)
    assert host.write(number, b"abcdef") == 0
    assert host("fd_seek", number, 2, 0, 0) == 0
    assert host.write(number, b"XY") == 0
    assert host.read(number) == b"ef"
    assert host.open(b"deep/new", how=CREATE | EXCLUSIVE) == -EXIST
    assert host.read(host.open(b"deep/new", how=CREATE)) == b"abXYef"
    appending = host.open(b"deep/new", rights=WRITE, flags=1)
    assert host.write(appending, b"!") == 0
    assert host("fd_read", appending, 5000, 1, 5008) == NOTCAPABLE
    assert host.read(host.open(b"deep/new")) == b"abXYef!"
    assert host.open(b"deep/new", how=TRUNCATE, rights=WRITE) > 0
    assert host.read(host.open(b"deep/new")) == b""


def test_writing_at_a_place_fills_up_with_zeros() -> None:
    host = Host()
    number = host.open(b"new", how=CREATE, rights=READ | WRITE)
    host.put(8192, b"end")
    host.put(5000, struct.pack("<II", 8192, 3))
    assert host("fd_pwrite", number, 5000, 1, 4, 5008) == 0
    assert host.read(number) == bytes(4) + b"end"
    assert host("fd_filestat_set_size", number, 2) == 0
    assert host("fd_allocate", number, 0, 5) == 0
    assert host("fd_seek", number, 0, 0, 0) == 0
    assert host.read(number) == bytes(5)


def test_the_scratch_space_is_bounded_in_bytes() -> None:
    host = Host(tree=Tree(written_bytes_max=1000))
    number = host.open(b"new", how=CREATE, rights=WRITE)
    assert host.write(number, bytes(900)) == 0
    assert host.write(number, bytes(200)) == NOSPC
    assert host("fd_filestat_set_size", number, 1 << 62) == NOSPC
    assert host("fd_pwrite", number, 5000, 1, 1 << 62, 5008) == NOSPC
    assert host("fd_filestat_set_size", number, 0) == 0
    assert host.write(number, bytes(50)) == 0  # Behind a hole of 900.
    assert host("fd_allocate", number, (1 << 64) - 1, (1 << 64) - 1) == 22


def test_the_scratch_space_is_bounded_in_entries() -> None:
    host = Host()
    for place in range(ENTRIES_MAX):
        assert host.path("path_create_directory", b"%d" % place) == 0
    assert host.path("path_create_directory", b"one more") == NOSPC
    assert host.open(b"file", how=CREATE) == -NOSPC
    assert host.path("path_remove_directory", b"0") == 0
    assert host.open(b"file", how=CREATE) > 0


def test_folders_are_bounded_in_depth() -> None:
    host = Host()
    path, errors = b"", []
    for _ in range(100):
        path += b"x/"
        errors.append(host.path("path_create_directory", path))
    assert errors[:64] == [0] * 64
    assert errors[65:] == [NOENT] * 35


def test_open_descriptors_are_bounded_and_numbers_used_again() -> None:
    host = Host()
    numbers = [host.open(b"new", how=CREATE) for _ in range(130)]
    assert numbers[:3] == [4, 5, 6]
    assert numbers[123:] == [127] + [-MFILE] * 6
    assert host("fd_close", 10) == 0
    assert host.open(b"new") == 10


def test_folders_are_made_listed_and_removed(tree: Tree) -> None:
    host = Host(tree=tree)
    assert host.path("path_create_directory", b"made") == 0
    assert host.path("path_create_directory", b"made") == EXIST
    assert host.path("path_create_directory", b"no/made") == NOENT
    assert host.path("path_create_directory", b".") == EXIST
    expected = [(".", 3), ("..", 3), ("data.txt", 4), ("deep", 3), ("made", 3)]
    assert host.listing() == expected
    assert host.listing(size_bytes=40) == expected, "a small buffer is read in parts"
    assert host.path("path_remove_directory", b"deep") == NOTEMPTY
    assert host.path("path_remove_directory", b"data.txt") == NOTDIR
    assert host.path("path_unlink_file", b"made") == ISDIR
    assert host.path("path_remove_directory", b"made") == 0
    assert host.path("path_unlink_file", b"data.txt") == 0
    assert host.path("path_unlink_file", b"data.txt") == NOENT
    assert host.path("path_remove_directory", b".") == INVAL
    assert host.listing() == [(".", 3), ("..", 3), ("deep", 3)]
    assert host("fd_readdir", 1, 0, 100, 0, 5008) == NOTDIR


def test_names_that_are_no_text_are_refused() -> None:
    host = Host()
    assert host.path("path_create_directory", b"\xff\xfe") == ILSEQ
    assert host.path("path_create_directory", b"x" * 256) == NAMETOOLONG


def rename(host: Host, source: bytes, target: bytes) -> int:
    host.put(4096, source)
    host.put(6144, target)
    return host("path_rename", 3, 4096, len(source), 3, 6144, len(target))


def test_files_and_folders_are_renamed(tree: Tree) -> None:
    host = Host(tree=tree)
    assert rename(host, b"data.txt", b"deep/moved") == 0
    assert host.read(host.open(b"deep/moved")) == b"0123456789"
    assert rename(host, b"nothing", b"x") == NOENT
    assert rename(host, b"deep/moved", b"deep/er") == ISDIR
    assert rename(host, b"deep/er", b"deep/moved") == NOTDIR
    assert rename(host, b"deep/moved", b"deep/er/data.txt") == 0
    assert host.listing(host.open(b"deep", how=FOLDER)) == [(".", 3), ("..", 3), ("er", 3)]


def test_a_folder_cannot_be_moved_into_itself(tree: Tree) -> None:
    host = Host(tree=tree)
    assert rename(host, b"deep", b"deep/er/deep") == INVAL
    assert rename(host, b"deep", b"deep/x") == INVAL
    assert rename(host, b"deep", b"deep") == 0
    assert rename(host, b"deep/er", b"up") == 0
    assert host.open(b"up/../deep/../up/data.txt") > 0


def filestat(host: Host, address: int) -> tuple[int, ...]:
    return struct.unpack("<QQBxxxxxxxQQQQQ", host.get(address, 64))


def test_what_lies_where_is_told(tree: Tree) -> None:
    host = Host(tree=tree)
    host.put(4096, b"data.txt")
    assert host("path_filestat_get", 3, 0, 4096, 8, 0) == 0
    device, inode, kind, links, size_bytes, *times = filestat(host, 0)
    assert (device, kind, links, size_bytes, times) == (1, 4, 1, 10, [EPOCH_NS] * 3)
    assert host("fd_filestat_get", host.open(b"data.txt"), 0) == 0
    assert filestat(host, 0)[1] == inode
    assert host("fd_filestat_get", 3, 0) == 0
    assert filestat(host, 0)[2] == 3
    assert host("fd_filestat_get", 1, 0) == 0
    assert filestat(host, 0)[2] == 0
    assert host("path_filestat_get", 3, 0, 4096, 7, 0) == NOENT


def test_descriptors_tell_what_they_can_do(tree: Tree) -> None:
    host = Host(tree=tree)
    rights = {}
    for number in (0, 1, 3, host.open(b"data.txt")):
        assert host("fd_fdstat_get", number, 0) == 0
        kind, _, base, _ = struct.unpack("<BxHxxxxQQ", host.get(0, 24))
        rights[number] = (kind, bool(base & READ), bool(base & WRITE), bool(base & 4))
    assert rights == {0: (0, True, False, False), 1: (0, False, True, False), 3: (3, True, True, True), 4: (4, True, False, True)}
    number = host.open(b"new", how=CREATE, rights=WRITE)
    assert host("fd_fdstat_set_flags", number, 1) == 0
    assert host("fd_fdstat_get", number, 0) == 0
    assert host.get(2, 1) == b"\1"


def test_a_descriptor_takes_the_number_of_another(tree: Tree) -> None:
    host = Host(tree=tree)
    number = host.open(b"data.txt")
    assert host("fd_renumber", number, 0) == 0
    assert host.read(0) == b"0123456789"
    assert host("fd_renumber", number, 0) == BADF
    assert host("fd_renumber", 0, 77) == BADF


def test_calls_that_only_have_to_succeed_do(tree: Tree) -> None:
    host = Host(tree=tree)
    number = host.open(b"data.txt")
    assert [host("fd_sync", number), host("fd_datasync", number), host("fd_advise", number, 0, 1, 2), host("sched_yield")] == [0] * 4
    assert [host("fd_sync", 99), host("fd_datasync", 99), host("fd_advise", 99, 0, 1, 2)] == [BADF] * 3


@pytest.mark.parametrize(
    "name",
    [
        "fd_fdstat_set_rights",
        "fd_filestat_set_times",
        "path_filestat_set_times",
        "path_link",
        "path_symlink",
        "sock_accept",
        "sock_recv",
        "sock_send",
        "sock_shutdown",
    ],
)
def test_what_units_have_no_use_for_is_not_there(name: str) -> None:
    assert Host()(name, *[0] * len(CALLS[name][0])) == NOSYS


def test_there_are_no_links(tree: Tree) -> None:
    host = Host(tree=tree)
    assert host.path("path_readlink", b"data.txt", 0, 100, 200) == INVAL
    assert host.path("path_readlink", b"nothing", 0, 100, 200) == NOENT


def test_a_unit_ends_itself_with_a_status() -> None:
    with pytest.raises(Exit) as caught:
        Host()("proc_exit", 3)
    assert caught.value.status == 3
    with pytest.raises(Failure):
        Host()("proc_raise", 6)


def test_each_call_costs_fuel_and_so_do_the_bytes_it_moves() -> None:
    host = Host(stdin=bytes(80_000), fuel=10**6)
    before = host.store.get_fuel()
    host("sched_yield")
    small = before - host.store.get_fuel()
    assert CALL_FUEL <= small < CALL_FUEL + 20
    before = host.store.get_fuel()
    host("random_get", 0, 80_000)
    assert CALL_FUEL + 10_000 <= before - host.store.get_fuel() < CALL_FUEL + 10_020


def test_calls_without_fuel_end_the_unit() -> None:
    host = Host(fuel=10 * CALL_FUEL)
    for _ in range(9):
        host("sched_yield")
    with pytest.raises(Failure) as caught:
        host("sched_yield")
    assert caught.value.kind == "OutOfFuel"
    assert host.store.get_fuel() == 0


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"proc_exit", "proc_raise"}))
def test_pointers_out_of_memory_are_an_error_of_the_call(tree: Tree, name: str) -> None:
    host = Host(tree=tree, arguments=[b"x"], stdin=b"x")
    for numbers in (
        [(1 << 32) - 1] * 9,
        [3] + [(1 << 32) - 1] * 8,
        [3] + [(1 << 31)] * 8,
        [0] + [131_071] * 8,
        [1, 131_065, 1, 131_071] + [1] * 5,
    ):
        error = host(name, *numbers[: len(CALLS[name][0])])
        assert 0 <= error <= 76


_NUMBERS = st.one_of(
    st.integers(0, 8),
    st.integers(0, 1 << 32),
    st.sampled_from([(1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 131_072]),
)
_SMALL = st.sampled_from(sorted(set(CALLS) - {"proc_exit", "proc_raise"}))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_SMALL, st.lists(_NUMBERS, min_size=9, max_size=9)), max_size=20), st.binary(max_size=2000))
def test_no_sequence_of_calls_breaks_out(calls: list[tuple[str, list[int]]], memory: bytes) -> None:
    """Only error numbers, and the two ways in which a unit ends; nothing else gets out, and every file stays in memory."""
    host = Host(stdin=b"some input", arguments=[b"a", b"b"], fuel=10**7)
    host.put(0, memory)
    kind = ""
    for name, numbers in calls:
        masked = [
            number & (0xFFFFFFFF if letter == "i" else (1 << 64) - 1) for letter, number in zip(CALLS[name][0], numbers, strict=False)
        ]
        try:
            error = host(name, *masked)
        except Failure as failure:
            kind = failure.kind
            break
        assert 0 <= error <= 76
    assert kind in ("", "TooLarge", "OutOfFuel")
