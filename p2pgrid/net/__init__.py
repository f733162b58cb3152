"""Connections between nodes: transports, the stream layer and the RPC mux."""
