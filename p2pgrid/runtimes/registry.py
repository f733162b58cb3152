"""Asking a package index: which versions and files satisfy some requirements, and one of these files.

uv resolves, for all systems at once and for wheels only; it writes down where each file lies. The address is used here, now,
and goes nowhere else. A file counts when its SHA-256 is the one that was locked, whoever sent it.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import tempfile
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from p2pgrid.errors import BadDataError, IntegrityError, UnreachableError
from p2pgrid.model.environment import Pin, normalised, tags_of
from p2pgrid.model.limits import MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.runtimes.uv import run_uv

RESOLVE_S = 180.0
SILENCE_S = 30.0
"""How long a server may send nothing."""
LOCK_BYTES_MAX = 64 * MIB
TOLD_LENGTH_MAX = 600
_OFFLINE = re.compile(r"error sending request|Failed to fetch|dns error|network was disabled|Request failed|timed? ?out", re.IGNORECASE)
_ONLY_SOURCE = re.compile(r"(?:no usable wheels|no wheels|Wheels are required for `(?P<name>[^`]+)`)", re.IGNORECASE)
_SCHEMES = ("https", "http", "file")


class LockedFile(NamedTuple):
    """A wheel that some index has."""

    file_name: str
    url: str
    sha256: str
    size_bytes: int
    """0 when the index does not say."""


class Locked(NamedTuple):
    """What requirements were resolved to."""

    pins: list[Pin]
    files: list[LockedFile]


async def resolve(
    requirements: Sequence[str],
    python: str,
    *,
    executable: str,
    environment: Mapping[str, str],
    alone: bool = False,
    timeout_s: float = RESOLVE_S,
) -> Locked:
    """Versions that satisfy requirements on every system from Python ``python`` on, with all their wheels.

    ``requirements`` were read by :mod:`p2pgrid.model.dependencies` or are lines of a lock; ``environment`` says which index to ask;
    ``alone``: what these need in turn is left out.
    Raises BadDataError when there is no solution or no wheel, UnreachableError when the index cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="p2pgrid-lock-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        wanted, lock = folder / "requirements.in", folder / "pylock.toml"
        wanted.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
        ran = await run_uv(
            [
                *("pip", "compile", "--no-config", "--quiet", "--universal", "--only-binary", ":all:", "--no-header"),
                *("--format", "pylock.toml", "--python-version", python, "--python", executable, "--output-file", str(lock)),
                *(("--no-deps",) if alone else ()),
                wanted.name,
            ],
            folder=folder,
            environment=_index_environment(environment),
            timeout_s=timeout_s,
        )
        if ran.code:
            raise _refusal(ran.output)
        if lock.stat().st_size > LOCK_BYTES_MAX:
            raise BadDataError("the lock of the dependencies is too large")
        return read_lock(lock.read_text(encoding="utf-8"))


def _index_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What uv is told: as it is, but pip's settings count where there are none of uv's own."""
    told = dict(environment)
    if not any(told.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")) and told.get("PIP_INDEX_URL"):
        told["UV_DEFAULT_INDEX"] = told["PIP_INDEX_URL"]
    return told


def _refusal(output: str) -> Exception:
    """What uv said, as an error of ours."""
    told = " ".join(re.sub(r"(?m)^\s*(?:error|cause|hint):\s*", "", _without_addresses(output)).split())[:TOLD_LENGTH_MAX]
    if _OFFLINE.search(output):
        hint = "is there a network? a proxy or an index of your own is taken from UV_DEFAULT_INDEX or PIP_INDEX_URL"
        return UnreachableError(f"the package index cannot be reached: {told}", reason=Reason.TIMEOUT, hint=hint)
    source = _ONLY_SOURCE.search(output)
    if source:
        hint = "packages are never built from source on other people's machines: use versions that have wheels"
        named = f"{source['name']} exists only as source" if source["name"] else "a package exists only as source"
        return BadDataError(f"{named}: {told}", hint=hint)
    return BadDataError(f"the dependencies cannot be satisfied: {told}", hint="look at the names and version ranges in the header")


def _without_addresses(text: str) -> str:
    """Take names and passwords out of addresses: messages are copied into mails."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def read_lock(text: str) -> Locked:
    """Read uv's lock file. Raises BadDataError when something in it is no wheel of an index."""
    try:
        packages = tomllib.loads(text).get("packages", [])
        found = [_package(package) for package in packages]
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadDataError(f"the lock that uv made is not understood: {error}") from error
    pins = sorted((pin for pin, _ in found), key=lambda pin: (pin.name, pin.version, pin.marker))
    return Locked(pins, [file for _, files in found for file in files])


def _package(package: dict[str, Any]) -> tuple[Pin, list[LockedFile]]:
    files: list[LockedFile] = []
    for wheel in package.get("wheels", ()):
        url = str(wheel["url"])
        parts = urllib.parse.urlsplit(url)
        file_name = urllib.parse.unquote(parts.path.rpartition("/")[2])
        with suppress(ValueError):  # A file whose name has an unknown form fits no machine.
            tags_of(file_name)
            if parts.scheme in _SCHEMES and "sha256" in wheel["hashes"]:
                files.append(LockedFile(file_name, url, wheel["hashes"]["sha256"], int(wheel.get("size", 0))))
    name = normalised(package["name"])
    if not files:
        hint = "packages are never built from source on other people's machines: use versions that have wheels"
        raise BadDataError(f"{name} exists only as source", hint=hint)
    return Pin(name, package["version"], package.get("marker", ""), frozenset(file.sha256 for file in files)), files


# -- one file --------------------------------------------------------------------------------


def download(file: LockedFile, place: Path, size_bytes_max: int, environment: Mapping[str, str]) -> int:
    """Bring a wheel to ``place``, whole or not at all; returns its size. Blocks.

    Raises UnreachableError, IntegrityError when it is not the file that was locked, BadDataError when it is too large.
    """
    temporary = place.with_name(f"{place.name}.{os.getpid()}.part")
    request = urllib.request.Request(file.url)  # noqa: S310 - the schemes were checked
    for header, value in _credentials(file.url, environment).items():
        request.add_unredirected_header(header, value)
    try:
        with urllib.request.urlopen(request, timeout=SILENCE_S) as answer, temporary.open("wb") as target:  # noqa: S310 - as above
            size_bytes = _receive(answer, target, file, size_bytes_max)
        temporary.replace(place)
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = _without_addresses(str(getattr(error, "reason", "") or error))
        raise UnreachableError(f"{file.file_name} cannot be downloaded: {why}", reason=Reason.TIMEOUT, hint="try again") from error
    finally:
        temporary.unlink(missing_ok=True)
    return size_bytes


def _receive(answer: Any, target: Any, file: LockedFile, size_bytes_max: int) -> int:
    digest, size_bytes = hashlib.sha256(), 0
    while piece := answer.read(MIB):
        size_bytes += len(piece)
        if size_bytes > size_bytes_max:
            raise BadDataError(f"{file.file_name} is larger than {size_bytes_max} bytes", reason=Reason.TOO_LARGE)
        digest.update(piece)
        target.write(piece)
    if digest.hexdigest() != file.sha256:
        raise IntegrityError(f"{file.file_name} is not the file that was locked", reason=Reason.CORRUPT)
    return size_bytes


def _credentials(url: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Name and password of an index, for its files on the same host: uv leaves them out of what it writes down."""
    wanted = urllib.parse.urlsplit(url)
    if wanted.scheme == "file":
        return {}
    told = _index_environment(environment)
    indexes = " ".join(told.get(name, "") for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"))
    for index in indexes.split():
        parts = urllib.parse.urlsplit(index.partition("=")[2] if "=" in index.partition("://")[0] else index)
        if parts.username and (parts.scheme, parts.hostname, parts.port) == (wanted.scheme, wanted.hostname, wanted.port):
            pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    return {}
