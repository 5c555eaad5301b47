"""Benchmarks: `python -m dev.bench`. What they found is in docs/benchmarks.md."""
