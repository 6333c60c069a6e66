"""What a report says of the machine that it ran on."""

import pytest
import torch

from mmmsv.analysis.speed import machine

CPU = torch.device("cpu")
ZEN_4 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9R14
flags\t\t: fpu avx512f avx512_bf16 avx512_vnni
power management:

processor\t: 1
model\t\t: 3
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd\n"


@pytest.fixture
def cpuinfo(monkeypatch, tmp_path):
    def write(text):
        path = tmp_path / "cpuinfo"
        if text is not None:
            path.write_text(text)
        monkeypatch.setattr(machine, "Path", lambda _: path)

    return write


def test_designs_of_one_name_are_told_apart(cpuinfo):
    cpuinfo(ZEN_4)
    assert machine.processor() == "AMD EPYC 9R14 (family 25, model 17)"
    assert machine.name(CPU).startswith("amd-epyc-9r14-family-25-model-17-")
    assert machine.vector_instructions().endswith(", avx512_bf16, avx512_vnni")


@pytest.mark.parametrize("text", [None, ARM, ""])
def test_what_the_system_does_not_say(cpuinfo, text):
    cpuinfo(text)
    assert machine.processor()
    assert machine.vector_instructions() == torch.backends.cpu.get_cpu_capability()


def test_speed_of_products(monkeypatch):
    """That of the fastest: the clock here says how long each takes."""
    seconds = iter([2.0, 4.0, 1.0, 8.0] * 2)
    monkeypatch.setattr(machine, "clock", lambda device: lambda call, repeats: next(seconds))
    assert machine.product_speed(CPU) == 2 * 2048**3 / 1.0
