"""Why something is as it is: of a blob, a job, a unit, a peer, and of this node (docs/spec/faces.md#reasons)."""
