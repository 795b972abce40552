"""A paper's claims, asked again on the reference models; `python -m benchmarks.claims`."""
