"""Nominal against measured: how often the sentences of deltaw are wrong where the truth is known.

`python -m benchmarks.calibration` prints one table for each module here and, with --write, enters them into
docs/validity.md.
"""
