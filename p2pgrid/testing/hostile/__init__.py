"""Machines and nodes that do not keep to the protocol."""
