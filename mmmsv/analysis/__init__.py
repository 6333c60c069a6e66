"""Count what a model costs (``flops``), and measure speed and memory (``speed``; of scans without MMEngine)."""
