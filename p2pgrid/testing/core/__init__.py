"""The core's machines alone on an event heap: wide batches, a thousand nodes, a million units, lookups."""
