"""Machines that are broken on purpose: ``p2pgrid why`` names the cause and the remedy, to people and to programs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.model.ids import to_text
from p2pgrid.store.home import Home
from tests.e2e.firewalls import LEFT_HOST, RIGHT_HOST, router
from tests.e2e.grids import COMMAND_S, PROGRAM, Done, Grid, Member, cli, environment, grid_of, until
from tests.native import needs

SICK = Path(__file__).parent / "sick.py"
HOUR_MS = 3_600_000


@dataclass
class Machine:
    """A home, and what every command there is begun with."""

    home: Path
    before: tuple[str, ...] = ()
    sickness: tuple[str, ...] = ()
    more: dict[str, str] = field(default_factory=dict)

    def words(self, *words: str | Path) -> list[str]:
        program = [PROGRAM[0], "-P", str(SICK), *self.sickness, "--"] if self.sickness else list(PROGRAM)
        return [*self.before, *program, *map(str, words)]

    @property
    def environment(self) -> dict[str, str]:
        return environment() | {"P2PGRID_HOME": str(self.home)} | self.more

    def run(self, *words: str | Path) -> Done:
        return subprocess.run(
            self.words(*words),
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=COMMAND_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    @contextmanager
    def node(self, *words: str) -> Iterator[Member]:
        """A node that is ready; gone afterwards."""
        arguments = ["join", *words, "--parent", str(os.getpid())]
        if "--cpus" not in words:
            arguments += ["--cpus", "0"]
        with self.home.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                self.words(*arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        member = Member(self.home, process)
        try:
            until(lambda: member.ready, "the node is ready", 40.0)
            yield member
        finally:
            member.stop()

    @property
    def key(self) -> str:
        return to_text(Home(self.home, os.urandom).node_key().public)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """A grid of one node that is well."""
    with grid_of(1, tmp_path_factory.mktemp("healthy"), "--storage", "64M", "--cpus", "0") as grid:
        yield grid


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "home")


def invite_of(member: Member | Machine) -> str:
    return member.run("invite").stdout.strip()


def flat(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for line in lines for one in (line, *flat(line["under"]))]


def said(why: Done, document: Done, code: str, *words: str) -> dict[str, Any]:
    """Both answers name the code, the words and a next step. Returns the reason as programs see it."""
    assert why.returncode == document.returncode == 0, why.stderr + document.stderr
    assert f"[{code}]" in why.stdout, why.stdout
    for word in words:
        assert word in why.stdout, why.stdout
    found = [line for line in flat(json.loads(document.stdout)["because"]) if line["reason"] == code]
    assert found, document.stdout
    assert any(line["next_step"] for line in found), document.stdout
    return next(line for line in found if line["next_step"])


def why_me(machine: Machine, code: str, *words: str) -> dict[str, Any]:
    return said(machine.run("why", "me"), machine.run("why", "me", "--json"), code, *words)


def why_here(member: Member, subject: str, code: str, *words: str) -> dict[str, Any]:
    return said(member.run("why", subject), member.run("why", subject, "--json"), code, *words)


def failed(done: Done, code: int, *words: str) -> None:
    """An error with a cause and a hint, and nothing on stdout."""
    assert (done.returncode, done.stdout) == (code, ""), (done.stdout, done.stderr)
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


# No sandbox


def test_a_machine_without_a_sandbox_says_which_runtimes_it_cannot_offer(healthy: Grid, tmp_path: Path) -> None:
    sick = Machine(tmp_path / "home", sickness=("cages",), more={"P2PGRID_CACHE": str(tmp_path / "cache")})
    with sick.node(invite_of(healthy[0]), "--listen", "127.0.0.1:0", "--runtimes", "native", "--storage", "64M", "--cpus", "1") as member:
        until(lambda: "[no-cage]" in sick.run("why", "me").stdout, "the cages were tried")
        reason = why_me(sick, "no-runtime", "native is not offered", "Landlock", "p2pgrid doctor")
        assert "p2pgrid doctor" in reason["next_step"]
        document = json.loads(sick.run("why", "me", "--json").stdout)
        assert document["state"] == "lends no cores"
        until(lambda: "no-runtime" in healthy[0].run("why", sick.key).stdout, "the other one knows what is offered")
        why_here(healthy[0], sick.key, "no-runtime", "no runtime")
        assert member.process.poll() is None


# Invites


def test_a_wrong_invite_says_what_is_wrong_with_it(healthy: Grid, machine: Machine) -> None:
    good = invite_of(healthy[0])
    for wrong, words in (("garbage", "this is not an invite"), (good[:-7], "damaged or cut off")):
        failed(machine.run("join", wrong), 65, words, "copy the whole line")
        reason = why_me(machine, "bad-invite", words, "copy the whole line")
        assert words in reason["text"]


def test_an_invite_of_another_grid_is_refused_with_both_names(healthy: Grid, machine: Machine, tmp_path: Path) -> None:
    other = Machine(tmp_path / "other")
    with other.node("--listen", "127.0.0.1:0", "--storage", "64M"):
        foreign = invite_of(other)
    failed(other.run("join", invite_of(healthy[0])), 78, "already a member of", "another --home")
    why_me(other, "other-grid", "already a member of", "another --home")
    failed(machine.run("join", foreign, "--listen", "127.0.0.1:0"), 69, "no node of the grid answers", "nc -vz 127.0.0.1")
    why_me(machine, "no-contact", "Connection refused", "nothing listens there")


def test_an_expired_invite_says_when_it_ended(healthy: Grid, machine: Machine) -> None:
    earlier = Machine(healthy[0].home, sickness=("clock", str(-2 * HOUR_MS)))
    old = earlier.run("invite", "--days", "0.01").stdout.strip()
    assert old.startswith("p2pgrid-")
    failed(machine.run("join", old), 77, "the invite to", "ended at", "by the clock of this machine", "p2pgrid invite")
    why_me(machine, "expired", "ended at", "ask for a new one")


# The network


def test_a_port_that_a_firewall_blocks_is_named_by_who_cannot_enter(tmp_path: Path) -> None:
    with router() as between:
        founder, joiner = Machine(tmp_path / "left", between.left), Machine(tmp_path / "right", between.right)
        with founder.node("--listen", f"{LEFT_HOST}:4400", "--storage", "64M"):
            invite = invite_of(founder)
            between.drop("left", "ipproto", "tcp", "dport", "4400")
            between.drop("left", "ipproto", "udp", "dport", "4400")
            entering = joiner.run("join", invite, "--listen", f"{RIGHT_HOST}:4500")
            failed(entering, 69, f"{LEFT_HOST}:4400", "did not answer", "firewall", "nc -vz")
            why_me(joiner, "no-contact", "did not answer in 5 s", f"nc -vz {LEFT_HOST} 4400")
            why_me(founder, "alone", "p2pgrid invite")


def test_a_port_that_a_firewall_blocks_is_named_by_whom_nobody_can_reach(tmp_path: Path) -> None:
    """It works, over connections that it begins. Answers come through, as with real firewalls; then not even those over UDP."""
    with router() as between:
        founder, joiner = Machine(tmp_path / "left", between.left), Machine(tmp_path / "right", between.right)
        with founder.node("--listen", f"{LEFT_HOST}:4400", "--storage", "64M"):
            invite = invite_of(founder)
            between.drop("right", "ipproto", "tcp", "dport", "4500")
            between.let("right", "ipproto", "udp", "sport", "4400", "dport", "4500")
            between.drop("right", "ipproto", "udp", "dport", "4500")
            with joiner.node(invite, "--listen", f"{RIGHT_HOST}:4500", "--storage", "64M"):
                why_me(joiner, "unreachable", "nobody could begin a connection to port 4500", "open port 4500 for TCP and UDP")
            between.open()
            between.drop("right", "ipproto", "udp")
            with joiner.node("--listen", f"{RIGHT_HOST}:4500"):
                why_me(joiner, "no-datagrams", "nobody answers over UDP at port 4500", "let UDP through")


# Clock and version


def test_a_clock_that_is_an_hour_ahead_is_named_at_both_sides(healthy: Grid, tmp_path: Path) -> None:
    sick = Machine(tmp_path / "home", sickness=("clock", str(HOUR_MS)))
    failed(sick.run("join", invite_of(healthy[0]), "--listen", "127.0.0.1:0"), 77, "is 60 minutes ahead of", "set the clock")
    ahead = sick.key[:8]
    reason = why_me(sick, "clock-off", f"the clock of {ahead} is 60 minutes ahead of", "set the clock")
    assert "date -u" in reason["next_step"]
    why_here(healthy[0], "me", "clock-off", f"the clock of {ahead} is 60 minutes ahead of", "set the clock")
    why_here(healthy[0], sick.key, "clock-off", "its clock is 60 min ahead of this node's")


def test_a_version_that_is_too_old_is_named_at_both_sides(healthy: Grid, tmp_path: Path) -> None:
    sick = Machine(tmp_path / "home", sickness=("version", "0"))
    failed(sick.run("join", invite_of(healthy[0]), "--listen", "127.0.0.1:0"), 77, "share no protocol version", "update p2pgrid at")
    old = sick.key[:8]
    # Who is told by the other first, instead of finding out, knows the cause in the other's words and the step of its code.
    why_me(sick, "version", f"{old} speaks 0", "update p2pgrid")
    why_here(healthy[0], "me", "version", f"{old} speaks 0", "update p2pgrid")
    why_here(healthy[0], sick.key, "version", f"{old} speaks 0", "update p2pgrid")


# The disk


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of this size at a folder; gone afterwards."""
    needs(os.geteuid() == 0, "only root can mount a small disk")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "p2pgrid-test", folder], capture_output=True, text=True, check=False
    )
    needs(mounted.returncode == 0, f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True, check=False)


def fill(folder: Path) -> None:
    """Until not one byte more fits."""
    with (folder / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError:
            return


def test_a_disk_that_is_full_at_join_is_named_with_its_folder(healthy: Grid, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k"):
        fill(tmp_path / "disk")
        sick = Machine(tmp_path / "disk" / "home")
        failed(sick.run("join", invite_of(healthy[0]), "--listen", "127.0.0.1:0"), 77, "No space left", "free some space")
        why_me(sick, "disk-full", str(tmp_path / "disk"), "free some space")


def test_a_disk_that_fills_up_under_a_node_is_named_with_its_folder(healthy: Grid, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "80m"):
        sick = Machine(tmp_path / "disk" / "home")
        with sick.node(invite_of(healthy[0]), "--listen", "127.0.0.1:0", "--storage", "64M"):
            before = sick.run("why", "me").stdout
            assert "[disk-full]" not in before
            fill(tmp_path / "disk")
            content = tmp_path / "content"
            content.write_bytes(os.urandom(200_000))
            put = sick.run("put", content)
            assert put.returncode != 0
            reason = why_me(sick, "disk-full", str(sick.home), "free some space there")
            assert "0 B free" in reason["text"]
            (tmp_path / "disk" / "filler").unlink()


# The process


def test_a_node_that_was_killed_and_one_that_was_stopped_are_told_apart(machine: Machine) -> None:
    assert "[never-joined]" in cli(machine.home, "why", "me").stdout
    with machine.node("--listen", "127.0.0.1:0", "--storage", "64M") as member:
        taken = json.loads((machine.home / "lock").read_text())["port"]
        second = Machine(machine.home.with_name("second"))
        failed(second.run("join", "--listen", f"127.0.0.1:{taken}"), 78, "another program uses that port")
        why_me(second, "port-taken", f"port {taken}", "choose another with --listen")
        member.kill()
        why_me(machine, "killed", f"pid {member.process.pid}", "ended without a word")
    with machine.node("--listen", "127.0.0.1:0"):
        assert machine.run("leave").returncode == 0
    why_me(machine, "not-running", "it was stopped", "p2pgrid join --detach starts it again")
