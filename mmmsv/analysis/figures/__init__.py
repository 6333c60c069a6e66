"""Draw what ``mmmsv.analysis`` computes, and save it: a PNG, an SVG, and the arrays."""
