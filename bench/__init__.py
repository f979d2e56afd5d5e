"""Benchmarks: every figure of "How fast", as ratios measured in one run. `python -m bench --help`."""
