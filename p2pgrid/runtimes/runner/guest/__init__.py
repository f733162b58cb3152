"""What runs inside of the Python runner: imported under the name ``p2pgrid_guest`` by CPython 3.14, never by the node itself.

Only the standard library is there. ``codec`` must agree with ``p2pgrid.model.values`` to the byte: two workers that ran the same unit,
one natively and one in here, are compared by their bytes.
"""
