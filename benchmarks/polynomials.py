"""Fit the polynomials of the Triton kernels, for the softplus and its slope, and print how exact they are in float32.

python -m benchmarks.polynomials
"""

from collections.abc import Callable

import numpy as np
from numpy.polynomial.chebyshev import Chebyshev
from numpy.polynomial.polynomial import Polynomial

# What is fitted, to which end of an interval from 0, and by what degree.
FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float, int]] = {
    "log(1 + e) / e": (lambda e: np.log1p(e) / e, 1.0, 8),
    "(1 - exp(-s)) / s": (lambda s: -np.expm1(-s) / s, 0.5, 5),
}


def fit(function: Callable[[np.ndarray], np.ndarray], end: float, degree: int) -> np.ndarray:
    """Return the coefficients of a nearly best polynomial on (0, end], lowest first, rounded to float32."""
    nodes = (np.cos(np.pi * (np.arange(400) + 0.5) / 400) + 1) / 2 * end
    series = Chebyshev.fit(nodes, function(nodes), degree, domain=[0, end])
    return series.convert(kind=Polynomial).coef.astype(np.float32)


def error(coefficients: np.ndarray, function: Callable[[np.ndarray], np.ndarray], end: float) -> float:
    """Return the largest relative error, by Horner's scheme in float32."""
    x = np.linspace(1e-6, end, 100_001)
    value = np.zeros(len(x), np.float32)
    for coefficient in coefficients[::-1]:
        value = value * x.astype(np.float32) + coefficient
    return float(np.abs(value / function(x) - 1).max())


def main() -> None:
    """Print both."""
    for name, (function, end, degree) in FUNCTIONS.items():
        coefficients = fit(function, end, degree)
        print(f"{name} on 0..{end}: off by {error(coefficients, function, end):.1e}")
        print("   ", *map(float, coefficients))


if __name__ == "__main__":
    main()
