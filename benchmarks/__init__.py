"""Benchmarks, run by hand: ratios in one run on one machine, kept as JSON under `results/`. CI does not time them."""
