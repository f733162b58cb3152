"""Every decision of the protocol, without I/O: plain objects with ``handle(event, now) -> effects``.

No sockets, no clock, no global randomness: what is needed comes in as an argument.
"""
