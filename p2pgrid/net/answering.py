"""The answering half of a session: requests, notices and streams that the peer opened.

1. A handler that needs not wait is answered without a task. One that waits counts against the limit of
   requests per peer; over it the answer is ``busy``.
2. Errors of our tree cross as themselves; anything else is a bug: logged here once, ``bug`` there.
3. A peer that starts a message and does not end it in time loses the stream.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING

import msgspec

from p2pgrid.errors import BadDataError, MalformedError, P2PGridError, TryAgainError
from p2pgrid.model.limits import Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.net import bulk
from p2pgrid.net.api import Stream
from p2pgrid.net.messages import Failure, Notice, Reply, Request, StreamHeader, decode_message, failure_of, raw
from p2pgrid.net.methods import Entry, Methods, unsupported
from p2pgrid.wire.codec import decode

if TYPE_CHECKING:
    from p2pgrid.net.rpc import Session

_log = logging.getLogger("p2pgrid.net")

_BULK_READERS = 4
"""Large messages of one peer that are held in memory at one time; the others wait in their windows."""
_BULK_S = 60.0


class Answerer:
    """Answers one peer with the node's methods."""

    def __init__(self, session: Session, methods: Methods, limits: Limits) -> None:
        self.active = 0
        """Requests that a task is answering."""
        self._session = session
        self._methods = methods
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._bulk_readers = asyncio.Semaphore(_BULK_READERS)

    def on_request(self, message: Request) -> None:
        call_id = message.id
        try:
            entry, request = self._look_up(self._methods.calls, message.method, message.body)
            if self.active >= self._limits.requests_per_peer:
                raise TryAgainError("too many requests are being answered", reason=Reason.BUSY)
            answer = entry.handler(self._session, request)
        except P2PGridError as error:
            self._session.post(failure_of(call_id, error))
        except Exception:  # noqa: BLE001 - logged, and the peer is told
            self._session.post(self._bug(call_id, message.method))
        else:
            if isinstance(answer, msgspec.Struct):
                self._reply(call_id, answer)
            else:
                self.active += 1
                _see_to(answer, self._session.spawn(self._answer(call_id, message.method, answer)))

    def _look_up(self, table: dict[str, Entry], name: str, body: msgspec.Raw) -> tuple[Entry, msgspec.Struct]:
        session = self._session
        session.used_s = session.heard_s
        session.calls_in += 1
        entry = table.get(name)
        if entry is None:
            raise unsupported(name)
        entry.check(session.member)
        return entry, decode(body, entry.request)

    async def _answer(self, call_id: int, name: str, answer: Awaitable[msgspec.Struct]) -> None:
        try:
            value = await answer
        except P2PGridError as error:
            self._session.post(failure_of(call_id, error))
        except Exception:  # noqa: BLE001 - logged, and the peer is told
            self._session.post(self._bug(call_id, name))
        else:
            self._reply(call_id, value)
        finally:
            self.active -= 1

    def _reply(self, call_id: int, value: msgspec.Struct) -> None:
        try:
            large = self._session.post(Reply(call_id, raw(value)))
        except BadDataError as error:
            self._session.post(failure_of(call_id, error))
        except (TypeError, ValueError, msgspec.MsgspecError):
            self._session.post(self._bug(call_id, "reply"))
        else:
            if large:
                self.active += 1
                self._session.spawn(self._reply_large(large))

    async def _reply_large(self, large: bytes) -> None:
        try:
            await self._session.send_quietly(large)
        finally:
            self.active -= 1

    def _bug(self, call_id: int, name: str) -> Failure:
        _log.exception("the handler of '%s' failed", name)
        return failure_of(call_id, TryAgainError(f"the peer failed while answering '{name}'", reason=Reason.BUG, hint=Reason.BUG.next_step))

    def on_notice(self, message: Notice) -> None:
        try:
            entry, request = self._look_up(self._methods.notices, message.method, message.body)
            answer = entry.handler(self._session, request)
            if answer is not None:
                self._spawn_notice(message.method, answer)
        except P2PGridError as error:
            _log.debug("a notice '%s' was dropped: %s", message.method, error)
        except Exception:  # noqa: BLE001 - logged, and the peer is told
            _log.exception("the handler of '%s' failed", message.method)

    def _spawn_notice(self, name: str, answer: Awaitable[None]) -> None:
        try:
            task = self._session.spawn_bounded(self._take_notice(name, answer))
        except P2PGridError:
            _see_to(answer)
            raise
        _see_to(answer, task)

    async def _take_notice(self, name: str, answer: Awaitable[None]) -> None:
        try:
            await answer
        except P2PGridError as error:
            _log.debug("a notice '%s' failed: %s", name, error)
        except Exception:  # noqa: BLE001 - logged, and the peer is told
            _log.exception("the handler of '%s' failed", name)

    # Streams

    async def serve_stream(self, stream: Stream) -> None:
        """Take one stream of the peer: a large message, or a method that wants the stream itself."""
        reason: str = Reason.CLOSED
        slow = self._loop.call_later(_BULK_S, stream.reset, Reason.TIMEOUT)
        try:
            kind = (await bulk.read_exactly(stream, 1))[0]
            if kind == bulk.MESSAGE:
                async with self._bulk_readers:
                    await self._take_large(stream)
                stream.finish()
                return
            if kind != bulk.METHOD:
                raise MalformedError("a stream of unknown kind", reason=Reason.MALFORMED)
            header = decode(await bulk.read_framed(stream, self._limits.control_frame_bytes), StreamHeader)
            slow.cancel()
            entry, request = self._look_up(self._methods.streams, header.method, header.body)
            await entry.handler(self._session, request, stream)
            stream.finish()
            return
        except P2PGridError as error:
            reason = error.reason or Reason.CLOSED
        except Exception:  # noqa: BLE001 - logged, and the peer is told
            _log.exception("the handler of a stream failed")
            reason = Reason.BUG
        except BaseException:
            stream.reset(Reason.SHUTDOWN)
            raise
        finally:
            slow.cancel()
        stream.reset(reason)

    async def _take_large(self, stream: Stream) -> None:
        message = decode_message(await bulk.read_framed(stream, self._limits.bulk_message_bytes))
        if await stream.read(1):
            raise MalformedError("bytes after a message", reason=Reason.MALFORMED)
        if not isinstance(message, Request | Reply | Notice):
            raise MalformedError("a large message of the wrong kind", reason=Reason.MALFORMED)
        self._session.heard_s = self._loop.time()
        self._session.dispatch(message)


def _see_to(answer: Awaitable[object], task: asyncio.Task[None] | None = None) -> None:
    """A handler's answer whose task never began, or will never be, is never awaited: say that this is meant."""
    if task is not None:
        task.add_done_callback(lambda done: _see_to(answer))
    elif inspect.iscoroutine(answer):
        answer.close()
