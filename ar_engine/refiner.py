"""A causal language model that scores a draft, keeps its longest acceptable prefix and writes on from there.

The key-value cache is a plain full-length one in every layer, also where the model attends to a sliding window (its masks
see to that), so that the tail of a rejected draft can be cut off again.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from ar_engine.api import (
    Draft,
    DraftScore,
    RefineDelta,
    RefineRejected,
    RefineRequest,
    RefineResult,
    RefineSettings,
    ScoreRequest,
)
from engine_core.chat import ChatTokenizer, TextStream, fit
from engine_core.device import use_threads


class CausalRefiner:
    """A checkpoint of any causal language model of transformers and its tokenizer, answering one request at a time."""

    def __init__(self, model: Any, tokenizer: ChatTokenizer, settings: RefineSettings) -> None:
        """Take a loaded model; `load` is the usual way here."""
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings
        end = model.generation_config.eos_token_id
        self._end_ids = frozenset(end if isinstance(end, list) else [] if end is None else [end])
        self.context_tokens: int = model.config.get_text_config().max_position_embeddings

    @classmethod
    def load(cls, settings: RefineSettings) -> "CausalRefiner":
        """Load a checkpoint by name or folder: bfloat16 on a GPU, float32 on a CPU.

        Raises:
            ValueError: the checkpoint is not a causal language model.
            OSError: there is no such checkpoint.
        """
        device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        model: Any = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype)
        use_threads(settings.threads, model.config.get_text_config().hidden_size)
        return cls(model.to(device).eval(), ChatTokenizer.load(settings.model), settings)

    @torch.inference_mode()
    def score(self, request: ScoreRequest) -> DraftScore:
        """Log-probabilities of a draft's tokens and the model's own choices, from one forward."""
        ids = self._draft_ids(request.draft)
        prompt, _ = self._prepare(request.messages, len(ids))
        logits = self._forward([*prompt, *ids], DynamicCache(), keep=len(ids) + 1)[:-1]
        logprobs = logits.log_softmax(dim=-1)
        greedy = logits.argmax(dim=-1).tolist()
        return DraftScore(
            token_ids=tuple(ids),
            token_logprobs=tuple(logprobs[torch.arange(len(ids)), ids].tolist()),
            greedy_tokens=tuple(greedy),
            agreeing_prefix=_agreeing_prefix(ids, greedy),
        )

    @torch.inference_mode()
    def refine(self, request: RefineRequest, emit: Callable[[RefineDelta], None]) -> RefineResult:
        """Answer token by token, after what can be kept of the draft.

        `exact`: the draft is scored in one prefill together with the prompt; its longest prefix equal to the model's own
        greedy choice stands, and the model goes on from its own next token. The text is the one that the model alone
        would have given. Sampling (temperature > 0) and mode `fresh` ignore the draft.

        Raises:
            RefineRejected: prompt and answer don't fit the model's context.
        """
        started = time.monotonic()
        prompt, max_tokens = self._prepare(request.messages, request.max_tokens)
        keeps_draft = request.draft is not None and (request.mode or self._settings.mode) == "exact"
        draft = self._draft_ids(request.draft) if request.draft and keeps_draft and request.temperature == 0 else []
        sampler = _Sampler(request.temperature, request.top_p, request.seed, self._model.device)
        text = TextStream(self._tokenizer)
        cache = DynamicCache()

        draft = draft[: max_tokens - 1]
        start = self._start(prompt, draft, cache, sampler)
        ids, token, forwards = draft[: start.kept], start.token, 1
        first_token_s = time.monotonic() - started
        while True:
            ended = token in self._end_ids
            if not ended:
                ids.append(token)
            finished = ended or len(ids) >= max_tokens
            if piece := text.advance(ids, final=finished):
                emit(RefineDelta(text=piece))
            ended = ended or any(stop in text.text for stop in request.stop)
            if ended or finished:
                break
            token = sampler.choose(self._forward([token], cache, keep=1)[-1])
            forwards += 1
        return RefineResult(
            text=text.text,
            token_ids=tuple(ids),
            finish_reason="stop" if ended else "length",
            prompt_tokens=len(prompt),
            kept_tokens=start.kept,
            forwards=forwards,
            first_token_s=first_token_s,
            elapsed_s=time.monotonic() - started,
        )

    def _start(self, prompt: list[int], draft: list[int], cache: DynamicCache, sampler: "_Sampler") -> "_Start":
        """Prefill prompt and draft at once, then cut the cache back to what of the draft stands."""
        logits = self._forward([*prompt, *draft], cache, keep=len(draft) + 1)
        kept = _agreeing_prefix(draft, logits[:-1].argmax(dim=-1).tolist())
        if kept < len(draft):
            cache.crop(kept - len(draft))  # a negative number is how many to remove
        return _Start(kept, sampler.choose(logits[kept]))

    def _forward(self, ids: list[int], cache: DynamicCache, keep: int) -> Tensor:
        """Logits (keep, V) float32 of the last `keep` positions."""
        inputs = torch.tensor([ids], device=self._model.device)
        output = self._model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=keep)
        return output.logits[0].float()

    def _prepare(self, messages: tuple[dict[str, Any], ...], asked: int | None) -> tuple[list[int], int]:
        """The prompt's ids, and how many tokens may follow it."""
        try:
            prompt = self._tokenizer.prompt(messages)
            return prompt, fit(self.context_tokens, len(prompt), asked, self._settings.max_tokens)
        except ValueError as err:
            raise RefineRejected(str(err)) from err

    def _draft_ids(self, draft: Draft) -> list[int]:
        if draft.tokenizer_fingerprint == self._tokenizer.fingerprint:
            return list(draft.token_ids)
        return self._tokenizer.encode(draft.text)


class _Start(NamedTuple):
    kept: int  # draft tokens that stand
    token: int  # the first token after them


class _Sampler:
    """Greedy at temperature 0, else nucleus sampling from a generator of its own."""

    def __init__(self, temperature: float, top_p: float, seed: int, device: torch.device) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._rng = torch.Generator(device).manual_seed(seed)

    def choose(self, logits: Tensor) -> int:
        """One token id from logits (V,)."""
        if self._temperature == 0:
            return int(logits.argmax())
        probs = (logits / self._temperature).softmax(dim=-1)
        if self._top_p < 1:
            ranked, order = probs.sort(descending=True)
            ranked[ranked.cumsum(dim=-1) - ranked >= self._top_p] = 0  # the token that crosses top_p stays
            probs = torch.zeros_like(probs).scatter(0, order, ranked)
        return int(torch.multinomial(probs, 1, generator=self._rng))


def _agreeing_prefix(draft: list[int], own: list[int]) -> int:
    """Leading tokens of the draft that equal the model's own choice."""
    return next((i for i, (ours, theirs) in enumerate(zip(draft, own, strict=True)) if ours != theirs), len(draft))
