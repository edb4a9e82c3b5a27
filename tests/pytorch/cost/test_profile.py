from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import memfit
from memfit.pytorch.cost.measure import measure_step
from memfit.pytorch.cost.op_calls import OpCall, TensorSpec
from memfit.pytorch.cost.profile import OpProfile, profile_calls
from memfit.pytorch.cost.synthetic import SyntheticData

MIB = 2**20
aten = torch.ops.aten
CPU = torch.device("cpu")


def spec(*shape: int, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec.of(torch.empty(shape, dtype=dtype))


def one(target: Callable[..., Any], *args: Any, **kwargs: Any) -> OpProfile:
    return profile_calls([OpCall(target, args, kwargs, "the_call")], time_budget_s=0.2)


SEEN: list[str] = []


def leaves_a_note(x: torch.Tensor) -> torch.Tensor:
    SEEN.append(f"{type(x).__name__} grad={torch.is_grad_enabled()} product={(x @ x).dtype}")
    return x + 1


def with_workspace(x: torch.Tensor) -> torch.Tensor:
    buffer = torch.empty(MIB, dtype=torch.float32)
    result = x.relu()
    del buffer
    return result


def with_early_workspace(x: torch.Tensor) -> torch.Tensor:
    buffer = torch.empty(MIB, dtype=torch.float32)
    del buffer
    return x.relu()


def refuses(x: torch.Tensor) -> torch.Tensor:
    raise ValueError("no made-up data\nplease")


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for one another on a busy machine would blur what is timed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_measured_cost_of_an_op() -> None:
    (cost,) = one(aten.relu.default, spec(256, 1024)).costs
    assert cost.source == "measured"
    assert cost.time_ns > 0
    assert (cost.output_bytes, cost.workspace_bytes) == (MIB, 0)


def test_workspace_is_what_is_alive_beyond_the_result() -> None:
    (cost,) = one(with_workspace, spec(256, 1024)).costs
    assert (cost.output_bytes, cost.workspace_bytes) == (MIB, 4 * MIB)


def test_workspace_freed_before_the_result_shares_its_room() -> None:
    (cost,) = one(with_early_workspace, spec(256, 1024)).costs
    assert (cost.output_bytes, cost.workspace_bytes) == (MIB, 3 * MIB)


@pytest.mark.parametrize("mask", [[True, True, False], [False, True, False], [True, False, False]])
def test_workspace_of_a_convolution_is_that_of_a_real_call(mask: list[bool]) -> None:
    x, w = torch.randn(2, 16, 32, 32), torch.randn(32, 16, 3, 3)
    gradient = torch.randn(2, 32, 32, 32)
    args = (gradient, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)
    profile = profile_calls([OpCall.of(aten.convolution_backward.default, args)], time_budget_s=0)
    (cost,) = profile.costs
    real = measure_step(lambda: aten.convolution_backward.default(*args), warmup=2)
    assert cost.output_bytes == mask[0] * x.nbytes + mask[1] * w.nbytes
    assert cost.output_bytes + cost.workspace_bytes == real.peak_bytes


@torch.library.custom_op("memfit_test::picked", mutates_args=())
def picked(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Takes memory for what the mask selects, and more for what it does not select."""
    chosen = x.new_empty(int(mask.sum()))
    other = x.new_empty(2 * (mask.numel() - int(mask.sum())))
    return x.new_zeros(chosen.numel() + other.numel())[: x.numel()].clone()


@pytest.mark.parametrize(
    ("target", "sizes"),
    [
        (torch.ops.memfit_test.picked.default, ()),
        (torch.ops.aten.masked_scatter_backward.default, ([1000],)),
    ],
)
def test_workspace_is_that_of_the_worst_mask(target: Callable[..., Any], sizes: Any) -> None:
    (cost,) = one(target, spec(1000), spec(1000, dtype=torch.bool), *sizes).costs
    x = torch.rand(1000)
    masks = (torch.rand(1000) < share for share in (0.0, 0.3, 0.6, 1.0))
    really = [measure_step(lambda m=mask: target(x, m, *sizes)).peak_bytes for mask in masks]
    assert max(really) == cost.output_bytes + cost.workspace_bytes


def test_views_cost_no_memory_and_results_count_whole_storages() -> None:
    (cost,) = one(aten.t.default, spec(256, 1024)).costs
    assert (cost.output_bytes, cost.workspace_bytes) == (0, 0)
    (cost,) = one(narrow_of_a_copy, spec(256, 1024)).costs
    assert cost.output_bytes == MIB


def narrow_of_a_copy(x: torch.Tensor) -> torch.Tensor:
    return x.clone()[:1]


def test_workspace_repeats_exactly() -> None:
    calls = [
        OpCall(aten.native_layer_norm.default, (spec(64, 128), [128], spec(128), spec(128), 1e-5)),
        OpCall(aten.mm.default, (spec(100, 200), spec(200, 50))),
        OpCall(aten._log_softmax.default, (spec(64, 100), 1, False)),
        OpCall(
            aten.convolution.default,
            (spec(2, 8, 20, 20), spec(4, 8, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        ),
    ]
    first, second = (profile_calls(calls, time_budget_s=0).costs for _ in range(2))
    assert [c.workspace_bytes for c in first] == [c.workspace_bytes for c in second]
    assert first[3].workspace_bytes > 0


def test_equal_calls_are_measured_once() -> None:
    call = OpCall(leaves_a_note, (spec(2, 2),))
    alone = profile_calls([call], time_budget_s=0)
    runs = len(SEEN)
    SEEN.clear()
    profile = profile_calls([call, OpCall(aten.t.default, (spec(2, 2),)), call], time_budget_s=0)
    assert alone.distinct == 1
    assert profile.distinct == 2
    assert len(SEEN) == runs == 3
    assert profile.costs[0] == profile.costs[2]


def test_forms_that_differ_are_measured_apart() -> None:
    straight, turned = torch.empty(30, 40), torch.empty(40, 30).t()
    calls = [
        OpCall.of(aten.relu.default, (t,))
        for t in (straight, turned, straight.double(), straight.expand(2, 30, 40), straight[:, 1:])
    ]
    assert len({call.signature() for call in calls}) == 5


@pytest.mark.usefixtures("one_thread")
def test_larger_ops_take_longer() -> None:
    calls = [OpCall(aten.mm.default, (spec(n, n), spec(n, n))) for n in (32, 512)]
    small, large = profile_calls(calls, time_budget_s=1).costs
    assert large.time_ns > 10 * small.time_ns


def test_every_mode_around_is_taken_off() -> None:
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(True):
        profile = one(leaves_a_note, spec(64, 64))
        assert torch.is_grad_enabled()
        assert isinstance(torch.empty(1), torch._subclasses.FakeTensor)
        assert torch.is_autocast_enabled("cpu")
    assert profile.costs[0].source == "measured"
    assert set(SEEN) == {"Tensor grad=False product=torch.float32"}


def test_profiling_inside_of_a_partition_function() -> None:
    from functorch.compile import default_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.backends.debugging import boxed_nop

    profiles: list[OpProfile] = []

    def partition(joint: Any, inputs: Any, **kwargs: Any) -> Any:
        calls = []
        for node in joint.graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                args, kw = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
                calls.append(OpCall.of(node.target, args, kw, node.name))
        calls.append(OpCall(leaves_a_note, (spec(2, 2),)))
        profiles.append(profile_calls(calls, time_budget_s=0))
        return default_partition(joint, inputs, **kwargs)

    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Dropout(0.5))
    backend = aot_autograd(fw_compiler=boxed_nop, bw_compiler=boxed_nop, partition_fn=partition)
    x = torch.randn(32, 64)

    def gradient(run: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(5)
        run(x).sum().backward()
        return model[0].weight.grad

    plain = gradient(model)
    compiled = gradient(torch.compile(model, backend=backend))
    torch._dynamo.reset()
    (profile,) = profiles
    assert profile.notes == ()
    assert {cost.source for cost in profile.costs} == {"measured"}
    assert set(SEEN) == {"Tensor grad=False product=torch.float32"}
    assert torch.equal(plain, compiled)


def test_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    profile = profile_calls(
        [
            OpCall(aten.native_dropout.default, (spec(100, 100), 0.5, True)),
            OpCall(aten.rand.default, ([10],)),
        ],
        time_budget_s=0.1,
    )
    assert profile.notes == ()
    assert torch.equal(torch.get_rng_state(), state)


def test_random_state_and_garbage_collection_are_restored_after_errors() -> None:
    state = torch.get_rng_state()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    calls = [OpCall(aten.native_dropout.default, (spec(10), 0.5, True))]
    with pytest.raises(KeyboardInterrupt):
        profile_calls(calls, progress=stop)
    assert torch.equal(torch.get_rng_state(), state)
    assert gc.isenabled()


def test_an_op_that_refuses_made_up_data_is_estimated() -> None:
    profile = one(refuses, spec(256, 1024))
    (cost,) = profile.costs
    assert cost.source == "analytic"
    assert cost.time_ns > 0
    assert profile.notes == (
        "the_call: estimated, failed on made-up data (ValueError: no made-up data)",
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_an_absent_device_is_estimated() -> None:
    x = TensorSpec((256, 1024), (1024, 1), torch.float32, torch.device("cuda:0"))
    profile = one(aten.relu.default, x)
    assert profile.costs[0].source == "analytic"
    assert profile.costs[0].output_bytes == MIB
    assert "device cuda:0 is not available" in profile.notes[0]


def test_a_running_profiler_is_left_alone() -> None:
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
    ) as profiler:
        profile = one(aten.relu.default, spec(8))
        torch.ones(3).add(1)
    assert "profiler is running" in profile.notes[0]
    assert any(event.key == "aten::add" for event in profiler.key_averages())


LONG = torch.int64
INDEX_CALLS = [
    OpCall(aten.embedding.default, (spec(50, 8), spec(4, 6, dtype=LONG))),
    OpCall(
        aten.embedding_dense_backward.default,
        (spec(4, 6, 8), spec(4, 6, dtype=LONG), 50, -1, False),
    ),
    OpCall(aten.index.Tensor, (spec(5, 50), [None, spec(7, dtype=LONG)])),
    OpCall(aten.index.Tensor, (spec(5, 50), [spec(5, 50, dtype=torch.bool)])),
    OpCall(aten.index_put.default, (spec(5, 50), [spec(7, dtype=LONG)], spec(7, 50), True)),
    OpCall(aten.gather.default, (spec(5, 50), -1, spec(5, 3, dtype=LONG))),
    OpCall(aten.scatter_add.default, (spec(5, 50), 1, spec(5, 3, dtype=LONG), spec(5, 3))),
    OpCall(aten.index_select.default, (spec(5, 50), 1, spec(9, dtype=LONG))),
    OpCall(aten.nll_loss_forward.default, (spec(6, 10), spec(6, dtype=LONG), None, 1, -100)),
    OpCall(
        aten.nll_loss_backward.default,
        (spec(), spec(6, 10), spec(6, dtype=LONG), None, 1, -100, spec()),
    ),
    OpCall(
        aten.nll_loss2d_forward.default,
        (spec(2, 4, 8, 8), spec(2, 8, 8, dtype=LONG), None, 1, -100),
    ),
    OpCall(
        aten.max_pool2d_with_indices_backward.default,
        (
            spec(2, 3, 4, 4), spec(2, 3, 8, 8), [2, 2], [2, 2], [0, 0], [1, 1], False,
            spec(2, 3, 4, 4, dtype=LONG),
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize("call", INDEX_CALLS, ids=lambda call: str(call.target))
def test_ops_that_take_indices_run(call: OpCall) -> None:
    profile = profile_calls([call], time_budget_s=0)
    assert profile.notes == ()
    assert profile.costs[0].source == "measured"


def test_made_up_indices_are_spread_over_their_range() -> None:
    call = OpCall(aten.embedding.default, (spec(50, 8), spec(400, dtype=LONG)))
    _, indices = SyntheticData().arguments(call)[0]
    assert set(indices.tolist()) == set(range(50))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(3, 5, 2).permute(2, 0, 1),
        torch.empty(4, 1).expand(4, 6),
        torch.empty(10, 10)[3:, 5:],
        torch.empty(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.empty(0, 3),
        torch.empty(()),
        torch.empty(70_000, 3, dtype=torch.bfloat16),
        torch.empty(5, dtype=torch.complex64),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}-{tensor.dtype}",
)
def test_made_up_tensors_have_the_form_asked_for(tensor: torch.Tensor) -> None:
    made = SyntheticData().tensor(TensorSpec.of(tensor))
    assert (made.shape, made.stride(), made.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
    if made.numel() and not made.is_complex():
        assert 0 <= float(made.min()) <= float(made.max()) <= 1


def test_made_up_masks_and_integers() -> None:
    data = SyntheticData()
    mask = data.tensor(spec(1000, dtype=torch.bool))
    assert 300 < int(mask.sum()) < 700
    assert int(data.tensor(spec(1000, dtype=torch.int32)).abs().max()) == 0


def test_a_slice_does_not_make_its_whole_base() -> None:
    base = torch.empty(1000, 1000)
    assert SyntheticData().tensor(TensorSpec.of(base[500:501])).untyped_storage().nbytes() < 5000


def test_no_time_still_measures_everything() -> None:
    calls = [OpCall(aten.relu.default, (spec(n),)) for n in range(1, 100)]
    seen: list[tuple[int, int]] = []
    profile = profile_calls(calls, time_budget_s=0, progress=lambda *p: seen.append(p))
    assert profile.rounds == 1
    assert profile.distinct == 99
    assert all(cost.source == "measured" for cost in profile.costs)
    assert seen == [(64, 99), (99, 99)]


@pytest.mark.usefixtures("one_thread")
def test_time_budget_bounds_the_rounds() -> None:
    calls = [OpCall(aten.mm.default, (spec(100, 100), spec(100, n))) for n in range(100, 120)]
    assert profile_calls(calls, time_budget_s=60).rounds == 7
    assert profile_calls(calls, time_budget_s=0.001).rounds == 1


def test_nothing_to_measure() -> None:
    profile = profile_calls([])
    assert (profile.costs, profile.notes, profile.rounds) == ((), (), 0)


def test_symbolic_sizes_become_their_hints() -> None:
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)
    x = mode.from_tensor(torch.empty(5, 6)[:, 1:], static_shapes=False)
    call = OpCall.of(aten.view.default, (x, [x.shape[0], -1]))
    assert environment.guards == []
    assert call.args[0] == TensorSpec((5, 5), (6, 1), torch.float32, CPU, 1, 120)
    assert call.args[1] == [5, -1]


def test_calls_without_a_stable_text_have_no_signature() -> None:
    assert OpCall(lambda x: x, (spec(2),)).signature() is None
    assert OpCall(aten.relu.default, (object(),)).signature() is None
    profile = profile_calls([OpCall(lambda x: x + 1, (spec(2),))] * 2, time_budget_s=0)
    assert profile.distinct == 2


def test_replayed_random_ops_get_a_valid_state() -> None:
    def replay(state: torch.Tensor) -> torch.Tensor:
        torch.set_rng_state(state)
        return torch.rand(3)

    state = torch.get_rng_state()
    assert one(replay, TensorSpec.of(state)).notes == ()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_are_measured_as_if_none_were_empty(mode: str) -> None:
    model = nn.EmbeddingBag(500, 8, mode=mode)
    x = torch.randint(0, 500, (200, 3))
    fitted = memfit.fit(model, budget="100%", cost="measured")

    def forget() -> None:
        model.weight.grad = None

    measured = measure_step(lambda: fitted(x).square().sum().backward(), reset=forget).peak_bytes
    assert fitted.plan is not None
    assert measured + fitted.graph.resident_bytes <= fitted.plan.peak_bytes
