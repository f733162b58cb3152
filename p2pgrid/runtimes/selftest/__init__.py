"""A node attacks its own cages before it offers them to anybody.

``attacks`` holds the attack code: ordinary modules of the standard library alone, which are sent as text and run as units like anybody's.
``canaries`` makes what they aim at. ``native``, ``commands``, ``webassembly`` and ``guest`` send them through the real worker pool.
``running`` turns what came of it into reports; ``report`` says what a report is, and keeps the last one.
"""
