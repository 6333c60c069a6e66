"""Memory that a kernel may access: the tensors that it is given, and what its programs share among their threads."""

import ctypes
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from . import SimulationError
from .races import Accesses
from .registers import UNSIGNED

# Bytes of the largest access, at an address that is a multiple of it.
_LARGEST = 16


class Piece:
    """Memory without gaps, from an address on.

    Args:
        name: What it is called in messages.
        start: Address of the first byte, as threads give it.
        memory: The bytes, from the multiple of the largest access before ``start`` to the one after the end.
        size: How many of them may be accessed.
    """

    def __init__(self, name: str, start: int, memory: np.ndarray, size: int) -> None:
        self.name, self.start, self.size = name, start, size
        self.base = start - start % _LARGEST
        self.accesses = Accesses()
        self._memory = memory
        self._views: dict[tuple[int, int], np.ndarray] = {}

    @classmethod
    def of_addresses(cls, name: str, start: int, end: int) -> "Piece":
        """View what is in this process' memory."""
        base = start - start % _LARGEST
        size = -(-(end - base) // _LARGEST) * _LARGEST
        memory = np.frombuffer((ctypes.c_uint8 * size).from_address(base), np.uint8)
        return cls(name, start, memory, end - start)

    def numbers(self, size: int, count: int) -> np.ndarray:
        """View the bytes as ``(elements, count)`` numbers of so many bytes."""
        key = size, count
        if key not in self._views:
            self._views[key] = self._memory.view(UNSIGNED[size]).reshape(-1, count)
        return self._views[key]


def pieces(tensors: Iterable[torch.Tensor]) -> list[Piece]:
    """Return the memory that tensors reach from their first to their last element, in the order of the addresses."""
    reached = []
    for tensor in tensors:
        if tensor.numel():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            name = f"a tensor of shape {tuple(tensor.shape)} with strides {tensor.stride()}"
            reached.append((start, start + (last + 1) * tensor.element_size(), name))
    found: list[tuple[int, int, str]] = []
    for start, end, name in sorted(reached):
        if found and start < found[-1][1]:  # of one storage
            found[-1] = found[-1][0], max(end, found[-1][1]), f"{found[-1][2]} and {name}"
        else:
            found.append((start, end, name))
    return [Piece.of_addresses(name, start, end) for start, end, name in found]


class GlobalMemory:
    """The memory of some tensors."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self.pieces = pieces(tensors)
        self._starts = np.array([piece.start for piece in self.pieces], np.uint64)

    def locate(self, addresses: np.ndarray, size: int) -> Iterator[tuple[Piece, np.ndarray | None, np.ndarray]]:
        """Yield the pieces that addresses are in, which are in each (None: all), and their offsets from its base.

        Raises:
            SimulationError: An access of so many bytes is not wholly within one piece.
        """
        piece = self._piece(addresses[0])
        offsets = addresses - np.uint64(piece.start)  # before the start: beyond all ends
        if offsets.max() + size <= piece.size and offsets.max() <= piece.size:
            yield piece, None, (addresses - np.uint64(piece.base)).view(np.int64)
            return
        places = np.searchsorted(self._starts, addresses, "right") - 1
        for place in np.unique(places):
            chosen = np.flatnonzero(places == place)
            piece = self.pieces[max(place, 0)]
            offsets = addresses[chosen] - np.uint64(piece.start)
            beyond = (offsets > piece.size) | (offsets + np.uint64(size) > piece.size)
            if beyond.any():
                raise SimulationError(self._beyond(int(addresses[chosen[beyond.argmax()]]), size))
            yield piece, chosen, (addresses[chosen] - np.uint64(piece.base)).view(np.int64)

    def _piece(self, address: np.uint64) -> Piece:
        if not self.pieces:
            raise SimulationError("an access to memory, of which the kernel was given none")
        return self.pieces[max(int(np.searchsorted(self._starts, address, "right")) - 1, 0)]

    def _beyond(self, address: int, size: int) -> str:
        distances = ((max(each.start - address, address + size - each.start - each.size), each) for each in self.pieces)
        distance, piece = min(distances, key=lambda pair: pair[0])
        where = "before" if address < piece.start else "after"
        return f"an access of {size} bytes, {distance} bytes {where} {piece.name}"


class SharedMemory:
    """What each program shares among its threads; NaN until something is written.

    Args:
        size: Bytes of a program.
        programs: How many there are.
    """

    def __init__(self, size: int, programs: int) -> None:
        self.size = size
        self.stride = -(-max(size, 1) // _LARGEST) * _LARGEST
        memory = np.full(self.stride * programs, 0xFF, np.uint8)
        self.piece = Piece("shared memory", 0, memory, memory.size)

    def offsets(self, addresses: np.ndarray, size: int, programs: np.ndarray) -> np.ndarray:
        """Return the offsets of addresses in the memories of some programs.

        Raises:
            SimulationError: An access of so many bytes is not wholly within.
        """
        last = int(addresses.max())
        if last + size > self.size:
            raise SimulationError(f"an access of {size} bytes at {last} of shared memory, which has {self.size}")
        return addresses.astype(np.int64) + programs * self.stride
