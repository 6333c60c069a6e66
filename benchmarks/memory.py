"""Peak memory of a forward and backward pass; runs in a process of its own, which nothing else has used memory in."""

from functools import partial

import torch
from cases import Case, output_gradient
from measure import results
from peers import peers

from mmmsv.analysis.speed.memory import rise


def extra_memory(name: str, case: Case, device: str) -> float:
    """Return the peak of all that is not input or dy (y, gradients, what is kept and scratch), in multiples of x.

    Raises:
        OSError: The system does not tell (anything but Linux, some containers).
    """
    where = torch.device(device)
    peer = next(peer for peer in peers(where) if peer.name == name)
    first, scan = case.tiny().scan(where), case.scan(where)
    results(peer, first, output_gradient(first))  # what a first call loads and starts
    x = scan.tensors[0]
    extra = rise(partial(results, peer, scan, output_gradient(scan)), where)
    return extra / (x.numel() * x.element_size())
