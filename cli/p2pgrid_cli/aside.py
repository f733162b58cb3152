"""One line at the end of the terminal says what is being done; whoever prints there takes it away first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

Aside = Callable[[], AbstractContextManager[None]]
"""While it is entered, a line is away."""

_shown: list[Aside] = []


def shows(line: Aside) -> None:
    """A line is drawn from now on."""
    _shown.append(line)


def shows_no_more(line: Aside) -> None:
    """It has gone. Harmless for one that was never there."""
    if line in _shown:
        _shown.remove(line)


@contextmanager
def aside() -> Iterator[None]:
    """While something else is printed, in any thread."""
    with ExitStack() as stack:
        for line in tuple(_shown):
            stack.enter_context(line())
        yield
