"""L4: a node ends in bounded time and leaves nothing behind."""

from __future__ import annotations

from p2pgrid.testing.observe import Onlooker

EXIT_S = 30.0


class EndingChecker(Onlooker):
    """L4, for every node that is closed at the end."""

    invariant = "L4"

    def __init__(self) -> None:
        super().__init__()
        self.exits = 0
        self.slowest_s = 0.0

    def at_exit(self, name: str, left: dict[str, int]) -> None:
        self.exits += 1
        took_s = float(left.get("seconds", 0))
        self.slowest_s = max(self.slowest_s, took_s)
        if took_s > EXIT_S:
            self.violate(name, f"closing took {took_s:.0f} s, {EXIT_S:.0f} are the most")
        for what, count in sorted(left.items()):
            if what != "seconds" and count:
                self.violate(name, f"{count} {what} were left behind")
