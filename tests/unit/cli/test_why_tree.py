"""How ``why`` shows a tree of reasons at several widths, and how it finds out what an id means."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from p2pgrid.errors import RefusedError, TryAgainError, UnreachableError, UsageError
from p2pgrid.model.ids import short, to_text
from p2pgrid.model.node import NodeInfo
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.faces import Because, Explanation
from p2pgrid.wire.owner import BlobLine, HolderLine, JobLine, PeerLine, PeersReply, WhyBlob
from p2pgrid_cli.why import explained
from p2pgrid_cli.whytree import ASCII, BOX, tree_lines

TREE = (
    Because(
        "no-memory",
        "2 nodes: the job wants more memory a unit than the node lends a core",
        "ask for less with --memory, or lend more there",
        (
            Because("", "lab1 (rwnvlriu, this node): lends 512 MiB a core, and a unit wants 4 GiB"),
            Because("", "lab2 (idcppfjp): lends 512 MiB a core, and a unit wants 4 GiB"),
        ),
    ),
    Because("few-copies", "1 of 3 keepers that are wanted besides its lead are there"),
)
AT_60 = """\
job dxsaog3g: waiting
0 of 5 units done, and no node works on it
├─ 2 nodes: the job wants more memory a unit than the node
│  │  lends a core [no-memory]
│  │  -> ask for less with --memory, or lend more there
│  ├─ lab1 (rwnvlriu, this node): lends 512 MiB a core, and
│  │  a unit wants 4 GiB
│  └─ lab2 (idcppfjp): lends 512 MiB a core, and a unit
│     wants 4 GiB
└─ 1 of 3 keepers that are wanted besides its lead are there
   [few-copies]
"""
AT_80 = """\
job dxsaog3g: waiting
0 of 5 units done, and no node works on it
├─ 2 nodes: the job wants more memory a unit than the node lends a core
│  │  [no-memory]
│  │  -> ask for less with --memory, or lend more there
│  ├─ lab1 (rwnvlriu, this node): lends 512 MiB a core, and a unit wants 4 GiB
│  └─ lab2 (idcppfjp): lends 512 MiB a core, and a unit wants 4 GiB
└─ 1 of 3 keepers that are wanted besides its lead are there [few-copies]
"""
AT_120 = """\
job dxsaog3g: waiting
0 of 5 units done, and no node works on it
├─ 2 nodes: the job wants more memory a unit than the node lends a core [no-memory]
│  │  -> ask for less with --memory, or lend more there
│  ├─ lab1 (rwnvlriu, this node): lends 512 MiB a core, and a unit wants 4 GiB
│  └─ lab2 (idcppfjp): lends 512 MiB a core, and a unit wants 4 GiB
└─ 1 of 3 keepers that are wanted besides its lead are there [few-copies]
"""


def drawn(columns: int, because: tuple[Because, ...] = TREE, lines: Any = BOX) -> str:
    told = tree_lines("job dxsaog3g", "waiting", "0 of 5 units done, and no node works on it", because, columns, lines)
    return "\n".join(told) + "\n"


@pytest.mark.parametrize(("columns", "picture"), [(60, AT_60), (80, AT_80), (120, AT_120)])
def test_the_tree_is_wrapped_at_word_borders(columns: int, picture: str) -> None:
    assert drawn(columns) == picture
    assert max(len(line) for line in picture.splitlines()) <= columns


def test_where_corners_cannot_be_written_ascii_stands_for_them() -> None:
    picture = drawn(80, lines=ASCII)
    assert picture.isascii()
    assert picture == AT_80.replace("├─", "|-").replace("└─", "`-").replace("│", "|")


def test_what_others_say_reaches_no_terminal_as_a_command_and_no_word_goes_over_the_edge() -> None:
    hostile = (Because("", "\x1b[2J" + "x" * 300, "", (Because("", "    indented code"),)),)
    picture = drawn(60, hostile)
    assert "\x1b" not in picture
    assert max(len(line) for line in picture.splitlines()) <= 60
    assert "└─     indented code" in picture


def test_a_tree_that_is_deeper_than_the_terminal_is_wide_ends() -> None:
    deep = Because("", "the end of it")
    for _ in range(40):
        deep = Because("", "and so", "", (deep,))
    assert "the end of it" in drawn(40, (deep,))


JOB, OTHER, PEER, BLOB = bytes(31) + b"\1", bytes(30) + b"\1\2", b"p" * 32, b"b" * 32


class Asked:
    """A node that knows two jobs, a peer and a blob."""

    told: ClassVar[list[tuple[str, bytes, int]]] = []

    def __init__(self) -> None:
        self.told.clear()

    async def jobs(self) -> list[JobLine]:
        return [JobLine(job, "job.py", "running", 1, 0, 0, 0, 0, 0, "led") for job in (JOB, OTHER)]

    async def peers(self, *, refresh: bool = True) -> PeersReply:
        assert not refresh, "nobody is looked for"
        return PeersReply((PeerLine(PEER, NodeInfo(name="lab"), None, 0.0, ""),), True)

    async def blobs(self) -> list[BlobLine]:
        return [LINE]

    async def why(self, blob: bytes) -> WhyBlob:
        held = blob == BLOB
        return WhyBlob(LINE, "held" if held else "", (HolderLine(PEER, True, 0.5),) if held else ())

    async def explain(self, kind: str, subject: bytes = b"", unit: int = 0) -> Explanation:
        self.told.append((kind, subject, unit))
        if kind in ("job", "unit") and subject not in (JOB, OTHER):
            raise RefusedError("nobody knows it", reason=Reason.UNKNOWN_JOB)
        if kind == "peer" and subject != PEER:
            raise RefusedError("nobody knows it", reason=Reason.UNKNOWN_JOB)
        return Explanation(kind, subject, "fine", "all is well", (), unit)


LINE = BlobLine(BLOB, "f", "file", 5, 1, 3, 0, False, 0, "held")
Channel: Any = Asked


@pytest.mark.parametrize(
    ("text", "kind", "subject"),
    [
        ("me", "me", "me"),
        (to_text(JOB), "job", to_text(JOB)),
        (to_text(JOB).upper(), "job", to_text(JOB)),
        (to_text(JOB) + "/12", "unit", to_text(JOB) + "/12"),
        (to_text(PEER)[:4], "peer", to_text(PEER)),
        (short(BLOB), "blob", to_text(BLOB)),
    ],
)
async def test_an_id_or_its_beginning_is_found_among_all_that_is_known(text: str, kind: str, subject: str) -> None:
    answer = await explained(Channel(), text)
    assert (answer.told.kind, answer.subject.kind, answer.subject.text) == (kind, kind, subject)
    assert answer.told.unit == (12 if kind == "unit" else 0)


async def test_a_beginning_that_several_have_is_an_error_that_lists_them() -> None:
    with pytest.raises(UsageError, match="the beginning of 2 ids") as raised:
        await explained(Channel(), "aaaa")
    assert to_text(JOB) in raised.value.hint
    assert "job.py" in raised.value.hint


async def test_names_that_others_chose_are_listed_in_one_printable_line() -> None:
    class Named(Asked):
        async def jobs(self) -> list[JobLine]:
            return [JobLine(job, "\x1b]52;c;eA==\x07\nmine\x9b", "running", 1, 0, 0, 0, 0, 0, "led") for job in (JOB, OTHER)]

    named: Any = Named()
    with pytest.raises(UsageError) as raised:
        await explained(named, "aaaa")
    assert raised.value.hint.isprintable()
    assert "(?]52;c;eA==??mine?)" in raised.value.hint


@pytest.mark.parametrize("text", ["abc", "", "/3"])
async def test_too_short_a_beginning_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="too short"):
        await explained(Channel(), text)


@pytest.mark.parametrize("text", [to_text(JOB) + "/", to_text(JOB) + "/x", to_text(JOB) + "/-1"])
async def test_a_unit_needs_a_number(text: str) -> None:
    with pytest.raises(UsageError, match="not the number of a unit"):
        await explained(Channel(), text)


@pytest.mark.parametrize("text", ["7777", to_text(b"x" * 32), to_text(b"x" * 32) + "/1", to_text(PEER) + "/1"])
async def test_what_nobody_knows_is_an_error_with_a_hint(text: str) -> None:
    with pytest.raises(UnreachableError, match="nobody who can be reached knows") as raised:
        await explained(Channel(), text)
    assert "p2pgrid jobs" in raised.value.hint


async def test_an_id_in_full_that_is_not_known_here_is_asked_for() -> None:
    asked: Any = Asked()
    with pytest.raises(UnreachableError):
        await explained(asked, to_text(b"x" * 32))
    assert [kind for kind, _, _ in asked.told] == ["job", "peer"]


async def test_other_errors_are_not_taken_for_an_unknown_id() -> None:
    class Busy(Asked):
        async def explain(self, kind: str, subject: bytes = b"", unit: int = 0) -> Explanation:
            raise TryAgainError("busy", reason=Reason.BUSY)

    busy: Any = Busy()
    with pytest.raises(TryAgainError):
        await explained(busy, to_text(JOB))
