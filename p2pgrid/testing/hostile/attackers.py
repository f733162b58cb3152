"""Hostile machines among those of a simulated grid: each has a host, a loop, a key and a valid membership of its own.

    crowd.hostile.append(Attackers(crowd, network, facts.poison))

The founder invites them as it invites everybody. They may work and submit, not store: what a keeper says is not forged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pgrid.core.invites import parse_invite
from p2pgrid.core.membership import admit
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.node import Address
from p2pgrid.testing.air.network import Host, SimulatedNetwork
from p2pgrid.testing.hostile.adversaries import ADVERSARIES, Adversary, AdversaryHost, Target
from p2pgrid.testing.world import MachineLoop
from p2pgrid.wire.keys import SigningKey

if TYPE_CHECKING:
    from p2pgrid.testing.whole.crowd import Crowd

ROLES = ("work", "submit", "native")
PORT = 7400
YEAR_MS = 365 * 86_400_000
GONE_AFTER_S = 5.0
"""From the end of an attack to that of its machine."""
LOOK_AGAIN_S = 1.0


class Attackers:
    """Makes them, remembers them, and ends them."""

    def __init__(self, crowd: Crowd, network: SimulatedNetwork, poison: Callable[[bytes], None]) -> None:
        """``poison``: told of every statement that is forged."""
        self.all: list[Adversary] = []
        self._crowd = crowd
        self._network = network
        self._poison = poison
        self._targets: list[Target] = []
        self._looked_s = -LOOK_AGAIN_S

    def __call__(self, kind: str, strength: float, for_s: float) -> None:
        """One more of this kind, from now on for ``for_s`` seconds. Before the grid was founded nothing happens."""
        crowd, number = self._crowd, len(self.all)
        text = crowd.invite_for(ROLES)
        if text is None:
            return
        name = f"{kind}-{number + 1}"
        host = self._network.host(name, f"10.200.{number >> 8 & 255}.{number & 255}")
        loop = crowd.world.loop(name)
        adversary = ADVERSARIES[kind](self._host(name, host, text, strength))
        self.all.append(adversary)
        adversary.attach(crowd)
        crowd.onlookers = [*crowd.onlookers, adversary]
        self._network.watchers.append(adversary.on_datagram)
        adversary.start(loop)
        crowd.world.after(for_s, self._stop, adversary, loop, host)

    def _host(self, name: str, host: Host, text: str, strength: float) -> AdversaryHost:
        crowd = self._crowd
        rng = crowd.world.fork(f"hostile/{name}")
        now_ms = crowd.wall_ms()
        invite = parse_invite(text, now_ms)
        key, submitter = SigningKey(rng.randbytes(32)), SigningKey(rng.randbytes(32))
        leaf = admit(SigningKey(invite.secret), key.public, invite.grid, now_ms + YEAR_MS)

        def spoof(data: bytes, source: tuple[str, int], destination: tuple[str, int]) -> None:
            self._network.send_raw_datagram(data, source, destination, via=name)

        return AdversaryHost(
            name=name,
            network=host,
            port=PORT,
            key=key,
            submitter=submitter,
            grid=invite.grid,
            credentials=(*invite.chain, leaf),
            targets=self._honest,
            rng=rng,
            wall_ms=crowd.wall_ms,
            poison=self._poison,
            per_second=strength,
            spoof=spoof,
        )

    def _honest(self) -> list[Target]:
        """The nodes of honest machines; looked up once a second at most."""
        crowd = self._crowd
        if crowd.now - self._looked_s >= LOOK_AGAIN_S:
            self._looked_s = crowd.now
            self._targets = [
                Target(key=NodeKey(node.key.public), address=Address("tls", crowd.machines[name].host.address, node.port))
                for name, node in sorted(crowd.living().items())
                if crowd.honest(name)
            ]
        return self._targets

    def _stop(self, adversary: Adversary, loop: MachineLoop, host: Host) -> None:
        adversary.stop()
        self._crowd.onlookers = [onlooker for onlooker in self._crowd.onlookers if onlooker is not adversary]
        self._network.watchers.remove(adversary.on_datagram)

        def gone() -> None:
            host.reset()
            loop.kill()

        self._crowd.world.after(GONE_AFTER_S, gone)
