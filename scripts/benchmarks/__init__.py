"""The benchmarks of `scripts/bench.py`, a file each. Their function `measure` returns the results."""
