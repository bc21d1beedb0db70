"""Runs a step's work: one forward pass over the rows of all sequences, and the choices that follow from it."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ar_engine.attention import Attended, Layer, PagedCache, PagedStep
from ar_engine.sampler import choose
from ar_engine.scheduler import Scheduler, Work
from ar_engine.sequence import Choice, Sequence
from engine_core.pages import Kind
from engine_core.scheduler import Budget
from engine_core.tables import PageTables, row_blocks
from moe_kernels.attention import Spans, block_rows


class Runner:
    """A causal language model of transformers on its device, and its cache.

    Args:
        model: that attends with `attention.NAME`.
        layers: how it does, by `attention.layers_of`.
        budget: the scheduler's.
        context: the most positions of a sequence.
        typical_floor: of `sampler.choose`.
        typical_share: likewise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: list[Layer],
        budget: Budget,
        context: int,
        typical_floor: float,
        typical_share: float,
    ) -> None:
        self._model = model
        self._device = model.device
        self._cache = PagedCache.empty(layers, dict(budget.pages), model.dtype, model.device)
        self._tables = PageTables(budget.pages, budget.slots, context, model.device)
        self._blocks: dict[Kind, int] = {
            kind: min(block_rows(one.heads, one.kv_heads, model.device) for one in layers if one.kind == kind)
            for kind in budget.pages
        }
        self._typical = typical_floor, typical_share
        # The images of a prompt, each (tokens, H), while it is encoded.
        self._seen: WeakKeyDictionary[Sequence, list[Tensor]] = WeakKeyDictionary()

    @torch.inference_mode()
    def run(self, works: list[Work], scheduler: Scheduler) -> list[list[Choice]]:
        """For each work what its last row and those of the tried tokens say; nothing where its prompt goes on."""
        for work in works:
            self._tables.copy(work.sequence, work.sequence.slot, scheduler.pages(work.sequence))
            work.sequence.forwards += 1
        ids, positions, asked = [], [], []
        for work in works:
            ids += self._ids(work)
            positions += range(work.start, work.start + work.rows)
            if work.answers:
                asked += range(len(ids) - len(work.tried) - 1, len(ids))
        rows = self._tensor(positions)
        logits = self._model(
            input_ids=self._tensor([ids]),
            position_ids=rows[None],
            use_cache=False,
            logits_to_keep=self._tensor(asked),
            paged=PagedStep(self._cache, self._attended(works, rows, scheduler)),
            **self._images(works),
        ).logits[0]
        questions = [work.sequence.rows(work.tried) if work.answers else [] for work in works]
        choices = iter(choose(logits, [row for of_one in questions for row in of_one], *self._typical) if asked else [])
        return [[next(choices) for _ in of_one] for of_one in questions]

    @torch.inference_mode()
    def probe(self) -> None:
        """Run a row of nobody's. Raises what the device raises."""
        nowhere = self._tensor([0])
        spans = Spans(*(torch.zeros(shape, dtype=torch.int32, device=self._device) for shape in ((1, 3), 1, 1)))
        attended: dict[Kind, Attended] = {kind: Attended(nowhere, self._tables[kind], spans) for kind in self._blocks}
        paged = PagedStep(self._cache, attended)
        self._model(input_ids=nowhere[None], position_ids=nowhere[None], use_cache=False, paged=paged).logits.tolist()

    def _attended(self, works: list[Work], positions: Tensor, scheduler: Scheduler) -> dict[Kind, Attended]:
        slots = self._tensor([work.sequence.slot for work in works])
        slots = slots.repeat_interleave(self._tensor([work.rows for work in works]), output_size=len(positions))
        last = positions + 1
        attended = {}
        for kind, window in scheduler.budget.windows.items():
            first = torch.zeros_like(positions) if window is None else (last - window).clamp_(min=0)
            upto = last if window is None else self._whole_images(works, last)
            blocks = self._tensor(
                row_blocks([(work.sequence.slot, work.rows) for work in works], self._blocks[kind]), torch.int32
            )
            spans = Spans(blocks, first.int(), upto.int())
            attended[kind] = Attended(self._tables.places(kind, slots, positions), self._tables[kind], spans)
        return attended

    def _ids(self, work: Work) -> list[int]:
        """Of the rows; an image's token in an answer or a draft, where no image is, becomes padding, as transformers would have it."""
        ids = work.sequence.tokens[work.start : work.start + work.length] + work.tried
        token = getattr(self._model.config, "image_token_id", None)
        if token in ids[(written := max(len(work.sequence.prompt) - work.start, 0)) :]:
            padding = self._model.config.get_text_config().pad_token_id
            ids[written:] = [padding if one == token else one for one in ids[written:]]
        return ids

    def _whole_images(self, works: list[Work], last: Tensor) -> Tensor:
        """One past what rows see in sliding layers: an image's tokens see it whole, where the model was trained so."""
        row, last = 0, last.clone()
        for work in works:
            if work.sequence.whole_images:
                for image in work.sequence.images:
                    begin, end = image.start - work.start, image.start + image.count - work.start
                    if end > 0 and begin < work.length:
                        last[row + max(begin, 0) : row + end] = image.start + image.count
            row += work.rows
        return last

    def _images(self, works: list[Work]) -> dict[str, Any]:
        """What the model is given of the images whose tokens are among the rows: their features, in the order of the rows."""
        parts = []
        for work in works:
            sequence, end = work.sequence, work.start + work.length
            for i, image in enumerate(sequence.images):
                begin, stop = max(image.start, work.start), min(image.start + image.count, end)
                if begin < stop:
                    parts.append(self._features(sequence)[i][begin - image.start : stop - image.start])
            if end >= len(sequence.prompt):
                self._seen.pop(sequence, None)
        if not parts:
            return {}
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=tuple(parts))}}  # pyright: ignore[reportArgumentType]

    def _features(self, sequence: Sequence) -> list[Tensor]:
        if sequence not in self._seen:
            model: Any = self._model
            dtype = next(model.model.vision_tower.parameters()).dtype
            self._seen[sequence] = [
                model.get_image_features(
                    image.pixel_values[None].to(self._device, dtype), image.position_ids[None].to(self._device)
                ).pooler_output[0]
                for image in sequence.images
            ]
        return self._seen[sequence]

    def _tensor(self, values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device)
