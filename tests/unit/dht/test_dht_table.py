"""The routing table against brute force, and its admission rules."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from kademlia.node import Node
from kademlia.routing import RoutingTable

from p2pgrid.dht.contact import GridNode, Place
from p2pgrid.dht.settings import DhtSettings
from p2pgrid.dht.table import GridTable
from p2pgrid.model.ids import NodeKey


class Owner:
    def __init__(self) -> None:
        self.checked: list[GridNode] = []
        self.lost: list[GridNode] = []

    def lose(self, node: GridNode) -> None:
        self.lost.append(node)

    def check_soon(self, node: GridNode) -> None:
        self.checked.append(node)


def contact(number: int, host: str = "127.0.0.1", port: int = 4000) -> GridNode:
    return GridNode(NodeKey(number.to_bytes(32, "big")), Place(host, port))


def table(k: int = 20, own: int = 10**6, **changes: object) -> GridTable:
    return GridTable(Owner(), k, contact(own), DhtSettings(**changes), lambda: 0.0)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    numbers=st.sets(st.integers(0, 5000), max_size=300),
    target=st.binary(min_size=20, max_size=20),
    k=st.integers(1, 25),
    removed=st.integers(0, 40),
    aim_at_contact=st.booleans(),
)
def test_find_neighbors_equals_brute_force(numbers: set[int], target: bytes, k: int, removed: int, aim_at_contact: bool) -> None:
    filled = table(k=5)
    for number in sorted(numbers):
        filled.add_contact(contact(number))
    for number in sorted(numbers)[:removed]:
        filled.expel(contact(number))
    if aim_at_contact and filled.contacts():
        target = filled.contacts()[0].id
    goal = Node(target)
    exclude = filled.contacts()[-1] if filled.contacts() else contact(1)
    everybody = sorted((node for node in filled.contacts() if not node.same_home_as(exclude)), key=goal.distance_to)
    assert filled.find_neighbors(goal, k, exclude=exclude) == everybody[:k]
    assert filled.find_neighbors(goal, k) == sorted(filled.contacts(), key=goal.distance_to)[:k]


@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(0, 2000), max_size=300), data=st.randoms(use_true_random=False))
def test_the_tree_stays_sound_under_any_mix_of_changes(numbers: list[int], data: random.Random) -> None:
    filled = table(k=4)
    for number in numbers:
        data.choice([filled.add_contact, filled.add_contact, filled.remove_contact])(contact(number))
    edges = [bucket.range for bucket in filled.buckets]
    assert edges[0][0] == 0
    assert edges[-1][1] == 2**160 - 1
    assert all(left[1] + 1 == right[0] for left, right in itertools.pairwise(edges))
    for bucket in filled.buckets:
        assert len(bucket) <= 4
        assert len(bucket.replacement_nodes) <= 20
        assert not bucket.nodes.keys() & bucket.replacement_nodes.keys()
        assert all(bucket.has_in_range(node) for node in (*bucket.nodes.values(), *bucket.replacement_nodes.values()))


def test_fault_j_the_package_itself_fails_where_our_search_is_exact() -> None:
    stock = RoutingTable(None, 20, contact(10**6))
    ours = table()
    rng = random.Random(3)
    for number in range(300):
        node = contact(number)
        if ours.add_contact(node):
            bucket = stock.buckets[stock.get_bucket_for(node)]
            if not bucket.add_node(node):
                stock.split_bucket(stock.get_bucket_for(node))
                stock.buckets[stock.get_bucket_for(node)].add_node(node)
    wrong = {"stock": 0, "ours": 0}
    for _ in range(50):
        goal = Node(rng.randbytes(20))
        for name, subject in (("stock", stock), ("ours", ours)):
            everybody = [node for bucket in subject.buckets for node in bucket.nodes.values()]
            wrong[name] += subject.find_neighbors(goal) != sorted(everybody, key=goal.distance_to)[:20]
    assert wrong["ours"] == 0
    assert wrong["stock"] > 25


def test_fault_l_a_contact_is_found_under_its_own_id() -> None:
    filled = table()
    filled.add_contact(contact(7))
    assert filled.find_neighbors(Node(contact(7).id))[0].key == contact(7).key


def test_fault_o_an_answer_makes_a_contact_the_youngest() -> None:
    filled = table(k=3)
    for number in (1, 2, 3):
        filled.add_contact(contact(number))
    filled.add_contact(contact(1))
    assert [node.key for node in filled.buckets[0].get_nodes()] == [contact(number).key for number in (2, 3, 1)]


def test_one_lost_call_is_a_strike_and_the_second_in_a_row_removes() -> None:
    filled = table()
    filled.add_contact(contact(1))
    filled.remove_contact(contact(1))
    assert filled.get(contact(1).id) is not None
    assert filled._owner.checked  # type: ignore[attr-defined]
    filled.add_contact(contact(1))
    filled.remove_contact(contact(1))
    assert filled.get(contact(1).id) is not None, "an answer in between forgives"
    filled.remove_contact(contact(1))
    assert filled.get(contact(1).id) is None


def test_silence_at_a_wrong_address_somebody_told_us_is_no_strike() -> None:
    filled = table()
    filled.add_contact(contact(1))
    for _ in range(5):
        filled.remove_contact(contact(1, port=9))
    assert filled.get(contact(1).id) is not None


def test_a_removed_contact_is_replaced_by_the_youngest_replacement_which_is_checked() -> None:
    filled = table(k=2, own=0, buckets_max=1)
    for number in range(1, 6):
        filled.add_contact(contact(number))
    filled.expel(contact(1))
    assert {node.key for node in filled.contacts()} == {contact(2).key, contact(5).key}
    assert [node.key for node in filled._owner.checked] == [contact(5).key]  # type: ignore[attr-defined]


def test_in_an_open_grid_a_public_prefix_has_two_contacts_in_a_bucket_and_ten_in_the_table() -> None:
    capped = table(open_grid=True)
    for number in range(400):
        capped.add_contact(contact(number, host=f"8.8.8.{number % 250 + 1}"))
    assert len(capped) <= 10
    assert all(len(bucket) <= 2 for bucket in capped.buckets)
    assert not capped.wants(contact(999, host="8.8.8.8"))
    for number in range(400, 420):
        capped.add_contact(contact(number, host=f"9.{number - 390}.1.1"))
    assert len(capped) > 10, "other prefixes still have room"


def test_private_addresses_and_private_grids_know_no_prefix_cap() -> None:
    at_home = table(open_grid=True)
    invited = table(open_grid=False)
    for number in range(20):
        at_home.add_contact(contact(number, host=f"192.168.1.{number + 1}"))
        invited.add_contact(contact(number, host=f"8.8.8.{number + 1}"))
    assert len(at_home) == len(invited) == 20


def test_the_table_never_holds_its_own_node() -> None:
    filled = table(own=5)
    assert not filled.add_contact(contact(5))
    assert not filled.wants(contact(5))
    assert len(filled) == 0
