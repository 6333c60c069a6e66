"""How the Triton kernels around the scans read maps ``(batch, H, W, D)``."""

from torch import Tensor

from ...strides import last_axis_innermost


def flat(map_: Tensor) -> Tensor:
    """Return a map whose tokens lie at one distance, channels innermost: usually itself."""
    map_ = last_axis_innermost(map_)
    return map_ if map_.stride(1) == map_.shape[2] * map_.stride(2) or map_.shape[1] == 1 else map_.contiguous()


def strides(map_: Tensor) -> tuple[int, int]:
    """Return the distances between images, and between tokens."""
    return map_.stride(0), map_.stride(2) if map_.shape[2] > 1 else map_.stride(1)


def vector(*maps: Tensor | None) -> int:
    """Return how many neighbouring channels can be read at once, so that no read is of more than 16 bytes."""
    given = [map_ for map_ in maps if map_ is not None]
    most = 16 // given[0].element_size()
    while most > 1 and any(
        map_.data_ptr() % (most * map_.element_size())
        or any(number % most for number in (map_.shape[-1], *map_.stride()[:-1]))
        for map_ in given
    ):
        most //= 2
    return most
