"""The classes of the kademlia package that this package stands on, in one place.

They are untyped; ``base.pyi`` beside this file declares what we rely on, and
tests/unit/dht/test_dht_contract.py holds the installed package to it.
"""

from __future__ import annotations

import logging

from kademlia.crawling import SpiderCrawl
from kademlia.network import Server
from kademlia.node import Node, NodeHeap
from kademlia.protocol import KademliaProtocol
from kademlia.routing import KBucket, RoutingTable
from kademlia.storage import IStorage

__all__ = ["IStorage", "KBucket", "KademliaProtocol", "Node", "NodeHeap", "RoutingTable", "Server", "SpiderCrawl"]

# The packages log every lost or unwanted datagram as a warning or an error. On an open network that is a
# flood anybody can cause, so only what is worse passes unless the application has chosen otherwise.
for _name in ("kademlia", "rpcudp"):
    if logging.getLogger(_name).level == logging.NOTSET:
        logging.getLogger(_name).setLevel(logging.CRITICAL)
