"""Fit the polynomials of the Triton kernels, for softplus, its slope and GELU, and print how exact they are in float32.

python -m benchmarks.polynomials
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial.chebyshev import Chebyshev
from numpy.polynomial.polynomial import Polynomial


@np.vectorize
def tail(t: float) -> float:
    """Return Normal(-p) exp(p^2 / 2), where t = 1 / (1 + p / 4)."""
    p = 4 / t - 4
    return math.erfc(p / math.sqrt(2)) / 2 * math.exp(p * p / 2)


# What is fitted, from where to where, and by what degree. Beyond p = 7, where the tail begins, GELU is 0 in float32.
FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float, float, int]] = {
    "log(1 + e) / e": (lambda e: np.log1p(e) / e, 0.0, 1.0, 8),
    "(1 - exp(-s)) / s": (lambda s: -np.expm1(-s) / s, 0.0, 0.5, 5),
    "Normal(-p) exp(p^2 / 2)": (tail, 1 / (1 + 7 / 4), 1.0, 7),
}


def fit(function: Callable[[np.ndarray], np.ndarray], begin: float, end: float, degree: int) -> np.ndarray:
    """Return the coefficients of a nearly best polynomial on (begin, end], lowest first, rounded to float32."""
    nodes = begin + (np.cos(np.pi * (np.arange(400) + 0.5) / 400) + 1) / 2 * (end - begin)
    series = Chebyshev.fit(nodes, function(nodes), degree, domain=[begin, end])
    return series.convert(kind=Polynomial).coef.astype(np.float32)


def error(coefficients: np.ndarray, function: Callable[[np.ndarray], np.ndarray], begin: float, end: float) -> float:
    """Return the largest relative error, by Horner's scheme in float32."""
    x = np.linspace(begin + 1e-6, end, 100_001)
    value = np.zeros(len(x), np.float32)
    for coefficient in coefficients[::-1]:
        value = value * x.astype(np.float32) + coefficient
    return float(np.abs(value / function(x) - 1).max())


def main() -> None:
    """Print all."""
    for name, (function, begin, end, degree) in FUNCTIONS.items():
        coefficients = fit(function, begin, end, degree)
        print(f"{name} on {begin:.2g}..{end}: off by {error(coefficients, function, begin, end):.1e}")
        print("   ", *map(float, coefficients))


if __name__ == "__main__":
    main()
