"""The code inside a worker process.

Started by path with ``-P -s -S`` and an environment of its own. ``launch`` gives this tree a private package name, so that
these files import each other relatively, never run ``p2pgrid/__init__``, and leave the name ``p2pgrid`` to the job. Only the
standard library, msgspec and blake3 are used, all of it as late as possible: start-up time is paid by every job.
"""
