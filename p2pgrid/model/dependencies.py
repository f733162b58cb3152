"""What a job script may say about packages: names and versions, and nothing that points at a place.

A script's dependencies are resolved at its submitter's and installed on machines of other people. An address, a path or a
table that redirects the resolver would mean one thing here and another there, or would have a worker ask a host of
somebody's choice. It is refused with a sentence, never ignored: what is silently left out is missed at night.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from packaging.requirements import InvalidRequirement, Requirement

from p2pgrid.errors import BadDataError
from p2pgrid.model.environment import check_requires_python

DEPENDENCIES_MAX = 200
DEPENDENCY_LENGTH_MAX = 500
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]*://|^[a-z]+\+|^file:", re.IGNORECASE)
_PATH = re.compile(r"^[./~\\]|^[a-z]:[\\/]|\.(?:whl|zip|tar|tgz|tar\.gz)$|^[\w.-]+[/\\]", re.IGNORECASE)
NAMES_HINT = 'give names and versions only, as "numpy>=2"'


def read_dependencies(lines: Sequence[str], file_name: str) -> tuple[str, ...]:
    """The dependencies of a script in a normal form, safe to be written into a file of requirements.

    Raises BadDataError, which names the line and says what is wrong, for all but names, extras, version ranges and markers.
    """
    if len(lines) > DEPENDENCIES_MAX:
        raise BadDataError(f"{file_name} has more than {DEPENDENCIES_MAX} dependencies")
    return tuple(_read(line, file_name) for line in lines)


def check_python(text: str, file_name: str) -> None:
    """Raises BadDataError when ``requires-python`` is no version range."""
    try:
        check_requires_python(text)
    except ValueError as error:
        raise BadDataError(f"{file_name}: {error}", hint='write it as requires-python = ">=3.11"') from error


def _read(line: str, file_name: str) -> str:
    text = line.strip()
    shown = f"the dependency {line[:80]!r} of {file_name}"
    if len(line) > DEPENDENCY_LENGTH_MAX or _CONTROL.search(text):
        raise BadDataError(f"{shown} is refused: it is too long or has control characters", hint=NAMES_HINT)
    if text.startswith("-"):
        raise BadDataError(f"{shown} is refused: it is an option of an installer", hint=NAMES_HINT)
    if _ADDRESS.search(text):
        raise BadDataError(f"{shown} is refused: it is an address", hint=NAMES_HINT)
    requirement = _parse(text)
    if requirement is not None and requirement.url is not None:
        raise BadDataError(f"{shown} is refused: it names a place to fetch it from", hint=NAMES_HINT)
    if _PATH.search(text):
        raise BadDataError(f"{shown} is refused: it is a path", hint=NAMES_HINT)
    if requirement is None:
        raise BadDataError(f"{shown} is not understood", hint=NAMES_HINT)
    if any(specifier.operator == "===" for specifier in requirement.specifier):
        raise BadDataError(f"{shown} is refused: '===' compares text, not versions", hint="use '=='")
    return str(requirement)


def _parse(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except (InvalidRequirement, RecursionError):
        return None
