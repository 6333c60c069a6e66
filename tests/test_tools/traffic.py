"""What a model launches and moves on a GPU, counted without one; no kernel is compiled. test_traffic.py runs it."""

import pytest
import torch

from benchmarks.traffic import Step, count_steps
from mmmsv.analysis.speed.models import build, full_name

# What waits for the GPU, or copies from the host: neither can be captured in a CUDA graph.
SYNCHRONISES = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "item",
    "lift_fresh",
    "masked_select",
    "nonzero",
    "unique2",
}


def count(name: str, training: bool) -> list[Step]:
    return count_steps(lambda: build(full_name(name), maps=False), (128, 3, 224, 224), training)


@pytest.fixture(scope="module")
def steps():
    return {training: count("tiny", training) for training in (False, True)}


@pytest.mark.parametrize("training", [False, True])
def test_a_cuda_graph_could_capture_it(steps, training):
    """Nothing waits for the GPU, and a second pass has the same launches and makes the same tensors."""
    first, again = steps[training], count("tiny", training)
    assert not [step.name for step in first if step.name in SYNCHRONISES]
    assert [(one.name, one.shape, one.moved) for one in first] == [(one.name, one.shape, one.moved) for one in again]
    launched = [(step.launch.programs, step.launch.options) for step in first if step.launch]
    assert launched == [(step.launch.programs, step.launch.options) for step in again if step.launch]
    assert len(launched) > 100


def test_what_waits_is_seen():
    class Waits(torch.nn.Module):
        def forward(self, x):
            return x + torch.tensor([1.0, 2.0])

    assert SYNCHRONISES & {step.name for step in count_steps(Waits, (1, 3, 2, 2), training=False)}


@pytest.mark.parametrize(("training", "bytes_of_its", "launches_of_its"), [(False, 0.96, 2.4), (True, 1.05, 3.2)])
def test_bytes_and_launches_beside_those_of_convnext(steps, training, bytes_of_its, launches_of_its):
    """At most as many as were agreed: a change that costs more is one to look at."""
    ours, theirs = steps[training], count("convnext_tiny", training)
    assert sum(step.moved for step in ours) <= bytes_of_its * sum(step.moved for step in theirs)
    assert len(ours) <= launches_of_its * len(theirs)


def test_every_kernel_is_launched(steps):
    kernels = {step.launch.kernel for step in steps[True] if step.launch}
    assert kernels >= {"scan_forward", "scan_backward", "convolve", "conv_backward_weight", "gate_backward"}
    assert kernels >= {"norm_forward", "norm_backward", "merge_forward", "merge_backward_half"}


def test_what_a_pass_moves():
    """The bytes of PyTorch's ops: what each reads and writes, weights that are cast included."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1, bias=False), torch.nn.GELU())
    conv, gelu = [
        step
        for step in count_steps(lambda: model, (2, 3, 4, 5), training=False)
        if step.name in ("convolution", "gelu")
    ]
    assert (conv.read, conv.written) == (2 * (2 * 3 * 20 + 24), 2 * 2 * 8 * 20)
    assert (conv.flops, conv.depthwise) == (2 * 2 * 20 * 24, False)
    assert (gelu.read, gelu.written) == (2 * 2 * 8 * 20, 2 * 2 * 8 * 20)
