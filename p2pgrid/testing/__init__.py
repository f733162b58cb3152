"""Parts for testing grids without a network: public, so that a user's own tests may use them.

:class:`MemoryNetwork` and :class:`MemoryTransport` stand in for TCP and TLS inside one process; ``p2pgrid.testing.heap``
drives the machines of ``core`` in virtual time from one seed.
"""

from p2pgrid.net.memory import MemoryNetwork, MemoryTransport

__all__ = ["MemoryNetwork", "MemoryTransport"]
