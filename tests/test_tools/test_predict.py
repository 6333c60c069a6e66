"""Predictions of what models take on a GPU: the parts of the model that they rest on."""

import dataclasses

import pytest
import torch

from benchmarks import predict
from benchmarks.cards import CARDS
from benchmarks.traffic import Step, pretended_gpu
from mmmsv.kernels.backends.triton.scan import why_no_triton

pytestmark = pytest.mark.skipif(why_no_triton() is not None, reason=f"{why_no_triton()}")
H100 = CARDS[0]
COPY = Step("copy_", "", False, "", read=10**9, written=10**9, flops=0, shape=(), depthwise=False)


def test_an_op_takes_as_long_as_its_bytes_or_its_products():
    by_bytes = predict.seconds(COPY, H100)
    assert by_bytes == pytest.approx(2e9 / (0.85 * 3.0e12) + 1.5e-6)
    assert predict.seconds(dataclasses.replace(COPY, name="mm", flops=10**12), H100) == pytest.approx(
        1e12 / 550e12, rel=1e-2
    )
    convolution = dataclasses.replace(COPY, name="convolution_backward", flops=10**15, depthwise=True)
    assert predict.seconds(convolution, H100) == by_bytes
    assert predict.seconds(convolution, H100, guess=True) == pytest.approx(3 * by_bytes, rel=1e-2)


def test_parts_are_ops_of_ours_with_what_pytorch_does_for_them():
    mm, cast = (dataclasses.replace(COPY, name=name) for name in ("mm", "_to_copy"))
    within = dataclasses.replace(mm, part="scan2d_backward", backward=True)
    launch = dataclasses.replace(within, name="scan_backward")
    rows = predict._parts(H100, "training", "tiny", [mm, mm, cast, within, launch])
    assert [row[3:6] for row in rows] == [
        ("products of matrices", "2", "4.0"),
        ("`scan2d_backward`, backward pass", "2", "4.0"),
        ("`_to_copy`", "1", "2.0"),
    ]


def test_bad_models_and_cards_are_named(capsys, monkeypatch):
    for arguments, message in (
        (["--models", "nobody"], "nobody"),
        (["--cards", "Voodoo"], "Voodoo"),
    ):
        monkeypatch.setattr("sys.argv", ["predict", *arguments])
        with pytest.raises(SystemExit) as stopped:
            predict.main()
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not torch.__version__.startswith("2.11."), reason="reads internals of torch 2.11")
def test_inductor_fuses_what_stays_in_its_sight():
    """A norm and the cast after it are one kernel of inductor's; a product is called."""
    from benchmarks.inductor import compiled_kernels
    from mmmsv.models.layers import LayerNorm

    block = torch.nn.Sequential(LayerNorm(64, in_branch=True), torch.nn.Linear(64, 32, bias=False)).eval()
    with pretended_gpu(132), torch.autocast("cpu", torch.bfloat16):
        kernels = compiled_kernels(block, torch.zeros(2, 16, 16, 64, dtype=torch.bfloat16))
    elements = 2 * 16 * 16 * 64
    assert [kernel.name for kernel in kernels if "mm" in kernel.name] == ["extern_kernels.mm"]
    (norm,) = (kernel for kernel in kernels if "reduction" in kernel.name)
    assert 4 * elements <= norm.moved < 4.3 * elements
