"""What a node answers: the registry of methods, filled by services at start-up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from p2pgrid.errors import P2PGridError, RefusedError, UsageError
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.messages import Member

if TYPE_CHECKING:
    from p2pgrid.net.rpc import Session

R = TypeVar("R", bound=msgspec.Struct)

Handler = Callable[["Session", R], "msgspec.Struct | Awaitable[msgspec.Struct]"]
NoticeHandler = Callable[["Session", R], "Awaitable[None] | None"]
StreamHandler = Callable[["Session", R, Stream], Awaitable[None]]


class Entry(NamedTuple):
    """One method: what its body must be, who may call it, and who answers."""

    name: str
    request: type[msgspec.Struct]
    handler: Callable[..., Any]
    owner_only: bool
    role: str | None

    def check(self, member: Member) -> None:
        """Raise RefusedError unless ``member`` may call this."""
        if member.owner:
            return
        if self.owner_only:
            raise RefusedError(f"only the owner may call '{self.name}'", reason=Reason.OWNER_ONLY)
        if self.role is not None and self.role not in member.roles:
            raise RefusedError(f"'{self.name}' needs the role '{self.role}'", reason=Reason.NO_ROLE, hint=Reason.NO_ROLE.next_step)


def unsupported(name: str) -> P2PGridError:
    """The answer to a call nobody here knows."""
    return RefusedError(f"unknown call '{name}'", reason=Reason.UNSUPPORTED, hint=Reason.UNSUPPORTED.next_step)


class Methods:
    """Name to handler, one table for each kind of call. A handler that need not wait returns its answer at once."""

    def __init__(self) -> None:
        self.calls: dict[str, Entry] = {}
        self.notices: dict[str, Entry] = {}
        self.streams: dict[str, Entry] = {}

    def on(self, name: str, request: type[R], handler: Handler[R], *, owner_only: bool = False, role: str | None = None) -> None:
        """Answer calls of ``name`` with ``handler(session, request)``. Raises UsageError when the name is taken."""
        _add(self.calls, Entry(name, request, handler, owner_only, role))

    def on_notify(
        self, name: str, request: type[R], handler: NoticeHandler[R], *, owner_only: bool = False, role: str | None = None
    ) -> None:
        """Take notices of ``name``; what the handler raises is only logged."""
        _add(self.notices, Entry(name, request, handler, owner_only, role))

    def on_stream(
        self, name: str, request: type[R], handler: StreamHandler[R], *, owner_only: bool = False, role: str | None = None
    ) -> None:
        """Serve streams of ``name`` with ``await handler(session, request, stream)``; its end finishes the stream."""
        _add(self.streams, Entry(name, request, handler, owner_only, role))


def _add(table: dict[str, Entry], entry: Entry) -> None:
    if entry.name in table:
        raise UsageError(f"two handlers for the call '{entry.name}'")
    table[entry.name] = entry
