"""SiLU and GELU in Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def _normal_distribution(p):
    """Return the density of the normal distribution at p, and its cumulative function, with which GELU weighs p."""
    density = 0.3989422804014327 * tl.exp2(p * p * -0.7213475204444817)
    if p.dtype == tl.float64:
        below = 0.5 * (1.0 + tl.erf(p * 0.7071067811865476))
    else:
        # Normal(-p) exp(p^2 / 2) by t, to 3.2e-7: benchmarks/polynomials.py. What is left of t there is 0 in float32.
        t = 1.0 / (1.0 + 0.25 * tl.abs(p))
        q = 0.375594824552536 - 0.09870178997516632 * t
        q = q * t - 0.3349243104457855
        q = q * t + 0.3543664813041687
        q = q * t - 0.020882323384284973
        q = q * t + 0.12860190868377686
        q = q * t + 0.09570761770009995
        q = (q * t + 0.00023755755682941526) * (density * 2.5066282746310002)
        below = tl.where(p < 0.0, q, 1.0 - q)
    return density, below


@triton.jit
def activate(p, ACTIVATION: tl.constexpr):
    """Return the activation of p."""
    if ACTIVATION == "silu":
        p *= tl.sigmoid(p)
    if ACTIVATION == "gelu":
        _, below = _normal_distribution(p)
        p *= below
    return p


@triton.jit
def slope(p, ACTIVATION: tl.constexpr):
    """Return the derivative of the activation at p."""
    if ACTIVATION == "silu":
        sigmoid = tl.sigmoid(p)
        return sigmoid * (1.0 + p * (1.0 - sigmoid))
    else:
        tl.static_assert(ACTIVATION == "gelu")
        density, below = _normal_distribution(p)
        return below + p * density
