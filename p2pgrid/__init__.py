"""p2pgrid: a peer-to-peer grid for sharing spare CPU and storage."""

__version__ = "0.1.0"
