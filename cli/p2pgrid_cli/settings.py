"""The owner's settings of a home: flags over the environment over ``config.toml`` over what was said before over defaults
(docs/reference/settings.md).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from p2pgrid.errors import ConfigError, UsageError
from p2pgrid_cli.terms import TERMS, Term, parse_listen, suggestion

if TYPE_CHECKING:
    from p2pgrid.core.admission import Policy
    from p2pgrid.node import NodeConfig
    from p2pgrid.store.home import Home

FILE = "settings.json"
CONFIG_FILE = "config.toml"
VARIABLE = "P2PGRID_"
STORAGE_BYTES = 10 << 30
STORAGE_SHARE = 10
"""By default at most a tenth of the free disk is lent."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """None: the default. Sizes in bytes."""

    name: str | None = None
    cpus: int | None = None
    memory_bytes: int | None = None
    storage_bytes: int | None = None
    listen: str | None = None
    native: bool | None = None
    runtimes: tuple[str, ...] | None = None
    accept_from: tuple[str, ...] | None = None
    packages: tuple[str, ...] | None = None
    """``off`` or ``any`` alone, or names."""
    only_idle_s: float | None = None
    on_battery: bool | None = None
    hours: tuple[tuple[int, int], ...] | None = None
    busy_share: float | None = None
    nice: int | None = None
    upload_bytes_per_s: int | None = None
    download_bytes_per_s: int | None = None

    def over(self, older: Settings) -> Settings:
        """These settings, and where they say nothing the older ones."""
        said = {name: getattr(self, name) for name in self.__struct_fields__ if getattr(self, name) is not None}
        return msgspec.structs.replace(older, **said)


def load(home: Home) -> Settings:
    """What holds for a home when no flag says otherwise. Raises ConfigError."""
    return from_environment(os.environ).over(from_file(home.folder / CONFIG_FILE)).over(saved(home))


def saved(home: Home) -> Settings:
    """What the flags said when the home was last started. Raises ConfigError when the file is damaged."""
    raw = home.read_private(FILE)
    if raw is None:
        return Settings()
    try:
        return msgspec.json.decode(raw, type=Settings)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"'{home.folder / FILE}' cannot be read: {error}", hint="repair or remove it") from error


def save(home: Home, settings: Settings) -> None:
    """Keep the settings for the next start."""
    home.write_private(FILE, msgspec.json.encode(settings))


def from_flags(**flags: Any) -> Settings:
    """What options said, by the names of their terms; None: not said. Raises UsageError."""
    values: dict[str, Any] = {}
    for term in TERMS:
        value = flags.pop(term.name, None)
        if value is not None:
            try:
                values[term.field] = term.read(value)
            except UsageError as error:
                raise UsageError(f"{term.option}: {error.message}", hint=error.hint) from error
    assert not flags
    return Settings(**values)


def variable_of(term: Term) -> str:
    """The environment variable of a setting."""
    return VARIABLE + term.name.upper()


def from_environment(environment: Mapping[str, str]) -> Settings:
    """What variables like ``P2PGRID_ONLY_IDLE`` say. Raises ConfigError."""
    given = {term: environment.get(variable_of(term), "") for term in TERMS}
    return _read({term: value for term, value in given.items() if value.strip()}, variable_of)


def from_file(path: Path) -> Settings:
    """What a file of settings says; nothing, if there is none. Raises ConfigError, also for a key that is not known."""
    import tomllib

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}", hint="repair or remove it") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"'{path}' is not valid TOML: {error}", hint="repair or remove it") from error
    known = {term.name: term for term in TERMS}
    for key in table:
        if key not in known:
            # An option's name is what people try first.
            meant = key.removeprefix("--").replace("-", "_")
            raise ConfigError(f"'{path}' has an unknown key '{key}'", hint=suggestion(meant, known))
    return _read({known[key]: value for key, value in table.items()}, lambda term: f"'{path}': {term.name}")


def _read(given: Mapping[Term, Any], where: Callable[[Term], str]) -> Settings:
    values: dict[str, Any] = {}
    for term, value in given.items():
        try:
            values[term.field] = term.read(value)
        except UsageError as error:
            raise ConfigError(f"{where(term)}: {error.message}", hint=error.hint) from error
    return Settings(**values)


def default_name() -> str:
    """What a node is called when nobody says otherwise."""
    import platform

    return platform.node().split(".")[0][:40] or "node"


def config_of(settings: Settings, folder: Path, *, volunteers: bool = False, temporary: bool = False) -> NodeConfig:
    """The configuration that a node runs with.

    ``volunteers``: it runs for others. A node that its owner starts for a job of their own works at once, though they are at
    the machine, on battery, or out of hours. ``temporary``: it and all of its grid are gone after one command of the owner's.
    """
    from p2pgrid.node import NodeConfig

    host, port = parse_listen(settings.listen)
    policy = policy_of(settings, folder)
    if not volunteers:
        policy = msgspec.structs.replace(policy, idle_s=0.0, busy_share=0.0, on_battery=True, hours=())
    name = settings.name or default_name()
    return NodeConfig(name=name, host=host, port=port, policy=policy, names_runner=True, self_test=True, temporary=temporary)


def policy_of(settings: Settings, folder: Path) -> Policy:
    """The owner's terms, with what the machine has where nothing was said."""
    from p2pgrid.core.admission import Policy
    from p2pgrid.model.ids import from_text

    memory, storage = settings.memory_bytes, settings.storage_bytes
    said: dict[str, Any] = {
        "cores": settings.cpus if settings.cpus is not None else os.cpu_count() or 1,
        "memory_bytes": memory if memory is not None else _machine_memory_bytes() // 2,
        "storage_bytes": storage if storage is not None else min(STORAGE_BYTES, shutil.disk_usage(folder).free // STORAGE_SHARE),
        "native": settings.native,
        "runtimes": settings.runtimes,
        "submitters": tuple(from_text(text) for text in settings.accept_from) if settings.accept_from is not None else None,
        "upload_bytes_per_s": settings.upload_bytes_per_s,
        "download_bytes_per_s": settings.download_bytes_per_s,
        "idle_s": settings.only_idle_s,
        "busy_share": settings.busy_share,
        "on_battery": settings.on_battery,
        "hours": settings.hours,
        "nice": settings.nice,
    }
    packages = settings.packages
    if packages is not None:
        whole = packages in (("off",), ("any",))
        said |= {"environments": packages[0] if whole else "listed", "packages": () if whole else packages}
    return Policy(**{name: value for name, value in said.items() if value is not None})


def _machine_memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 2 << 30
