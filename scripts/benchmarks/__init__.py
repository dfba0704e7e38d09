"""The benchmarks of `scripts/bench.py`: each `bench_*.py`, and time_to_auroc.py, has a function `measure`.

measurement.py and result_table.py serve all of them, and random_table.py serves two.
"""
