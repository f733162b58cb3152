"""Bytes: codec, framing, keys and the signed envelope. Pure: no sockets, no clock."""
