"""The simulator itself, on a few lines of PTX: what instructions compute, and which mistakes of a kernel are found."""

import math

import numpy as np
import pytest
import torch

from mmmsv.kernels.backends.triton.scan import why_no_triton

if reason := why_no_triton():
    pytest.skip(f"the simulator runs what Triton compiles: {reason}", allow_module_level=True)

from . import SimulationError
from .machine import Kernel, Launch, simulate

# Points to a number of 4 bytes of each thread: %rd1 in the first tensor, %rd2 in the second one.
POINT = """
    ld.param.b64 %rd10, [test_param_0];
    ld.param.b64 %rd11, [test_param_1];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mad.lo.s32 %r4, %r2, {threads}, %r1;
    mul.wide.s32 %rd12, %r4, 4;
    add.s64 %rd1, %rd10, %rd12;
    add.s64 %rd2, %rd11, %rd12;
"""
SWAP = """
    mov.b32 %r5, global_smem;
    shl.b32 %r6, %r1, 2;
    add.s32 %r6, %r5, %r6;
    xor.b32 %r7, %r6, 128;  // the other warp's
    ld.global.b32 %r8, [%rd1];
    st.shared.b32 [%r6], %r8;
    {barrier}
    ld.shared.b32 %r9, [%r7];
    st.global.b32 [%rd2], %r9;
"""


def run(body, first, second, threads=32, programs=1, shared=1024):
    """Run a kernel of two tensors; return the second one."""
    ptx = f"""
.visible .entry test(
    .param .u64 .ptr .global .align 1 test_param_0,
    .param .u64 .ptr .global .align 1 test_param_1
)
.reqntid {threads}
{{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<99>;
    .reg .b64 %rd<99>;
    {POINT.format(threads=threads)}
    {body}
    ret;
$L__func_end0:
}}
"""
    parameters = {f"test_param_{i}": np.uint64(tensor.data_ptr()) for i, tensor in enumerate((first, second))}
    simulate(Kernel(ptx), Launch((programs, 1, 1), parameters, shared), (first, second))
    return second


def computed(instructions, values, dtype=torch.int32):
    """Return what instructions make of %r20 in %r30, for each of the values."""
    first = torch.tensor(values, dtype=dtype if isinstance(values[0], int) else torch.float32)
    first = torch.cat((first, first.new_zeros(-len(values) % 32)))
    body = f"ld.global.b32 %r20, [%rd1]; {instructions} st.global.b32 [%rd2], %r30;"
    return run(body, first, torch.zeros(len(first), dtype=dtype), programs=len(first) // 32)[: len(values)].tolist()


@pytest.mark.parametrize(
    ("instructions", "values", "expected"),
    [
        ("add.s32 %r30, %r20, 2147483647;", [1, -1], [-(1 << 31), 2147483646]),
        ("mul.hi.u32 %r30, %r20, -2;", [3, -1], [2, -3]),
        ("mul.hi.s32 %r30, %r20, 1431655766;", [3, -3], [1, -2]),
        ("mad.lo.s32 %r30, %r20, -7, 5;", [3, -3], [-16, 26]),
        ("mul.wide.s32 %rd20, %r20, -2; shr.u64 %rd20, %rd20, 1; cvt.u32.u64 %r30, %rd20;", [5, -5], [-5, 5]),
        ("mad.wide.u32 %rd20, %r20, 2, 9; shr.s64 %rd20, %rd20, 32; cvt.u32.u64 %r30, %rd20;", [5, -1], [0, 2]),
        ("div.s32 %r30, %r20, -3;", [7, -7, 6], [-2, 2, -2]),
        ("rem.s32 %r30, %r20, 3;", [7, -7, 6], [1, -1, 0]),
        ("min.s32 %r30, %r20, 2;", [7, -7], [2, -7]),
        ("shr.s32 %r30, %r20, 33;", [7, -7], [0, -1]),
        ("shr.u32 %r30, %r20, 31;", [7, -7], [0, 1]),
        ("shl.b32 %r30, %r20, %r20;", [2, 32, 31], [8, 0, -(1 << 31)]),
        ("bfe.u32 %r30, %r20, 4, 8;", [0x12345, -1], [0x34, 0xFF]),
        ("bfe.s32 %r30, %r20, 4, 8;", [0x12345, 0x8F0], [0x34, -0x71]),
        ("mov.b32 {%rs1, %rs2}, %r20; mov.b32 %r30, {%rs2, %rs1};", [0x12345678], [0x56781234]),
        ("cvt.u16.u32 %rs1, %r20; cvt.u32.u16 %r30, %rs1;", [0x12345678], [0x5678]),
        ("cvt.rzi.s32.f32 %r30, %r20;", [-1.9, 1e20, math.nan, -math.inf], [-1, 2147483647, 0, -(1 << 31)]),
        ("cvt.rni.f32.f32 %r21, %r20; cvt.rzi.s32.f32 %r30, %r21;", [2.5, -3.5], [2, -4]),
        ("setp.lt.u32 %p1, %r20, 5; selp.b32 %r30, 1, 0, %p1;", [4, 5, -1], [1, 0, 0]),
        ("setp.lt.s32 %p1, %r20, 5; not.pred %p2, %p1; selp.b32 %r30, 1, 0, %p2;", [4, 5, -1], [0, 1, 0]),
        ("mov.b32 %r30, 7; setp.eq.b32 %p1, %r20, 5; @%p1 mov.b32 %r30, 8;", [4, 5], [7, 8]),
        ("mov.b32 %r30, 7; setp.eq.b32 %p1, %r20, 5; @!%p1 mov.b32 %r30, 8;", [4, 5], [8, 7]),
    ],
)
def test_whole_numbers(instructions, values, expected):
    assert computed(instructions, values) == expected


@pytest.mark.parametrize(
    ("instructions", "function"),
    [
        ("add.f32 %r30, %r20, 0f3F000000;", lambda x: x + 0.5),
        ("neg.f32 %r30, %r20;", torch.neg),
        ("max.f32 %r30, %r20, 0f00000000;", lambda x: torch.fmax(x, torch.zeros(()))),
        ("ex2.approx.ftz.f32 %r30, %r20;", torch.exp2),
        ("sqrt.approx.ftz.f32 %r30, %r20;", torch.sqrt),
        ("div.full.f32 %r30, 0f3F800000, %r20;", torch.reciprocal),
        ("cvt.rmi.ftz.f32.f32 %r30, %r20;", torch.floor),
        ("cvt.f64.f32 %rd20, %r20; cvt.rn.f32.f64 %r30, %rd20;", lambda x: x),
        ("cvt.rn.bf16.f32 %rs1, %r20; cvt.f32.bf16 %r30, %rs1;", lambda x: x.bfloat16().float()),
        ("cvt.rn.f16.f32 %rs1, %r20; cvt.f32.f16 %r30, %rs1;", lambda x: x.half().float()),
        (
            "cvt.rn.bf16x2.f32 %r21, %r20, 0f3F800000; mov.b32 {%rs1, %rs2}, %r21; cvt.f32.bf16 %r30, %rs2;",
            lambda x: x.bfloat16().float(),
        ),
    ],
)
def test_floating_point(instructions, function):
    x = torch.cat((torch.randn(200), torch.tensor([0.0, math.inf, -math.inf, math.nan, 1.00390625, 1.01171875])))
    ours = torch.tensor(computed(instructions, x.tolist(), torch.float32))
    torch.testing.assert_close(ours, function(x.double()).float(), rtol=1e-7, atol=0, equal_nan=True)


def test_a_product_that_is_added_is_not_rounded():
    x = 1 + 2.0**-23
    assert computed(f"fma.rn.f32 %r30, %r20, %r20, {bits(-x * x)};", [x], torch.float32) == [2.0**-46]


@pytest.mark.parametrize("compare", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu"])
def test_comparisons(compare):
    """Those that end in u are true where one of the numbers is NaN, the others false."""
    plain = getattr(torch, compare.removesuffix("u"))
    x = torch.tensor([1.0, 2.0, 3.0, math.nan])
    expected = plain(x, torch.tensor(2.0)).int()
    expected[3] = compare.endswith("u")
    ours = computed(f"setp.{compare}.f32 %p1, %r20, 0f40000000; selp.b32 %r30, 1, 0, %p1;", x.tolist())
    assert ours == expected.tolist()


def bits(number):
    return f"0f{np.float32(number).view(np.uint32):08X}"


def test_numbers_too_small_for_a_whole_mantissa():
    """An instruction that takes them for 0 says so."""
    assert computed("abs.ftz.f32 %r30, %r20;", [1e-40, -2.0], torch.float32) == [0.0, 2.0]
    assert computed("abs.f32 %r30, %r20;", [1e-40, -2.0], torch.float32)[0] > 0


def test_threads_go_different_ways():
    """Each adds up what comes before it, in a loop of its own length, and those of odd numbers change the sign."""
    body = """
    mov.b32 %r30, 0;
    mov.b32 %r31, 0;
$L__BB0_1:
    setp.ge.s32 %p1, %r31, %r20;
    @%p1 bra $L__BB0_3;
    add.s32 %r30, %r30, %r31;
    add.s32 %r31, %r31, 1;
    bra.uni $L__BB0_1;
$L__BB0_3:
    and.b32 %r32, %r20, 1;
    setp.eq.b32 %p2, %r32, 0;
    @%p2 bra $L__BB0_4;
    neg.s32 %r30, %r30;
$L__BB0_4:
    """
    assert computed(body, list(range(50))) == [n * (n - 1) // 2 * (-1) ** n for n in range(50)]


@pytest.mark.parametrize(
    ("how", "other"),
    [
        ("bfly.b32 %r30, %r20, 5, 31", lambda i: i ^ 5),
        ("up.b32 %r30, %r20, 5, 0", lambda i: i - 5 if i % 32 >= 5 else i),
        ("idx.b32 %r30, %r20, 37, 31", lambda i: i - i % 32 + 5),
        ("idx.b32 %r30, %r20, %r20, 31", lambda i: i),
    ],
)
def test_shuffles(how, other):
    assert computed(f"shfl.sync.{how}, -1;", list(range(64))) == [other(i) for i in range(64)]


def test_matrices():
    """Each thread has the two neighbours that are its own, of a matrix whose rows lie in any order."""
    rows = torch.randn(8, 8).half()
    body = """
    mov.b32 %r5, global_smem;
    shl.b32 %r6, %r1, 2;
    add.s32 %r6, %r5, %r6;
    ld.global.b32 %r8, [%rd1];
    st.shared.b32 [%r6], %r8;
    bar.sync 0;
    and.b32 %r7, %r1, 7;
    xor.b32 %r7, %r7, 7;
    shl.b32 %r7, %r7, 4;
    add.s32 %r7, %r5, %r7;
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%r7];
    st.global.b32 [%rd2], %r9;
    """
    assert torch.equal(run(body, rows, torch.zeros(8, 8).half()), rows.flip(0))


def test_vectors():
    body = """
    mul.wide.s32 %rd13, %r4, 12;
    add.s64 %rd3, %rd1, %rd13;
    add.s64 %rd4, %rd2, %rd13;
    ld.global.v4.b32 {%r5, %r6, %r7, %r8}, [%rd3];
    st.global.v2.b32 [%rd4+0], {%r8, %r7};
    st.global.v2.b32 [%rd4+8], {%r6, %r5};
    """
    x = torch.arange(256, dtype=torch.int32)
    assert torch.equal(run(body, x, torch.zeros_like(x), programs=2).view(-1, 4), x.view(-1, 4).flip(1))


def test_a_barrier_orders_threads():
    x = torch.arange(64, dtype=torch.int32)
    assert torch.equal(run(SWAP.format(barrier="bar.sync 0;"), x, torch.zeros_like(x), threads=64), x.roll(32))


def test_a_race_is_found():
    x = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(SimulationError, match=r"test, in shared memory: two threads race.*ld\.shared.*|st\.shared"):
        run(SWAP.format(barrier=""), x, x.clone(), threads=64)


def test_a_race_within_a_warp_is_found():
    """Threads of a warp need not go in lock step."""
    body = "ld.global.b32 %r5, [%rd10]; st.global.b32 [%rd1], %r5;"
    x = torch.zeros(32, dtype=torch.int32)
    with pytest.raises(SimulationError, match=r"shape \(32,\).*two threads race"):
        run(body, x, x.clone())


@pytest.mark.parametrize("offset", [0, 64])
def test_a_race_of_programs_is_found(offset):
    """No barrier helps: one writes what the next one reads."""
    body = f"st.global.b32 [%rd1], 1; bar.sync 0; ld.global.b32 %r5, [%rd1+{offset}];"
    x = torch.zeros(96, dtype=torch.int32)
    if offset:
        with pytest.raises(SimulationError, match="two programs race"):
            run(body, x, x.clone(), programs=2)
    else:
        run(body, x, x.clone(), programs=2)


def test_threads_may_write_the_same_at_once():
    x = torch.zeros(32, dtype=torch.int32)
    assert run("st.global.b32 [%rd11], 3;", x, x.clone())[0] == 3


def test_a_race_of_parts_of_a_number_is_found():
    body = "st.global.b32 [%rd10], 1; cvt.u16.u32 %rs1, %r4; st.global.b16 [%rd10+2], %rs1;"
    x = torch.zeros(32, dtype=torch.int32)
    with pytest.raises(SimulationError, match="two threads race"):
        run(body, x, x.clone())


@pytest.mark.parametrize(
    ("offset", "message"),
    [(0, None), (4, "0 bytes after|4 bytes after"), (-4, "4 bytes before"), (1 << 40, "bytes after")],
)
def test_an_overrun_is_found(offset, message):
    """An access wholly within the tensors is none, even where one begins at once after the other."""
    memory = torch.zeros(96, dtype=torch.int32)
    body = f"ld.global.b32 %r5, [%rd1+{offset}];"
    if message is None:
        run(body, memory[32:64], memory[64:])
    else:
        with pytest.raises(SimulationError, match=rf"test: an access of 4 bytes, .*({message}) a tensor.*`ld\.global"):
            run(body, memory[32:64], memory[:1])


def test_an_overrun_of_shared_memory_is_found():
    x = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(SimulationError, match="an access of 4 bytes at 252 of shared memory, which has 128"):
        run(SWAP.format(barrier="bar.sync 0;"), x, x.clone(), threads=64, shared=128)


def test_an_address_that_is_no_multiple_of_the_size():
    x = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(SimulationError, match="an address that is no multiple of 8"):
        run("ld.global.v2.b32 {%r5, %r6}, [%rd1];", x, x.clone())


def test_a_barrier_that_some_do_not_reach():
    body = """
    setp.lt.s32 %p1, %r1, 5;
    @%p1 bra $L__BB0_1;
    bar.sync 0;
$L__BB0_1:
    """
    x = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(SimulationError, match=r"a barrier that some threads .* `bar\.sync 0`"):
        run(body, x, x.clone())


def test_shared_memory_is_not_a_number_before_it_is_written():
    body = "mov.b32 %r5, global_smem; ld.shared.b32 %r6, [%r5]; st.global.b32 [%rd2], %r6;"
    assert run(body, torch.zeros(32), torch.zeros(32)).isnan().all()


@pytest.mark.parametrize(
    "instruction",
    ["atom.global.add.f32 %r5, [%rd1], %r6", "lg2.approx.f32 %r5, %r6", "ld.local.b32 %r5, [%rd1]", "bar.warp.sync -1"],
)
def test_an_instruction_that_the_simulator_lacks(instruction):
    x = torch.zeros(32)
    with pytest.raises(NotImplementedError, match="the simulator has no instruction `" + instruction.split()[0]):
        run(f"{instruction};", x, x.clone())
