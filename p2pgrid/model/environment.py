"""The packages of a job as its submitter locked them: what to install, by version and hash, and which files carry it.

1. A worker is told names, versions, markers and SHA-256 digests, and nothing else: no address of a registry, no option of an
   installer, no path. Each line has one form, and a line of another form makes the whole environment void.
2. A file may be named only if the lock has its digest under its distribution.
3. Everything is bounded here, whatever a worker's owner allows on top (docs/spec/environments.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from p2pgrid.model.ids import DIGEST_BYTES
from p2pgrid.model.limits import GIB, MIB

if TYPE_CHECKING:
    from packaging.markers import Marker
    from packaging.specifiers import SpecifierSet

ENVIRONMENT_BYTES_MAX = 4 * MIB
"""Of an encoded environment."""
REQUIREMENTS_BYTES_MAX = 3 * MIB
LINES_MAX = 1000
WHEELS_MAX = 2000
WHEELS_BYTES_MAX = 8 * GIB
"""Of all wheels, for all kinds of machines together."""
MARKER_LENGTH_MAX = 2000
MARKERS_LENGTH_MAX = 128 << 10
"""Of all names, versions and markers together: it takes about a second to read so much."""
FILE_NAME_LENGTH_MAX = 240

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?", re.ASCII)
_VERSION = re.compile(
    r"(?:\d+!)?\d+(?:\.\d+)*(?:(?:a|b|rc)\d+)?(?:\.post\d+)?(?:\.dev\d+)?(?:\+[a-z0-9]+(?:\.[a-z0-9]+)*)?",
    re.ASCII,
)
# What follows a '-' or stands in a '$', '{', '#', ';' or '\' could be read as an option, a variable or a comment.
_MARKER = re.compile(r"(?:[\w .,'\"<>=!~()*+]|(?<=\w)-(?=\w))+", re.ASCII)
_HASH = " --hash=sha256:"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WHEEL = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._]*[A-Za-z0-9])?)-(?P<version>[A-Za-z0-9_.!+]+)(?:-\d[A-Za-z0-9_.]*)?"
    r"-(?P<tags>[A-Za-z0-9_.]+-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+)\.whl",
    re.ASCII,
)


def normalised(name: str) -> str:
    """The one form of a distribution's name under which all spellings of it are equal."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Pin:
    """A line of the lock: one version of a distribution, and the digests of its files."""

    name: str
    version: str
    marker: str
    """On which machines it is wanted; empty for all."""
    digests: frozenset[str]

    def line(self) -> str:
        """As it stands in the requirements."""
        marker = f" ; {self.marker}" if self.marker else ""
        return f"{self.name}=={self.version}{marker}" + "".join(f"{_HASH}{digest}" for digest in sorted(self.digests))


class Wheel(msgspec.Struct, frozen=True, array_like=True):
    """A file of the lock that the submitter has put into the grid."""

    file_name: str
    """As its registry named it: distribution, version and the machines it is for."""
    sha256: bytes
    """What the lock knows it by."""
    size_bytes: int
    blob: bytes
    """Where it is found in the grid."""

    def __post_init__(self) -> None:
        if len(self.sha256) != DIGEST_BYTES or len(self.blob) != DIGEST_BYTES:
            raise ValueError("a wheel's digests are not 32 bytes long")
        if not 0 < self.size_bytes <= WHEELS_BYTES_MAX:
            raise ValueError("a wheel's size cannot be")
        if len(self.file_name) > FILE_NAME_LENGTH_MAX or _WHEEL.fullmatch(self.file_name) is None:
            raise ValueError("a wheel's file name is not of the form name-version-tags.whl")

    @property
    def name(self) -> str:
        """The distribution, normalised."""
        return normalised(self.file_name.partition("-")[0])

    @property
    def tags(self) -> frozenset[str]:
        """The kinds of machines it is for, each as ``cp312-cp312-manylinux_2_28_x86_64``."""
        return tags_of(self.file_name)


class Environment(msgspec.Struct, frozen=True, array_like=True):
    """What a job's ``environment`` names: a blob with this in it. Everything in it is checked whenever one is made or decoded."""

    requirements: str
    """A line for each distribution and version: ``name==version ; marker --hash=sha256:...``, sorted, each ended by a line feed."""
    requires_python: str = ""
    """What the script asks of the interpreter, as ``>=3.11``; empty for nothing."""
    wheels: tuple[Wheel, ...] = ()

    def __post_init__(self) -> None:
        pins = self.pins()
        check_requires_python(self.requires_python)
        if len(self.wheels) > WHEELS_MAX or sum(wheel.size_bytes for wheel in self.wheels) > WHEELS_BYTES_MAX:
            raise ValueError("an environment has too many wheels, or too large ones")
        if len({wheel.file_name.lower() for wheel in self.wheels}) != len(self.wheels):
            raise ValueError("two wheels have one name")
        known = {(pin.name, digest) for pin in pins for digest in pin.digests}
        for wheel in self.wheels:
            if (wheel.name, wheel.sha256.hex()) not in known:
                raise ValueError("a wheel is not in the lock")

    def pins(self) -> tuple[Pin, ...]:
        """The lines, read. Raises ValueError for any that is not of the one form."""
        return _read_lines(self.requirements)

    @property
    def names(self) -> frozenset[str]:
        """All distributions in the lock, on whatever machine they are wanted."""
        return frozenset(pin.name for pin in self.pins())


def tags_of(file_name: str) -> frozenset[str]:
    """The kinds of machines that a wheel with this name is for. Raises ValueError when it is not a wheel's name."""
    match = _WHEEL.fullmatch(file_name)
    if match is None:
        raise ValueError("not the name of a wheel")
    pythons, abis, platforms = (part.split(".") for part in match["tags"].split("-"))
    if len(pythons) * len(abis) * len(platforms) > 500:
        raise ValueError("a wheel's name claims too many kinds of machines")
    return frozenset(f"{python}-{abi}-{system}".lower() for python in pythons for abi in abis for system in platforms)


def check_requires_python(text: str) -> SpecifierSet:
    """What a script asks of the interpreter. Raises ValueError for anything else."""
    # What parses versions and markers is loaded for jobs that have some: a node without should start quickly.
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    if len(text) > 200:
        raise ValueError("requires-python is too long")
    try:
        return SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(f"requires-python {text!r} is no version range") from error


@lru_cache(maxsize=1024)
def read_marker(text: str) -> Marker:
    """A condition on machines in the form that the lock may hold. Raises ValueError."""
    from packaging.markers import InvalidMarker, Marker

    if len(text) > MARKER_LENGTH_MAX or text.count("(") > 50 or _MARKER.fullmatch(text) is None or "extra" in text:
        raise ValueError("a requirement's marker has an unknown form")
    try:
        return Marker(text)
    except (InvalidMarker, RecursionError) as error:
        raise ValueError("a requirement's marker does not parse") from error


@lru_cache(maxsize=8)
def _read_lines(requirements: str) -> tuple[Pin, ...]:
    if not requirements or len(requirements) > REQUIREMENTS_BYTES_MAX or not requirements.endswith("\n"):
        raise ValueError("an environment's requirements are empty, too long, or end amid a line")
    lines = requirements[:-1].split("\n")
    if len(lines) > LINES_MAX:
        raise ValueError("an environment has too many requirements")
    if sum(len(line.partition(_HASH)[0]) for line in lines) > MARKERS_LENGTH_MAX:
        raise ValueError("an environment's requirements have too long markers")
    return tuple(_read_line(line) for line in lines)


def _read_line(line: str) -> Pin:
    head, *digests = line.split(_HASH)
    pinned, _, marker = head.partition(" ; ")
    name, _, version = pinned.partition("==")
    if _NAME.fullmatch(name) is None or normalised(name) != name or _VERSION.fullmatch(version) is None:
        raise ValueError("a requirement is not of the form name==version")
    if not digests or any(_DIGEST.fullmatch(digest) is None for digest in digests):
        raise ValueError("a requirement has no digests, or malformed ones")
    if marker:
        read_marker(marker)
    elif head != pinned:
        raise ValueError("a requirement has an empty marker")
    return Pin(name, version, marker, frozenset(digests))
