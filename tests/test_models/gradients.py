"""Whether parameters get gradients."""

from collections.abc import Iterable

from torch import nn


def without_gradient(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
    """Names of the parameters that have no gradient, one of zeros, or one with a NaN or an infinity."""
    return [
        name
        for name, parameter in parameters
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
