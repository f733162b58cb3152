"""Two machines with a router between them that drops what it is told to: network namespaces, made and removed by a test as root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.native import needs

LEFT_HOST, RIGHT_HOST = "10.77.1.2", "10.77.2.2"


class Between:
    """The router. ``left`` and ``right``: words that run a command on either machine."""

    def __init__(self, name: str) -> None:
        self.spaces = tuple(f"{name}{side}" for side in "lrm")
        self._left, self._right, self._middle = self.spaces
        self.left = ("ip", "netns", "exec", self._left)
        self.right = ("ip", "netns", "exec", self._right)
        self._rules = 10

    def build(self) -> None:
        """Raises CalledProcessError where the kernel does not let us."""
        for space in self.spaces:
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "dev", "lo", "up")
        for side, space, host in (("left", self._left, LEFT_HOST), ("right", self._right, RIGHT_HOST)):
            network = host.rpartition(".")[0]
            _ip("link", "add", "wire", "netns", space, "type", "veth", "peer", "name", side, "netns", self._middle)
            _ip("-n", space, "addr", "add", f"{host}/24", "dev", "wire")
            _ip("-n", self._middle, "addr", "add", f"{network}.1/24", "dev", side)
            _ip("-n", space, "link", "set", "dev", "wire", "up")
            _ip("-n", self._middle, "link", "set", "dev", side, "up")
            _ip("-n", space, "route", "add", "default", "via", f"{network}.1")
        _run("ip", "netns", "exec", self._middle, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def remove(self) -> None:
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)

    def drop(self, towards: str, *match: str) -> None:
        """Drop what goes towards ``left`` or ``right`` and matches: without a word, as firewalls do."""
        self._rule("blackhole", towards, match)

    def let(self, towards: str, *match: str) -> None:
        """Let that through, whatever is dropped later on."""
        self._rule("lookup main", towards, match)

    def _rule(self, action: str, towards: str, match: tuple[str, ...]) -> None:
        self._rules += 1
        comes_from = "right" if towards == "left" else "left"
        _ip("-n", self._middle, "rule", "add", "prio", str(self._rules), "iif", comes_from, *match, *action.split())

    def open(self) -> None:
        """Drop nothing any more."""
        while self._rules > 10:
            _ip("-n", self._middle, "rule", "del", "prio", str(self._rules))
            self._rules -= 1


@contextmanager
def router() -> Iterator[Between]:
    """A router with two machines; gone afterwards."""
    needs(os.geteuid() == 0 and shutil.which("ip"), "only root with the program 'ip' can put a firewall between two nodes")
    between = Between(f"p2p{os.getpid()}")
    try:
        try:
            between.build()
        except subprocess.CalledProcessError as error:
            needs(False, f"no network namespaces can be made here: {error.stderr.strip()}")
        yield between
    finally:
        between.remove()


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)
