"""The norm of tokens in Triton kernels, and the moments that it keeps: mean and inverse deviation of each token."""

import triton
import triton.language as tl


@triton.jit
def normalise(x, mask, channels, eps):
    """Return the values of some tokens with mean 0 and deviation 1, the means, and the inverse deviations."""
    mean = tl.sum(x, 1, keep_dims=True) / channels
    centred = tl.where(mask, x - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 1, keep_dims=True) / channels + eps)
    return centred * inverse, mean, inverse


@triton.jit
def write_moments(moments, rows, inside, mean, inverse):
    """Write the moments of some tokens."""
    tl.store(moments + rows * 2, mean, inside)
    tl.store(moments + rows * 2 + 1, inverse, inside)


@triton.jit
def normalise_again(x, mask, moments, rows, inside):
    """Return what :func:`normalise` does, by the moments that it wrote."""
    mean = tl.load(moments + rows * 2, inside, 0.0)
    inverse = tl.load(moments + rows * 2 + 1, inside, 0.0)
    return tl.where(mask, (x - mean) * inverse, 0.0), inverse


@triton.jit
def through_norm(gradient, normal, inverse, channels):
    """Return the gradient of what went into a norm, from that of the normalised values."""
    mean = tl.sum(gradient, 1, keep_dims=True) / channels
    along = tl.sum(gradient * normal, 1, keep_dims=True) / channels
    return inverse * (gradient - mean - normal * along)
