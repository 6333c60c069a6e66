"""Measure time and memory, in turns: of models, for ``tools/throughput.py``, and of scans, for ``benchmarks/``."""
