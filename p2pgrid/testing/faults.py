"""What can go wrong in a simulated grid, by name: whom it strikes, what it does, and how it is undone.

1. Victims are drawn among the machines that run now, from the grid's chance alone. A machine is struck by one fault of a
   kind at a time, so that undoing the first does not undo the second.
2. What ends by itself is undone after ``for_s`` seconds; with 0 only when the faults are over (:func:`calm`).
3. An undoing may find that its machine has died meanwhile, or came back by itself. It then leaves it alone.

Every fault acts through :class:`Machines`, which the simulated grid is; so do a user's own faults, put into :data:`FAULTS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol


class FaultEvent(Protocol):
    """One fault that is due, its numbers drawn. :class:`p2pgrid.testing.plans.gridplan.FaultEvent` is one."""

    @property
    def kind(self) -> str: ...
    @property
    def for_s(self) -> float: ...
    @property
    def nodes(self) -> int: ...
    @property
    def share(self) -> float: ...
    @property
    def of(self) -> str: ...
    @property
    def spare(self) -> str: ...
    @property
    def strength(self) -> float: ...


class Cancellable(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Do not make it."""


class Timeline(Protocol):
    """Virtual time. :class:`p2pgrid.testing.world.World` is one."""

    now: float

    def after(self, delay_s: float, call: Callable[..., object], *args: object) -> Cancellable:
        """Make a call after some virtual seconds."""


class Air(Protocol):
    """The network between machines, with a switch for each fault."""

    loss: float
    """Chance of a datagram or segment to be lost."""

    def partition(self, one: list[str], other: list[str], *, one_way: bool = False) -> None:
        """Let nothing pass from ``one`` to ``other``, nor back unless ``one_way``."""

    def heal(self, one: list[str], other: list[str]) -> None:
        """Undo the partition of these."""

    def clog(self, name: str, extra_s: float) -> None:
        """Everything to and from a machine takes so much longer."""

    def unclog(self, name: str) -> None:
        """Undo it."""


class Cpu(Protocol):
    """The processor of a machine."""

    speed: float


class FaultyDisk(Protocol):
    """The disk of a machine."""

    folder: Path
    """The home of its node."""

    def fill(self, free_bytes: int) -> None:
        """Leave only so much room."""

    def relieve(self) -> None:
        """Undo it."""

    def rot(self, rng: random.Random, below: Path) -> Path | None:
        """Flip a bit of one of the files below a folder; returns which. None: there is none."""


class Undoing(NamedTuple):
    """A fault that lasts."""

    undo: Callable[[], None]
    timer: Cancellable | None
    brings_back: bool
    """Whether a machine starts again by it: that is done when the others are undone."""


Struck = tuple[str, str]
"""(kind of fault, machine or empty)."""


class Machines(Protocol):
    """The machines of a simulated grid, as far as faults act on them. Machines have names."""

    rng: random.Random
    """The chance of the faults alone."""
    undoing: dict[Struck, Undoing]
    """What lasts. Begins empty; only this module changes it."""

    @property
    def world(self) -> Timeline: ...

    @property
    def network(self) -> Air: ...

    def running(self, of: str = "", spare: str = "") -> list[str]:
        """Machines whose node runs, frozen ones too, by name: only of the kind ``of``, without the kinds in ``spare`` (spaces between)."""

    def kill(self, name: str, *, power: bool, disk_gone: bool) -> None:
        """The node ends at once. ``power``: what was not synced is lost. ``disk_gone``: all of it is, for good."""

    def start(self, name: str) -> None:
        """The node of a machine that is off starts on the disk it had."""

    def leave(self, name: str) -> None:
        """The node says goodbye and ends, and its machine stays off."""

    def freeze(self, name: str) -> None:
        """Nothing runs there until :meth:`thaw`."""

    def thaw(self, name: str) -> None:
        """Go on. Harmless when it is not frozen."""

    def cpu(self, name: str) -> Cpu:
        """The processor of a machine, dead ones too."""

    def disk(self, name: str) -> FaultyDisk:
        """The disk of a machine, dead ones too."""

    def skew(self, name: str, seconds: float) -> None:
        """The machine's wall clock jumps by so much."""

    def add(self, kind: str, at_s: float) -> str:
        """One more machine of a kind of the scenario joins at a moment of virtual time. Returns its name."""

    def adversary(self, kind: str, strength: float, for_s: float) -> None:
        """A hostile machine (see :mod:`p2pgrid.testing.hostile.adversaries`) begins, and stops after ``for_s`` seconds."""

    def count(self, kind: str) -> None:
        """A fault of this kind has struck."""

    def damaged(self, name: str, path: str) -> None:
        """A stored bit of this file was flipped."""

    def cause(self, name: str, kind: str, for_s: float) -> None:
        """From now on, and some time after ``for_s``, errors in the log of this machine have a cause."""


Strike = Callable[[FaultEvent, Machines], int]
"""Makes a fault happen; returns how many machines it struck."""
Hit = Callable[[str, FaultEvent, Machines], Callable[[], None] | None]
"""Does something to one machine; returns how it is undone, None when it is not."""


class Fault(NamedTuple):
    """A kind of fault."""

    about: str
    strike: Strike


def apply(event: FaultEvent, machines: Machines) -> int:
    """Make a fault happen now, and see to its end. Returns how many machines it struck. Raises KeyError for an unknown kind."""
    struck = FAULTS[event.kind].strike(event, machines)
    if struck:
        machines.count(event.kind)
    return struck


def calm(machines: Machines) -> None:
    """The faults are over: undo everything that lasts, then start the machines that are to come back."""
    lasting = list(machines.undoing.items())
    machines.undoing.clear()
    for _, undoing in sorted(lasting, key=lambda entry: entry[1].brings_back):
        if undoing.timer is not None:
            undoing.timer.cancel()
        undoing.undo()


def victims(event: FaultEvent, machines: Machines) -> list[str]:
    """Whom a fault strikes: machines that run and do not suffer from the same kind yet."""
    names = [name for name in machines.running(event.of, event.spare) if (event.kind, name) not in machines.undoing]
    count = max(1, round(event.share * len(names))) if event.share > 0.0 else event.nodes
    return sorted(machines.rng.sample(names, min(count, len(names))))


def _last(event: FaultEvent, machines: Machines, name: str, undo: Callable[[], None], *, brings_back: bool = False) -> None:
    """See to the end of what has just been done to a machine, or to all (an empty name)."""
    struck = (event.kind, name)

    def due() -> None:
        if machines.undoing.pop(struck, None) is not None:
            undo()

    timer = machines.world.after(event.for_s, due) if event.for_s > 0.0 else None
    machines.undoing[struck] = Undoing(undo, timer, brings_back)


def _each(hit: Hit, *, brings_back: bool = False) -> Strike:
    """A fault that does the same to every one of its victims."""

    def strike(event: FaultEvent, machines: Machines) -> int:
        names = victims(event, machines)
        for name in names:
            undo = hit(name, event, machines)
            if undo is not None:
                _last(event, machines, name, undo, brings_back=brings_back)
        return len(names)

    return strike


# -- nodes that end ------------------------------------------------------------------------


def _crash(name: str, event: FaultEvent, machines: Machines) -> None:
    machines.kill(name, power=False, disk_gone=True)


def _leave(name: str, event: FaultEvent, machines: Machines) -> None:
    machines.leave(name)


def _restart(name: str, event: FaultEvent, machines: Machines) -> Callable[[], None]:
    machines.kill(name, power=False, disk_gone=False)
    return _come_back(name, machines)


def _power(name: str, event: FaultEvent, machines: Machines) -> Callable[[], None]:
    machines.kill(name, power=True, disk_gone=False)
    return _come_back(name, machines)


def _come_back(name: str, machines: Machines) -> Callable[[], None]:
    def start() -> None:
        if name not in machines.running():
            machines.start(name)

    return start


# -- nodes that are ill ------------------------------------------------------------------------


def _freeze(name: str, event: FaultEvent, machines: Machines) -> Callable[[], None]:
    machines.freeze(name)

    def thaw() -> None:
        if name in machines.running():
            machines.thaw(name)

    return thaw


def _slow(name: str, event: FaultEvent, machines: Machines) -> Callable[[], None]:
    cpu = machines.cpu(name)
    before = cpu.speed
    cpu.speed = before / max(1.0, event.strength)

    def recover() -> None:
        machines.cpu(name).speed = before

    return recover


def _skew(name: str, event: FaultEvent, machines: Machines) -> Callable[[], None]:
    machines.skew(name, event.strength)
    return lambda: machines.skew(name, -event.strength)


# -- disks -----------------------------------------------------------------------------------------


def _full_disk(name: str, event: FaultEvent, machines: Machines) -> Callable[[], None]:
    machines.cause(name, event.kind, event.for_s)
    machines.disk(name).fill(int(event.strength))
    return lambda: machines.disk(name).relieve()


def _rot(name: str, event: FaultEvent, machines: Machines) -> None:
    machines.cause(name, event.kind, event.for_s)
    disk = machines.disk(name)
    for _ in range(max(1, int(event.strength))):
        path = disk.rot(machines.rng, disk.folder / "blobs")
        if path is not None:
            machines.damaged(name, str(path))


# -- the network ----------------------------------------------------------------------------------------


def _parted(*, one_way: bool) -> Strike:
    def strike(event: FaultEvent, machines: Machines) -> int:
        if (event.kind, "") in machines.undoing:
            return 0
        one = victims(event, machines)
        other = [name for name in machines.running() if name not in one]
        if not one or not other:
            return 0
        machines.network.partition(one, other, one_way=one_way)
        _last(event, machines, "", lambda: machines.network.heal(one, other))
        return len(one)

    return strike


def _clog(name: str, event: FaultEvent, machines: Machines) -> Callable[[], None]:
    machines.network.clog(name, event.strength)
    return lambda: machines.network.unclog(name)


def _lossy(event: FaultEvent, machines: Machines) -> int:
    if (event.kind, "") in machines.undoing:
        return 0
    network = machines.network
    before = network.loss

    def recover() -> None:
        network.loss = before

    network.loss = max(before, min(1.0, event.strength))
    _last(event, machines, "", recover)
    return len(machines.running())


# -- more machines ------------------------------------------------------------------------------------------


def _flash_crowd(event: FaultEvent, machines: Machines) -> int:
    now_s = machines.world.now
    for _ in range(event.nodes):
        machines.add(event.of, now_s + machines.rng.uniform(0.0, max(0.0, event.strength)))
    return event.nodes


def _hostile(event: FaultEvent, machines: Machines) -> int:
    for _ in range(event.nodes):
        machines.adversary(event.kind, event.strength, event.for_s)
    return event.nodes


FAULTS: dict[str, Fault] = {
    "crash": Fault("machines end without a word and their disks are lost with them", _each(_crash)),
    "restart": Fault("nodes are killed, and start again on the disks they had after for_s", _each(_restart, brings_back=True)),
    "power": Fault("machines lose their power, and what was not synced; they come back after for_s", _each(_power, brings_back=True)),
    "leave": Fault("nodes leave in good order and do not return", _each(_leave)),
    "freeze": Fault("machines stand still for for_s, then go on as if nothing had been", _each(_freeze)),
    "slow": Fault("processors are strength times slower for for_s", _each(_slow)),
    "flash-crowd": Fault("`nodes` new machines of the kind `of` join within strength seconds", _flash_crowd),
    "partition": Fault("some machines (share, or nodes) and all the others do not hear of one another for for_s", _parted(one_way=False)),
    "one-way": Fault("what some machines (share, or nodes) say to the others is lost for for_s, and they hear all", _parted(one_way=True)),
    "clog": Fault("all that machines send and receive takes strength seconds more for for_s", _each(_clog)),
    "lossy": Fault("everybody's datagrams and segments are lost with chance strength for for_s", _lossy),
    "clock-skew": Fault("wall clocks jump by strength seconds, and back after for_s", _each(_skew)),
    "rot": Fault("strength bits of stored blobs flip", _each(_rot)),
    "full-disk": Fault("disks have only strength bytes of room left for for_s", _each(_full_disk)),
    "flood": Fault("`nodes` hostile members send requests, streams and garbage, strength a second for for_s", _hostile),
    "forge": Fault("`nodes` hostile members send forged statements, strength a second for for_s", _hostile),
    "replay": Fault("`nodes` hostile members send again what they saw, strength a second for for_s", _hostile),
}
"""Every kind that a scenario may name."""
