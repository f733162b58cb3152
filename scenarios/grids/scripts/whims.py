# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Units whose values depend on what the process that runs them did before: no two runs of a unit need to agree."""

_done = []


def inputs():
    return range(48)


def work(number):
    _done.append(number)
    return [number, len(_done), sum(_done)]
