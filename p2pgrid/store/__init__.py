"""What a node keeps on disk: blobs, job ledgers, the index over both, and the home folder around them."""
