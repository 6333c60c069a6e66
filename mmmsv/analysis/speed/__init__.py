"""How fast models are, and how much memory they take: ours beside torchvision's. ``tools/throughput.py`` runs it.

``benchmarks/`` measures the scan alone with the same clocks.
"""
