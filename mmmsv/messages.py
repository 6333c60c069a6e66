"""Write lists of names and of mismatches for messages."""

from collections.abc import Iterable, Mapping

from torch import Tensor


def _shortened(names: Iterable[object], shown: int = 3) -> str:
    """List the first of some names, with dots for the others."""
    words = [str(name) for name in names]
    return ", ".join([*words[:shown], "..."] if len(words) > shown else words)


def first_of(names: Iterable[object], shown: int = 3) -> str:
    """List the first of some names, and say how many there are if that is not all."""
    names = list(names)
    return _shortened(names, shown) + (f" ({len(names)} in all)" if len(names) > shown else "")


def list_mismatches(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], shown: int = 3) -> list[str]:
    """List where weights and a model differ: a phrase for each kind of difference; empty where the weights fit.

    Args:
        expected: Names and tensors of the model.
        given: Names and tensors of the weights.
        shown: Number of names listed of each kind.
    """
    mismatches = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "no tensors": [name for name in given if name in expected and not isinstance(given[name], Tensor)],
        "of another shape": [
            f"{name} ({tuple(given[name].shape)} in the checkpoint, {tuple(tensor.shape)} in the model)"
            for name, tensor in expected.items()
            if isinstance(given.get(name), Tensor) and given[name].shape != tensor.shape
        ],
    }
    return [f"{len(names)} {kind}: {_shortened(names, shown)}" for kind, names in mismatches.items() if names]


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split(". ")[0][:200] if lines else type(error).__name__
