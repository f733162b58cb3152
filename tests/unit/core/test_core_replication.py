"""Copies come back to what is wanted, whoever fails; none goes that is needed; nothing goes to and fro."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.care_events import Answered, Asked, Came, Cared, Copied, Gone, Heard, Silent, Tell, Tick
from p2pgrid.core.copies import KEPT, KEPT_SHORTER, NOT_KEPT, Terms, order
from p2pgrid.core.replication import SAME_END_MS, Replication
from p2pgrid.model.reasons import Reason
from tests.unit.core.replication_world import EXPIRES_MS, LIFE_S, NOTICE_S, World, blob_id

R = 3
QUIET = replace(Terms(), trim_s=60.0)


def full(world: World, replicas: int = R) -> bool:
    """Whether each blob that somebody alive has is there as often as is wanted."""
    return all(count >= min(replicas, len(world.live())) for count in world.counts().values() if count)


def filled(nodes: int, blobs: int, seed: int = 1, **options: object) -> World:
    world = World(nodes, seed, **options)  # type: ignore[arg-type]
    rng = random.Random(seed)
    for number in range(blobs):
        world.put(number, rng.sample(world.keys, R), own=False)
    world.run(30)
    return world


# -- too few -----------------------------------------------------------------------------------


def test_after_a_loss_the_copies_are_back_within_the_grace_and_a_second() -> None:
    world = filled(6, 60)
    assert world.copies == 0
    lost = world.keys[2]
    short = [blob for blob, count in world.counts().items() if lost in world.holders(blob)]
    world.crash(lost)
    world.run(NOTICE_S + Terms().grace_s - 0.1)
    assert world.copies == 0
    world.run(1.1)
    assert full(world)
    assert world.copies == len(short)
    world.run(60)
    assert world.copies == len(short)


def test_the_work_of_repairing_is_spread_and_the_last_holder_of_each_blob_does_it() -> None:
    world = filled(6, 120)
    lost = world.keys[0]
    due = {blob: max((key for key in world.holders(blob) if key != lost), key=lambda key: order(blob, key)) for blob in world.counts()}
    before = len(world.log)
    world.crash(lost)
    world.run(10)
    did = [(name, effect) for _, name, effect in world.log[before:] if effect.startswith("Copy(")]
    assert len({name for name, _ in did}) == 5
    expected = sorted(due[blob].hex()[:6] for blob in due if lost in world.nodes and blob in world.nodes[lost].leases)
    assert sorted(name for name, _ in did) == expected


def test_a_connection_that_breaks_for_a_moment_copies_nothing() -> None:
    world = filled(5, 40)
    lost = world.keys[1]
    for node in world.live():
        if node.key != lost:
            world.tell(node, Gone(lost))
    world.run(1)
    for node in world.live():
        if node.key != lost:
            world.tell(node, Came(lost, stores=True))
    world.run(30)
    assert world.copies == 0


def test_a_holder_that_cannot_repair_is_stood_in_for_by_the_next() -> None:
    world = World(5)
    blob = world.put(1, world.keys[:3], own=False)
    world.run(30)
    lost, first, last = sorted(world.keys[:3], key=lambda key: order(blob, key))
    world.nodes[last].stuck = True
    world.crash(lost)
    world.run(NOTICE_S + 10)
    assert len(world.holders(blob)) == 2
    world.run(Terms().step_s + 10)
    assert len(world.holders(blob)) == 3
    assert first in world.holders(blob)


def test_two_who_repair_at_once_choose_the_same_node() -> None:
    world = World(8)
    blob = world.put(1, world.keys[:3], own=False)
    world.run(30)
    targets = {world.nodes[key].machine._candidate(world.nodes[key].machine._all.cares[blob]) for key in world.keys[:3]}
    assert len(targets) == 1


def test_better_nodes_are_preferred_and_small_differences_are_none() -> None:
    best = World(6).keys[5]
    world = World(6, score=lambda key: 0.9 if key == best else 0.31 if key[0] % 2 else 0.32)
    blob = world.put(1, world.keys[:2], own=False)
    machine = world.nodes[world.keys[0]].machine
    assert machine._candidate(machine._all.cares[blob]) == best
    worse = machine._candidate(machine._all.cares[blob], (best,))
    assert worse == min(world.keys[2:5], key=lambda key: order(blob, key))


def test_full_nodes_are_not_asked_again_for_a_while_but_for_smaller_blobs() -> None:
    world = World(4)
    small, large = blob_id(1), blob_id(2)
    for key in world.keys[2:]:
        world.nodes[key].room = 5000
    world.put(1, world.keys[:2], size_bytes=100)
    world.put(2, world.keys[:2], size_bytes=9000)
    world.run(120)
    assert len(world.holders(small)) == R
    assert len(world.holders(large)) == 2
    views = [world.nodes[key].machine.view(large) for key in world.keys[:2]]
    assert Reason.STORE_FULL in {view.reason for view in views if view is not None}
    tried = sum(effect.startswith("Copy(") for _, _, effect in world.log)
    assert tried <= 5
    world.nodes[world.keys[3]].room = 1 << 40
    world.run(Terms().refused_s + 60)
    assert len(world.holders(large)) == R


def test_with_too_few_nodes_nothing_is_tried_until_somebody_comes() -> None:
    world = World(2)
    blob = world.put(1, world.keys)
    world.run(600)
    assert world.copies == 0
    assert not [effect for _, _, effect in world.log if effect.startswith("Copy(")]
    view = world.nodes[world.keys[0]].machine.view(blob)
    assert view is not None
    assert (view.reason, view.short_s is not None) == (Reason.FEW_COPIES, True)
    world.add(b"new" + bytes(29))
    world.run(10)
    assert len(world.holders(blob)) == R
    view = world.nodes[world.keys[0]].machine.view(blob)
    assert view is not None
    assert (view.reason, view.short_s) == ("", None)


def test_a_writer_that_is_at_work_is_not_overtaken() -> None:
    world = World(6)
    blob = blob_id(1)
    for key in world.keys[:2]:
        world.hold(world.nodes[key], blob, 80_000_000, R, EXPIRES_MS)
    world.run(39)
    assert world.copies == 0
    world.run(10)
    assert len(world.holders(blob)) == R


def test_a_node_that_says_it_leaves_does_not_count_and_is_given_time_to_copy_itself() -> None:
    world = filled(6, 30)
    leaver = world.keys[0]
    world.leave(leaver)
    world.run(Terms().leaving_s / 2)
    assert world.copies == 0
    machine = world.nodes[leaver].machine
    endangered = machine.endangered()
    assert set(endangered) == set(world.nodes[leaver].leases)
    for blob in endangered:
        copy = machine.copy_for(blob)
        assert copy is not None
        world.copies += 1
        world.hold(world.nodes[copy.peer], blob, 1000, R, EXPIRES_MS)
        world.tell(world.nodes[leaver], Heard(blob, (copy.peer,), sure=True))
        assert not machine.needs(blob)
        assert machine.copy_for(blob) is None
    world.run(5)
    made = world.copies
    world.crash(leaver)
    world.run(120)
    assert world.copies == made
    assert full(world)


def test_most_endangered_blobs_are_copied_first_and_one_at_a_time_if_that_is_all_that_is_allowed() -> None:
    world = World(8, terms=replace(Terms(), copies_max=1, step_s=0.0, step_bytes_per_s=1e12))
    for number in range(12):
        world.put(number, world.keys[: 1 + number % 2], own=False)
    world.run(19)
    start = len(world.log)
    world.run(20)
    assert full(world)
    mine = [(name, effect) for _, name, effect in world.log[start:] if effect.startswith(("Copy(", "Tell("))]
    of_first = [effect for name, effect in mine if name == world.keys[0].hex()[:6]]
    copies = [effect for effect in of_first if effect.startswith("Copy(")]
    alone = {repr(blob_id(number)) for number in range(0, 12, 2)}
    first = [any(blob in effect for blob in alone) for effect in copies]
    assert first[:6] == [True] * 6
    # A copy is followed by the news of it before the next one begins.
    assert [effect[:4] for effect in of_first[: 2 * len(copies)]] == ["Copy", "Tell"] * len(copies)


def test_copies_are_begun_at_the_rate_that_is_allowed() -> None:
    world = World(5, terms=replace(Terms(), bytes_per_s=1e6, copies_max=4), bytes_per_s=1e9)
    for number in range(40):
        world.put(number, world.keys[:3], size_bytes=1_000_000, own=False)
    world.run(30)
    start = world.now
    world.crash(world.keys[0])
    world.run(300)
    assert full(world)
    begun = [(at, name) for at, name, effect in world.log if effect.startswith("Copy(")]
    for name, copies in Counter(name for _, name in begun).items():
        times = [at for at, who in begun if who == name]
        assert times[-1] - times[0] >= copies - 2
        assert times[0] - start < 6


# -- who counts -------------------------------------------------------------------------------------


def test_a_liar_is_caught_and_another_node_gets_the_copy() -> None:
    world = World(6)
    liar = world.keys[2]
    world.nodes[liar].liar = True
    blob = blob_id(1)
    for key in world.keys[:2]:
        world.hold(world.nodes[key], blob, 1000, R, EXPIRES_MS)
        world.tell(world.nodes[key], Heard(blob, (*world.keys[:2], liar)))
    world.run(90)
    assert len(world.holders(blob)) == R
    assert liar not in world.holders(blob)


def test_holders_that_are_only_spoken_of_do_not_count() -> None:
    world = World(6)
    blob = world.put(1, world.keys[:2], own=False)
    for key in world.keys[:2]:
        world.tell(world.nodes[key], Heard(blob, tuple(bytes([number]) * 32 for number in range(60))))
    world.run(90)
    assert len(world.holders(blob)) == R
    care = world.nodes[world.keys[0]].machine._all.cares[blob]
    assert len(care.holders) <= Terms().holders_max


def test_a_copy_nobody_spoke_of_is_found_before_another_is_made() -> None:
    world = World(6)
    blob = blob_id(1)
    for key in world.keys[:3]:
        world.hold(world.nodes[key], blob, 1000, R, EXPIRES_MS)
    world.run(120)
    assert world.copies == 0
    for key in world.keys[:3]:
        view = world.nodes[key].machine.view(blob)
        assert view is not None
        assert set(view.holders) == set(world.keys[:3])


def test_all_copies_are_proven_in_time_and_asking_stays_cheap() -> None:
    world = filled(6, 200)
    world.run(120)
    for node in world.live():
        for blob in node.leases:
            view = node.machine.view(blob)
            assert view is not None
            assert len(view.proven) == R
    asks, asked = world.asks, world.asked_blobs
    world.run(600)
    # Each of 6 nodes asks 5 others about once a minute for the 80 blobs or so that they share; all of them within a question.
    assert world.asks - asks < 6 * 5 * 14
    assert world.asked_blobs - asked < 200 * R * (R - 1) * 14


def test_who_keeps_it_for_a_shorter_time_is_given_the_longer_lease_and_no_bytes() -> None:
    world = World(6)
    blob = world.put(1, world.keys[:3], own=False)
    world.run(30)
    later = EXPIRES_MS + 10 * SAME_END_MS
    world.hold(world.nodes[world.keys[0]], blob, 1000, R, later)
    world.run(200)
    assert set(world.holders(blob)) == set(world.keys[:3])
    assert {world.nodes[key].leases[blob][1] for key in world.keys[:3]} == {later}


def test_answers_about_a_blob() -> None:
    machine = Replication(b"m" * 32, random.Random(1))
    blob = blob_id(1)
    assert machine.kept(blob, EXPIRES_MS) == NOT_KEPT
    machine.handle(Cared(blob, 9, R, EXPIRES_MS, 100.0), 0.0)
    assert machine.kept(blob, EXPIRES_MS + SAME_END_MS) == KEPT
    assert machine.kept(blob, EXPIRES_MS + SAME_END_MS + 1) == KEPT_SHORTER
    machine.handle(Tick(), 100.0)
    assert machine.kept(blob, EXPIRES_MS) == NOT_KEPT


# -- too many -----------------------------------------------------------------------------------------


def test_a_copy_too_many_goes_after_a_while_and_never_one_that_is_needed() -> None:
    world = filled(6, 60, terms=QUIET)
    lost = world.keys[3]
    world.crash(lost)
    world.run(20)
    assert full(world)
    world.restart(lost)
    world.run(30)
    assert max(world.counts().values()) == R + 1
    assert world.trims == 0
    world.run(300)
    assert set(world.counts().values()) == {R}
    trims, copies = world.trims, world.copies
    world.run(900)
    assert (world.trims, world.copies) == (trims, copies)


def test_what_the_owner_of_a_node_wants_never_goes() -> None:
    world = World(6, terms=QUIET)
    blob = blob_id(1)
    for key in world.keys:
        world.hold(world.nodes[key], blob, 1000, R, EXPIRES_MS, fixed=True)
    world.run(600)
    assert len(world.holders(blob)) == 6
    assert world.trims == 0


def test_all_that_let_go_at_one_time_leave_enough() -> None:
    for seed in range(20):
        world = World(9, seed, terms=QUIET)
        blob = blob_id(seed)
        for key in world.keys:
            world.hold(world.nodes[key], blob, 1000, R, EXPIRES_MS)
        # Each of them knows some of the others only.
        rng = random.Random(seed)
        for node in world.live():
            known = tuple(rng.sample([key for key in world.keys if key != node.key], 4))
            world.tell(node, Heard(blob, known))
        world.run(400)
        # One that does not know all who stand before it keeps its copy.
        assert R <= len(world.holders(blob)) <= R + 3
        assert world.copies == 0


def test_nodes_that_come_and_go_do_not_make_blobs_wander() -> None:
    world = filled(8, 40)
    for turn in range(30):
        key = world.keys[turn % 4]
        world.crash(key)
        world.run(2)
        world.restart(key)
        world.run(40)
    # Away for two seconds at a time: nothing is copied, nothing goes.
    assert world.copies == 0
    assert world.trims == 0
    for turn in range(12):
        key = world.keys[turn % 4]
        world.crash(key)
        world.run(60)
        world.restart(key)
        world.run(60)
    # Away for a minute: each blob gets one more copy for each of its holders that does so, once.
    assert world.copies <= 40 * 4
    assert full(world)


# -- at random --------------------------------------------------------------------------------------------


def _storm(seed: int, nodes: int, blobs: int) -> World:
    """Failures and returns at random, but at no time of all who have a blob: then it would be lost, and nobody's fault."""
    rng = random.Random(seed)
    world = World(nodes, seed, terms=replace(Terms(), trim_s=45.0))
    for number in range(blobs):
        world.put(number, rng.sample(world.keys, R), size_bytes=rng.choice((10, 100_000, 3_000_000)), own=rng.random() < 0.3)
    for _ in range(40):
        world.run(rng.random() * 15)
        down = [key for key, node in world.nodes.items() if not node.on]
        if down and rng.random() < 0.5:
            key = rng.choice(down)
            if rng.random() < 0.3:
                world.wipe(key)
            world.restart(key)
        elif len(down) < nodes - R - 1:
            key = rng.choice([node.key for node in world.live()])
            alone = [blob for blob in world.nodes[key].leases if len(world.holders(blob)) < 2]
            if not alone:
                world.crash(key)
    return world


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), nodes=st.integers(6, 12), blobs=st.integers(1, 25))
def test_after_any_storm_each_blob_has_its_copies_within_half_a_minute(seed: int, nodes: int, blobs: int) -> None:
    world = _storm(seed, nodes, blobs)
    world.run(30)
    assert full(world)
    world.run(600)
    # When all is quiet no copy is left too many, but where owners want them.
    for blob, count in world.counts().items():
        if count:
            wanted = sum(world.nodes[key].leases[blob][2] for key in world.holders(blob))
            assert R <= count <= R + wanted
    copies, trims = world.copies, world.trims
    world.run(600)
    assert (world.copies, world.trims) == (copies, trims)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_two_runs_of_one_seed_are_the_same(seed: int) -> None:
    assert _storm(seed, 7, 10).log == _storm(seed, 7, 10).log


def test_the_order_of_hashes_changes_nothing() -> None:
    program = (
        "from tests.unit.core.test_core_replication import _storm; from blake3 import blake3;"
        "print(blake3(repr(_storm(5, 7, 12).log).encode()).hexdigest())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "77")
    }
    assert len(told) == 1


# -- bounds --------------------------------------------------------------------------------------------------


def test_all_tables_are_bounded() -> None:
    terms = replace(Terms(), blobs_max=50, peers_max=20, holders_max=4)
    machine = Replication(b"m" * 32, random.Random(1), terms)
    for number in range(200):
        blob = blob_id(number)
        machine.handle(Cared(blob, 9, R, EXPIRES_MS, LIFE_S), 0.0)
        machine.handle(Heard(blob, tuple(blob_id(number * 50 + other) for other in range(30))), 0.0)
        machine.handle(Asked(blob_id(number + 7000), (blob,)), 0.0)
    assert len(machine.blobs()) == 50
    assert machine.uncared == 150
    assert len(machine._all.peers) <= 20
    assert all(len(care.holders) <= 4 for care in machine._all.cares.values())
    for number in range(50):
        for turn in range(300):
            machine.handle(Cared(blob_id(number), 9, R, EXPIRES_MS + turn, LIFE_S), 0.0)
    assert len(machine._all._heap) <= 4 * 70 + 1024
    assert len(machine._questions._searches) <= 2 * 50 + 1024


@pytest.mark.parametrize("kept", [b"", b"\xff" * 9, bytes([KEPT])])
def test_answers_that_make_no_sense_do_no_harm(kept: bytes) -> None:
    machine = Replication(b"m" * 32, random.Random(1))
    peer = b"p" * 32
    machine.handle(Answered(peer, (blob_id(1), blob_id(2)), kept), 0.0)
    machine.handle(Silent(peer, (blob_id(1),), gone=True), 0.0)
    machine.handle(Copied(blob_id(1), peer, Reason.DEAD), 0.0)
    machine.handle(Gone(peer), 0.0)
    machine.handle(Cared(blob_id(1), 9, R, EXPIRES_MS, LIFE_S), 0.0)
    machine.handle(Answered(peer, (blob_id(1), blob_id(2)), kept, (0,), (1,)), 1.0)
    assert machine.view(blob_id(1)) is not None


def test_those_who_hold_it_are_told_of_a_new_copy() -> None:
    machine = Replication(b"m" * 32, random.Random(1))
    a, b = b"a" * 32, b"b" * 32
    machine.handle(Cared(blob_id(1), 9, R, EXPIRES_MS, LIFE_S), 0.0)
    effects = machine.handle(Heard(blob_id(1), (a, b), sure=True), 0.0)
    assert Tell(blob_id(1), (a, b), (b"m" * 32, a, b)) in effects


def test_who_said_that_it_leaves_and_stays_counts_again_after_a_while() -> None:
    world = World(6)
    blob = world.put(1, world.keys[:3], own=False)
    world.run(30)
    world.leave(world.keys[0])
    machine = world.nodes[world.keys[1]].machine
    for seconds, counts in ((60, False), (700, True)):
        world.run(seconds)
        view = machine.view(blob)
        assert view is not None
        assert (world.keys[0] in view.holders) == counts
