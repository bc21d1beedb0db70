"""Runs plans: turns them into tensors, calls model, head and sampler, and reads back what the host must know.

A step is one function of tensors. On a CPU it is called; on a GPU a step without encoding is captured once for each number of canvases as a CUDA
graph, head and stop test included, and replayed; what it reads is copied into tensors of its own before. The only thing a step waits for is the
(B, 2) tensor of stop flags and mean entropies.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_engine.infill import FREE
from diffusion_engine.model import Attended, KVCache, Model, Rows
from diffusion_engine.sampler import Canvases, Inputs
from diffusion_engine.scheduler import Plan, Scheduler
from diffusion_engine.sequence import CanvasReport, Sequence
from engine_core.pages import PAGE, Kind
from engine_core.scheduler import Budget
from engine_core.tables import PageTables, row_blocks
from moe_kernels.attention import Spans, block_rows
from moe_kernels.denoise_head import SKIP, denoise_head
from moe_kernels.dispatch import backend
from moe_kernels.moe import Experts


class Stepped(NamedTuple):
    """What a step did to one canvas."""

    sequence: Sequence
    settled: bool  # stable and confident
    mean_entropy: float  # nats


class Runner:
    """A model, its cache and its canvases on one device."""

    def __init__(self, model: Model, budget: Budget) -> None:
        """Take memory for the cache and the canvases; the budget is the scheduler's."""
        self.model = model
        self.cache = KVCache.empty(model.config, dict(budget.pages), model.dtype, model.device)
        self._spare = budget.slots  # one slot belongs to nobody
        self.canvases = Canvases.empty(model.config, budget.slots + 1, model.dtype, model.device)
        longest = model.config.context + model.config.canvas + PAGE
        self._tables = PageTables(model.kinds, budget.slots + 1, longest, model.device)
        self._last: tuple[Any, Rows] | None = None
        self._graphs: dict[int, _Graph] = {}

    @torch.inference_mode()
    def run(self, plan: Plan, scheduler: Scheduler) -> list[Stepped]:
        """Do a plan's work; one entry for each of its canvases."""
        begin = [sequence for sequence in plan.canvases if sequence.step == 0]
        if begin:
            self._begin(begin)
        for sequence in plan.sequences():
            sequence.forwards += 1
        for sequence in plan.canvases:
            sequence.step += 1
        rows, inputs = self._rows(plan, scheduler), self._inputs(plan.canvases)
        # A GPU has compiled its kernels for given tokens, which cost it nothing.
        infilling = rows.positions.is_cuda or any(one.given_now for one in plan.canvases)
        fresh = all(one.step == 1 for one in plan.canvases)
        graph = None if plan.chunks else self._graphs.get(len(plan.canvases))
        flags = (
            graph.replay(rows, inputs) if graph else self._step(rows, inputs, infilling=infilling, fresh=fresh)
        ).tolist()
        return [
            Stepped(sequence, bool(settled), mean)
            for sequence, (settled, mean) in zip(plan.canvases, flags, strict=True)
        ]

    @torch.inference_mode()
    def report(self, sequence: Sequence, converged: bool) -> CanvasReport:
        """Read a finished canvas."""
        state, slot = self.canvases, sequence.slot
        return CanvasReport(
            ids=state.best[slot].tolist(),
            logprobs=state.logprob[slot].tolist(),
            entropy=state.entropy[slot].tolist(),
            mean_entropy=(state.entropy_sum[slot] / sequence.step).tolist(),
            changed_at=state.changed_at[slot].tolist(),
            steps=sequence.step,
            converged=converged,
        )

    @torch.inference_mode()
    def look(self, sequence: Sequence) -> tuple[list[int], list[bool]]:
        """A canvas as it stands: its most likely tokens, and which positions the last step took."""
        return self.canvases.best[sequence.slot].tolist(), self.canvases.taken[sequence.slot].tolist()

    @torch.inference_mode()
    def probe(self) -> None:
        """Denoise a canvas of nobody's. Raises what the device raises."""
        self._step(*self._idle(1)).tolist()

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture the CUDA graphs, the largest first, so that the others find their memory in its pool.

        Nothing is captured where torch twins compute, on a CPU, an old GPU or with plain experts: they read numbers on the host.
        """
        packed = all(isinstance(layer.experts, Experts) for layer in self.model.weights.layers)
        device = self.model.device
        if device.type != "cuda" or not packed or backend("experts_mlp", device) == "torch":
            return
        pool, aside = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        for count in range(self._spare, 0, -1):
            self._graphs[count] = _Graph(self._step, *self._idle(count), pool, aside)
        torch.cuda.empty_cache()  # what the warm-up held is the graphs' now

    def _idle(self, count: int) -> tuple[Rows, Inputs]:
        """Canvases of nobody's: all in the spare slot and on page 0."""
        model, length = self.model, self.model.config.canvas
        positions = torch.arange(length, device=model.device).repeat(count)
        first, last = torch.zeros_like(positions).int(), torch.full_like(positions, length).int()
        attended = {}
        for kind in model.kinds:
            blocks = self._blocks([(self._spare, length)] * count, kind)
            spans = Spans(blocks, first.clone(), last.clone())  # a graph writes to them, for each kind something else
            attended[kind] = Attended(positions % PAGE, self._tables[kind], spans, model.turn(positions, kind))
        whole = self._tensor([[self._spare], [0], [1], [0], [1]]).repeat(1, count)
        return Rows(positions[:0], positions, attended), Inputs(whole, torch.ones(3, count, device=model.device))

    def _begin(self, sequences: list[Sequence]) -> None:
        numbers = [(one.slot, len(one.tokens), one.sampling.seed) for one in sequences]
        slots, start, seed = self._tensor(numbers).T
        given = None
        if any(one.given_now for one in sequences):
            free = [FREE] * self.model.config.canvas
            given = self._tensor([one.given_now or free for one in sequences])
        self.canvases.begin(slots, start, seed, given)

    def _inputs(self, canvases: list[Sequence]) -> Inputs:
        of = [one.sampling for one in canvases]
        whole = [
            [one.slot for one in canvases],
            [len(one.tokens) for one in canvases],
            [one.step for one in canvases],
            [sampling.seed for sampling in of],
            [sampling.stability for sampling in of],
        ]
        real = [
            [sampling.temperature(one.step) for one, sampling in zip(canvases, of, strict=True)],
            [sampling.entropy_bound for sampling in of],
            [sampling.confidence for sampling in of],
        ]
        return Inputs(self._tensor(whole), self._tensor(real, torch.float32))

    def _step(self, rows: Rows, inputs: Inputs, *, infilling: bool = True, fresh: bool = False) -> Tensor:
        """(B, 2) float32: settled, mean entropy.

        Args:
            rows: of encoder and canvases.
            inputs: of B canvases.
            infilling: whether any canvas has given tokens; a graph is captured as if.
            fresh: whether it is the first step of every canvas, so that there is nothing to condition on.
        """
        causal, count = len(rows.tokens), len(inputs.slots)
        tokens = self.canvases.tokens[inputs.slots].flatten()
        soft = None if fresh else self.canvases.soft[inputs.slots].flatten(0, 1)
        hidden = self.model.forward(rows, tokens, soft, self.cache)
        if not count:
            return torch.zeros(0, 2)
        length = self.model.config.canvas
        given = self.canvases.given[inputs.slots].flatten() if infilling else None

        def spread(values: Tensor) -> Tensor:
            return values[:, None].expand(count, length).flatten()

        head = denoise_head(
            hidden[causal:],
            self.model.weights.embedding,
            softcap=self.model.config.softcap,
            temperature=spread(inputs.temperature),
            seed=spread(inputs.seed),
            step=spread(inputs.step),
            position=rows.positions[causal:],
            fixed=given,
            skip=SKIP if hidden.is_cuda else 0.0,  # the twin gains nothing by it
        )
        return self.canvases.advance(inputs, head)

    def _rows(self, plan: Plan, scheduler: Scheduler) -> Rows:
        """Tensors of a plan's rows; those of the last plan, if it had the same canvases and nothing was encoded."""
        key = [(one, len(one.tokens)) for one in plan.canvases]
        if not plan.chunks and self._last is not None and self._last[0] == key:
            return self._last[1]
        for sequence in plan.sequences():
            self._tables.copy(sequence, sequence.slot, scheduler.pages(sequence))
        length = self.model.config.canvas
        spans = [(chunk.sequence, chunk.start, chunk.length) for chunk in plan.chunks]
        spans += [(sequence, len(sequence.tokens), length) for sequence in plan.canvases]
        positions = torch.cat([torch.arange(start, start + count) for _, start, count in spans])
        slots = torch.cat([torch.full((count,), one.slot) for one, _, count in spans])
        encoded = sum(chunk.length for chunk in plan.chunks)
        tokens = [token for chunk in plan.chunks for token in chunk.sequence.tokens[chunk.start :][: chunk.length]]
        last = positions + 1
        prefix = positions + 1
        for i, sequence in enumerate(plan.canvases):
            at = slice(encoded + i * length, encoded + (i + 1) * length)
            last[at], prefix[at] = len(sequence.tokens) + length, len(sequence.tokens) + 1
        device = self.model.device
        positions, slots = positions.to(device), slots.to(device)
        attended = {}
        for kind in self.model.kinds:
            window = scheduler.budget.windows[kind]
            first = torch.zeros_like(prefix) if window is None else (prefix - window).clamp_(min=0)
            places = self._tables.places(kind, slots, positions)
            blocks = self._blocks([(one.slot, count) for one, _, count in spans], kind)
            attended[kind] = Attended(
                places,
                self._tables[kind],
                Spans(blocks, first.int().to(device), last.int().to(device)),
                self.model.turn(positions, kind),
            )
        rows = Rows(self._tensor(tokens), positions, attended)
        self._last = (key, rows) if not plan.chunks else None
        return rows

    def _blocks(self, spans: list[tuple[int, int]], kind: Kind) -> Tensor:
        """Slots and their numbers of rows as the blocks that attention works in."""
        layer = next(layer for layer in self.model.config.layers if layer.kind == kind)
        most = block_rows(layer.heads, layer.kv_heads, self.model.device)
        return self._tensor(row_blocks(spans, most), torch.int32).reshape(-1, 3)

    def _tensor(self, values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.model.device)


class _Graph:
    """A step of B canvases, captured; it reads rows and inputs from tensors of its own."""

    def __init__(
        self, step: Callable[[Rows, Inputs], Tensor], rows: Rows, inputs: Inputs, pool: Any, aside: torch.cuda.Stream
    ) -> None:
        self._rows, self._inputs = rows, inputs
        self._source: Rows | None = None
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # compiles kernels and fills caches, neither of which can be captured
            for _ in range(2):
                step(rows, inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # Only this thread's calls are looked at: the refiner may load or work meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._flags = step(rows, inputs)

    def replay(self, rows: Rows, inputs: Inputs) -> Tensor:
        """The step's flags, once it is through."""
        if self._source is not rows:
            for mine, theirs in zip(_tensors(self._rows), _tensors(rows), strict=True):
                mine.copy_(theirs)
            self._source = rows
        self._inputs.whole.copy_(inputs.whole)
        self._inputs.real.copy_(inputs.real)
        self._graph.replay()
        return self._flags


def _tensors(rows: Rows) -> list[Tensor]:
    """All that differs from step to step; page tables stay where they are."""
    found = [rows.positions]
    for attended in rows.attended.values():
        spans = attended.spans
        found += [attended.places, spans.blocks, spans.first, spans.last, *attended.turn]
    return found
