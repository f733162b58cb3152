"""What the grid costs, beside the tools people use today: ``python -m bench quick`` (docs/benchmarks.md)."""
