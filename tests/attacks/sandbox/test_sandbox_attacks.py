"""Every attack on every cage of native code, by root and by an ordinary user; and without a cage, where each must succeed.

An attack that does not succeed without a cage proves nothing when it fails inside of one: it is a broken test.
"""

from __future__ import annotations

import pytest

from tests.attacks.sandbox.conftest import Attacked
from tests.attacks.sandbox.driver import EVERYTHING
from tests.attacks.sandbox.groups import GROUPS

pytestmark = pytest.mark.timeout(120)  # The first test of a cage waits for all attacks on it.

ALL = tuple(EVERYTHING.values())
CAGES = [
    pytest.param(runtime, level, user, id=f"{runtime}-{level}-{user}")
    for runtime in ("native", "command")
    for level in ("namespaces", "landlock")
    for user in ("root", "user")
]
ABSENT_AS_IT_MAY = {"connect-ipv6": "hosts without IPv6", "share-out-memory": "units that may not fork"}


@pytest.mark.parametrize("name", [attack.name for attack in ALL])
@pytest.mark.parametrize(("runtime", "level", "user"), CAGES)
def test_the_cage_holds_against(attacked: Attacked, runtime: str, level: str, user: str, name: str) -> None:
    attack = EVERYTHING[name]
    if runtime == "command" and not attack.commands:
        pytest.skip("commands may do this")
    found = attacked(user, "attack", runtime, level)
    if name not in found and name in ABSENT_AS_IT_MAY:
        pytest.skip(f"there is nothing to attack: {ABSENT_AS_IT_MAY[name]}")
    held, detail = found[name]
    if not held and attack.is_accepted(runtime, level):
        assert detail.startswith("it got through"), detail
        return
    assert held, detail


@pytest.mark.parametrize(("runtime", "level", "user"), CAGES)
@pytest.mark.parametrize("name", ["outlive-everything", "leave-a-trace"])
def test_all_attacks_together(attacked: Attacked, runtime: str, level: str, user: str, name: str) -> None:
    held, detail = attacked(user, "attack", runtime, level)[name]
    assert held, detail


@pytest.mark.parametrize("name", [attack.name for attack in ALL if attack.control != "nowhere"])
def test_without_a_cage_succeeds(attacked: Attacked, name: str) -> None:
    control = EVERYTHING[name].control
    found = attacked("root" if control == "root" else "user", "control", control)
    if name not in found and name in ABSENT_AS_IT_MAY:
        pytest.skip(f"there is nothing to attack: {ABSENT_AS_IT_MAY[name]}")
    held, detail = found[name]
    assert not held, f"it is refused even without a cage: {detail}"
    assert detail.startswith("it got through") or control == "plain", detail


def test_without_a_cage_the_host_sees_the_traces(attacked: Attacked) -> None:
    held, detail = attacked("user", "control", "anybody")["leave-a-trace"]
    assert not held
    for trace in ("tcp", "udp", "stream", "datagram", "abstract", "trace-target"):
        assert trace in detail


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_attacks(group: str) -> None:
    assert GROUPS[group]
    assert set(GROUPS[group]) <= {attack.name for attack in ALL}


def test_every_attack_is_of_a_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted({attack.name for attack in ALL})
