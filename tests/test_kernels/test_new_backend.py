"""A backend is added by the steps of mmmsv/kernels/README.md and nothing else."""

import dataclasses

import pytest
import torch

from mmmsv.kernels import BACKENDS, gate, linear, merge_scales, scan2d, selective_scan, use_backend
from mmmsv.kernels.arguments import Gate, Scan2d, SelectiveScan
from mmmsv.kernels.dispatch import Backend, Kernel, register

from .scan_inputs import MapCase, assert_near, exact_map, run_map, run_with_last_state, scan_inputs

CASE = MapCase(dtype=torch.float32, state=2, routes=("row", "col_rev"), carry=True, merge=False)


class Toy:
    """Kernels that borrow their arithmetic from other backends, and count their calls."""

    def __init__(self):
        self.calls, self.reason = [], None

    def scan(self, scan: Scan2d):
        self.calls.append("scan")
        return BACKENDS["reference"].scan2d.forward(scan)

    def scan_backward(self, scan: Scan2d, dy, states):
        self.calls.append("scan_backward")
        return BACKENDS["reference"].scan2d.backward(scan, dy, states)

    def sequences(self, given: SelectiveScan):
        self.calls.append("sequences")
        return BACKENDS["reference"].selective_scan.forward(given)

    def sequences_backward(self, given: SelectiveScan, dy, dlast, states):
        self.calls.append("sequences_backward")
        return BACKENDS["reference"].selective_scan.backward(given, dy, dlast, states)

    def gate(self, given: Gate):
        self.calls.append("gate")
        y, z, weight = given
        return y * torch.nn.functional.silu(z) * weight[:, None, None], given.new_results()[1]

    def gate_backward(self, given: Gate, dout, kept):
        self.calls.append("gate_backward")
        y, z, weight = given
        weight, sigmoid = weight[:, None, None], torch.sigmoid(z)
        slope = sigmoid * (1 + z * (1 - sigmoid))
        return dout * weight * z * sigmoid, dout * weight * y * slope, (dout * y * z * sigmoid).sum((1, 2))

    def why_not(self, device):
        return self.reason


@pytest.fixture
def toy():
    before = dict(BACKENDS)
    toy = Toy()
    register(
        Backend(
            "toy",
            toy.why_not,
            automatic_for=("cpu",),
            priority=100,
            selective_scan=Kernel(toy.sequences, toy.sequences_backward),
            scan2d=Kernel(toy.scan, toy.scan_backward),
            gate=Kernel(toy.gate, toy.gate_backward),
        )
    )
    yield toy
    BACKENDS.clear()
    BACKENDS.update(before)


def maps(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def test_it_is_chosen_for_its_device(toy):
    inputs = {name: tensor.detach() for name, tensor in CASE.inputs().items()}
    scan2d(**inputs, **CASE.options)
    assert toy.calls == ["scan"]
    with use_backend("torch"):
        scan2d(**inputs, **CASE.options)
    assert toy.calls == ["scan"]


def test_its_scans_of_maps_and_of_sequences(toy):
    for ours, theirs in zip(run_map("toy", CASE.inputs(), CASE.options), exact_map(CASE), strict=True):
        assert_near(ours, theirs, 2e-5)
    inputs = scan_inputs(state=2, groups=3, all_of_them=True)
    results = run_with_last_state("toy", inputs), run_with_last_state("reference", inputs)
    for ours, theirs in zip(*results, strict=True):
        assert_near(ours, theirs, 1e-12)
    assert toy.calls == ["scan", "scan_backward", "sequences", "sequences_backward"]


def test_its_gate_has_gradients_and_compiles(toy):
    tensors = maps((2, 5, 3, 6), (2, 5, 3, 6), (2, 6))
    torch.compiler.reset()
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager")
    results = []
    for function, backend in ((gate, "toy"), (compiled, "toy"), (gate, "torch")):
        with use_backend(backend):
            y = function(*tensors)
            results.append((y, *torch.autograd.grad(y.square().sum(), tensors)))
    for ours in results[:2]:
        torch.testing.assert_close(ours, results[2])
    assert toy.calls == ["gate", "gate_backward"] * 2


def test_what_it_lacks_the_next_one_computes(toy):
    full, half, weight, bias = maps((1, 4, 4, 8), (1, 1, 2, 2, 8), (8,), (8,))
    results = []
    for backend in ("toy", "torch"):
        with use_backend(backend):
            results.append((merge_scales(full, half, weight, bias, 1e-5, True), linear(full, torch.eye(8))))
    torch.testing.assert_close(*results)
    assert toy.calls == []


def test_a_name_is_given_once(toy):
    names = list(BACKENDS)
    with pytest.raises(ValueError, match="there is a backend 'toy' already; register this one under another name"):
        register(Backend("toy", toy.why_not))
    assert list(BACKENDS) == names
    assert names[0] == "toy"


def test_it_says_why_it_cannot_run(toy):
    toy.reason = "its abacus is on holiday"
    with use_backend("toy"), pytest.raises(RuntimeError, match="cannot run on cpu: its abacus is on holiday"):
        selective_scan(**scan_inputs())
    selective_scan(**scan_inputs())  # by the next one
    assert toy.calls == []


@pytest.mark.parametrize("gradients", [(None, None, None), (torch.ones(2, 5, 3, 6),)], ids=["forgotten", "too few"])
def test_a_gradient_that_is_missing(toy, monkeypatch, gradients):
    tensors = maps((2, 5, 3, 6), (2, 5, 3, 6), (2, 6))
    incomplete = dataclasses.replace(BACKENDS["toy"], gate=Kernel(toy.gate, lambda *_: gradients))
    monkeypatch.setitem(BACKENDS, "toy", incomplete)
    with use_backend("toy"), pytest.raises(TypeError, match="gate: a kernel's backward returned"):
        gate(*tensors).sum().backward()
