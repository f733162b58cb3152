"""How often others are looked for: often while anybody comes or goes, seldom when nothing changes."""

from __future__ import annotations

from p2pgrid.services.calm import LEFT_OUT_MAX, UNREST_S, Calm


class Turns:
    """A node that takes turns, with a clock of its own."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calm = Calm(lambda: self.now_s)

    def take(self, count: int, *, found_nothing: bool = True) -> str:
        """So many turns: ``x`` for each look, ``.`` for each that was left out."""
        seen = ""
        for _ in range(count):
            due = self.calm.is_due()
            seen += "x" if due else "."
            if due:
                self.calm.looked(found_nothing=found_nothing)
        return seen


def test_the_longer_nothing_changes_the_later_comes_the_next_look_within_a_bound() -> None:
    assert Turns().take(21) == "x.x..x...x....x.....x"
    turns = Turns()
    turns.take(21)
    assert turns.take(60).count("x") == 60 // (LEFT_OUT_MAX + 1)


def test_every_turn_is_used_while_looks_find_something() -> None:
    assert Turns().take(5, found_nothing=False) == "xxxxx"


def test_whoever_comes_or_goes_makes_the_next_turn_a_look() -> None:
    turns = Turns()
    turns.take(21)
    turns.calm.stir()
    assert turns.take(6) == "x.x..x"


def test_after_a_loss_no_turn_is_left_out_for_a_while() -> None:
    turns = Turns()
    turns.take(21)
    turns.calm.stir(lost=True)
    assert turns.take(5) == "xxxxx"
    turns.now_s = UNREST_S
    assert turns.take(6) == "x.x..x"
