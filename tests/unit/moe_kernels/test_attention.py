"""Attention over a paged cache: twin and kernel against every score written out in float64."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_kernels import attention
from moe_kernels.attention import (
    PAGE,
    Spans,
    block_rows,
    paged_attention,
    paged_attention_torch,
    paged_attention_triton,
)
from moe_kernels.dispatch import KernelUnsupported
from moe_kernels.testing import assert_close
from tests.marks import interpreted, on_gpu

CPU = torch.device("cpu")
# Both sides start from the same bfloat16 numbers. The kernel rounds the weights to 8 bits before they meet the values,
# errors that average out, and the result: half a unit of 2^-8, and some rows of few keys are 15 times the rms.
ROUNDED = {"max_error": 6e-2, "rms_error": 4e-3}


class Chunk(NamedTuple):
    """Rows of a sequence: causal ones, or a canvas, that start at a position."""

    start: int
    rows: int
    canvas: bool
    sees_nothing: bool = False


class Step(NamedTuple):
    """The arguments of the op, beside all keys and values of each sequence, unpaged."""

    q: Tensor
    keys: Tensor
    values: Tensor
    tables: Tensor
    spans: Spans
    scale: float
    unpaged: list[tuple[Tensor, Tensor]]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Spans, float]:
        return self.q, self.keys, self.values, self.tables, self.spans, self.scale

    def to(self, device: str, dtype: torch.dtype) -> "Step":
        spans = Spans(*(x.to(device) for x in (self.spans.blocks, self.spans.first, self.spans.last)))
        q, keys, values = (x.to(device, dtype) for x in (self.q, self.keys, self.values))
        return self._replace(q=q, keys=keys, values=values, tables=self.tables.to(device), spans=spans)


def same(found: Tensor, expected: Tensor) -> None:
    """Values are of size 1, and float32 sums of some hundred products differ by their order.

    A result near 0, where values cancel, is no more exact than others, so errors are not measured by it.
    """
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=1e-5)


def ranges(chunk: Chunk, window: int | None) -> list[tuple[int, int]]:
    """What each row sees."""
    if chunk.sees_nothing:
        return [(0, 0)] * chunk.rows
    end = chunk.start + chunk.rows
    seen = [(chunk.start, end) if chunk.canvas else (p, p + 1) for p in range(chunk.start, end)]
    reach = 1 << 30 if window is None else window - 1
    return [(max(0, low - reach), high) for low, high in seen]


def make_step(
    chunks: list[Chunk], heads: tuple[int, int], size: int, window: int | None = None, rows: int = 1 << 30,
    scale: float = 1.0, shuffled: bool = True, padding: int = 0, seed: int = 0,
) -> Step:  # fmt: skip
    """A chunk is a sequence of its own, in blocks of at most `rows`. Positions no row may see hold NaN."""
    rng = torch.Generator().manual_seed(seed)
    many, few = heads
    lengths = [chunk.start + chunk.rows for chunk in chunks]
    counts = [-(-length // PAGE) for length in lengths]
    pages = sum(counts) + 3
    order = torch.randperm(pages, generator=rng) if shuffled else torch.arange(pages)
    keys, values = (torch.full((pages, PAGE, few, size), float("nan")) for _ in range(2))
    tables = torch.full((len(chunks), max(counts, default=0) + 1), -1, dtype=torch.int32)
    blocks, seen, unpaged = [], [], []
    for sequence, (chunk, length) in enumerate(zip(chunks, lengths, strict=True)):
        mine, order = order[: counts[sequence]], order[counts[sequence] :]
        tables[sequence, : len(mine)] = mine
        k, v = (torch.randn(length, few, size, generator=rng) for _ in range(2))
        unpaged.append((k, v))
        here = ranges(chunk, window)
        written = torch.arange(min(low for low, _ in here), max(high for _, high in here))
        for pool, x in ((keys, k), (values, v)):
            pool[mine[written // PAGE], written % PAGE] = x[written]
        blocks += [
            (sequence, len(seen) + at, min(rows, chunk.rows - at)) for at in range(0, chunk.rows, min(rows, 1 << 20))
        ]
        seen += here
    blocks += [(0, 0, 0)] * padding
    first, last = (torch.tensor([x[i] for x in seen], dtype=torch.int32) for i in range(2))
    spans = Spans(torch.tensor(blocks, dtype=torch.int32).view(-1, 3), first, last)
    q = torch.randn(len(seen), many, size, generator=rng) * size**-0.5 / scale * 2
    return Step(q, keys, values, tables, spans, scale, unpaged)


def dense(step: Step) -> Tensor:
    """Row after row and head after head, in float64."""
    out = torch.zeros(step.q.shape, dtype=torch.float64)
    group = step.q.shape[1] // step.keys.shape[2]
    for sequence, begin, count in step.spans.blocks.tolist():
        k, v = step.unpaged[sequence]
        for row in range(begin, begin + count):
            low, high = int(step.spans.first[row]), int(step.spans.last[row])
            for head in range(step.q.shape[1] if low < high else 0):
                scores = k[low:high, head // group].double() @ step.q[row, head].double() * step.scale
                out[row, head] = scores.softmax(0) @ v[low:high, head // group].double()
    return out


CHUNKS = st.builds(
    Chunk, start=st.integers(0, 70), rows=st.integers(1, 20), canvas=st.booleans(),
    sees_nothing=st.sampled_from([False, False, False, True]),
)  # fmt: skip
STEPS = {
    "chunks": st.lists(CHUNKS, min_size=1, max_size=3),
    "heads": st.sampled_from([(1, 1), (4, 4), (4, 2), (8, 1), (6, 2)]),
    "window": st.sampled_from([None, 1, 7, 40, 1000]),
    "scale": st.sampled_from([1.0, 0.3]),
    "shuffled": st.booleans(),
    "padding": st.integers(0, 2),
    "seed": st.integers(0, 1000),
}


@settings(deadline=None, max_examples=60)
@given(**STEPS, size=st.sampled_from([1, 16, 24, 48, 64, 80]), rows=st.sampled_from([5, 1 << 30]))
def test_the_twin_is_attention_written_out_in_float64(**given) -> None:
    step = make_step(**given)
    found = paged_attention_torch(*step.arguments)
    assert found.is_contiguous()
    same(found, dense(step))


@interpreted
@settings(deadline=None, max_examples=15)
@given(**STEPS, size=st.sampled_from([16, 48, 64, 80]))
def test_the_kernel_equals_the_twin(**given) -> None:
    step = make_step(**given, rows=64 // (given["heads"][0] // given["heads"][1]))
    found = paged_attention_triton(*step.arguments)
    assert found.is_contiguous()
    same(found, paged_attention_torch(*step.arguments))


MIXED = [Chunk(0, 33, False), Chunk(45, 32, True), Chunk(150, 20, False), Chunk(3, 5, True)]


@interpreted
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("heads", "size"), [((4, 2), 256), ((8, 1), 512)])
def test_the_kernel_at_the_models_heads(heads: tuple[int, int], size: int, window: int | None) -> None:
    step = make_step(MIXED, heads, size, window, rows=64 * heads[1] // heads[0], padding=1)
    same(paged_attention_triton(*step.arguments), dense(step))


@interpreted
def test_the_kernel_agrees_with_the_twin_in_bfloat16() -> None:
    step = make_step(MIXED, (4, 2), 32, 40, rows=32).to("cpu", torch.bfloat16)
    found, expected = paged_attention_triton(*step.arguments), paged_attention_torch(*step.arguments)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert_close(found, expected, max_error=4e-2, rms_error=6e-3)  # Triton's interpreter cuts where a GPU rounds


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("heads", [(4, 2), (4, 1)])
def test_the_twin_sums_narrow_types_in_float32(heads: tuple[int, int], dtype: torch.dtype) -> None:
    step = make_step(MIXED, heads, 32, 40, shuffled=False).to("cpu", dtype)
    found = paged_attention_torch(*step.arguments)
    wide = step.to("cpu", torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.dtype == dtype
    expected = paged_attention_torch(*wide.arguments)
    assert torch.equal(found, expected.to(dtype))
    if dtype == torch.float64:
        torch.testing.assert_close(found, dense(step), atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("heads", [(4, 2), (4, 1)])
def test_a_row_that_sees_nothing_gets_zeros_beside_one_that_sees(heads: tuple[int, int]) -> None:
    step = make_step([Chunk(20, 4, True)], heads, 16)
    first = torch.tensor([0, 9, 24, 0], dtype=torch.int32)
    last = torch.tensor([24, 9, 3, 24], dtype=torch.int32)
    step = step._replace(spans=Spans(step.spans.blocks, first, last))
    found = paged_attention_torch(*step.arguments)
    same(found, dense(step))
    assert not found[1:3].any()
    assert found[[0, 3]].all()


@interpreted
def test_a_row_that_sees_nothing_gets_zeros_from_the_kernel_beside_one_that_sees() -> None:
    step = make_step([Chunk(20, 4, True)], (4, 2), 16)
    first = torch.tensor([0, 9, 24, 0], dtype=torch.int32)
    last = torch.tensor([24, 9, 3, 24], dtype=torch.int32)
    step = step._replace(spans=Spans(step.spans.blocks, first, last))
    found = paged_attention_triton(*step.arguments)
    same(found, dense(step))
    assert not found[1:3].any()


@interpreted
@pytest.mark.parametrize("window", [None, 30])
def test_the_kernel_gives_a_row_the_same_bits_whatever_its_neighbours(window: int | None) -> None:
    """Rows 10 ... 19 of a causal chunk far from the start: alone, with all others, and in blocks that begin elsewhere."""
    step = make_step([Chunk(150, 30, False), Chunk(3, 20, True)], (4, 2), 32, window)
    found = []
    for blocks in ([(0, 10, 10)], [(0, 0, 30), (1, 30, 20)], [(1, 30, 20), (0, 20, 10), (0, 7, 13), (0, 0, 7)]):
        spans = Spans(torch.tensor(blocks, dtype=torch.int32), step.spans.first, step.spans.last)
        found.append(paged_attention_triton(*step._replace(spans=spans).arguments)[10:20])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("heads", [(4, 2), (4, 1)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_twin_gives_a_block_the_same_bits_whatever_the_others(heads: tuple[int, int], shuffled: bool) -> None:
    step = make_step(MIXED, heads, 32, 40, shuffled=shuffled)
    together = paged_attention_torch(*step.arguments)
    for block in step.spans.blocks:
        _, begin, count = block.tolist()
        spans = replace(step.spans, blocks=block[None])
        alone = paged_attention_torch(*step._replace(spans=spans).arguments)
        assert torch.equal(alone[begin : begin + count], together[begin : begin + count])


def test_blocks_may_come_in_any_order_and_leave_rows_out() -> None:
    step = make_step(MIXED, (4, 2), 32)
    spans = replace(step.spans, blocks=step.spans.blocks[[3, 0, 1]])
    found, all_rows = paged_attention_torch(*step._replace(spans=spans).arguments), dense(step)
    covered = [*range(33 + 32), *range(33 + 32 + 20, len(step.q))]
    same(found[covered], all_rows[covered])


@pytest.mark.parametrize("op", [paged_attention_torch, pytest.param(paged_attention_triton, marks=interpreted)])
def test_no_row_and_only_padding_give_no_result(op) -> None:
    step = make_step([Chunk(0, 3, False)], (4, 2), 16, padding=2)
    none = torch.zeros(0, dtype=torch.int32)
    assert op(step.q[:0], *step.arguments[1:4], Spans(step.spans.blocks[1:], none, none)).shape == (0, 4, 16)
    assert op(step.q[:0], *step.arguments[1:4], Spans(step.spans.blocks[:0], none, none)).shape == (0, 4, 16)
    idle = replace(step.spans, blocks=step.spans.blocks[1:])
    assert op(*step._replace(spans=idle).arguments).shape == (3, 4, 16)


@pytest.mark.parametrize("heads", [(4, 2), (4, 1)])
def test_a_pool_may_be_one_layer_of_many_and_rows_may_lie_apart(heads: tuple[int, int]) -> None:
    for shuffled in (False, True):
        step = make_step(MIXED, heads, 32, shuffled=shuffled)
        pools = torch.stack([torch.zeros_like(step.keys), step.keys, step.values])
        q = torch.cat([torch.zeros_like(step.q), step.q], dim=-1)[..., 32:]
        assert not q.is_contiguous()
        late = torch.cat([torch.zeros_like(step.q), step.q])[len(step.q) :]
        for rows in (q, late):
            found = paged_attention_torch(rows, pools[1], pools[2], *step.arguments[3:])
            assert torch.equal(found, paged_attention_torch(*step.arguments))


@pytest.mark.parametrize("chunk", [Chunk(40, 30, True), Chunk(40, 30, False)])
def test_a_block_of_many_scores_is_not_held_at_once(chunk: Chunk, monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_step([chunk], (4, 1), 32)
    small = paged_attention_torch(*step.arguments)
    monkeypatch.setattr(attention, "_MOST_SCORES", 100)
    monkeypatch.setattr(torch, "bmm", None)
    same(paged_attention_torch(*step.arguments), small)


def test_the_op_serves_this_device() -> None:
    step = make_step(MIXED, (4, 2), 32, 40, rows=block_rows(4, 2, CPU), padding=1)
    same(paged_attention(*step.arguments), dense(step))


def test_what_a_step_sees_is_read_once_for_all_its_layers() -> None:
    step = make_step(MIXED, (4, 2), 32)
    kept = step.spans.plan(step.tables)
    assert step.spans.plan(step.tables) is kept
    assert step.spans.plan(step.tables.clone()) is not kept


def test_a_cpu_takes_whole_sequences_and_a_kernel_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "backend", lambda op, device: "torch")
    assert block_rows(16, 2, CPU) == 1 << 30
    monkeypatch.setattr(attention, "backend", lambda op, device: "triton")
    assert [block_rows(16, few, CPU) for few in (16, 8, 2)] == [64, 32, 8]
    assert block_rows(6, 2, CPU) == 21
    with pytest.raises(KernelUnsupported, match="at most 64 query heads a kv head, got 65"):
        block_rows(65, 1, CPU)


def test_wrong_shapes_and_dtypes_are_refused() -> None:
    q, keys, values, tables, spans, _ = make_step([Chunk(0, 3, False)], (4, 2), 16).arguments
    with pytest.raises(ValueError, match=r"expected q \(T, N, D\) of a float dtype, got \(3, 64\) of torch.float32"):
        paged_attention(q.flatten(1), keys, values, tables, spans)
    with pytest.raises(ValueError, match=r"expected keys \('P', 16, 'M', 8\) of torch.float32, got \(4, 16, 2, 16\)"):
        paged_attention(q[..., :8], keys, values, tables, spans)
    with pytest.raises(ValueError, match=r"of torch.bfloat16, got \(4, 16, 2, 16\) of torch.float32"):
        paged_attention(q.bfloat16(), keys, values, tables, spans)
    with pytest.raises(ValueError, match="expected kv heads that divide 3 query heads, got 2"):
        paged_attention(q[:, :3], keys, values, tables, spans)
    with pytest.raises(ValueError, match=r"expected values \(4, 16, 2, 16\) of torch.float32, got \(3, 16, 2, 16\)"):
        paged_attention(q, keys, values[1:], tables, spans)
    with pytest.raises(ValueError, match="expected contiguous pools"):
        paged_attention(
            q, keys.expand(4, 16, 2, 16).transpose(0, 1).contiguous().transpose(0, 1), values, tables, spans
        )
    with pytest.raises(ValueError, match=r"expected tables \(S, most pages\) of int32, got \(1, 2\) of torch.int64"):
        paged_attention(q, keys, values, tables.long(), spans)
    with pytest.raises(ValueError, match="expected spans of 2 rows, got 3"):
        paged_attention(q[:2], keys, values, tables, spans)


def test_wrong_spans_are_refused() -> None:
    blocks, rows = torch.tensor([[0, 0, 3]], dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"expected blocks \(B, 3\) of int32, got \(1, 2\) of torch.int32"):
        Spans(blocks[:, :2], rows, rows)
    with pytest.raises(ValueError, match=r"expected first \(T,\) of int32, got \(3,\) of torch.int64"):
        Spans(blocks, rows.long(), rows)
    with pytest.raises(ValueError, match=r"expected last \(3,\) of int32, got \(2,\) of torch.int32"):
        Spans(blocks, rows, rows[:2])


@pytest.mark.parametrize(
    ("block", "first", "last", "page", "message"),
    [
        ((1, 0, 3), 0, 5, 0, r"blocks of 1 sequences and 3 rows, got \(1, 0, 3\)"),
        ((0, 1, 3), 0, 5, 0, r"blocks of 1 sequences and 3 rows, got \(0, 1, 3\)"),
        ((0, 0, -1), 0, 5, 0, r"blocks of 1 sequences and 3 rows, got \(0, 0, -1\)"),
        ((0, 0, 3), -1, 5, 0, "ranges within 0 to 32, got -1 to 5"),
        ((0, 0, 3), 0, 33, 0, "ranges within 0 to 32, got 0 to 33"),
        ((0, 0, 3), 0, 5, 4, "at least 5 pages, got 4"),
        ((0, 0, 3), 0, 5, -1, "pages of at least 0, got -1"),
    ],
)
def test_a_twin_reads_nothing_that_is_not_there(block, first: int, last: int, page: int, message: str) -> None:
    step = make_step([Chunk(0, 3, False)], (4, 2), 16)
    rows = [torch.full((3,), value, dtype=torch.int32) for value in (first, last)]
    step.tables[0, 0] = page
    with pytest.raises(ValueError, match=f"expected {message}"):
        paged_attention_torch(*step._replace(spans=Spans(torch.tensor([block], dtype=torch.int32), *rows)).arguments)


@interpreted
def test_the_kernel_refuses_what_no_program_holds() -> None:
    for size in (24, 528):
        step = make_step([Chunk(0, 3, False)], (4, 2), size)
        with pytest.raises(KernelUnsupported, match=f"D a multiple of 16 up to 512, got {size}"):
            paged_attention_triton(*step.arguments)
    with pytest.raises(ValueError, match="expected blocks of at most 8 rows, got 9"):
        paged_attention_triton(*make_step([Chunk(0, 9, False)], (8, 1), 16).arguments)


@on_gpu
@pytest.mark.parametrize("window", [None, 1024])
@pytest.mark.parametrize(("heads", "size"), [((16, 8), 256), ((16, 2), 512), ((4, 2), 80)])
def test_on_a_gpu_the_kernel_agrees_with_the_twin(heads: tuple[int, int], size: int, window: int | None) -> None:
    chunks = [Chunk(0, 300, False), Chunk(2000, 256, True), Chunk(1500, 100, False), Chunk(10, 1, False)]
    rows = block_rows(*heads, torch.device("cuda"))
    step = make_step(chunks, heads, size, window, rows=rows, padding=3).to("cuda", torch.bfloat16)
    found = paged_attention(*step.arguments)
    assert found.is_contiguous()
    whole = make_step(chunks, heads, size, window).spans
    exact = step._replace(spans=whole).to("cpu", torch.bfloat16).to("cpu", torch.float32)
    assert_close(found, paged_attention_torch(*exact.arguments), **ROUNDED)


def test_every_kernel_names_its_default_configuration() -> None:
    made = attention.kernels_to_compile()
    assert {(case.constexprs["D"], chip) for case in made for chip in case.chips} == {
        (size, chip) for size in (256, 512) for chip in (80, 90, 100, 120)
    }
    for case in made:
        assert set(case.signature) == set(case.kernel.arg_names)
        assert {name for name, kind in case.signature.items() if kind == "constexpr"} == set(case.constexprs)
