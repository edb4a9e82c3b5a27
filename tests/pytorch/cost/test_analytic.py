from __future__ import annotations

import pytest
import torch

from memfit.pytorch.cost.analytic import analytic_cost, output_specs
from memfit.pytorch.cost.op_calls import OpCall, TensorSpec
from memfit.pytorch.cost.profile import profile_calls

aten = torch.ops.aten
GIB = 2**30


def spec(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> TensorSpec:
    stride = torch.empty(shape, device="meta").stride()
    return TensorSpec(shape, stride, dtype, torch.device(device))


def mm(n: int, device: str = "cpu") -> OpCall:
    return OpCall(aten.mm.default, (spec(n, n, device=device), spec(n, n, device=device)))


def convolution(batch: int, inputs: int, outputs: int, size: int, kernel: int) -> OpCall:
    pad = kernel // 2
    return OpCall(
        aten.convolution.default,
        (
            spec(batch, inputs, size, size), spec(outputs, inputs, kernel, kernel), None,
            [1, 1], [pad, pad], [1, 1], False, [0, 0], 1,
        ),
    )  # fmt: skip


def convolution_backward(batch: int, inputs: int, outputs: int, size: int, kernel: int) -> OpCall:
    pad = kernel // 2
    return OpCall(
        aten.convolution_backward.default,
        (
            spec(batch, outputs, size, size), spec(batch, inputs, size, size),
            spec(outputs, inputs, kernel, kernel), [0],
            [1, 1], [pad, pad], [1, 1], False, [0, 0], 1, [True, True, False],
        ),
    )  # fmt: skip


def test_arithmetic_of_large_products_grows_with_the_cube() -> None:
    small, large = (analytic_cost(mm(n)) for n in (4096, 8192))
    assert large.time_ns / small.time_ns == pytest.approx(8, rel=0.01)
    assert (small.output_bytes, small.source) == (4096 * 4096 * 4, "analytic")


def test_traffic_of_pointwise_ops_grows_with_their_size() -> None:
    small, large = (
        analytic_cost(OpCall(aten.relu.default, (spec(n),))) for n in (10**8, 2 * 10**8)
    )
    assert large.time_ns / small.time_ns == pytest.approx(2, rel=0.01)
    assert small.workspace_bytes == 0


def test_more_threads_take_less_time() -> None:
    threads = torch.get_num_threads()
    times = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            times.append(analytic_cost(mm(4096)).time_ns)
    finally:
        torch.set_num_threads(threads)
    assert times[0] / times[1] == pytest.approx(2, rel=0.01)


def test_views_are_almost_free() -> None:
    view = analytic_cost(OpCall(aten.t.default, (spec(4096, 4096),)))
    assert (view.output_bytes, view.workspace_bytes) == (0, 0)
    assert view.time_ns <= 1000


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_the_device_need_not_be_there() -> None:
    on_gpu = analytic_cost(mm(8192, device="cuda:0"))
    assert 0 < on_gpu.time_ns < analytic_cost(mm(8192)).time_ns
    full = OpCall(aten.full.default, ([10, 10], 1.0), {"device": torch.device("cuda")})
    assert analytic_cost(full).output_bytes == 400


def test_no_memory_is_needed() -> None:
    cost = analytic_cost(OpCall(aten.relu.default, (spec(2**20, 2**20),)))
    assert cost.output_bytes == 4096 * GIB


def test_outputs_are_those_of_the_op() -> None:
    made = output_specs(OpCall(aten.max_pool2d_with_indices.default, (spec(2, 3, 8, 8), [2, 2])))
    assert made is not None
    assert [(s.shape, s.dtype) for s in made] == [
        ((2, 3, 4, 4), torch.float32),
        ((2, 3, 4, 4), torch.int64),
    ]


def test_an_op_that_meta_tensors_cannot_run_is_still_estimated() -> None:
    call = OpCall(aten.nonzero.default, (spec(1000),))
    assert output_specs(call) is None
    cost = analytic_cost(call)
    assert cost.time_ns > 0
    assert cost.output_bytes == 4000


WORKSPACE_CALLS = [
    *(convolution(2, *form) for form in ((3, 16, 32, 3), (64, 128, 14, 1), (16, 16, 40, 5))),
    *(convolution_backward(2, *f) for f in ((3, 16, 32, 3), (64, 128, 14, 1), (16, 16, 40, 5))),
    OpCall(
        aten.convolution.default,
        (
            spec(2, 32, 8, 8), spec(32, 16, 2, 2), None,
            [2, 2], [0, 0], [1, 1], True, [0, 0], 1,
        ),
    ),
    OpCall(aten.mm.default, (TensorSpec.of(torch.empty(90, 70).t()), spec(90, 50))),
    OpCall(aten.mm.default, (TensorSpec.of(torch.empty(70, 180)[:, ::2]), spec(90, 50))),
    OpCall(aten.bmm.default, (TensorSpec.of(torch.empty(3, 70, 180)[..., ::2]), spec(3, 90, 50))),
    OpCall(aten.upsample_bilinear2d.default, (spec(2, 128, 10, 10), [20, 20], False, 2.0, 2.0)),
    OpCall(
        aten.convolution.default,
        (
            spec(4, 32, 80, 80), spec(32, 16, 2, 2), spec(16),
            [2, 2], [0, 0], [1, 1], True, [0, 0], 1,
        ),
    ),
    OpCall(aten.cumsum.default, (spec(4, 256, dtype=torch.bool), -1)),
    OpCall(aten.native_dropout.default, (spec(100, 100), 0.5, True)),
    OpCall(
        aten.native_batch_norm_backward.default,
        (
            spec(2, 64, 16, 16), spec(2, 64, 16, 16), spec(64), None, None, spec(64), spec(64),
            True, 1e-5, [True, True, True],
        ),
    ),
    OpCall(
        aten.native_layer_norm_backward.default,
        (
            spec(32, 128), spec(32, 128), [128], spec(32, 1), spec(32, 1), spec(128), spec(128),
            [True, True, True],
        ),
    ),
    OpCall(
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        (spec(2, 4, 64, 16), spec(2, 4, 64, 16), spec(2, 4, 64, 16), 0.0, True),
    ),
]  # fmt: skip


@pytest.mark.parametrize("call", WORKSPACE_CALLS, ids=lambda call: str(call.target))
def test_estimated_workspace_is_not_below_what_is_measured(call: OpCall) -> None:
    (measured,) = profile_calls([call], time_budget_s=0).costs
    assert measured.source == "measured"
    estimate = analytic_cost(call)
    assert estimate.output_bytes == measured.output_bytes
    assert estimate.workspace_bytes >= measured.workspace_bytes
