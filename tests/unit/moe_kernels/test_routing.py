"""Routing apart from the GEMMs: which experts, with what weight, and in which order their slots come."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DiffusionGemmaTextConfig
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaTextRouter

from moe_kernels import routing
from moe_kernels.dispatch import KernelUnsupported
from moe_kernels.routing import (
    Sorted,
    max_tiles,
    route,
    route_torch,
    route_triton,
    sort_by_expert,
    sort_by_expert_torch,
    sort_by_expert_triton,
)
from moe_kernels.testing import assert_close
from tests.marks import interpreted, on_gpu

# A softmax over k values and one product: a few roundings of float32 (2^-24 each), and an exp within 2 ulp. The largest
# error is counted in units of the rms, and the largest weight is 8 of those if all 90 experts are chosen.
FLOAT32 = {"max_error": 8e-6, "rms_error": 5e-7}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def random_scores(seed: int, tokens: int, num_experts: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(tokens, num_experts, generator=torch.Generator().manual_seed(seed))).to(dtype)


def random_experts(seed: int, tokens: int, k: int, num_experts: int) -> Tensor:
    """Distinct experts a token, as `route` makes them."""
    return route_torch(random_scores(seed, tokens, num_experts), k).experts


def assert_same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype == torch.int32
        assert a.tolist() == b.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_twin_is_softmax_then_top_k_then_renormalised_in_float64(dtype: torch.dtype) -> None:
    scores, scale = random_scores(0, 50, 128, dtype), torch.rand(128, generator=torch.Generator().manual_seed(1))
    found = route_torch(scores, 8, scale)
    # In float32 first: two float64 scores that round to one float32 are a tie for `route`.
    best, experts = scores.float().double().softmax(-1).topk(8)
    exact = best / best.sum(-1, keepdim=True) * scale.double()[experts]
    assert found.experts.dtype == torch.int32
    assert found.weights.dtype == torch.float32
    # bfloat16 and float16 scores tie often, and then topk may take another of the equal experts.
    if dtype in (torch.float32, torch.float64):
        assert torch.equal(found.experts.long(), experts)
        assert_close(found.weights, exact, **FLOAT32)
    assert_close(found.weights / scale[found.experts.long()], exact / scale.double()[experts], **FLOAT32)


def test_it_routes_as_transformers_does() -> None:
    torch.manual_seed(0)
    config = DiffusionGemmaTextConfig(hidden_size=64, num_experts=32, top_k_experts=4)
    router = DiffusionGemmaTextRouter(config).eval()
    torch.nn.init.uniform_(router.per_expert_scale, 0.5, 2.0)
    hidden = torch.randn(40, 64)
    with torch.no_grad():
        _, weights, experts = router(hidden)
        scores = router.proj(router.norm(hidden) * router.scale * router.scalar_root_size)
        found = route(scores, 4, router.per_expert_scale)
    assert torch.equal(found.experts.long(), experts)
    assert_close(found.weights, weights, **FLOAT32)


@pytest.mark.parametrize("implementation", [route_torch, pytest.param(route_triton, marks=interpreted)])
def test_equal_scores_go_to_the_lower_expert(implementation) -> None:
    flat = implementation(torch.zeros(3, 10), 4)
    assert flat.experts.tolist() == [[0, 1, 2, 3]] * 3
    assert flat.weights.tolist() == [[0.25] * 4] * 3
    signed = implementation(torch.tensor([[-0.0, 0.0, -1.0, 0.0, -0.0]]), 4)
    assert signed.experts.tolist() == [[0, 1, 3, 4]]  # minus zero is zero
    closed = implementation(torch.tensor([[float("-inf"), 2.0, float("-inf"), 2.0]]), 3)
    assert closed.experts.tolist() == [[1, 3, 0]]
    assert closed.weights.tolist() == [[0.5, 0.5, 0.0]]


@pytest.mark.parametrize("implementation", [route_torch, pytest.param(route_triton, marks=interpreted)])
def test_a_nan_makes_its_own_tokens_weights_nan_and_keeps_the_ids_distinct(implementation) -> None:
    scores = torch.tensor([[1.0, float("nan"), 2.0, -float("nan")], [4.0, 3.0, 2.0, 1.0]])
    found = implementation(scores, 3)
    assert found.experts.tolist() == [[1, 3, 2], [0, 1, 2]]
    assert found.weights[0].isnan().all()
    assert found.weights[1].isfinite().all()


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "num_experts", "k"),
    [
        pytest.param(9, 128, 8, id="the model's experts, a ragged last block"),
        pytest.param(2, 90, 90, id="every expert chosen, not a power of two"),
        pytest.param(3, 512, 5, id="the most experts the kernel takes"),
        pytest.param(4, 1, 1, id="one expert"),
        pytest.param(0, 8, 2, id="no token"),
    ],
)
def test_the_route_kernel_equals_its_twin(dtype: torch.dtype, tokens: int, num_experts: int, k: int) -> None:
    scores, scale = random_scores(2, tokens, num_experts, dtype), torch.linspace(0.5, 2.0, num_experts)
    for given_scale in (scale, scale.bfloat16(), None):
        found, expected = route_triton(scores, k, given_scale), route_torch(scores, k, given_scale)
        assert torch.equal(found.experts, expected.experts)
        assert_close(found.weights, expected.weights, **FLOAT32)


@interpreted
def test_the_route_kernel_reads_scores_that_are_not_contiguous() -> None:
    scores = random_scores(3, 16, 5).T
    assert torch.equal(route_triton(scores, 3).experts, route_torch(scores, 3).experts)


@pytest.mark.parametrize(
    ("scores", "k", "scale", "message"),
    [
        (torch.zeros(4), 1, None, r"expected scores \(T, E\)"),
        (torch.zeros(4, 4, dtype=torch.int64), 1, None, "of a float dtype"),
        (torch.zeros(4, 4), 5, None, "expected k from 1 to 4"),
        (torch.zeros(4, 4), 0, None, "expected k from 1 to 4"),
        (torch.zeros(4, 4), 2, torch.ones(3), r"expected per_expert_scale \(4,\), got \(3,\)"),
    ],
)
def test_route_refuses_what_it_cannot_read(scores: Tensor, k: int, scale: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        route(scores, k, scale)


def test_the_kernels_refuse_more_experts_than_a_row_holds() -> None:
    with pytest.raises(KernelUnsupported, match="at most 512 experts, got 513"):
        route_triton(torch.zeros(1, 513), 2)


def check_sorted(experts: Tensor, num_experts: int, found: Sorted) -> None:
    """Everything that is promised of a sort."""
    slots = experts.flatten().tolist()
    order, offsets = found.order.tolist(), found.offsets.tolist()
    assert sorted(order) == list(range(len(slots))), "not a permutation"
    inverse = torch.empty(len(slots), dtype=torch.int64)
    inverse[found.order.long()] = torch.arange(len(slots))
    assert found.order[inverse].tolist() == list(range(len(slots)))
    assert offsets[0] == 0
    assert offsets[-1] == sum(expert < num_experts for expert in slots)
    for expert in range(num_experts):
        mine = order[offsets[expert] : offsets[expert + 1]]
        assert mine == [slot for slot, chosen in enumerate(slots) if chosen == expert], "not all its slots, in order"
    assert order[offsets[-1] :] == [slot for slot, chosen in enumerate(slots) if chosen == num_experts]


SORT_CASES = [
    pytest.param(random_experts(0, 40, 8, 128), 128, id="the model's experts"),
    pytest.param(random_experts(1, 300, 8, 16), 16, id="more slots than one block holds"),
    pytest.param(torch.full((33, 2), 3), 5, id="all tokens on one expert"),
    pytest.param(torch.tensor([[7]]), 8, id="one token, the last expert"),
    pytest.param(torch.tensor([[2, 4], [4, 0], [4, 2]]), 4, id="some slots dropped"),
    pytest.param(torch.full((3, 2), 4), 4, id="all slots dropped"),
    pytest.param(torch.empty(0, 2, dtype=torch.int32), 4, id="no token"),
    pytest.param(random_experts(2, 4, 6, 9).T, 9, id="not contiguous"),
]


@pytest.mark.parametrize(("experts", "num_experts"), SORT_CASES)
def test_sorting_groups_every_slot_by_expert_in_rising_order(experts: Tensor, num_experts: int) -> None:
    check_sorted(experts, num_experts, sort_by_expert(experts, num_experts))


@interpreted
@pytest.mark.parametrize(("experts", "num_experts"), SORT_CASES)
def test_the_sort_kernel_equals_its_twin(experts: Tensor, num_experts: int) -> None:
    for ids in (experts.int(), experts.long()):
        assert_same(sort_by_expert_triton(ids, num_experts), sort_by_expert_torch(ids, num_experts))


@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_expert_out_of_range_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="expected expert ids from 0 to 4, got"):
        sort_by_expert(torch.tensor([[0, wrong]]), 4)


@pytest.mark.parametrize("experts", [torch.zeros(4, dtype=torch.int32), torch.zeros(2, 2)])
def test_sorting_refuses_what_are_no_experts(experts: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected experts \(T, K\) of int32 or int64"):
        sort_by_expert(experts, 4)


def tiles_needed(grouped: Sorted, block: int) -> int:
    return sum(-(-(last - first) // block) for first, last in pairwise(grouped.offsets.tolist()))


@pytest.mark.parametrize("block", [1, 16, 32])
@pytest.mark.parametrize(("experts", "num_experts"), SORT_CASES)
def test_no_more_tiles_are_needed_than_the_bound(experts: Tensor, num_experts: int, block: int) -> None:
    grouped = sort_by_expert_torch(experts, num_experts)
    assert tiles_needed(grouped, block) <= max_tiles(grouped.order.numel(), num_experts, block)


def test_the_bound_on_tiles_is_reached() -> None:
    # 2 tokens over the block on one expert, 1 token on each of the others: no slot could start another tile.
    experts = torch.tensor([[0]] * 5 + [[1], [2]])
    assert max_tiles(7, 3, 4) == tiles_needed(sort_by_expert(experts, 3), 4) == 4


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_shape_slots_are_permuted_and_the_bound_on_tiles_holds(data: st.DataObject) -> None:
    num_experts, k, block = (data.draw(st.integers(1, most)) for most in (20, 4, 9))
    ids = st.lists(st.lists(st.integers(0, num_experts), min_size=k, max_size=k), max_size=30)
    experts = torch.tensor(data.draw(ids), dtype=torch.int32).reshape(-1, k)
    grouped = sort_by_expert_torch(experts, num_experts)
    check_sorted(experts, num_experts, grouped)
    assert tiles_needed(grouped, block) <= max_tiles(grouped.order.numel(), num_experts, block)


@interpreted
@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(0, 20), num_experts=st.integers(1, 40), share=st.floats(0, 1), levels=st.integers(1, 50),
)  # fmt: skip
def test_whatever_the_shape_kernels_and_twins_agree(tokens: int, num_experts: int, share: float, levels: int) -> None:
    k = 1 + int(share * (num_experts - 1))
    generator = torch.Generator().manual_seed(tokens * 41 + num_experts)
    scores = torch.randint(levels, (tokens, num_experts), generator=generator) / 4  # few levels make many ties
    found, expected = route_triton(scores, k), route_torch(scores, k)
    assert_same((found.experts,), (expected.experts,))
    assert_close(found.weights, expected.weights, **FLOAT32)
    grouped = sort_by_expert_torch(expected.experts, num_experts)
    assert_same(sort_by_expert_triton(expected.experts, num_experts), grouped)


@on_gpu
@pytest.mark.parametrize("tokens", [1, 256, 8192])
def test_on_a_gpu_kernels_and_twins_agree(tokens: int) -> None:
    scores = random_scores(4, tokens, 128, torch.bfloat16).to("cuda")
    found, expected = route(scores, 8), route_torch(scores, 8)
    assert_same((found.experts,), (expected.experts,))
    assert_close(found.weights, expected.weights, **FLOAT32)
    grouped = sort_by_expert(found.experts, 128)
    assert_same(grouped, sort_by_expert_torch(found.experts, 128))


def test_every_kernel_names_its_default_configuration() -> None:
    cases = routing.kernels_to_compile()
    assert [case.name for case in cases] == ["route", "sort_by_expert"]
    for case in cases:
        assert set(case.signature) == set(case.kernel.arg_names)
        assert {name for name, kind in case.signature.items() if kind == "constexpr"} == set(case.constexprs)
