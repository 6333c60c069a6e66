"""The ops of packaging/mmcv_ops against what the compiled mmcv computed (tests/data/record_mmcv_ops.py)."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, PathFinder
from pathlib import Path

import mmcv
import mmcv.ops
import pytest
import torch
from mmcv.ops import RoIAlign, batched_nms, nms, roi_align

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "packaging" / "mmcv_ops"
SOURCE = PACKAGE / "mmcv" / "_ext.py"
RECORDED = torch.load(ROOT / "tests" / "data" / "mmcv_ops.pt", weights_only=True)

# The same formulas in the same order: mostly equal to the last bit. A compiler may contract a product and a sum.
TOLERANCE = {torch.float32: {"rtol": 1e-6, "atol": 1e-6}, torch.float64: {"rtol": 1e-13, "atol": 1e-13}}


@pytest.fixture(autouse=True)
def ops(monkeypatch):
    """The ops of this checkout, behind mmcv's public functions, also where the compiled mmcv is installed."""
    spec = importlib.util.spec_from_file_location("mmcv._ext", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for user in ("mmcv.ops.nms", "mmcv.ops.roi_align", "mmcv.ops.roi_pool"):
        # mmcv.ops.nms is a function as an attribute and a module in sys.modules.
        monkeypatch.setattr(sys.modules[user], "ext_module", module)
    return module


@pytest.mark.parametrize("number", range(len(RECORDED["nms"])))
def test_nms_keeps_what_the_compiled_op_keeps(number):
    case = RECORDED["nms"][number]
    dets, kept = nms(case["boxes"], case["scores"], **case["options"])
    assert kept.dtype == torch.int64
    assert kept.tolist() == case["kept"].tolist()
    assert torch.equal(dets, case["dets"])


@pytest.mark.parametrize("number", range(len(RECORDED["batched_nms"])))
def test_batched_nms_keeps_what_the_compiled_op_keeps(number):
    case = RECORDED["batched_nms"][number]
    dets, kept = batched_nms(case["boxes"], case["scores"], case["idxs"], case["nms_cfg"], case["class_agnostic"])
    assert kept.tolist() == case["kept"].tolist()
    assert torch.equal(dets, case["dets"])


@pytest.mark.parametrize("number", range(len(RECORDED["roi_align"])))
def test_roi_align_equals_the_compiled_op(number):
    case = RECORDED["roi_align"][number]
    dtype = getattr(torch, case["dtype"])
    features = case["input"].to(dtype, copy=True).requires_grad_()
    output = roi_align(features, case["rois"].to(dtype), *case["options"].values())
    torch.testing.assert_close(output, case["output"], **TOLERANCE[dtype])
    output.backward(_gradient_of(output))
    torch.testing.assert_close(features.grad, case["grad_input"], **TOLERANCE[dtype])
    module = RoIAlign(**case["options"])
    torch.testing.assert_close(module(case["input"].to(dtype), case["rois"].to(dtype)), output, rtol=0, atol=0)


def test_recorded_rois_cover_what_they_should():
    rois = RECORDED["roi_align"][0]["rois"]
    assert (rois[:, 1:] < 0).any(), "one RoI begins outside of the image"
    height, width = RECORDED["roi_align"][0]["input"].shape[2:]
    assert ((rois[:, 1] > 4 * width) & (rois[:, 2] > 4 * height)).any(), "one RoI lies wholly outside"
    assert (RECORDED["roi_align"][0]["output"][2] == 0).all()


def _gradient_of(output):
    return torch.cos(torch.arange(output.numel(), dtype=torch.float64)).view_as(output).to(output.dtype)


def _greedy_nms(boxes, scores, threshold):
    """One box at a time; equal scores in their order."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        for j in kept:
            sides = torch.minimum(boxes[i, 2:], boxes[j, 2:]) - torch.maximum(boxes[i, :2], boxes[j, :2])
            overlap = sides.clamp(min=0).prod()
            if overlap / (areas[i] + areas[j] - overlap) > threshold:
                break
        else:
            kept.append(i)
    return kept


def test_nms_keeps_the_order_of_equal_scores():
    boxes = RECORDED["nms"][0]["boxes"]
    scores = torch.arange(len(boxes)).remainder(4) / 4
    assert nms(boxes, scores, 0.5)[1].tolist() == _greedy_nms(boxes, scores, 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_nms_takes_other_dtypes(dtype):
    boxes = RECORDED["nms"][0]["boxes"].round().to(dtype)
    scores = RECORDED["nms"][0]["scores"]
    expected = nms(boxes.float(), scores, 0.5)[1]
    assert nms(boxes, scores.to(dtype), 0.5)[1].tolist() == nms(boxes.float(), scores.to(dtype), 0.5)[1].tolist()
    assert nms(boxes, scores, 0.5)[1].tolist() == expected.tolist()


def test_nms_orders_by_the_scores_own_precision():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]])
    scores = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64)
    assert nms(boxes, scores, 0.5)[1].tolist() == [1]


def test_nms_takes_strided_boxes_and_leaves_them_alone():
    case = RECORDED["nms"][1]
    wide = torch.cat([case["boxes"], case["boxes"]], dim=1)
    before = wide.clone()
    kept = nms(wide[:, :4], case["scores"], **case["options"])[1]
    assert case["options"]["offset"] == 1
    assert kept.tolist() == case["kept"].tolist()
    assert torch.equal(wide, before)


def _inputs():
    case = RECORDED["roi_align"][0]
    return case["input"], case["rois"], list(case["options"].values()), case["output"], case["grad_input"]


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_roi_align_takes_any_strides(layout):
    features, rois, options, expected, expected_grad = _inputs()
    if layout == "channels_last":
        strided = features.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        strided = features.transpose(2, 3).contiguous().transpose(2, 3)
    else:
        strided = torch.cat([features, features], dim=3)[..., : features.shape[3]]
        rois = torch.cat([rois, rois], dim=1)[:, :5]
    assert not strided.is_contiguous()
    strided = strided.detach().requires_grad_()
    output = roi_align(strided, rois, *options)
    assert torch.equal(output, roi_align(features, rois.contiguous(), *options))
    torch.testing.assert_close(output, expected, **TOLERANCE[torch.float32])
    gradient = _gradient_of(output).to(memory_format=torch.channels_last)
    assert not gradient.is_contiguous()
    output.backward(gradient)
    torch.testing.assert_close(strided.grad, expected_grad, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_roi_align_computes_half_precision_in_float32(dtype):
    features, rois, options, _, _ = _inputs()
    features, rois = features.to(dtype), rois.to(dtype)
    half, single = features.clone().requires_grad_(), features.float().requires_grad_()
    output = roi_align(half, rois, *options)
    expected = roi_align(single, rois.float(), *options)
    assert torch.equal(output, expected.to(dtype))
    gradient = _gradient_of(output)
    output.backward(gradient)
    expected.backward(gradient.float())
    assert torch.equal(half.grad, single.grad.to(dtype))


def test_roi_align_writes_output_and_adds_to_grad_input(ops):
    features, rois, (size, scale, ratio, _, aligned), expected, expected_grad = _inputs()
    empty = features.new_zeros(0)
    output = torch.full_like(expected, torch.nan)
    assert ops.roi_align_forward(features, rois, output, empty, empty, *size, scale, ratio, 1, aligned) is None
    torch.testing.assert_close(output, expected, **TOLERANCE[torch.float32])
    grad = torch.ones_like(features)
    gradient = _gradient_of(output)
    assert ops.roi_align_backward(gradient, rois, empty, empty, grad, *size, scale, ratio, 1, aligned) is None
    torch.testing.assert_close(grad, expected_grad + 1, **TOLERANCE[torch.float32])


def test_roi_align_of_no_images():
    features, rois, options, expected, _ = _inputs()
    features = features[:0].clone().requires_grad_()
    output = roi_align(features, rois[:0], *options)
    assert output.shape == (0, *expected.shape[1:])
    output.sum().backward()
    assert features.grad.shape == features.shape


def test_roi_align_refuses_what_the_compiled_op_refuses():
    features, rois, options, _, _ = _inputs()
    assert options[-1] is True
    with pytest.raises(ValueError, match="ends before it starts"):
        roi_align(features, rois[:, [0, 3, 4, 1, 2]], *options)
    with pytest.raises(ValueError, match="NaN"):
        roi_align(features, torch.full_like(rois[:1], torch.nan), *options)
    with pytest.raises(TypeError, match=r"torch\.float32 and torch\.float64"):
        roi_align(features, rois.double(), *options)


def test_missing_op_says_how_to_get_it(ops):
    op = ops.deform_conv_forward
    assert op.__name__ == "deform_conv_forward"
    with pytest.raises(NotImplementedError) as error:
        op(torch.zeros(1), kW=3)
    for part in ("'deform_conv_forward'", "make setup MMCV=compiled", "pip install --no-build-isolation mmcv==2.1.0"):
        assert part in str(error.value)


def test_missing_op_through_mmcv():
    with pytest.raises(NotImplementedError, match="'roi_pool_forward' is not among the ops"):
        mmcv.ops.roi_pool(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), 2)


def test_maximum_pooling_says_how_to_get_it(ops):
    features, rois, _, expected, _ = _inputs()
    with pytest.raises(NotImplementedError, match=r"pool_mode='max' .*make setup MMCV=compiled"):
        RoIAlign(7, pool_mode="max")(features, rois)
    arguments = (rois, features, features, features, 7, 7, 0.25, 0, 0, True)
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        ops.roi_align_backward(expected, *arguments)


def test_dunder_names_are_no_ops(ops):
    for name in ("__path__", "__wrapped__", "__all__"):
        assert not hasattr(ops, name)
    with pytest.raises(AttributeError, match="__path__"):
        ops.__path__  # noqa: B018


def test_installed_extension_is_this_file_or_compiled():
    installed = Path(mmcv._ext.__file__)
    compiled = installed.name in {"_ext" + suffix for suffix in EXTENSION_SUFFIXES}
    assert compiled or installed.read_bytes() == SOURCE.read_bytes(), "make setup installs the file of this checkout"


@pytest.mark.slow
def test_mmcv_ops_imports_with_this_file_alone(tmp_path):
    """All that mmcv.ops looks up at import is there, whatever is installed: this file is put before it."""
    script = (
        "import importlib.util, sys, mmcv\n"
        f"spec = importlib.util.spec_from_file_location('mmcv._ext', {str(SOURCE)!r})\n"
        "sys.modules['mmcv._ext'] = mmcv._ext = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(mmcv._ext)\n"
        "import mmcv.ops\n"
        "from mmcv.utils import collect_env\n"
        "print(mmcv.ops.RoIAlign.__name__, mmcv.ops.DeformConv2d.__name__, collect_env()['MMCV Compiler'])\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "RoIAlign DeformConv2d none (mmmsv-mmcv-ops)"


def test_compiled_extension_wins(tmp_path):
    package = tmp_path / "mmcv"
    package.mkdir()
    shutil.copy(SOURCE, package)
    assert PathFinder.find_spec("mmcv._ext", [str(package)]).origin == str(package / "_ext.py")
    compiled = package / ("_ext" + EXTENSION_SUFFIXES[0])
    compiled.touch()
    PathFinder.invalidate_caches()
    spec = PathFinder.find_spec("mmcv._ext", [str(package)])
    assert isinstance(spec.loader, ExtensionFileLoader)
    assert spec.origin == str(compiled)


def test_wheel_holds_one_file(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run = subprocess.run([*command, "-w", tmp_path, source], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("mmmsv_mmcv_ops-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert names == ["mmcv/_ext.py"]
        assert archive.read("mmcv/_ext.py") == SOURCE.read_bytes()
