"""Time MSVMamba in PyTorch beside ConvNeXt-T in PyTorch, ONNX Runtime and OpenVINO, on a CPU in float32.

Needs torch 2.5 or newer.

    pip install onnx onnxruntime openvino
    python -m benchmarks.runtimes --batch 1 8

The ConvNeXt-T that the runtimes compute is torchvision's, exported to ONNX, and has to give the numbers of PyTorch
before it is timed. All take turns in one process, as in ``tools/throughput.py``.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmmsv.analysis.speed import machine
from mmmsv.analysis.speed.markdown import spread, table
from mmmsv.analysis.speed.models import build, full_name, short_name
from mmmsv.analysis.speed.timing import Candidate, take_turns
from mmmsv.models import MSVMamba

try:
    import onnx  # noqa: F401  which torch's exporter needs
    import onnxruntime
    import openvino
except ImportError as error:
    onnxruntime = openvino = None
    _MISSING = str(error)

_PEER = "convnext_tiny"
_CLOSE = 1e-4  # of logits, which are about 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runtimes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arch", nargs="?", default="tiny", choices=[*MSVMamba.archs], help="of MSVMamba (%(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], metavar="N", help="images at a time (1 8)")
    parser.add_argument("--size", type=int, default=224, help="side of the images (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each batch (%(default)s)")
    args = parser.parse_args()
    if onnxruntime is None:
        parser.error(f"{_MISSING}; pip install onnx onnxruntime openvino")
    device = torch.device("cpu")
    facts = {**machine.facts(device), "ONNX Runtime": onnxruntime.__version__, "OpenVINO": openvino.__version__}
    print(table(("", ""), facts.items()))
    for batch in args.batch:
        print(f"\n### Batch {batch}, {args.size} x {args.size}\n")
        print(_compare(args.arch, torch.randn(batch, 3, args.size, args.size), args.seconds), flush=True)


def _compare(arch: str, image: Tensor, seconds: float) -> str:
    """Return the table of one batch."""
    ours, peer = (build(full_name(name), maps=False).eval() for name in (arch, _PEER))
    calls = {f"{short_name(full_name(arch))}, PyTorch": _in_pytorch(ours, image)}
    with torch.inference_mode():
        expected = peer(image).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "peer.onnx")
        torch.onnx.export(peer, (image,), str(path), dynamo=False)
        calls[f"{_PEER}, ONNX Runtime"] = _in_onnx_runtime(path, image)
        calls[f"{_PEER}, OpenVINO"] = _in_openvino(path, image)
        calls[f"{_PEER}, PyTorch"] = _in_pytorch(peer, image)
        for name in list(calls)[1:]:
            if (off := float(np.abs(calls[name]() - expected).max())) > _CLOSE:
                raise RuntimeError(f"{name}: its logits differ by {off:.1e}, expected {_CLOSE} at most")
        timings, _ = take_turns({name: Candidate(call) for name, call in calls.items()}, image.device, seconds)
    first = next(iter(timings.values()))
    rows = [
        (name, spread([1e3 * sample for sample in timing.samples]), spread(timing.ratio(first)))
        for name, timing in timings.items()
    ]
    return table(("model, runtime", "latency, ms", "time / first"), rows)


def _in_pytorch(model: nn.Module, image: Tensor) -> Callable[[], np.ndarray]:
    # pyrefly: ignore[no-matching-overload]: torch's overloads leave out memory_format, which its docs have
    model = model.to(memory_format=torch.channels_last)
    image = image.contiguous(memory_format=torch.channels_last)

    def call() -> np.ndarray:
        with torch.inference_mode():
            return model(image).numpy()

    return call


def _in_onnx_runtime(path: Path, image: Tensor) -> Callable[[], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, inputs)[0]


def _in_openvino(path: Path, image: Tensor) -> Callable[[], np.ndarray]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    core = openvino.Core()
    request = core.compile_model(core.read_model(str(path)), "CPU", settings).create_infer_request()
    inputs = [image.numpy()]
    return lambda: request.infer(inputs)[0]


if __name__ == "__main__":
    main()
