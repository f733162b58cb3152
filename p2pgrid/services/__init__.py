"""The machines of ``core`` joined to network, disk and processes: one file a duty of the node."""
