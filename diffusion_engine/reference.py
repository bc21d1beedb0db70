"""Drafting by transformers' own `generate`, with the denoiser's signals read along the way.

`generate` draws from torch's global random state, so a drafter must be the only one that does; the engine's single worker
thread sees to it, and the AR engine samples from generators of its own.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, DiffusionGemmaForBlockDiffusion

from diffusion_engine.api import (
    CanvasUpdate,
    DraftRejected,
    DraftRequest,
    DraftResult,
    DraftSettings,
    DraftSignals,
)
from engine_core.chat import ChatTokenizer, fit

# what `generate` uses when the checkpoint sets none
DEFAULT_STEPS = 48
DEFAULT_CONFIDENCE = 0.005  # nats


class ReferenceDrafter:
    """A DiffusionGemma checkpoint and its tokenizer, drafting one request at a time."""

    def __init__(self, model: Any, tokenizer: ChatTokenizer, settings: DraftSettings) -> None:
        """Take a loaded model; `load` is the usual way here."""
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings
        self._end_ids = _as_list(model.generation_config.eos_token_id)
        self._max_steps = settings.max_steps or model.generation_config.max_denoising_steps or DEFAULT_STEPS
        self.context_tokens: int = model.config.text_config.max_position_embeddings

    @classmethod
    def load(cls, settings: DraftSettings) -> "ReferenceDrafter":
        """Load a checkpoint by name or folder: bfloat16 on a GPU, float32 on a CPU.

        Raises:
            ValueError: the checkpoint is not a DiffusionGemma.
            OSError: there is no such checkpoint.
        """
        if settings.threads:
            torch.set_num_threads(settings.threads)
        kind = AutoConfig.from_pretrained(settings.model).model_type
        if kind != "diffusion_gemma":
            raise ValueError(f"draft.model must be a DiffusionGemma checkpoint (diffusion_gemma), got {kind}")
        device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        model: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(settings.model, dtype=dtype)
        return cls(model.to(device).eval(), ChatTokenizer.load(settings.model), settings)

    def draft(self, request: DraftRequest, emit: Callable[[CanvasUpdate], None]) -> DraftResult:
        """Denoise canvas after canvas until one holds an end of turn, or `max_tokens` are there.

        Raises:
            DraftRejected: prompt and answer don't fit the model's context.
        """
        started = time.monotonic()
        try:
            ids = self._tokenizer.prompt(request.messages)
            max_tokens = fit(self.context_tokens, len(ids), request.max_tokens, self._settings.max_tokens)
        except ValueError as err:
            raise DraftRejected(str(err)) from err
        prompt = torch.tensor([ids], device=self._model.device)
        watcher = _Watcher(self._tokenizer, self._end_ids, emit)
        torch.manual_seed(request.seed)
        steps = min(request.max_steps or self._max_steps, self._max_steps)
        output = self._model.generate(prompt, streamer=watcher, max_new_tokens=max_tokens, max_denoising_steps=steps)
        ids, ended = _until_end(output.sequences[0, prompt.shape[1] :].tolist(), self._end_ids)
        ids, finish = (ids, "stop") if ended and len(ids) <= max_tokens else (ids[:max_tokens], "length")
        confidence = self._model.generation_config.confidence_threshold or DEFAULT_CONFIDENCE
        return DraftResult(
            text=self._tokenizer.decode(ids),
            token_ids=tuple(ids),
            token_logprobs=watcher.token_logprobs(len(ids)),
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            finish_reason=finish,
            prompt_tokens=prompt.shape[1],
            signals=watcher.signals(len(ids), confidence),
            elapsed_s=time.monotonic() - started,
        )


class _Watcher:
    """A streamer of transformers that keeps what each denoising step thought."""

    _takes_logits = True  # ask `generate` for logits, not ids

    def __init__(self, tokenizer: ChatTokenizer, end_ids: list[int], emit: Callable[[CanvasUpdate], None]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._emit = emit
        self._canvases: list[list[Tensor]] = [[]]  # most likely ids (C,) after each step, per canvas
        self._entropy: list[Tensor] = []  # (C,) float32, last step of each canvas
        self._logprob: list[Tensor] = []  # (C,) float32, of the most likely id

    def put(self, value: Tensor) -> None:
        """Take the prompt, or a finished canvas."""
        if self._canvases[-1]:
            self._canvases.append([])

    def put_draft(self, logits: Tensor) -> None:
        """Take the logits (1, C, V) of one step, already divided by its temperature."""
        logprobs = logits[0].float().log_softmax(dim=-1)
        best = logprobs.max(dim=-1)
        steps = self._canvases[-1]
        if not steps:
            self._entropy.append(best.values)
            self._logprob.append(best.values)
        self._entropy[-1] = -(logprobs.exp() * logprobs).sum(dim=-1)
        self._logprob[-1] = best.values
        steps.append(best.indices)
        ids, _ = _until_end(best.indices.tolist(), self._end_ids)
        text = self._tokenizer.decode(ids)
        self._emit(CanvasUpdate(canvas=len(self._canvases) - 1, step=len(steps), text=text))

    def end(self) -> None:
        """Take the end of generation; nothing is left to do."""

    def token_logprobs(self, count: int) -> tuple[float, ...]:
        """Log-probability of each of the first `count` tokens, at the last step's temperature."""
        return tuple(torch.cat(self._logprob)[:count].tolist())

    def signals(self, count: int, confidence: float) -> DraftSignals:
        """Sum up what was seen of a draft of `count` tokens."""
        canvases = [steps for steps in self._canvases if steps]
        late_flips, left = 0, count
        for steps in canvases:
            late = torch.stack(steps[math.ceil(len(steps) * 2 / 3) - 1 :])[:, :left]
            late_flips += int((late[1:] != late[:-1]).any(dim=0).sum())
            left = max(0, left - len(steps[0]))
        return DraftSignals(
            steps=tuple(len(steps) for steps in canvases),
            converged=tuple(
                len(steps) > 1 and torch.equal(steps[-1], steps[-2]) and float(entropy.mean()) < confidence
                for steps, entropy in zip(canvases, self._entropy, strict=True)
            ),
            token_entropy=tuple(torch.cat(self._entropy)[:count].tolist()),
            late_flips=late_flips,
        )


def _until_end(ids: list[int], end_ids: list[int]) -> tuple[list[int], bool]:
    """The ids before the first end of turn, and whether there is one."""
    at = next((i for i, token in enumerate(ids) if token in end_ids), None)
    return (ids, False) if at is None else (ids[:at], True)


def _as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
