"""The attention of a diffusion step over a paged cache of keys and values.

The rows of many sequences lie in one batch: causal ones (chunks of prompts, finished canvases) and those of canvases,
which see their whole canvas. The step has already written the keys and values of all its rows into the pages of their
sequences, so what a row sees is a range of positions of its own sequence:

    causal, at position p:          max(0, p - window + 1) <= j < p + 1
    canvas after a prefix of P:     max(0, P - window + 1) <= j < P + C

and 0 <= j where a layer has no window. One launch; a program reads the keys of its block once for all query heads that
share them.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from moe_kernels._attention import attention_kernel
from moe_kernels.aot import CHIPS, Case
from moe_kernels.dispatch import backend, expect, launches

PAGE = 16  # positions of a page
BLOCK_M = 64  # rows times query heads of a program
MAX_SIZE = 512  # a row of sums and its share of the keys stay in registers
_MOST_SCORES = 1 << 20  # the twin keeps no more of a block than this


class Part(NamedTuple):
    """A block as the twin reads it."""

    begin: int  # its first row
    rows: int
    page: int  # the first of its pages if they follow one another in the pool, else -1
    pages: Tensor | None  # else all of them, int32
    end: int  # one past the highest
    skip: int  # positions of the first page before the first key
    length: int  # keys from the first that some row sees to the last; 0: no row sees any
    bias: Tensor | None  # (rows, length) float32: 0 where a row sees a key, else -inf; None: all rows see all keys
    blind: Tensor | None  # (rows,) bool: the rows that see nothing: a softmax of nothing may be NaN


class Plan(NamedTuple):
    """What the twin needs to know of a step in Python's numbers, the same in all layers of a kind."""

    parts: list[Part]
    tiled: bool  # whether the blocks are all rows, in order
    pages: int  # the pool has at least this many


@dataclass(eq=False)
class Spans:
    """Which rows belong together and what each may see.

    On a CPU the tensors and the tables are read in the first layer and remembered: where one of them changes, as from
    step to step, make another `Spans`. On a GPU they are read in every launch.

    Args:
        blocks: (B, 3) int32: sequence (a row of the tables), first row, number of rows (at most `block_rows`). A
            block's rows are neighbours of one sequence. Number 0: nothing to do, such as the padding of CUDA graphs.
        first: (T,) int32, position of the first key that a row sees.
        last: (T,) int32, one past the last. A row with first >= last sees nothing.

    Raises:
        ValueError: a shape or a dtype is not as above.
    """

    blocks: Tensor
    first: Tensor
    last: Tensor
    _kept: tuple[Tensor, Plan] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check."""
        if self.blocks.ndim != 2 or self.blocks.shape[1] != 3 or self.blocks.dtype != torch.int32:
            raise ValueError(f"expected blocks (B, 3) of int32, got {_told(self.blocks)}")
        if self.first.ndim != 1 or self.first.dtype != torch.int32:
            raise ValueError(f"expected first (T,) of int32, got {_told(self.first)}")
        if self.last.shape != self.first.shape or self.last.dtype != torch.int32:
            raise ValueError(f"expected last {tuple(self.first.shape)} of int32, got {_told(self.last)}")

    def plan(self, tables: Tensor) -> Plan:
        """What the twin makes of it, once for all layers that pass the same tables."""
        if self._kept is None or self._kept[0] is not tables:
            self._kept = (tables, _plan(tables, self))
        return self._kept[1]


def block_rows(heads: int, kv_heads: int, device: torch.device) -> int:
    """The most rows a block of `Spans` may have: few for a kernel, on a CPU any number.

    Raises:
        KernelUnsupported: over 64 query heads share a kv head on a GPU.
    """
    return _rows(heads // kv_heads) if backend("paged_attention", device) == "triton" else 1 << 30


def paged_attention(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, spans: Spans, scale: float = 1.0
) -> Tensor:
    """Attention of each row to a range of positions of its own sequence.

    y[t, n] = sum_j p_j v[j, m], p = softmax_j(scale * q[t, n] . k[j, m]) over first[t] <= j < last[t], m = n // (N / M)

    Scores and sums are float32. A row that sees nothing gets 0; what a row of no block gets is not specified. What
    no row of a block can see is not read, but positions between those that different rows of it see must hold finite
    numbers. A row's result does not depend on what else is computed with it: on a GPU, on no other row; on a CPU, on no
    other block.

    Args:
        q: (T, N, D); bfloat16 on a GPU, any float dtype on a CPU.
        keys: (P, 16, M, D) in q's dtype, contiguous: a layer's pool of pages. M divides N.
        values: like keys.
        tables: (S, most pages) int32: entry i of a sequence is the page of its positions 16 i ... 16 i + 15. Entries
            beyond its last position are not read.
        spans: of these T rows.
        scale: of the scores.

    Returns:
        (T, N, D) in q's dtype, contiguous.

    Raises:
        ValueError: shapes or dtypes don't agree, or, on a CPU, a block, a range or a page lies outside of what there
            is. Looking would make a GPU wait.
        KernelUnsupported: on a GPU, q is not bfloat16, D is no multiple of 16 up to 512, or N / M is over 64.

    Source: `DiffusionGemmaDecoderTextAttention` in transformers; the running softmax is that of FlashAttention
    (arXiv:2205.14135).
    """
    _check(q, keys, values, tables, spans)
    chosen = paged_attention_triton if backend("paged_attention", q.device) == "triton" else paged_attention_torch
    return chosen(q, keys, values, tables, spans, scale)


def paged_attention_torch(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, spans: Spans, scale: float = 1.0
) -> Tensor:
    """Twin of `paged_attention`: block after block, so that none changes the bits of another."""
    plan = spans.plan(tables)
    if plan.pages > keys.shape[0]:
        raise ValueError(f"expected at least {plan.pages} pages, got {keys.shape[0]}")
    x = q.contiguous()
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    if scale != 1.0:
        x = x * scale
    found = [_attend(x, keys, values, part) for part in plan.parts]
    if plan.tiled:
        return (torch.cat(found) if len(found) > 1 else found[0]).type_as(q)
    out = torch.zeros_like(x)
    for part, y in zip(plan.parts, found, strict=True):
        out[part.begin : part.begin + part.rows] = y
    return out.type_as(q)


def _attend(x: Tensor, keys: Tensor, values: Tensor, part: Part) -> Tensor:
    """The result (count, N, D) of one block. Views are made by `as_strided`: one call where slicing takes four."""
    _, heads, size = x.shape
    kv_heads = keys.shape[2]
    count, length = part.rows, part.length
    if not length:
        return x.new_zeros(count, heads, size)
    skip, at = part.skip * kv_heads * size, part.begin * heads * size
    if part.pages is None:
        skip += part.page * PAGE * kv_heads * size
        key_at, value_at = keys.storage_offset() + skip, values.storage_offset() + skip
    else:
        keys, values = keys.index_select(0, part.pages), values.index_select(0, part.pages)
        key_at = value_at = skip
    at += x.storage_offset()
    in_rows = kv_heads == 1 and count * heads * length <= _MOST_SCORES  # the heads are rows without a copy
    if in_rows:
        k = keys.as_strided((1, size, length), (0, 1, size), key_at)
        v = values.as_strided((1, length, size), (0, size, 1), value_at)
    else:
        shape, strides = (1, kv_heads, length, size), (0, size, kv_heads * size, 1)
        k, v = keys.as_strided(shape, strides, key_at), values.as_strided(shape, strides, value_at)
    if k.dtype != x.dtype:
        k, v = k.to(x.dtype), v.to(x.dtype)
    if in_rows:
        scores = torch.bmm(x.as_strided((1, count * heads, size), (0, size, 1), at), k)
        if part.bias is not None:
            scores.view(count, heads, length).add_(part.bias.unsqueeze(1))
        y = torch.bmm(scores.softmax(-1), v).view(count, heads, size)
    else:
        rows = x.as_strided((1, heads, count, size), (0, size, heads * size, 1), at)
        bias = None if part.bias is None else part.bias.to(x.dtype)
        y = scaled_dot_product_attention(rows, k, v, bias, scale=1.0, enable_gqa=True)[0].transpose(0, 1)
    if part.blind is not None:
        y = y.masked_fill(part.blind[:, None, None], 0.0)
    return y.contiguous()


def _plan(tables: Tensor, spans: Spans) -> Plan:
    first, last = spans.first.tolist(), spans.last.tolist()
    sequences, most_pages = tables.shape
    parts, rows, tiled = [], 0, True
    for sequence, begin, count in spans.blocks.tolist():
        if not count:
            continue
        if not (0 <= sequence < sequences and 0 <= begin < begin + count <= len(first)):
            got = (sequence, begin, count)
            raise ValueError(f"expected blocks of {sequences} sequences and {len(first)} rows, got {got}")
        tiled, rows = tiled and begin == rows, begin + count
        part = _part(tables[sequence], spans, begin, first[begin:rows], last[begin:rows], most_pages)
        parts.append(part)
    pages = max((part.end for part in parts), default=0)
    return Plan(parts, bool(parts) and tiled and rows == len(first), pages)


def _part(table: Tensor, spans: Spans, begin: int, first: list[int], last: list[int], most_pages: int) -> Part:
    count = len(first)
    alike = first.count(first[0]) == last.count(last[0]) == count
    ranges = [(first[0], last[0])] if alike else list(zip(first, last, strict=True))
    ranges = [(low, high) for low, high in ranges if low < high]
    if not ranges:
        return Part(begin, count, 0, None, 0, 0, 0, None, None)
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if low < 0 or high > most_pages * PAGE:
        raise ValueError(f"expected ranges within 0 to {most_pages * PAGE}, got {low} to {high}")
    bias = blind = None
    if not alike:
        position = torch.arange(low, high, device=table.device)
        lows, highs = (x[begin : begin + count, None] for x in (spans.first, spans.last))
        unseen = (position < lows) | (position >= highs)
        if len(ranges) < count:
            blind = (lows >= highs).squeeze(1)
        bias = torch.zeros(count, high - low, device=table.device).masked_fill_(unseen, -math.inf)
    page, skip = divmod(low, PAGE)
    pages = table[page : triton.cdiv(high, PAGE)]
    listed = pages.tolist()
    if min(listed) < 0:
        raise ValueError(f"expected pages of at least 0, got {min(listed)}")
    in_line = listed == list(range(listed[0], listed[0] + len(listed)))
    where = (listed[0], None) if in_line else (-1, pages)
    return Part(begin, count, *where, max(listed) + 1, skip, high - low, bias, blind)


@launches
def paged_attention_triton(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, spans: Spans, scale: float = 1.0
) -> Tensor:
    """Kernel of `paged_attention`; Triton's interpreter takes float32 as well."""
    tokens, heads, size = q.shape
    kv_heads = keys.shape[2]
    op, group = "paged_attention", heads // kv_heads
    expect(q.dtype == torch.bfloat16 or not q.is_cuda, op, "q in bfloat16", q.dtype)
    expect(size % 16 == 0 and size <= MAX_SIZE, op, f"D a multiple of 16 up to {MAX_SIZE}", size)
    rows = _rows(group)
    if not q.is_cuda and spans.blocks.numel() and (most := int(spans.blocks[:, 2].max())) > rows:
        raise ValueError(f"expected blocks of at most {rows} rows, got {most}")
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if tokens and len(spans.blocks):
        options = _options(size, _shared_kib(q.device))
        attention_kernel[(len(spans.blocks), kv_heads)](
            q.contiguous(), keys, values, tables.contiguous(), spans.blocks.contiguous(), spans.first.contiguous(),
            spans.last.contiguous(), out, scale * math.log2(math.e), tables.shape[1],
            **_constants(kv_heads, group, size, q.is_cuda), **options,
        )  # fmt: skip
    return out


def _check(q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, spans: Spans) -> None:
    if q.ndim != 3 or not q.is_floating_point():
        raise ValueError(f"expected q (T, N, D) of a float dtype, got {_told(q)}")
    tokens, heads, size = q.shape
    if keys.ndim != 4 or keys.shape[1] != PAGE or keys.shape[3] != size or keys.dtype != q.dtype:
        raise ValueError(f"expected keys {('P', PAGE, 'M', size)} of {q.dtype}, got {_told(keys)}")
    if not keys.shape[2] or heads % keys.shape[2]:
        raise ValueError(f"expected kv heads that divide {heads} query heads, got {keys.shape[2]}")
    if values.shape != keys.shape or values.dtype != q.dtype:
        raise ValueError(f"expected values {tuple(keys.shape)} of {q.dtype}, got {_told(values)}")
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError(f"expected contiguous pools, got strides {keys.stride()} and {values.stride()}")
    if tables.ndim != 2 or tables.dtype != torch.int32:
        raise ValueError(f"expected tables (S, most pages) of int32, got {_told(tables)}")
    if spans.first.shape[0] != tokens:
        raise ValueError(f"expected spans of {tokens} rows, got {spans.first.shape[0]}")


def _told(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype}"


def _rows(group: int) -> int:
    expect(group <= BLOCK_M, "paged_attention", f"at most {BLOCK_M} query heads a kv head", group)
    return BLOCK_M // group


@cache
def _shared_kib(device: torch.device) -> int:
    """Shared memory a block can have; the interpreter has room for all."""
    if device.type != "cuda":
        return max(CHIPS.values())
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin // 1024


def _options(size: int, shared_kib: int) -> dict[str, Any]:
    """Tiles of keys as long as registers and two stages of them in shared memory allow."""
    keys = 32 if shared_kib >= CHIPS[90] else 16
    return {"BLOCK_N": keys if size > 256 else 2 * keys, "num_warps": 8, "num_stages": 2}


def _constants(kv_heads: int, group: int, size: int, native: bool) -> dict[str, Any]:
    padded = triton.next_power_of_2(size)
    return {"M": kv_heads, "G": group, "D": size, "PAGE": PAGE, "BLOCK_M": BLOCK_M, "BLOCK_D": padded, "NATIVE": native}


def kernels_to_compile() -> list[Case]:
    """Sliding layers, 16 query heads and 8 kv heads of 256; full layers, 16 and 2 of 512."""
    made = []
    for kv_heads, group, size in ((8, 2, 256), (2, 8, 512)):
        for keys, chips in _by_block(size).items():
            options = _options(size, CHIPS[chips[0]])
            constexprs = _constants(kv_heads, group, size, True) | {"BLOCK_N": options.pop("BLOCK_N")}
            types = "*bf16 *bf16 *bf16 *i32 *i32 *i32 *i32 *bf16 fp32 i32"
            name = f"attention D={size} keys={keys}"
            made.append(Case.of(name, attention_kernel, types, constexprs, chips=tuple(chips), **options))
    return made


def _by_block(size: int) -> dict[int, list[int]]:
    chips: dict[int, list[int]] = {}
    for chip, shared_kib in CHIPS.items():
        chips.setdefault(_options(size, shared_kib)["BLOCK_N"], []).append(chip)
    return chips
