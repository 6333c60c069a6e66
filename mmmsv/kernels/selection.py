"""What the kernels are chosen by, besides their arguments."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .dispatch import chosen_backend, use_chosen_backend


@dataclass(frozen=True)
class Selection:
    """What the kernels are chosen by: a backend, whether oneDNN may be used, and torch's function for linear layers.

    A tool that counts calls puts another function in the place of torch's.
    """

    backend: str | None
    onednn: bool
    linear: Callable[..., Tensor]

    @classmethod
    def current(cls) -> "Selection":
        """Return that of now."""
        return cls(chosen_backend(), bool(torch.backends.mkldnn.enabled), functional.linear)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Choose by this one while a ``with`` block runs."""
        now = Selection.current()
        with ExitStack() as stack:
            if self.backend != now.backend:
                stack.enter_context(use_chosen_backend(self.backend))
            if self.onednn != now.onednn:
                stack.callback(torch.backends.mkldnn.set_flags, now.onednn)
                torch.backends.mkldnn.set_flags(self.onednn)
            if self.linear is not now.linear:
                stack.callback(setattr, functional, "linear", now.linear)
                functional.linear = self.linear
            yield
