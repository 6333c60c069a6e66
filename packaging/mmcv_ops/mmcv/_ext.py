"""Stands in for mmcv's compiled extension: ``nms`` and ``roi_align`` on torchvision's ops, on CPU and CUDA.

mmcv-lite holds mmcv's Python code but no ``mmcv._ext``, so ``mmcv.ops`` cannot be imported from it, nor anything of
mmdet. With this file beside its code ``mmcv.ops`` can be imported; ``nms``, ``roi_align_forward`` and
``roi_align_backward`` compute what the compiled ones do, and every other op raises NotImplementedError when called.

A compiled ``_ext.*.so`` in the same folder wins: in one folder Python looks for extension modules before it looks for
``.py`` files.

Where these ops differ from the compiled ones, on purpose:

- half precision is computed in float32 (coordinates in half precision are off by whole pixels in large images), and
  bfloat16 works; ``nms`` takes boxes of any float dtype, the compiled one float32 alone;
- tensors may have any strides. The compiled ``roi_align`` reads memory as if all of them were contiguous and gives
  wrong numbers for, say, a channels-last ``input``.
"""

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

_ADVICE = (
    "is not among the ops that mmmsv-mmcv-ops brings (nms, roi_align with average pooling); it needs the compiled "
    "mmcv. In a checkout of mmmsv: make setup MMCV=compiled. Elsewhere: pip uninstall -y mmcv-lite mmmsv-mmcv-ops, "
    "then pip install --no-build-isolation mmcv==2.1.0"
)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: ``(N, 4)`` as x1, y1, x2, y2; any float dtype.
        scores: ``(N,)``; its dtype may differ from that of ``boxes``.
        iou_threshold: A box goes when its IoU with a kept box of higher score is above this.
        offset: 0 or 1; widths and heights are ``x2 - x1 + offset``.

    Returns:
        Indices of the kept boxes, int64, by falling score; boxes of equal score stay in their order.

    Source: mmcv 2.1.0, ``nms_cpu``. With ``offset=1`` widths are computed as ``(x2 + 1) - x1``: a pair of boxes whose
        IoU is within rounding of the threshold may fall on the other side of it.
    """
    boxes = _at_least_float32(boxes.detach())
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    order = scores.detach().argsort(descending=True, stable=True)
    # torchvision wants scores of the boxes' dtype, and a cast could merge neighbouring scores: it gets the ranks.
    ranks = torch.arange(len(order), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return order[torchvision_nms(boxes[order], ranks, _c_float(iou_threshold))]


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool each RoI to a grid of bins, each the mean of bilinear samples; overwrites ``output``.

    Args:
        input: ``(N, C, H, W)``, any float dtype, any strides.
        rois: ``(K, 5)`` as image index, x1, y1, x2, y2; dtype of ``input``.
        output: ``(K, C, aligned_height, aligned_width)``, written.
        argmax_y, argmax_x: For maximum pooling; not touched.
        aligned_height, aligned_width: Bins down and across.
        spatial_scale: Pixels of ``input`` per pixel of ``rois``.
        sampling_ratio: Samples per bin and axis; 0: as many as the bin has pixels, rounded up.
        pool_mode: 1 (average); 0 (maximum) is not implemented.
        aligned: Whether coordinates are shifted by half a pixel.

    Raises:
        NotImplementedError: ``pool_mode`` is 0.
        TypeError: The dtypes of ``input`` and ``rois`` differ.
        ValueError: ``aligned``, on a CPU, and a RoI ends before it starts or holds NaN.

    Source: mmcv 2.1.0, ``ROIAlignForwardCPULauncher``.
    """
    _check_roi_align(input, rois, pool_mode, aligned)
    pooled = torch.ops.torchvision.roi_align(
        _at_least_float32(input),
        _at_least_float32(rois),
        _c_float(spatial_scale),
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of :func:`roi_align_forward` with respect to its ``input`` to ``grad_input``.

    Args:
        grad_output: Gradient of ``output``, ``(K, C, aligned_height, aligned_width)``, any strides.
        grad_input: ``(N, C, H, W)``; added to, as the compiled op does (mmcv passes zeros).
        rois, argmax_y, argmax_x, aligned_height, aligned_width, spatial_scale, sampling_ratio, pool_mode, aligned:
            As in :func:`roi_align_forward`.

    Raises:
        NotImplementedError, TypeError, ValueError: As in :func:`roi_align_forward`.

    Source: mmcv 2.1.0, ``ROIAlignBackwardCPULauncher``.
    """
    _check_roi_align(grad_output, rois, pool_mode, aligned)
    grad = torch.ops.torchvision._roi_align_backward(
        _at_least_float32(grad_output),
        _at_least_float32(rois),
        _c_float(spatial_scale),
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.add_(grad)


def get_compiler_version() -> str:
    """Name what ``mmcv.utils.collect_env()`` prints as mmcv's compiler."""
    return "none (mmmsv-mmcv-ops)"


def get_compiling_cuda_version() -> str:
    """Name what ``mmcv.utils.collect_env()`` prints as the CUDA version that mmcv was compiled with."""
    return "not available"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Give every other op as a function that raises: ``mmcv.ops`` looks all of them up when it is imported."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"mmcv's op {name!r} {_ADVICE}")

    missing.__name__ = missing.__qualname__ = name
    return missing


def _check_roi_align(features: Tensor, rois: Tensor, pool_mode: int, aligned: bool) -> None:
    if pool_mode != 1:
        raise NotImplementedError(f"mmcv's op 'roi_align' with pool_mode='max' {_ADVICE}")
    if features.dtype != rois.dtype:
        raise TypeError(f"roi_align needs features and rois of one dtype, got {features.dtype} and {rois.dtype}")
    # The compiled op checks this on the CPU alone: on a GPU it would mean to wait for the result.
    if aligned and rois.device.type == "cpu" and not bool((rois[:, 3:5] >= rois[:, 1:3]).all()):
        raise ValueError("roi_align got a RoI that ends before it starts (x2 < x1 or y2 < y1) or holds NaN")


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _c_float(value: float) -> float:
    # The compiled ops take these numbers as C floats: an IoU of exactly 0.3 must not exceed a threshold of 0.3.
    return torch.tensor(value, dtype=torch.float32).item()
