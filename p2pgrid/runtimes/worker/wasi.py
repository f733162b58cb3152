"""WASI preview 1 for the units of a job: complete in name, in memory, and the same on every machine.

Every function of the interface can be imported, so that programs load that merely mention it. What a unit has no use for (sockets,
links, times of files) answers that it is not there. A call does one of three things: it returns an error number, it ends the unit
(``Exit``, or ``Failure`` when it used up what it was given), or it succeeds; no other exception gets out, whatever the numbers are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import wasmtime
from wasmtime import FuncType, ValType

from . import frames, wasi_files
from .engine import Failure
from .tree import INVAL, Refused
from .world import CALL_FUEL, ELAPSED_NS_MAX, EPOCH_NS, TICK_NS, World

MODULE = "wasi_snapshot_preview1"
NOSYS, NOTSUP, FAULT = 52, 58, 21
_SUBSCRIPTIONS_MAX = 1024
_SUBSCRIPTION = struct.Struct("<QBxxxxxxxIxxxxQQHxxxxxx")
_EVENT = struct.Struct("<QHBxxxxxQHxxxxxx")
_CLOCKS = 4


class Exit(Exception):
    """The unit ended itself."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def args_get(world: World, pointers: int, buffer: int) -> None:
    """The arguments and where each begins."""
    for argument in world.arguments:
        world.pay_for(len(argument))
        world.write_u32(pointers, buffer)
        world.write(buffer, argument)
        pointers += 4
        buffer += len(argument)


def args_sizes_get(world: World, count: int, size: int) -> None:
    """How many arguments, and their bytes."""
    world.write_u32(count, len(world.arguments))
    world.write_u32(size, sum(map(len, world.arguments)))


def environ_get(world: World, pointers: int, buffer: int) -> None:
    """There is no environment."""


def environ_sizes_get(world: World, count: int, size: int) -> None:
    """There is no environment."""
    world.write_u32(count, 0)
    world.write_u32(size, 0)


def clock_res_get(world: World, clock: int, result: int) -> None:
    """The step of time."""
    if clock >= _CLOCKS:
        raise Refused(INVAL)
    world.write_u64(result, TICK_NS)


def clock_time_get(world: World, clock: int, precision: int, result: int) -> None:
    """The time, which moves by being looked at."""
    if clock >= _CLOCKS:
        raise Refused(INVAL)
    world.write_u64(result, world.now_ns(clock))


def random_get(world: World, address: int, size: int) -> None:
    """Chance, the same in each run of the unit."""
    world.check(address, size)
    world.pay_for(size)
    world.fill_with_chance(address, size)


def poll_oneoff(world: World, subscriptions: int, events: int, count: int, result: int) -> None:
    """Wait: files and streams are always ready; else time moves to the first moment that is waited for."""
    if not 0 < count <= _SUBSCRIPTIONS_MAX:
        raise Refused(INVAL)
    wanted = list(_SUBSCRIPTION.iter_unpack(world.read(subscriptions, count * _SUBSCRIPTION.size)))
    world.check(events, count * _EVENT.size)
    world.check(result, 4)
    world.pay_for(count * _EVENT.size)
    ready, moments = [], []
    for userdata, kind, subject, timeout, _, flags in wanted:
        if kind == 0 and subject < _CLOCKS:
            moments.append((_moment(world, subject, timeout, flags), userdata))
        elif kind in (1, 2):
            ready.append(_stream_event(world, userdata, kind, subject))
        else:
            ready.append(_EVENT.pack(userdata, INVAL, kind & 0xFF, 0, 0))
    if not ready:
        world.elapsed_ns = max(world.elapsed_ns, min(moments)[0])
        ready = [_EVENT.pack(userdata, 0, 0, 0, 0) for moment, userdata in moments if moment <= world.elapsed_ns]
    world.write(events, b"".join(ready))
    world.write_u32(result, len(ready))


def _moment(world: World, clock: int, timeout: int, flags: int) -> int:
    """When a subscription is due, in nanoseconds since the unit's start."""
    if flags & 1:
        timeout -= EPOCH_NS if clock == 0 else 0
    else:
        timeout += world.elapsed_ns
    return min(max(timeout, 0), ELAPSED_NS_MAX)


def _stream_event(world: World, userdata: int, kind: int, number: int) -> bytes:
    descriptor = world.descriptors.get(number)
    if descriptor is None:
        return _EVENT.pack(userdata, 8, kind, 0, 0)
    left_bytes = max(0, world.size_bytes(descriptor) - descriptor.position) if kind == 1 else 0
    return _EVENT.pack(userdata, 0, kind, left_bytes, 0)


def proc_exit(world: World, status: int) -> None:
    """End the unit."""
    raise Exit(status)


def proc_raise(world: World, signal: int) -> None:
    """There are no signals but to oneself: the end."""
    raise Failure(frames.RAISED, "Aborted", f"the unit raised signal {signal}")


def sched_yield(world: World) -> None:
    """Nobody else is there."""


def _absent(world: World, *numbers: int) -> None:
    raise Refused(NOSYS)


CALLS: dict[str, tuple[str, Callable[..., None]]] = {
    "args_get": ("ii", args_get),
    "args_sizes_get": ("ii", args_sizes_get),
    "environ_get": ("ii", environ_get),
    "environ_sizes_get": ("ii", environ_sizes_get),
    "clock_res_get": ("ii", clock_res_get),
    "clock_time_get": ("iIi", clock_time_get),
    "fd_advise": ("iIIi", wasi_files.fd_advise),
    "fd_allocate": ("iII", wasi_files.fd_allocate),
    "fd_close": ("i", wasi_files.fd_close),
    "fd_datasync": ("i", wasi_files.fd_sync),
    "fd_fdstat_get": ("ii", wasi_files.fd_fdstat_get),
    "fd_fdstat_set_flags": ("ii", wasi_files.fd_fdstat_set_flags),
    "fd_fdstat_set_rights": ("iII", _absent),
    "fd_filestat_get": ("ii", wasi_files.fd_filestat_get),
    "fd_filestat_set_size": ("iI", wasi_files.fd_filestat_set_size),
    "fd_filestat_set_times": ("iIIi", _absent),
    "fd_pread": ("iiiIi", wasi_files.fd_pread),
    "fd_prestat_get": ("ii", wasi_files.fd_prestat_get),
    "fd_prestat_dir_name": ("iii", wasi_files.fd_prestat_dir_name),
    "fd_pwrite": ("iiiIi", wasi_files.fd_pwrite),
    "fd_read": ("iiii", wasi_files.fd_read),
    "fd_readdir": ("iiiIi", wasi_files.fd_readdir),
    "fd_renumber": ("ii", wasi_files.fd_renumber),
    "fd_seek": ("iIii", wasi_files.fd_seek),
    "fd_sync": ("i", wasi_files.fd_sync),
    "fd_tell": ("ii", wasi_files.fd_tell),
    "fd_write": ("iiii", wasi_files.fd_write),
    "path_create_directory": ("iii", wasi_files.path_create_directory),
    "path_filestat_get": ("iiiii", wasi_files.path_filestat_get),
    "path_filestat_set_times": ("iiiiIIi", _absent),
    "path_link": ("iiiiiii", _absent),
    "path_open": ("iiiiiIIii", wasi_files.path_open),
    "path_readlink": ("iiiiii", wasi_files.path_readlink),
    "path_remove_directory": ("iii", wasi_files.path_remove_directory),
    "path_rename": ("iiiiii", wasi_files.path_rename),
    "path_symlink": ("iiiii", _absent),
    "path_unlink_file": ("iii", wasi_files.path_unlink_file),
    "poll_oneoff": ("iiii", poll_oneoff),
    "proc_exit": ("i", proc_exit),
    "proc_raise": ("i", proc_raise),
    "random_get": ("ii", random_get),
    "sched_yield": ("", sched_yield),
    "sock_accept": ("iii", _absent),
    "sock_recv": ("iiiiii", _absent),
    "sock_send": ("iiiii", _absent),
    "sock_shutdown": ("ii", _absent),
}
"""By name: the numbers a call takes, ``i`` of 32 bits and ``I`` of 64, and what it does."""


class Wasi:
    """The interface, linked once; ``world`` is that of the unit that runs."""

    def __init__(self) -> None:
        self.world: World | None = None

    def define(self, linker: wasmtime.Linker) -> None:
        """Give these functions to the modules that ``linker`` makes instances of."""
        kinds = {"i": ValType.i32, "I": ValType.i64}
        for name, (signature, function) in CALLS.items():
            results = [] if name == "proc_exit" else [ValType.i32()]
            masks = [0xFFFFFFFF if letter == "i" else (1 << 64) - 1 for letter in signature]
            kind = FuncType([kinds[letter]() for letter in signature], results)
            linker.define_func(MODULE, name, kind, self._call_of(function, masks), access_caller=True)

    def _call_of(self, function: Callable[..., None], masks: Sequence[int]) -> Callable[..., int]:
        def call(caller: Any, *numbers: int) -> int:
            world = self.world
            if world is None:
                raise Failure(frames.RAISED, "HostFault", "a call came from no unit")
            try:
                if not world.has_memory:
                    world.find_memory(caller)
                world.pay(CALL_FUEL)
                function(world, *(number & mask for number, mask in zip(numbers, masks, strict=True)))
                return 0
            except Refused as refused:
                return refused.number
            except (Exit, Failure):
                raise
            except MemoryError:
                raise Failure(frames.RAISED, "MemoryLimit", "there is no memory left for what the unit asked of its host") from None
            except OSError as error:
                raise Failure(frames.RAISED, "OSError", f"an input file cannot be read: {error.strerror or error}") from None
            except Exception as error:
                raise Failure(frames.RAISED, "HostFault", f"a call into the host failed: {type(error).__name__}") from error

        return call
