"""Contacts that were dropped: remembered within bounds, asked ever more rarely."""

from __future__ import annotations

import random
from itertools import pairwise

from p2pgrid.dht.contact import GridNode, Place
from p2pgrid.dht.lost import GIVEN_UP_S, LOST_MAX, PAUSE_MAX_S, LostContacts
from p2pgrid.model.ids import NodeKey

RNG = random.Random(1)


def contact(number: int) -> GridNode:
    return GridNode(NodeKey(number.to_bytes(32, "big")), Place("127.0.0.1", 4000 + number % 1000))


def test_a_contact_is_due_after_its_first_pause_and_then_after_twice_as_long_each_time() -> None:
    lost = LostContacts(10.0)
    lost.remember(contact(1), 0.0)
    assert lost.due(9.9, RNG, 3) == []
    assert [node.id for node in lost.due(10.0, RNG, 3)] == [contact(1).id]
    assert lost.due(29.9, RNG, 3) == []
    assert len(lost.due(30.0, RNG, 3)) == 1
    assert lost.due(69.9, RNG, 3) == []


def test_pauses_do_not_grow_for_ever_and_after_a_day_it_is_given_up() -> None:
    lost = LostContacts(10.0)
    lost.remember(contact(1), 0.0)
    asked = [now for now in range(0, int(GIVEN_UP_S), 5) if lost.due(float(now), RNG, 1)]
    gaps = [after - before for before, after in pairwise(asked)]
    assert max(gaps) <= PAUSE_MAX_S + 5
    assert lost.due(GIVEN_UP_S + 1, RNG, 1) == []
    assert len(lost) == 0


def test_who_is_back_is_not_asked_again() -> None:
    lost = LostContacts(1.0)
    lost.remember(contact(1), 0.0)
    lost.forget(contact(1).id)
    lost.forget(contact(2).id)
    assert lost.due(100.0, RNG, 3) == []


def test_no_more_than_asked_for_are_drawn_and_the_others_stay_due() -> None:
    lost = LostContacts(1.0)
    for number in range(5):
        lost.remember(contact(number), 0.0)
    first, second = lost.due(2.0, RNG, 3), lost.due(2.0, RNG, 3)
    assert (len(first), len(second)) == (3, 2)
    assert len({node.id for node in first + second}) == 5


def test_losing_it_again_does_not_begin_its_pauses_anew_and_the_oldest_goes_when_there_are_too_many() -> None:
    lost = LostContacts(10.0)
    lost.remember(contact(0), 0.0)
    lost.due(10.0, RNG, 1)
    lost.remember(contact(0), 11.0)
    assert lost.due(25.0, RNG, 1) == []
    for number in range(1, LOST_MAX + 1):
        lost.remember(contact(number), 20.0)
    assert len(lost) == LOST_MAX
    assert contact(0).id not in {node.id for node in lost.due(1000.0, RNG, LOST_MAX)}


def test_losing_a_known_one_again_takes_nobodys_place() -> None:
    lost = LostContacts(1.0)
    for number in range(LOST_MAX):
        lost.remember(contact(number), 0.0)
    lost.remember(contact(7), 1.0)
    assert len(lost) == LOST_MAX
    assert contact(0).id in {node.id for node in lost.due(10.0, RNG, LOST_MAX)}
