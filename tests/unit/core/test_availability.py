"""Shares of time, scores, and the number of copies that follows from them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.availability import (
    DAY_S,
    HALF_LIFE_S,
    HOUR_S,
    PRIOR_SHARE,
    Availability,
    away_chance,
    copies_for,
    odds,
    plan_copies,
)

A, B, C, D = b"a", b"b", b"c", b"d"


def watched(days: float, there_h: float, away_h: float, *, then_live: bool = True) -> tuple[Availability, float]:
    """A peer A that comes and goes so for some days; the time at which it last came, or went."""
    table, now = Availability(0.0), 0.0
    table.came(A, now)
    while now < days * DAY_S:
        now += there_h * HOUR_S
        table.gone(A, now)
        if not then_live and now >= days * DAY_S:
            break
        now += away_h * HOUR_S
        table.came(A, now)
    return table, now


def test_an_unknown_peer_has_the_prior() -> None:
    table = Availability(0.0)
    assert table.share(A, 5.0) == PRIOR_SHARE == table.score(A, 5.0)
    table.came(A, 0.0)
    assert table.share(A, 0.0) == pytest.approx(PRIOR_SHARE)


@pytest.mark.parametrize(("there_h", "away_h"), [(6, 6), (20, 4), (1, 9)])
def test_the_share_of_time_is_measured(there_h: float, away_h: float) -> None:
    table, now = watched(40, there_h, away_h)
    assert table.share(A, now) == pytest.approx(there_h / (there_h + away_h), abs=0.03)


def test_after_one_half_life_half_of_what_was_seen_is_forgotten() -> None:
    table, now = watched(200, 1000, 0)
    assert table.share(A, now) > 0.999
    table.gone(A, now)
    assert table.share(A, now + HALF_LIFE_S) == pytest.approx(0.5, abs=0.01)


def test_what_happens_while_this_node_is_off_counts_for_nobody() -> None:
    table, now = watched(10, 6, 2)
    before = table.share(A, now)
    table.pause(now)
    table.resume(now + 30 * DAY_S)
    table.came(A, now + 30 * DAY_S)
    assert table.share(A, now + 30 * DAY_S) == pytest.approx(before)
    assert table.age_s(A, now + 30 * DAY_S) == 0.0


def test_who_does_not_come_after_this_node_is_back_is_away() -> None:
    table, now = watched(10, 6, 2)
    before = table.share(A, now)
    table.pause(now)
    table.resume(now + DAY_S)
    assert table.share(A, now + 3 * DAY_S) < before
    assert table.away_s(A, now + 3 * DAY_S) == 2 * DAY_S


def test_ages_are_of_the_present_session() -> None:
    table = Availability(0.0)
    table.came(A, 10.0)
    table.came(A, 20.0)
    assert table.age_s(A, 25.0) == 15.0
    table.gone(A, 30.0)
    table.gone(A, 40.0)
    assert (table.age_s(A, 45.0), table.away_s(A, 45.0)) == (0.0, 15.0)
    assert table.age_s(B, 45.0) == table.away_s(B, 45.0) == 0.0


def test_rows_survive_a_restart() -> None:
    table, now = watched(10, 6, 2)
    again = Availability(500.0, table.rows(now))
    assert again.share(A, 500.0) == pytest.approx(table.share(A, now))


def test_the_table_is_bounded_and_forgets_who_was_away_for_longest() -> None:
    table = Availability(0.0, peers_max=3)
    for peer in (A, B, C):
        table.came(peer, 0.0)
    table.gone(B, 1.0)
    table.gone(A, 2.0)
    table.came(D, 3.0)
    assert len(table) == 3
    assert (table.away_s(B, 9.0), table.away_s(A, 9.0)) == (0.0, 7.0), "B is forgotten, A is not"
    for number in range(50):
        table.came(b"%d" % number, 4.0 + number)
    assert len(table) == 3
    assert len(Availability(0.0, [*table.rows(60.0), *table.rows(60.0)], peers_max=2)) <= 2


def test_a_member_no_more_is_forgotten() -> None:
    table, now = watched(10, 6, 2)
    table.forget(A)
    table.forget(A)
    assert table.share(A, now) == PRIOR_SHARE


@given(st.lists(st.tuples(st.sampled_from("cgpr"), st.sampled_from([A, B, C]), st.floats(0.0, 1e6))))
def test_shares_stay_between_nought_and_one_whatever_happens(events: list[tuple[str, bytes, float]]) -> None:
    table, now = Availability(0.0), 0.0
    for what, peer, passed_s in events:
        now += passed_s
        match what:
            case "c":
                table.came(peer, now)
            case "g":
                table.gone(peer, now)
            case "p":
                table.pause(now)
            case _:
                table.resume(now)
        for one in (A, B, C):
            assert 0.0 <= table.share(one, now) <= 1.0 + 1e-9
            assert 0.0 <= table.score(one, now) <= 1.0 + 1e-9


# -- placement ---------------------------------------------------------------


def test_a_long_session_is_worth_more_than_a_short_one_and_a_steady_peer_most() -> None:
    table, now = Availability(0.0), 20 * DAY_S
    table.came(A, 0.0)
    for peer in (B, C):
        for day in range(19):
            table.came(peer, day * DAY_S)
            table.gone(peer, (day + 0.4) * DAY_S)
    table.came(B, now - 12 * HOUR_S)
    table.came(C, now - 1 * HOUR_S)
    scores = {peer: table.score(peer, now) for peer in (A, B, C)}
    assert scores[A] > 0.99
    assert scores[A] > scores[B] > scores[C] > table.share(C, now)


def test_copies_are_drawn_by_the_odds_and_nobody_is_left_out_for_good() -> None:
    table = Availability(0.0)
    peers = [b"%d" % number for number in range(10)]
    for peer in peers:
        table.came(peer, 0.0)
    for day in range(30):
        for peer in peers[2:]:
            table.gone(peer, (day + 0.4) * DAY_S)
            table.came(peer, (day + 1) * DAY_S)
    rng = random.Random(5)
    first: Counter[bytes] = Counter(table.preferred(peers, 30 * DAY_S, rng)[0] for _ in range(3000))
    assert first[peers[0]] + first[peers[1]] > 0.9 * 3000
    assert 0.7 < first[peers[0]] / first[peers[1]] < 1.4
    assert sum(first[peer] for peer in peers[2:]) > 0
    assert sorted(table.preferred(peers, 30 * DAY_S, rng)) == sorted(peers)


def test_odds_are_bounded_on_both_sides() -> None:
    assert 0.0 < odds(0.0) < odds(0.5) == 1.0 < odds(1.0) < 1000.0


# -- copies --------------------------------------------------------------------

TABLE = {
    0.50: (0.25, 0.125, 0.03125, 0.0078),
    0.70: (0.09, 0.027, 0.00243, 2.187e-4),
    0.90: (1e-2, 1e-3, 1e-5, 1e-7),
    0.95: (2.5e-3, 1.25e-4, 3.1e-7, 7.8e-10),
}
"""For 2, 3, 5 and 7 copies: the chance that none of them is there."""


@pytest.mark.parametrize(("share", "chances"), TABLE.items())
def test_the_formula_gives_the_known_table(share: float, chances: tuple[float, ...]) -> None:
    for copies, chance in zip((2, 3, 5, 7), chances, strict=True):
        assert away_chance([share] * copies) == pytest.approx(chance, rel=0.02)


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_the_formula_is_what_independent_nodes_do(share: float) -> None:
    rng = random.Random(1)
    tries = 20_000
    away = sum(all(rng.random() >= share for _ in range(3)) for _ in range(tries))
    assert away / tries == pytest.approx(away_chance([share] * 3), rel=0.15)


@pytest.mark.parametrize(("share", "copies"), [(0.5, 14), (0.7, 8), (0.9, 4), (0.95, 4), (0.99, 3), (1.0, 3)])
def test_copies_for_the_usual_target(share: float, copies: int) -> None:
    plan = plan_copies([share] * 50)
    assert plan.copies == copies == copies_for([share] * 50)
    assert plan.reached
    assert plan.away_chance == pytest.approx(away_chance(plan.shares))
    assert plan.away_chance <= plan.target * 1.001


def test_never_below_three_never_more_than_there_are() -> None:
    assert copies_for([0.9999] * 9) == 3
    assert copies_for([0.9999, 0.9999]) == 2
    plan = plan_copies([0.5] * 5)
    assert (plan.copies, plan.reached) == (5, False)
    empty = plan_copies([])
    assert (empty.copies, empty.away_chance, empty.reached) == (0, 1.0, False)


def test_each_peer_counts_with_its_own_share() -> None:
    assert away_chance([0.99, 0.9, 0.5, 0.5]) == pytest.approx(0.01 * 0.1 * 0.5 * 0.5)
    assert copies_for([0.99, 0.99, 0.5]) == 3
    assert copies_for([0.5, 0.5, 0.5, 0.99, 0.99, 0.99]) == 5, "in the order in which they would be chosen"


@given(st.lists(st.floats(0.0, 1.0), max_size=40), st.floats(1e-6, 0.5))
def test_fewer_copies_would_not_reach_the_target(shares: list[float], target: float) -> None:
    plan = plan_copies(shares, target)
    assert min(3, len(shares)) <= plan.copies <= len(shares)
    if plan.copies > 3:
        assert away_chance(shares[: plan.copies - 1]) > target
    if plan.copies < len(shares):
        assert plan.reached


@pytest.mark.parametrize("target", [0.0, 1.0, -1.0])
def test_a_target_that_is_no_chance_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="no chance"):
        plan_copies([0.5], target)
