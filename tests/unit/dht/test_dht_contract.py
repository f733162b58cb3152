"""The installed kademlia and rpcudp packages still have every name and shape that p2pgrid.dht overrides or calls."""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import version
from pathlib import Path

import kademlia.crawling
import kademlia.network
import kademlia.node
import kademlia.protocol
import kademlia.routing
import kademlia.storage
import pytest
import rpcudp.protocol

from p2pgrid.dht import base
from p2pgrid.dht.contact import GridNode
from p2pgrid.dht.crawl import GridCrawl, GridHeap
from p2pgrid.dht.protocol import GridProtocol
from p2pgrid.dht.records import RecordStore
from p2pgrid.dht.server import GridServer
from p2pgrid.dht.table import GridBucket, GridTable

PAIRS = [
    (GridNode, kademlia.node.Node),
    (GridHeap, kademlia.node.NodeHeap),
    (GridCrawl, kademlia.crawling.SpiderCrawl),
    (GridBucket, kademlia.routing.KBucket),
    (GridTable, kademlia.routing.RoutingTable),
    (GridProtocol, kademlia.protocol.KademliaProtocol),
    (GridProtocol, rpcudp.protocol.RPCProtocol),
    (RecordStore, kademlia.storage.IStorage),
    (GridServer, kademlia.network.Server),
]
SIGNATURES = {
    (kademlia.node.Node, "__init__"): ["self", "node_id", "ip", "port"],
    (kademlia.node.NodeHeap, "__init__"): ["self", "node", "maxsize"],
    (kademlia.crawling.SpiderCrawl, "__init__"): ["self", "protocol", "node", "peers", "ksize", "alpha"],
    (kademlia.routing.KBucket, "__init__"): ["self", "rangeLower", "rangeUpper", "ksize", "replacementNodeFactor"],
    (kademlia.routing.RoutingTable, "__init__"): ["self", "protocol", "ksize", "node"],
    (kademlia.routing.RoutingTable, "find_neighbors"): ["self", "node", "k", "exclude"],
    (kademlia.routing.RoutingTable, "split_bucket"): ["self", "index"],
    (kademlia.protocol.KademliaProtocol, "__init__"): ["self", "source_node", "storage", "ksize"],
    (kademlia.protocol.KademliaProtocol, "handle_call_response"): ["self", "result", "node"],
    (kademlia.protocol.KademliaProtocol, "welcome_if_new"): ["self", "node"],
    (kademlia.protocol.KademliaProtocol, "rpc_ping"): ["self", "sender", "nodeid"],
    (kademlia.protocol.KademliaProtocol, "rpc_store"): ["self", "sender", "nodeid", "key", "value"],
    (kademlia.protocol.KademliaProtocol, "rpc_find_node"): ["self", "sender", "nodeid", "key"],
    (kademlia.protocol.KademliaProtocol, "call_store"): ["self", "node_to_ask", "key", "value"],
    (rpcudp.protocol.RPCProtocol, "_accept_response"): ["self", "msg_id", "data", "address"],
    (rpcudp.protocol.RPCProtocol, "_timeout"): ["self", "msg_id"],
    (kademlia.network.Server, "__init__"): ["self", "ksize", "alpha", "node_id", "storage"],
    (kademlia.network.Server, "stop"): ["self"],
    (kademlia.network.Server, "_create_protocol"): ["self"],
}


def test_the_pinned_version_is_installed() -> None:
    assert version("kademlia") == "2.2.3"
    assert version("rpcudp").startswith("5.")


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_our_classes_are_real_subclasses(ours: type, theirs: type) -> None:
    assert issubclass(ours, theirs)


@pytest.mark.parametrize("spot", SIGNATURES, ids=lambda spot: f"{spot[0].__name__}.{spot[1]}")
def test_the_signatures_we_rely_on_are_unchanged(spot: tuple[type, str]) -> None:
    assert list(inspect.signature(getattr(*spot)).parameters) == SIGNATURES[spot]


def test_every_method_that_the_stub_declares_exists() -> None:
    tree = ast.parse(Path(base.__file__).with_suffix(".pyi").read_text())
    declared = 0
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_"):
            real = getattr(base, statement.name)
            for item in statement.body:
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert callable(getattr(real, item.name)), (statement.name, item.name)
                    assert inspect.iscoroutinefunction(getattr(real, item.name)) == isinstance(item, ast.AsyncFunctionDef)
                    declared += 1
    assert declared > 50


@pytest.mark.parametrize("name", ["call_find_node", "call_ping", "call_store", "rpc_ping", "rpc_store", "rpc_find_node", "connection_made"])
def test_the_protocol_runs_these_inherited_methods(name: str) -> None:
    assert getattr(GridProtocol, name) is getattr(kademlia.protocol.KademliaProtocol, name)


def test_outstanding_calls_are_kept_as_future_and_timer() -> None:
    source = inspect.getsource(rpcudp.protocol.RPCProtocol._accept_response)
    assert "future, timeout = self._outstanding[msg_id]" in source
