"""Measure, in turns, time and memory of models (``tools/throughput.py``) and of scans (``benchmarks/``)."""
