"""Why no node runs in a home, told from what its last life left behind."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from p2pgrid.core.invites import Invite, invite_text, parse_invite
from p2pgrid.core.membership import invite
from p2pgrid.errors import BadDataError, IntegrityError, P2PGridError, RefusedError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.membership import Grid
from p2pgrid.model.reasons import Reason
from p2pgrid.services import membership as memberships
from p2pgrid.services.explaining.offline import OUTPUT, explain_without_node
from p2pgrid.services.membership import Judge
from p2pgrid.store.disk import Disk
from p2pgrid.store.home import Home, RunningNode
from p2pgrid.store.lastend import LAST_END_FILE, LastEnd, last_sign_ms, note_end, read_end
from p2pgrid.wire.faces import Because, Explanation
from p2pgrid.wire.keys import SigningKey

NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000
ROOT, KEY = SigningKey(b"r" * 32), SigningKey(b"i" * 32)
GRID = Grid("lab", ROOT.public)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home", os.urandom)
    home.prepare()
    return home


def invited(until_ms: int = NOW_MS + 365 * DAY_MS, key: SigningKey = KEY) -> str:
    link = invite(ROOT, key.public, ("work", "store"), GRID, until_ms)
    return invite_text(Invite(GRID, (), key.seed(), (link,)))


def joined(home: Home, until_ms: int = NOW_MS + 365 * DAY_MS, now_ms: int = NOW_MS) -> None:
    memberships.accept_invite(home, parse_invite(invited(until_ms), now_ms), now_ms)


def line_of(told: Explanation, reason: str) -> Because:
    return next(line for line in told.because if line.reason == reason)


def test_no_home_and_a_home_that_never_joined_say_how_to_join(home: Home, tmp_path: Path) -> None:
    told = explain_without_node(Home(tmp_path / "nothing", os.urandom), NOW_MS)
    assert (told.kind, told.state, told.because[0].reason) == ("me", "never joined", Reason.NEVER_JOINED)
    assert str(tmp_path / "nothing") in told.text
    told = explain_without_node(home, NOW_MS)
    assert (told.state, told.because[0].reason) == ("never joined", Reason.NEVER_JOINED)
    assert "p2pgrid join INVITE" in told.because[0].next_step


def test_a_start_that_failed_is_told_with_its_cause_and_its_hint(home: Home) -> None:
    note_end(home, LastEnd(NOW_MS - 60_000, True, Reason.CLOCK_OFF, "the clock of aa is 60 minutes ahead", "set the clock"))
    told = explain_without_node(home, NOW_MS)
    first = told.because[0]
    assert (first.reason, first.next_step) == (Reason.CLOCK_OFF, "set the clock")
    assert first.text == "the last start failed, 60 s ago: the clock of aa is 60 minutes ahead"
    assert told.text == f"no node runs in {home.folder}"


def test_a_node_that_was_stopped_is_told_with_how_to_start_it(home: Home) -> None:
    joined(home)
    note_end(home, LastEnd(NOW_MS - 3_600_000, False, "", "it was stopped", started=True))
    told = explain_without_node(home, NOW_MS)
    assert (told.state, told.because[0].reason) == ("not running", Reason.NOT_RUNNING)
    assert "it was stopped, 60 min ago" in told.because[0].text
    assert "p2pgrid join" in told.because[0].next_step
    assert "member of 'lab'" in " ".join(line.text for line in told.because)


def test_a_node_that_was_killed_is_told_with_its_last_sign_and_its_last_line(home: Home) -> None:
    joined(home)
    note_end(home, LastEnd(NOW_MS - DAY_MS, True, Reason.NO_CONTACT, "an older story"))
    (home.folder / "lock").write_bytes(msgspec.json.encode(RunningNode(2**22 + 5, "127.0.0.1", 4000)))
    (home.folder / OUTPUT).write_text("ready: node\nthe last words\n\n")
    told = explain_without_node(home, NOW_MS)
    first = told.because[0]
    assert first.reason == Reason.KILLED
    assert "ended without a word" in first.text
    assert "UTC" in first.text
    assert "the last words" in first.under[0].text
    assert last_sign_ms(home.folder) > 0


def test_a_membership_that_is_over_is_told_with_a_way_to_renew_it(home: Home) -> None:
    joined(home, NOW_MS - DAY_MS, NOW_MS - 2 * DAY_MS)
    told = explain_without_node(home, NOW_MS)
    assert "p2pgrid join INVITE" in line_of(told, Reason.EXPIRED).next_step
    assert "'lab' ended at" in line_of(told, Reason.EXPIRED).text
    known = memberships.load(home)
    assert known is not None
    with pytest.raises(IntegrityError, match=r"the membership of 'lab' ended at .* by the clock of this machine") as raised:
        Judge(GRID, lambda: NOW_MS).judge_own(NodeKey(home.node_key().public), known.chain)
    assert raised.value.reason == Reason.EXPIRED
    assert "p2pgrid join INVITE" in raised.value.hint


def test_an_invite_renews_a_membership_only_near_its_end_and_only_for_longer(home: Home) -> None:
    soon_ms = NOW_MS + DAY_MS
    joined(home, soon_ms)
    known = memberships.load(home)
    assert known is not None
    for until_ms, now_ms, expected in (
        (soon_ms + 1, NOW_MS, True),
        (soon_ms, NOW_MS, False),
        (soon_ms + 1, NOW_MS - 20 * DAY_MS, False),
        (soon_ms + 365 * DAY_MS, soon_ms + DAY_MS, True),
    ):
        offered = parse_invite(invited(until_ms, SigningKey(b"j" * 32)), now_ms)
        assert memberships.renews(home, known, offered, now_ms) is expected
    founder = msgspec.structs.replace(known, root_seed=b"r" * 32)
    assert not memberships.renews(home, founder, parse_invite(invited(), NOW_MS), NOW_MS)


def test_a_renewal_takes_away_no_role_while_the_membership_holds(home: Home) -> None:
    soon_ms = NOW_MS + DAY_MS
    joined(home, soon_ms)
    known = memberships.load(home)
    assert known is not None
    key = SigningKey(b"k" * 32)
    link = invite(ROOT, key.public, ("work",), GRID, NOW_MS + 365 * DAY_MS)
    less = parse_invite(invite_text(Invite(GRID, (), key.seed(), (link,))), NOW_MS)
    with pytest.raises(RefusedError, match="store") as raised:
        memberships.renew(home, known, less, NOW_MS)
    assert raised.value.reason == Reason.NO_ROLE
    assert memberships.load(home) == known
    memberships.renew(home, known, less, soon_ms + 1)
    renewed = memberships.load(home)
    assert renewed is not None
    assert memberships.member_of(home, renewed).roles == {"work"}


def test_a_full_disk_comes_before_not_running(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Disk, "free_bytes_at", lambda disk, folder: 4096)
    told = explain_without_node(home, NOW_MS)
    assert told.because[0].reason == Reason.DISK_FULL
    assert "4.00 KiB free" in told.because[0].text or "4 KiB free" in told.because[0].text
    assert [line.reason for line in told.because].count(Reason.DISK_FULL) == 1


def test_a_node_that_runs_and_does_not_answer_is_no_dead_node(home: Home) -> None:
    home.lock()
    try:
        home.announce("127.0.0.1", 4000)
        error = P2PGridError("did not answer in 5 s", reason=Reason.TIMEOUT)
        told = explain_without_node(home, NOW_MS, error=error)
    finally:
        home.close()
    assert (told.state, told.because[0].reason) == ("not answering", Reason.TIMEOUT)
    assert f"kill {os.getpid()}" in told.because[0].next_step


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"wall_ms": "x", "failed": 1}', b"\xff" * 100, b"[" * 100_000])
def test_a_damaged_note_counts_as_none(home: Home, content: bytes) -> None:
    (home.folder / LAST_END_FILE).write_bytes(content)
    assert read_end(home) is None
    assert explain_without_node(home, NOW_MS).because[0].reason == Reason.NEVER_JOINED


def test_the_note_is_private_bounded_and_read_back(home: Home) -> None:
    note_end(home, LastEnd(NOW_MS, True, Reason.BUG, "x" * 10_000, "y", started=True))
    assert stat.S_IMODE((home.folder / LAST_END_FILE).stat().st_mode) == 0o600
    end = read_end(home)
    assert end is not None
    assert (end.wall_ms, end.failed, end.reason, len(end.text), end.started) == (NOW_MS, True, "bug", 2000, True)


def test_a_disk_that_refuses_the_note_is_no_error(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Disk, "write_file", full)
    note_end(home, LastEnd(NOW_MS, True))
    assert read_end(home) is None


def test_a_damaged_membership_is_told(home: Home) -> None:
    home.write_private("membership", b"nonsense")
    told = explain_without_node(home, NOW_MS)
    assert "damaged" in line_of(told, Reason.BAD_HOME).text


def test_invites_that_cannot_be_used_say_why() -> None:
    text = invited()
    cases = {
        "hello": (Reason.BAD_INVITE, "this is not an invite"),
        text[:-9]: (Reason.BAD_INVITE, "damaged or cut off"),
        text[:40] + ("a" if text[40] != "a" else "b") + text[41:]: (Reason.BAD_INVITE, "damaged"),
    }
    for garbage, (reason, words) in cases.items():
        with pytest.raises(BadDataError, match=words) as raised:
            parse_invite(garbage, NOW_MS)
        assert (raised.value.reason, raised.value.hint) == (reason, "copy the whole line that 'p2pgrid invite' printed")
    with pytest.raises(IntegrityError, match=r"the invite to 'lab' ended at 2026-09-20 .* and it is 2026-09-21") as over:
        parse_invite(invited(NOW_MS - DAY_MS), NOW_MS)
    assert over.value.reason == Reason.EXPIRED
    assert "set it" in over.value.hint
