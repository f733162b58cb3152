"""A handler's coroutine whose task never begins is closed: Python would complain of it on the owner's terminal."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine
from typing import Any

import msgspec

from p2pgrid.errors import TryAgainError
from p2pgrid.model.limits import Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.net.answering import Answerer
from p2pgrid.net.messages import Member, Notice, Request
from p2pgrid.net.methods import Methods
from p2pgrid.wire.codec import encode


class Body(msgspec.Struct, frozen=True, array_like=True):
    pass


class OneSession:
    """Of a session what an answerer needs."""

    member = Member()
    used_s = heard_s = 0.0
    calls_in = 0

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.full = False

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.ensure_future(work))
        return self.tasks[-1]

    def spawn_bounded(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self.full:
            work.close()
            raise TryAgainError("full", reason=Reason.BUSY)
        return self.spawn(work)

    def post(self, message: Any) -> bytes:
        return b""


def answerer() -> tuple[OneSession, Answerer, list[Coroutine[Any, Any, Body]]]:
    session, methods = OneSession(), Methods()
    answers: list[Coroutine[Any, Any, Body]] = []

    async def answer() -> Body:
        return Body()

    def handle(session: Any, request: Body) -> Coroutine[Any, Any, Body]:
        answers.append(answer())
        return answers[-1]

    methods.on("call", Body, handle)
    methods.on_notify("notice", Body, handle)  # type: ignore[arg-type]
    return session, Answerer(session, methods, Limits()), answers  # type: ignore[arg-type]


RAW = msgspec.Raw(encode(Body()))


async def test_a_session_that_ends_before_an_answer_begins() -> None:
    session, answering, answers = answerer()
    answering.on_request(Request(1, "call", RAW))
    answering.on_notice(Notice("notice", RAW))
    for task in session.tasks:
        task.cancel()
    await asyncio.wait(session.tasks)
    assert [inspect.getcoroutinestate(answer) for answer in answers] == [inspect.CORO_CLOSED] * 2


async def test_a_notice_for_which_there_is_no_room() -> None:
    session, answering, answers = answerer()
    session.full = True
    answering.on_notice(Notice("notice", RAW))
    assert [inspect.getcoroutinestate(answer) for answer in answers] == [inspect.CORO_CLOSED]


async def test_answers_that_begin_are_awaited_to_their_end() -> None:
    session, answering, answers = answerer()
    answering.on_request(Request(1, "call", RAW))
    answering.on_notice(Notice("notice", RAW))
    await asyncio.gather(*session.tasks)
    assert len(answers) == 2
    assert answering.active == 0
