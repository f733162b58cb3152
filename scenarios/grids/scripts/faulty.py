# /// script
# requires-python = ">=3.11"
# dependencies = []
#
# [tool.p2pgrid]
# attempts = 2
# timeout = 2.0
# ///
"""Units of which some go wrong: they raise, return far too much, or take longer than they may (by the scenario's times)."""


def inputs():
    return range(40)


def work(number):
    if number % 10 == 3:
        raise ValueError(f"{number} is not to my taste")
    if number == 7:
        return bytes(70 << 20)
    return number + 1
