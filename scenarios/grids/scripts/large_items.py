# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Items too large to travel in a batch: workers fetch them as blobs, one after the other."""


def inputs():
    for number in range(12):
        yield [number, bytes([number]) * 150_000]


def work(item):
    number, content = item
    return [number, sum(content)]
