"""Count what a model costs, measure how fast it is, and compute what can be seen of it.

``flops`` counts parameters and multiply-adds; ``speed`` measures speed and memory (of scans without MMEngine).

What docs/gallery.md shows is computed as arrays in ``routes``, ``decay``, ``attention``, ``receptive_field``,
``features``, ``cam`` and ``scaling``, and drawn in ``figures``; ``report`` puts all of it into one page. They share
``networks`` (loading), ``photographs`` (reading), ``scans`` (what the scans of a block are given) and ``command_line``.
"""
