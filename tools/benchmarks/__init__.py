"""The benchmarks of `tools/bench.py`, one module each, and the peers that they compare with."""
