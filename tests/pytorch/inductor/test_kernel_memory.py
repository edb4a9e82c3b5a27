"""Playing generated code: what is alive while each kernel runs."""

from __future__ import annotations

import textwrap

import pytest

from memfit.pytorch.inductor.kernel_memory import Buffers, play


def live(body: str, buffers: Buffers) -> list[int]:
    """Bytes alive at the start and at each call of a body of `call`."""
    code = "class Runner:\n    def call(self, args):\n" + textwrap.indent(body, " " * 8)
    return [moment.live_bytes for moment in play(code, buffers)]


def test_a_buffer_lives_from_its_allocation_to_its_deletion() -> None:
    body = """\
x, y = args
args.clear()
buf0 = empty_strided_cpu((2, ), (1, ), torch.float32)
cpp_fused_0(x, buf0)
del x
buf1 = extern_kernels.mm(y, buf0)
del buf0
cpp_fused_1(buf1)
return (buf1, )
"""
    buffers = Buffers({"buf0": 8, "buf1": 100}, inputs={"x": ("x", 1000)})
    # At the start, clear, allocation, loop; then without x; then without buf0.
    assert live(body, buffers) == [1000, 1000, 1008, 1008, 108, 100]


def test_a_dead_buffers_memory_is_used_again() -> None:
    body = """\
buf0 = empty_strided_cpu((2, ), (1, ), torch.float32)
buf1 = buf0; del buf0  # reuse
cpp_fused_0(buf1)
buf2 = reinterpret_tensor(buf1, (2, ), (1, ), 0); del buf1  # reuse
cpp_fused_1(buf2)
del buf2
cpp_fused_2(x)
"""
    assert live(body, Buffers({"buf0": 8, "buf1": 8, "buf2": 8})) == [8, 8, 8, 0]


def test_a_view_keeps_what_it_is_of() -> None:
    body = """\
buf0 = empty_strided_cpu((8, ), (1, ), torch.float32)
buf1 = reinterpret_tensor(buf0, (4, ), (1, ), 4)  # alias
del buf0
cpp_fused_0(buf1)
buf2 = torch.ops.aten.view_of.default(buf1)
del buf1
cpp_fused_1(buf2)
del buf2
cpp_fused_2()
"""
    buffers = Buffers({"buf0": 32, "buf1": 16, "buf2": 16}, views={"buf2": ["buf1"]})
    assert live(body, buffers) == [32, 32, 32, 32, 0]


def test_results_of_several_buffers_are_there_together_and_go_one_by_one() -> None:
    body = """\
buf0 = torch.ops.aten.convolution_backward.default(x)
buf1 = buf0[0]
buf2 = buf0[1]
del buf0
del buf1
cpp_fused_0(buf2)
"""
    buffers = Buffers(
        {"buf1": 10, "buf2": 20, "buf3": 400},  # buf3 is never taken out
        parts={"buf0": ["buf1", "buf2", "buf3"]},
    )
    assert live(body, buffers) == [430, 20]


def test_workspaces_are_those_of_library_kernels() -> None:
    body = """\
buf0 = empty_strided_cpu((8, ), (1, ), torch.float32)
extern_kernels.mm(x, y, out=buf0)
cpp_fused_0(buf0)
aten.index_put_(buf0, [x], y, True)
with torch.cuda._DeviceGuard(0):
    triton_poi_fused_1.run(buf0, 8, stream=stream0)
    buf1 = extern_kernels.convolution(buf0, x, stride=(1, 1))
"""
    buffers = Buffers({"buf0": 8, "buf1": 4}, workspace_bytes={"buf0": 100, "buf1": 50})
    assert live(body, buffers) == [8, 108, 8, 108, 8, 62]


def test_inputs_of_one_storage_share_it_and_held_ones_stay() -> None:
    body = """\
x, y, z, = args
cpp_fused_0(x)
del x
cpp_fused_0(y)
del y
del z
cpp_fused_0()
"""
    inputs = {"x": ("x", 5), "y": ("x", 5), "z": ("z", 70)}
    assert live(body, Buffers({}, inputs=inputs)) == [75, 75, 75, 0]
    assert live(body, Buffers({}, inputs=inputs, held=frozenset("z"))) == [75, 75, 75, 70]


def test_code_without_its_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="0 functions 'call'"):
        play("def main():\n    pass\n", Buffers({}))
