"""Which packages and which of their files an interpreter wants: decided alike at the submitter and at the worker.

A submitter knows of other machines only what their offers say, ``linux-x86_64`` and ``3.12``. For these it takes the file that
fits the oldest systems of that kind, and a package that is wanted on some of them. A worker knows itself to the letter.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import msgspec

from p2pgrid.model.environment import Pin, Wheel, check_requires_python, normalised, read_marker, tags_of

GLIBC_NEWEST = 40
"""Minor version of the newest glibc 2 whose files are sent to machines of which only the processor is known."""
MACOS_NEWEST = 15
_WINDOWS = {"amd64": "win_amd64", "arm64": "win_arm64", "x86": "win32"}

Named = TypeVar("Named")


class Target(NamedTuple):
    """A kind of machine, as an offer tells it."""

    platform: str
    """Operating system and machine, as ``linux-x86_64``."""
    python: str
    """Major and minor version, as ``3.12``."""


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of an interpreter before packages are chosen for it."""

    target: Target
    executable: str = ""
    """Empty when it is on another machine."""
    tags: tuple[str, ...]
    """The kinds of wheels it can load, the best first."""
    markers: tuple[dict[str, str], ...]
    """What markers may find there. Of another machine more than one answer is possible."""

    @property
    def tag(self) -> str:
        """What built packages depend on besides their lock."""
        return f"{self.tags[0]}-{self.target.python}"

    def allows(self, requires_python: str) -> bool:
        """Whether a script that asks for this can run on it."""
        wanted = check_requires_python(requires_python)
        return any(wanted.contains(found["python_full_version"], prereleases=True) for found in self.markers)

    def wants(self, pin: Pin) -> bool:
        """Whether a line of a lock is for this machine."""
        if not pin.marker:
            return True
        from packaging.markers import UndefinedComparison, UndefinedEnvironmentName

        marker = read_marker(pin.marker)
        try:
            return any(marker.evaluate(dict(found)) for found in self.markers)
        except (UndefinedComparison, UndefinedEnvironmentName):
            return True

    def best(self, pin: Pin, files: Iterable[tuple[str, str, Named]]) -> Named | None:
        """The file to take for a pin among (file name, sha256, file), or None when none fits."""
        rank = {tag: number for number, tag in enumerate(self.tags)}
        found: list[tuple[int, str, Named]] = []
        for file_name, digest, named in files:
            if digest in pin.digests and normalised(file_name.partition("-")[0]) == pin.name:
                ranks = [rank[tag] for tag in sorted(tags_of(file_name)) if tag in rank]
                if ranks:
                    found.append((min(ranks), file_name, named))
        return min(found, key=lambda row: row[:2])[2] if found else None


def choose(interpreter: Interpreter, pins: Sequence[Pin], wheels: Sequence[Wheel]) -> tuple[list[Wheel], list[Pin]]:
    """The wheels that an interpreter needs, and the pins for which there is none."""
    files = [(wheel.file_name, wheel.sha256.hex(), wheel) for wheel in wheels]
    chosen: list[Wheel] = []
    missing: list[Pin] = []
    for pin in pins:
        if interpreter.wants(pin):
            wheel = interpreter.best(pin, files)
            if wheel is None:
                missing.append(pin)
            else:
                chosen.append(wheel)
    return chosen, missing


@lru_cache(maxsize=1)
def this_interpreter() -> Interpreter:
    """The one that runs this."""
    # Loaded for jobs with packages only, as is all of this library: a node without should start quickly.
    from packaging import tags as known_tags
    from packaging.markers import default_environment

    target = Target(f"{platform.system().lower()}-{platform.machine().lower()}", f"{sys.version_info[0]}.{sys.version_info[1]}")
    environment = {key: str(value) for key, value in default_environment().items()}
    return Interpreter(
        target=target,
        executable=sys.executable,
        tags=tuple(str(tag) for tag in known_tags.sys_tags()),
        markers=(environment | {"extra": ""},),
    )


def interpreter_of(target: Target) -> Interpreter | None:
    """What can be told about an interpreter elsewhere; None for systems of which nothing is known."""
    from packaging import tags as known_tags

    version = _version(target.python)
    platforms = _platforms(target.platform)
    if version is None or not platforms:
        return None
    short = f"cp{version[0]}{version[1]}"
    tags = [str(tag) for tag in known_tags.cpython_tags(version, [short], platforms)]
    tags += [str(tag) for tag in known_tags.compatible_tags(version, short, platforms)]
    own = this_interpreter()
    if target == own.target:
        # Here the least demanding file is preferred as well, as the job goes to others; but it must load here.
        here = set(own.tags)
        known = set(tags)
        tags = [tag for tag in tags if tag in here] + [tag for tag in own.tags if tag not in known]
    return Interpreter(target=target, tags=tuple(tags), markers=tuple(_markers(target, f"{target.python}.{patch}") for patch in (0, 99)))


def oldest_python(requires_python: str, floor: int) -> str | None:
    """The oldest ``3.x`` from ``3.floor`` on that fits a version range; None when there is none."""
    wanted = check_requires_python(requires_python)
    for minor in range(floor, floor + 20):
        if any(wanted.contains(f"3.{minor}.{patch}", prereleases=True) for patch in range(30)):
            return f"3.{minor}"
    return None


def _version(python: str) -> tuple[int, int] | None:
    major, _, minor = python.partition(".")
    if major != "3" or not (minor.isascii() and minor.isdigit() and len(minor) <= 2):
        return None
    return 3, int(minor)


def _platforms(name: str) -> list[str]:
    """Tags of a platform, those that fit most machines first."""
    system, _, machine = name.partition("-")
    if not machine.replace("_", "").isalnum() or not machine.isascii():
        return []
    if system == "linux":
        legacy = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
        found: list[str] = []
        for minor in range(5, GLIBC_NEWEST + 1):
            found.append(f"manylinux_2_{minor}_{machine}")
            if minor in legacy:
                found.append(f"{legacy[minor]}_{machine}")
        return [*found, f"linux_{machine}"]
    if system == "darwin":
        from packaging.tags import mac_platforms

        return list(reversed(list(mac_platforms((MACOS_NEWEST, 0), machine))))
    return [_WINDOWS[machine]] if system == "windows" and machine in _WINDOWS else []


def _markers(target: Target, full_version: str) -> dict[str, str]:
    system, _, machine = target.platform.partition("-")
    return {
        "implementation_name": "cpython",
        "implementation_version": full_version,
        "os_name": "nt" if system == "windows" else "posix",
        "platform_machine": machine.upper() if system == "windows" else machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": {"linux": "Linux", "darwin": "Darwin", "windows": "Windows"}.get(system, ""),
        "platform_version": "",
        "python_full_version": full_version,
        "python_version": target.python,
        "sys_platform": {"linux": "linux", "darwin": "darwin", "windows": "win32"}.get(system, ""),
        "extra": "",
    }
