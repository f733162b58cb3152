"""What is read of the machine: from files made up for the test, and for a moment from the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2pgrid import sensors
from p2pgrid.core.pausing import Asked, Usage
from p2pgrid.sensors import InputDevices, OthersLoad, Sensors, Sessions, Terminals, UsageMeter, linux_on_battery

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's files")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_terminal_used_last_counts(tmp_path: Path) -> None:
    terminals = Terminals(tmp_path, lambda: 10_000.0)
    assert terminals.idle_s() is None
    (tmp_path / "pts").mkdir()
    assert terminals.idle_s() is None, "no terminal tells nothing"
    for name, at in (("pts/0", 9000.0), ("pts/1", 9990.0), ("pts/ptmx", 9999.0), ("tty1", 5000.0), ("ttyS0", 9999.0)):
        os.utime(write(tmp_path / name, ""), (at, 0.0))
    assert terminals.idle_s() == 10.0


INTERRUPTS = """           CPU0       CPU1
   1:          {keys}          7  IO-APIC   1-edge      i8042
   9:       9999          0  IO-APIC   9-fasteoi   acpi
 142:          3          4  PCI-MSI 328192-edge      xhci_hcd
"""


def test_a_key_is_seen_by_its_interrupt_and_other_devices_are_not(tmp_path: Path, clock: Clock) -> None:
    devices = InputDevices(tmp_path, clock)
    assert devices.idle_s() is None
    write(tmp_path / "proc/interrupts", INTERRUPTS.format(keys=5))
    assert devices.idle_s() == 0.0
    clock.now += 30
    write(tmp_path / "proc/interrupts", INTERRUPTS.format(keys=5).replace("9999", "123456"))
    assert devices.idle_s() == 30.0
    write(tmp_path / "proc/interrupts", INTERRUPTS.format(keys=6))
    assert devices.idle_s() == 0.0


def test_a_keyboard_on_usb_is_seen_by_its_transfers_and_a_disk_is_not(tmp_path: Path, clock: Clock) -> None:
    usb = tmp_path / "sys/bus/usb/devices"
    for device, kind, protocol in (("1-1", "03", "01"), ("1-2", "08", "50"), ("1-3", "03", "00")):
        write(usb / device / "urbnum", "10\n")
        write(usb / f"{device}:1.0" / "bInterfaceClass", kind + "\n")
        write(usb / f"{device}:1.0" / "bInterfaceProtocol", protocol + "\n")
    devices = InputDevices(tmp_path, clock)
    devices.idle_s()
    clock.now += 5
    for device in ("1-2", "1-3"):
        write(usb / device / "urbnum", "999\n")
    assert devices.idle_s() == 5.0
    write(usb / "1-1" / "urbnum", "11\n")
    assert devices.idle_s() == 0.0
    write(usb / "2-1" / "urbnum", "4000\n")
    assert devices.idle_s() == 0.0
    clock.now += 5
    assert devices.idle_s() == 5.0


def test_a_device_that_is_plugged_in_is_no_touch_by_itself(tmp_path: Path, clock: Clock) -> None:
    write(tmp_path / "proc/interrupts", INTERRUPTS.format(keys=5))
    devices = InputDevices(tmp_path, clock)
    devices.idle_s()
    clock.now += 5
    write(tmp_path / "proc/interrupts", INTERRUPTS.format(keys=5) + " 150:  17  0  i2c_hid\n")
    assert devices.idle_s() == 5.0


def logind(monkeypatch: pytest.MonkeyPatch, said: str | None) -> list[list[str]]:
    commands: list[list[str]] = []

    def output(command: list[str]) -> str | None:
        commands.append(command)
        return said

    monkeypatch.setattr(sensors, "_output", output)
    return commands


def session(folder: Path, name: str, kind: str, state: str = "active") -> None:
    write(folder / name, f"# This is private data.\nUID=1000\nCLASS=user\nTYPE={kind}\nSTATE={state}\n")


def test_a_desktop_says_whether_somebody_is_there_and_is_not_asked_often(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    session(tmp_path, "2", "wayland")
    session(tmp_path, "5", "tty")
    session(tmp_path, "7", "x11", "closing")
    commands = logind(monkeypatch, "IdleHint=no\nIdleSinceHintMonotonic=0\n")
    sessions = Sessions(tmp_path, clock)
    assert sessions.idle_s() == 0.0
    assert sessions.idle_s() == 0.0
    assert commands == [["loginctl", "show-session", "2", "-p", "IdleHint", "-p", "IdleSinceHintMonotonic"]]
    clock.now += sensors.SESSIONS_AGAIN_S
    since_us = int((time.monotonic() - 50.0) * 1e6)
    logind(monkeypatch, f"IdleHint=yes\nIdleSinceHintMonotonic={since_us}\n")
    idle_s = sessions.idle_s()
    assert idle_s is not None
    assert 49.0 < idle_s < 60.0


def test_without_a_desktop_nobody_is_asked_and_without_an_answer_nothing_is_told(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = logind(monkeypatch, None)
    session(tmp_path, "5", "tty")
    assert Sessions(tmp_path / "nowhere", clock).idle_s() is None
    assert Sessions(tmp_path, clock).idle_s() is None
    assert commands == []
    session(tmp_path, "2", "x11")
    assert Sessions(tmp_path, clock).idle_s() is None
    assert len(commands) == 1


def test_a_program_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "ASK_S", 0.05)
    start = time.monotonic()
    assert sensors._output([sys.executable, "-S", "-c", "import time; time.sleep(30)"]) is None
    assert time.monotonic() - start < 5.0
    assert sensors._output(["/nowhere/loginctl"]) is None
    assert sensors._output([sys.executable, "-S", "-c", "raise SystemExit(3)"]) is None


def supply(folder: Path, name: str, **fields: str) -> None:
    for field, text in fields.items():
        write(folder / name / field, text + "\n")


def test_a_battery_counts_when_it_is_used_up(tmp_path: Path) -> None:
    assert linux_on_battery(tmp_path / "nowhere") is None
    supply(tmp_path, "hidpp_battery_0", type="Battery", scope="Device", status="Discharging")
    assert linux_on_battery(tmp_path) is None, "that is the mouse's"
    supply(tmp_path, "BAT0", type="Battery", status="Discharging")
    supply(tmp_path, "AC", type="Mains", online="0")
    assert linux_on_battery(tmp_path) is True
    supply(tmp_path, "AC", online="1")
    assert linux_on_battery(tmp_path) is False
    supply(tmp_path, "AC", online="0")
    supply(tmp_path, "BAT0", status="Full")
    assert linux_on_battery(tmp_path) is False


def process(proc: Path, pid: int, ticks: int, children: str = "") -> None:
    before = "0 " * 10
    write(proc / str(pid) / "stat", f"{pid} (a ) name) S {before}{ticks} 0 0 0 20 0\n")
    write(proc / str(pid) / "task" / str(pid) / "children", children)


def test_the_load_of_others_is_that_of_the_machine_without_ours(tmp_path: Path, clock: Clock) -> None:
    load = OthersLoad(tmp_path, clock, pid=10)
    assert load.share() is None
    write(tmp_path / "stat", "cpu  100 0 0 900 0 0 0 0 0 0\n")
    process(tmp_path, 10, 50, "11 ")
    process(tmp_path, 11, 0, "10 ")
    assert load.share() is None
    write(tmp_path / "stat", "cpu  180 10 10 1000 0 0 0 400 0 0\ncpu0 1 1 1 1 1 1 1 1\n")
    process(tmp_path, 11, 60)
    assert load.share() == pytest.approx((100 - 60) / 200)
    assert load.share() is None
    write(tmp_path / "stat", "cpu  180 10 10 1100 0 0 0 400 0 0\n")
    process(tmp_path, 11, 0)
    assert load.share() == 0.0


@linux
def test_our_own_children_are_no_load_of_others() -> None:
    spinner = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        load = OthersLoad(Path("/proc"), time.monotonic)
        deadline = time.monotonic() + 30
        first = load._tree()
        while load._tree() < first + 10:
            assert time.monotonic() < deadline
        assert spinner.poll() is None
    finally:
        spinner.kill()
        spinner.wait()
    assert load._tree() >= first + 10, "what a child has used counts when it has gone"


def test_reading_this_machine_raises_nothing_and_takes_no_time() -> None:
    machine = Sensors()
    start = time.monotonic()
    for _ in range(3):
        reading = machine.read(Asked())
    assert time.monotonic() - start < 3.0
    assert reading.minute is not None
    assert 0 <= reading.minute < 1440
    nothing = machine.read(Asked(idle=False, battery=False, load=False, hours=False))
    assert (nothing.idle_s, nothing.on_battery, nothing.others_share, nothing.minute) == (None, None, None, None)


def test_no_display_is_opened(tmp_path: Path) -> None:
    """A process that has read everything has loaded nothing that could open one."""
    program = "import sys; from p2pgrid.sensors import Sensors; from p2pgrid.core.pausing import Asked; Sensors().read(Asked()); "
    program += "maps = open('/proc/self/maps').read() if sys.platform == 'linux' else ''; sys.exit('libX' in maps or 'wayland' in maps)"
    environment = {**os.environ, "DISPLAY": "nowhere.invalid:0", "WAYLAND_DISPLAY": str(tmp_path / "none")}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=15, env=environment)


MEMINFO = "MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     400 kB\n"


def stat(busy: int, idle: int) -> str:
    return f"cpu  {busy} 0 0 {idle} 0 0 0 99999 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"


def test_the_meter_tells_what_was_in_use_since_the_reading_before(tmp_path: Path, clock: Clock) -> None:
    write(tmp_path / "meminfo", MEMINFO)
    meter = UsageMeter(proc=tmp_path, clock=clock)
    write(tmp_path / "stat", stat(busy=100, idle=300))
    assert meter.read() == Usage(0.25, 600 * 1024), "since the machine was started, for once"
    write(tmp_path / "stat", stat(busy=190, idle=310))
    assert meter.read().cpu_share == 0.25, "too soon to tell"
    clock.now += sensors.USAGE_AGAIN_S
    assert meter.read().cpu_share == 0.9
    clock.now += sensors.USAGE_AGAIN_S
    assert meter.read().cpu_share == 0.9, "no tick went by"
    write(tmp_path / "stat", stat(busy=190, idle=410))
    clock.now += sensors.USAGE_AGAIN_S
    assert meter.read().cpu_share == 0.0


@pytest.mark.parametrize("text", ["", "cpu 1 2", "cpu a b c d e f g h i j\n", "intr 1 2 3 4 5 6 7 8 9\n"])
def test_where_the_system_does_not_tell_the_meter_guesses_from_the_load_and_knows_no_memory(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    if text:
        write(tmp_path / "stat", text)
    assert UsageMeter(proc=tmp_path, clock=clock).read() == Usage(0.75, 0)
    monkeypatch.delattr(os, "getloadavg")
    assert UsageMeter(proc=tmp_path, clock=clock).read() == Usage(0.0, 0)


@linux
def test_the_meter_reads_this_machine() -> None:
    usage = UsageMeter().read()
    assert 0.0 < usage.cpu_share <= 1.0
    assert usage.memory_bytes > 1 << 20
