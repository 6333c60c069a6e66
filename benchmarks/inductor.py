"""Ask torch.compile what it would launch for a block on a GPU, without one: inductor's kernels, and what they move.

The block is traced on CPU tensors, the graph is moved to a pretended H100, and inductor lowers it up to its scheduler:
its decisions to fuse are real, nothing is tuned, generated or run. This leans on internals of torch 2.11.
"""

import contextlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch._inductor.config
from functorch.compile import min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

_H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 << 20,
    gcnArchName="",
)


class InductorKernel(NamedTuple):
    """A launch of a compiled block.

    Args:
        name: What inductor made of how many ops, or the op that it calls.
        moved: Bytes that it reads and writes.
    """

    name: str
    moved: int


class _Graph(NamedTuple):
    is_inference: bool
    is_backward: bool
    module: GraphModule
    inputs: Sequence[Any]


def compiled_kernels(block: nn.Module, x: Tensor) -> list[InductorKernel]:
    """Return the kernels of a block that is compiled: of inference, or of a forward and backward pass in training mode.

    Args:
        block: On a CPU, under whatever autocast and backends the caller has set.
        x: Its input; what is in it does not matter.

    Raises:
        RuntimeError: torch is another version than 2.11.
    """
    if torch.__version__.split(".")[:2] != ["2", "11"]:
        raise RuntimeError(f"what inductor compiles is read by internals of torch 2.11, this is {torch.__version__}")
    graphs: list[_Graph] = []
    torch._dynamo.reset()
    x = x.detach().requires_grad_(block.training)
    with torch._inductor.config.patch(fallback_random=True), torch.set_grad_enabled(block.training):
        y = torch.compile(block, backend=_collecting(graphs), fullgraph=True)(x)
        if block.training:
            y.backward(torch.empty_like(y))
        with _pretended_h100():
            return [kernel for graph in graphs for kernel in _lower(graph)]


def _collecting(graphs: list[_Graph]) -> Any:
    """Return a backend of torch.compile that keeps the graphs, and returns tensors of the right shapes from them."""

    def compiler(is_inference: bool, is_backward: bool) -> Any:
        def compile_graph(module: GraphModule, inputs: Sequence[Any]) -> Any:
            graphs.append(_Graph(is_inference, is_backward, module, inputs))
            (outputs,) = (node.args[0] for node in module.graph.nodes if node.op == "output")

            def run(*_: Any) -> list[Any]:
                values = (node.meta.get("val") if isinstance(node, Node) else node for node in outputs)
                return [
                    torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
                    if isinstance(value, Tensor)
                    else value
                    for value in values
                ]

            run._boxed_call = True
            return run

        return compile_graph

    return aot_autograd(
        fw_compiler=compiler(False, False),
        bw_compiler=compiler(False, True),
        inference_compiler=compiler(True, False),
        decompositions=select_decomp_table,
        partition_fn=min_cut_rematerialization_partition,
    )


@contextlib.contextmanager
def _pretended_h100() -> Iterator[None]:
    """Make torch believe in an H100."""
    import torch._inductor.scheduler as scheduler
    import torch._inductor.utils as utils
    import torch._subclasses.fake_tensor as fake_tensor
    import torch.utils._triton as triton_utils
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.runtime.hints import DeviceProperties

    sizes = ("multi_processor_count", "major", "regs_per_multiprocessor", "max_threads_per_multi_processor")
    hints = {name: getattr(_H100, name) for name in (*sizes, "max_threads_per_block", "warp_size")}
    replaced = (
        (fake_tensor, "init_gpu_context", lambda *_: None),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "get_device_properties", lambda device=None: _H100),
        (torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
        (torch.cuda, "get_device_name", lambda device=None: _H100.name),
        (torch.cuda, "synchronize", lambda device=None: None),
        (utils, "is_big_gpu", lambda *_, **__: True),
        (CudaInterface.Worker, "get_device_properties", staticmethod(lambda device=None: _H100)),
        (CudaInterface, "get_compute_capability", staticmethod(lambda device=None: 90)),
        (CudaInterface, "is_available", staticmethod(lambda: True)),
        (CudaInterface, "device_count", staticmethod(lambda: 1)),
        (DeviceProperties, "create", classmethod(lambda cls, device: cls(type="cuda", index=0, cc=90, **hints))),
        (triton_utils, "has_triton", lambda *_: True),
        (scheduler, "has_triton", lambda *_: True),
    )
    with contextlib.ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value, create=True))
        yield


def _lower(graph: _Graph) -> Iterator[InductorKernel]:
    """Lower a graph up to the scheduler; yield what it would launch."""
    from torch._inductor.compile_fx import fake_tensor_prop, view_to_reshape
    from torch._inductor.fx_passes.post_grad import post_grad_passes
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    module = graph.module
    mode, inputs = _on_cuda(module, graph.inputs)
    with V.set_fake_mode(mode), torch.no_grad():
        view_to_reshape(module)
        fake_tensor_prop(module, inputs, True)
        post_grad_passes(module, graph.is_inference)
        fake_tensor_prop(module, inputs, True)
        lowering = GraphLowering(
            module,
            example_inputs=inputs,
            shape_env=None,
            is_inference=graph.is_inference,
            is_backward=graph.is_backward,
        )
        with V.set_graph_handler(lowering), V.set_debug_handler(_Silent()):
            lowering.run(*inputs)
            lowering._update_scheduler()
            _, by_node, _ = lowering.count_bytes()
    for node, words in by_node:
        first = node.get_nodes()[0].node
        if type(node).__name__ == "ExternKernelSchedulerNode":
            name = getattr(first, "python_kernel_name", None) or type(first).__name__
        else:
            name = f"{'reduction' if node.is_reduction() else 'pointwise'} of {len(node.get_nodes())}"
        if name != "MultiOutput":  # a result of the launch before
            yield InductorKernel(name, 4 * words)


def _on_cuda(module: GraphModule, inputs: Sequence[Any]) -> tuple[FakeTensorMode, list[Any]]:
    cuda = torch.device("cuda", 0)

    def moved(value: object) -> object:
        return cuda if isinstance(value, torch.device) and value.type == "cpu" else value

    for node in module.graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = tree_map(moved, tuple(node.args)), tree_map(moved, dict(node.kwargs))
    module.recompile()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        return mode, [
            torch.empty_strided(
                tuple(map(int, one.shape)), tuple(map(int, one.stride())), dtype=one.dtype, device="cuda"
            )
            if isinstance(one, Tensor)
            else one
            for one in inputs
        ]


class _Silent:
    """A debug handler of inductor's that does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None
