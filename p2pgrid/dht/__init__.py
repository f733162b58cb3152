"""The distributed hash table: the kademlia package, hardened (docs/spec/dht.md).

Carrier -> Gate (signatures, membership, limits) -> GridProtocol -> GridTable, GridCrawl, RecordStore -> GridServer.
"""
