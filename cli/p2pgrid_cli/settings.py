"""The owner's settings of a home: flags over what was said before over defaults."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from p2pgrid.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from p2pgrid.node import NodeConfig
    from p2pgrid.store.home import Home

FILE = "settings.json"
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

    def over(self, older: Settings) -> Settings:
        """These settings, and where they say nothing the older ones."""
        said = {name: getattr(self, name) for name in self.__struct_fields__ if getattr(self, name) is not None}
        return msgspec.structs.replace(older, **said)


def load(home: Home) -> Settings:
    """What was said when the home was last started. Raises ConfigError when the file is damaged."""
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


def parse_listen(text: str | None) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``HOST`` or ``:PORT``. Raises UsageError."""
    import ipaddress

    if not text:
        return "0.0.0.0", 0  # noqa: S104 - a volunteer's node is meant to be reached
    host, _, port = text.rpartition(":") if text.count(":") == 1 or "]" in text else (text, "", "")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104
    try:
        ipaddress.ip_address(host)
        number = int(port or 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 16:
        raise UsageError(f"'{text}' is no address to listen on", hint="a numeric host and a port, for example 127.0.0.1:7400")
    return host, number


def default_name() -> str:
    """What a node is called when nobody says otherwise."""
    import platform

    return platform.node().split(".")[0][:40] or "node"


def config_of(settings: Settings, folder: Path) -> NodeConfig:
    """The configuration that a node runs with."""
    from p2pgrid.core.admission import Policy
    from p2pgrid.node import NodeConfig

    host, port = parse_listen(settings.listen)
    memory = settings.memory_bytes
    if memory is None:
        memory = _machine_memory_bytes() // 2
    storage = settings.storage_bytes
    if storage is None:
        storage = min(STORAGE_BYTES, shutil.disk_usage(folder).free // STORAGE_SHARE)
    cpus = settings.cpus if settings.cpus is not None else os.cpu_count() or 1
    native = settings.native if settings.native is not None else True
    policy = Policy(cores=cpus, memory_bytes=memory, storage_bytes=storage, native=native)
    return NodeConfig(name=settings.name or default_name(), host=host, port=port, policy=policy)


def _machine_memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 2 << 30
