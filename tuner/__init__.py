"""A grid of runs: planned from YAML, scheduled on Ray Tune, recorded in a results store. Only here is Ray imported."""
