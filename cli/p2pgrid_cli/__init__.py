"""The command line of p2pgrid."""
