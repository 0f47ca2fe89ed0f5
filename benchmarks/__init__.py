"""Measurements that are too long for the test suite: `python -m benchmarks` lists them.

Each is a module with `main(arguments)`; it prints what it found and exits with 1 when a promise was not kept.
"""
