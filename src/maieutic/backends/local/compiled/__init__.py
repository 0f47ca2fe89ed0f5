"""Kernels compiled by Numba, for decode steps and for updates on a CPU; see `maieutic.backends.local.kernels`."""
