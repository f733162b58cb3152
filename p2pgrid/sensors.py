"""Who needs the machine: what the system tells of its owner, its battery and its load. All such questions are asked here.

Linux was tested. macOS and Windows were written from their documentation and were **not** tested. Nothing here opens a display,
and nothing waits for longer than a second: what cannot be told is None.

How it is told on Linux that somebody is there, each on its own enough:

- the access time of a terminal (``/dev/pts``, ``/dev/tty1``): it moves with what is typed,
- keyboards, mice and touch pads: interrupts of those that have their own, and transfers of those on USB,
- ``logind``, for graphical sessions only: what their desktop says, asked every few seconds through ``loginctl``.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from p2pgrid.core.pausing import Asked, Presence, Usage

ASK_S = 1.0
"""For another program to answer."""
SESSIONS_AGAIN_S = 5.0
"""A desktop is asked no more often than this: it costs a process."""
SESSIONS_MAX = 16
USAGE_AGAIN_S = 1.0
_HEAD_BYTES = 1024
_TOTAL, _AVAILABLE = re.compile(rb"MemTotal:\s+(\d+) kB"), re.compile(rb"MemAvailable:\s+(\d+) kB")
INPUT_INTERRUPTS = re.compile(rb"i8042|i2c[-_]hid|ELAN|SYNA|ALPS|WCOM|MSFT|keyboard|mouse|touch", re.IGNORECASE)
HID_CLASS = "03"
HID_PROTOCOLS = ("01", "02")
"""Keyboards and mice: other devices of the class report all the time."""
GRAPHICAL = ("x11", "wayland", "mir")
_WINDOWS_UNKNOWN = 255


class Sensors:
    """Reads the machine. Keeps what it must compare with; ``read`` is for one thread at a time."""

    def __init__(
        self, *, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic, wall_s: Callable[[], float] = time.time
    ) -> None:
        """``root``: where ``dev``, ``proc``, ``sys`` and ``run`` are found."""
        self._clock = clock
        self._wall_s = wall_s
        self._terminals = Terminals(root / "dev", wall_s)
        self._devices = InputDevices(root, clock)
        self._sessions = Sessions(root / "run/systemd/sessions", clock)
        self._others = OthersLoad(root / "proc", clock)
        self._supplies = root / "sys/class/power_supply"

    def read(self, asked: Asked) -> Presence:
        """How it is now; what is not asked for is not looked at. Raises nothing."""
        local = time.localtime(self._wall_s())
        return Presence(
            idle_s=self._idle_s() if asked.idle else None,
            on_battery=self._on_battery() if asked.battery else None,
            others_share=self._others.share() if asked.load else None,
            minute=local.tm_hour * 60 + local.tm_min if asked.hours else None,
        )

    def _idle_s(self) -> float | None:
        if sys.platform == "darwin":
            return macos_idle_s()
        if sys.platform == "win32":
            return windows_idle_s()
        readings = (self._terminals.idle_s(), self._devices.idle_s(), self._sessions.idle_s())
        told = [reading for reading in readings if reading is not None]
        return min(told) if told else None

    def _on_battery(self) -> bool | None:
        if sys.platform == "darwin":
            return macos_on_battery()
        if sys.platform == "win32":
            return windows_on_battery()
        return linux_on_battery(self._supplies)


class Terminals:
    """Terminals of Linux: what was typed last anywhere."""

    def __init__(self, dev: Path, wall_s: Callable[[], float]) -> None:
        self._dev, self._wall_s = dev, wall_s

    def idle_s(self) -> float | None:
        """Seconds since somebody typed; None where that cannot be seen, as with no terminal at all."""
        latest = None
        try:
            names = [f"pts/{name}" for name in os.listdir(self._dev / "pts") if name.isdigit()]
        except OSError:
            return None
        for name in [*names, *(f"tty{number}" for number in range(1, 13))]:
            with suppress(OSError):
                state = os.stat(self._dev / name)
                # A console that nobody has opened has the times of the start of the machine.
                latest = state.st_atime if latest is None else max(latest, state.st_atime)
        return None if latest is None else max(0.0, self._wall_s() - latest)


class InputDevices:
    """Keyboards, mice and touch pads of Linux: their counters move when somebody touches them."""

    def __init__(self, root: Path, clock: Callable[[], float]) -> None:
        self._interrupts = root / "proc/interrupts"
        self._usb = root / "sys/bus/usb/devices"
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._touched_at: float | None = None

    def idle_s(self) -> float | None:
        """Seconds since a counter moved, or since the first look; None when there is none to look at."""
        now, counts = self._clock(), self._read()
        if not counts:
            self._counts = {}
            return None
        moved = any(count != self._counts.get(name, count) for name, count in counts.items())
        if self._touched_at is None or moved:
            self._touched_at = now
        self._counts = counts
        return now - self._touched_at

    def _read(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        with suppress(OSError):
            for line in self._interrupts.read_bytes().splitlines():
                head, _, rest = line.partition(b":")
                if INPUT_INTERRUPTS.search(rest):
                    words = rest.split()
                    counts[head.strip().decode("ascii", "replace")] = sum(int(word) for word in words if word.isdigit())
        with suppress(OSError):
            for interface in self._usb.glob("*:*"):
                if _line(interface / "bInterfaceClass") == HID_CLASS and _line(interface / "bInterfaceProtocol") in HID_PROTOCOLS:
                    device = interface.name.partition(":")[0]
                    transfers = _line(self._usb / device / "urbnum")
                    if transfers.isdigit():
                        counts[device] = int(transfers)
        return counts


class Sessions:
    """Graphical sessions that ``logind`` knows of: whether their desktop takes its user for idle, and since when."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder, self._clock = folder, clock
        self._asked_at = float("-inf")
        self._idle_since: float | None = None
        """Monotonic seconds; None: cannot be told."""
        self._active = False

    def idle_s(self) -> float | None:
        """Seconds; 0 while a desktop says that somebody is there; None without one, or when it does not answer."""
        now = self._clock()
        if now - self._asked_at >= SESSIONS_AGAIN_S:
            self._asked_at = now
            self._ask(now)
        if self._active:
            return 0.0
        return None if self._idle_since is None else max(0.0, now - self._idle_since)

    def _ask(self, now: float) -> None:
        self._active, self._idle_since = False, None
        sessions = self._graphical()
        if not sessions:
            return
        said = _output(["loginctl", "show-session", *sessions, "-p", "IdleHint", "-p", "IdleSinceHintMonotonic"])
        if said is None:
            return
        hints = dict.fromkeys(re.findall(r"^IdleHint=(\w+)$", said, re.MULTILINE))
        since = [int(number) / 1e6 for number in re.findall(r"^IdleSinceHintMonotonic=(\d+)$", said, re.MULTILINE)]
        self._active = "no" in hints
        if not self._active and since and max(since) > 0:
            # logind counts as CLOCK_MONOTONIC does, which need not be the clock of this object.
            self._idle_since = now - max(0.0, time.monotonic() - max(since))

    def _graphical(self) -> list[str]:
        """Ids of sessions that somebody sees on a screen of this machine."""
        found: list[str] = []
        with suppress(OSError):
            for path in sorted(self._folder.iterdir())[: SESSIONS_MAX * 4]:
                fields = dict(line.split("=", 1) for line in _text(path).splitlines() if "=" in line)
                plain = path.name.isascii() and path.name.isalnum()
                if plain and fields.get("TYPE") in GRAPHICAL and fields.get("CLASS") == "user" and fields.get("STATE") == "active":
                    found.append(path.name)
        return found[:SESSIONS_MAX]


class OthersLoad:
    """Linux: what other programs use of all processors, that is without this process and all that it has started."""

    def __init__(self, proc: Path, clock: Callable[[], float], pid: int | None = None) -> None:
        self._proc, self._clock = proc, clock
        self._pid = pid if pid is not None else os.getpid()
        self._before: tuple[int, int, int] | None = None

    def share(self) -> float | None:
        """Of the time since the last call; None at the first, and where it cannot be told."""
        machine = self._machine()
        if machine is None:
            return None
        total, busy = machine
        mine = self._tree()
        before, self._before = self._before, (total, busy, mine)
        if before is None or total <= before[0]:
            return None
        others = (busy - before[1]) - max(0, mine - before[2])
        return min(1.0, max(0.0, others / (total - before[0])))

    def _machine(self) -> tuple[int, int] | None:
        """(all ticks, busy ticks) of all processors. What a host took away is neither's fault."""
        return _ticks(_text(self._proc / "stat").encode())

    def _tree(self) -> int:
        """Ticks of this process, its descendants, and those of them that have ended."""
        ticks, pending, seen = 0, [self._pid], set[int]()
        while pending:
            pid = pending.pop()
            if pid in seen:
                continue
            seen.add(pid)
            folder = self._proc / str(pid)
            words = _text(folder / "stat").rpartition(")")[2].split()
            if len(words) > 14:
                ticks += sum(int(word) for word in words[11:15])
            with suppress(OSError):
                for task in os.listdir(folder / "task"):
                    pending += [int(word) for word in _text(folder / "task" / task / "children").split() if word.isdigit()]
        return ticks


def _ticks(stat: bytes) -> tuple[int, int] | None:
    """(all ticks, busy ticks) of ``/proc/stat``."""
    words = stat[: stat.find(b"\n")].split()
    if len(words) < 9 or words[0] != b"cpu" or not all(word.isdigit() for word in words[1:9]):
        return None
    user, nice, system, idle, waiting, interrupts, soft, _ = map(int, words[1:9])
    busy = user + nice + system + interrupts + soft
    return busy + idle + waiting, busy


class UsageMeter:
    """What is in use of the machine's processors and memory. On Linux both are counted; elsewhere the processors are guessed
    from how many programs want to run, and of memory nothing is known.

    Two small files are read, and nothing else is asked: this is read all the time.
    """

    def __init__(self, *, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic) -> None:
        self._stat, self._memory = str(proc / "stat"), str(proc / "meminfo")
        self._clock = clock
        self._read_at = float("-inf")
        self._before: tuple[int, int] | None = None
        self._last = Usage(0.0, 0)

    def read(self) -> Usage:
        """Over the time since the reading before, which is never less than a second: until then it is told again."""
        now = self._clock()
        if now - self._read_at >= USAGE_AGAIN_S:
            self._read_at = now
            self._last = Usage(self._share(), _memory_in_use(_head(self._memory)))
        return self._last

    def _share(self) -> float:
        ticks, before = _ticks(_head(self._stat)), self._before
        self._before = ticks
        if ticks is None:
            return min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)) if hasattr(os, "getloadavg") else 0.0
        if before is None:
            before = (0, 0)  # Since the machine was started, for once.
        if ticks[0] <= before[0]:
            return self._last.cpu_share
        return min(1.0, max(0.0, (ticks[1] - before[1]) / (ticks[0] - before[0])))


def _memory_in_use(meminfo: bytes) -> int:
    """What ``/proc/meminfo`` says cannot be had by another program; 0 when it does not say."""
    total, available = _TOTAL.search(meminfo), _AVAILABLE.search(meminfo)
    return max(0, int(total[1]) - int(available[1])) * 1024 if total and available else 0


def _head(path: str) -> bytes:
    """The first bytes of a file of the kernel, which are all that is looked at; nothing where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _HEAD_BYTES)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def linux_on_battery(supplies: Path) -> bool | None:
    """Whether a battery of the machine is being used up; None without one."""
    found, plugged, drains = False, False, False
    with suppress(OSError):
        for supply in sorted(supplies.iterdir()):
            kind = _line(supply / "type")
            if kind in ("Mains", "USB", "Wireless"):
                plugged = plugged or _line(supply / "online") == "1"
            elif kind == "Battery" and _line(supply / "scope") != "Device":  # Else it is that of a mouse.
                found = True
                drains = drains or _line(supply / "status") == "Discharging"
    if not found:
        return None
    return drains and not plugged


def macos_idle_s() -> float | None:
    """Untested: seconds since the last event of a human interface device."""
    said = _output(["ioreg", "-c", "IOHIDSystem", "-d", "4"])
    match = re.search(r'"HIDIdleTime"\s*=\s*(\d+)', said or "")
    return int(match[1]) / 1e9 if match else None


def macos_on_battery() -> bool | None:
    """Untested."""
    said = _output(["pmset", "-g", "batt"])
    if said is None or "Battery" not in said.partition("\n")[2]:
        return None
    return "'Battery Power'" in said


class _LastInput(ctypes.Structure):
    """LASTINPUTINFO."""

    _fields_ = (("size", ctypes.c_uint), ("ticks", ctypes.c_uint))


class _PowerStatus(ctypes.Structure):
    """SYSTEM_POWER_STATUS."""

    _fields_ = (
        ("line", ctypes.c_ubyte),
        ("battery", ctypes.c_ubyte),
        ("percent", ctypes.c_ubyte),
        ("flag", ctypes.c_ubyte),
        ("left_s", ctypes.c_uint),
        ("full_s", ctypes.c_uint),
    )


def windows_idle_s() -> float | None:
    """Untested: seconds since the last input in the session of this process."""
    with suppress(AttributeError, OSError):
        libraries = ctypes.windll  # type: ignore[attr-defined,unused-ignore]
        last = _LastInput(ctypes.sizeof(_LastInput), 0)
        if libraries.user32.GetLastInputInfo(ctypes.byref(last)):
            return float((int(libraries.kernel32.GetTickCount()) - last.ticks) % (1 << 32)) / 1000
    return None


def windows_on_battery() -> bool | None:
    """Untested."""
    with suppress(AttributeError, OSError):
        libraries = ctypes.windll  # type: ignore[attr-defined,unused-ignore]
        status = _PowerStatus()
        if libraries.kernel32.GetSystemPowerStatus(ctypes.byref(status)) and _WINDOWS_UNKNOWN != status.line and status.battery < 128:
            return bool(status.line == 0)
    return None


def _output(command: list[str]) -> str | None:
    """What another program says; None when it fails, is not there, or takes too long."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _line(path: Path) -> str:
    return _text(path).strip()
