"""The engine against transformers, in float32: the same logits, and, fed the same random numbers, the same tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

from diffusion_engine.model import KVCache, Model, Rows
from diffusion_engine.sampler import take
from moe_kernels.denoise_head import GROUP, GROUPS, TOKENS
from moe_kernels.random_tokens import random_tokens
from moe_kernels.rng import gumbel
from tests.unit.diffusion_engine.checkpoints import save, tiny_config, tiny_model
from tests.unit.diffusion_engine.engines import SAMPLING, alone, essence, load_model, make_core, run, submit

SLIDING, FULL = "sliding_attention", "full_attention"
CONFIGS: dict[str, dict[str, Any]] = {
    "sliding and full": {},
    "full only": {"layer_types": [FULL, FULL]},
    "window shorter than the prompt": {"sliding_window": 6},
    "window of a page and a bit": {"sliding_window": 19, "layer_types": [SLIDING, FULL, SLIDING, FULL]},
    "grouped queries": {"num_attention_heads": 8, "num_key_value_heads": 2, "num_global_key_value_heads": 1},
    "every head its own": {"num_attention_heads": 2, "num_key_value_heads": 2, "num_global_key_value_heads": 2},
    "one expert of many": {"num_experts": 16, "top_k_experts": 1},
    "all experts": {"num_experts": 4, "top_k_experts": 4},
    "short canvas": {"canvas_length": 8},
    "odd vocabulary": {"vocab_size": 333},
}
Pairs = Callable[[str], tuple[Any, Model]]
PROMPT = [(7 * i) % 150 + 3 for i in range(37)]


class Draws:
    """Stands in for torch.randint and torch.multinomial in transformers' `generate`: our numbers, in its order."""

    def __init__(self, seed: int, prompt: int, canvas: int, vocab: int) -> None:
        self._seed, self._start, self._canvas, self._vocab = seed, prompt - canvas, canvas, vocab
        self._step = 0
        self._begins = True

    def randint(self, low: int, high: int, size: tuple[int, int], **_: Any) -> Tensor:
        assert (low, high, size) == (0, self._vocab, (1, self._canvas))
        if self._begins:
            self._start, self._step = self._start + self._canvas, 0
        self._begins = True  # unless a draw from the model's distribution comes between
        start, step = torch.tensor([self._start]), torch.tensor([self._step])
        return random_tokens(torch.tensor([self._seed]), start, step, self._canvas, self._vocab)

    def multinomial(self, probs: Tensor, num_samples: int) -> Tensor:
        assert num_samples == 1
        self._step += 1
        self._begins = False
        rows = len(probs)
        seed, step = torch.full((rows,), self._seed), torch.full((rows,), self._step)
        position = torch.arange(self._start, self._start + rows)
        logs = torch.nn.functional.pad(probs.double().log(), (0, -self._vocab % GROUP), value=-torch.inf)
        logs = logs.unflatten(1, (-1, GROUP))
        scores = logs.logsumexp(2) + gumbel(seed, position, step, GROUPS, 0, logs.shape[1])
        group = scores.argmax(1)
        inside = logs[torch.arange(rows), group]
        noise = gumbel(seed, position, step, TOKENS, group * GROUP, GROUP)
        return (group * GROUP + (inside + noise).argmax(1))[:, None]


@contextmanager
def recorded(owner: Any, name: str, keep: Callable[..., Any]) -> Iterator[list[Any]]:
    """What `keep(result, *args)` says of a method, call by call."""
    kept, method = [], getattr(owner, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        kept.append(keep(result, *args, **kwargs))
        return result

    with mock.patch.object(owner, name, spy):
        yield kept


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Each config as transformers' model and as ours, from one checkpoint."""
    made: dict[str, tuple[Any, Model]] = {}

    def pair(name: str) -> tuple[Any, Model]:
        if name not in made:
            folder: Path = tmp_path_factory.mktemp("checkpoint")
            save(tiny_model(tiny_config(**CONFIGS[name]), seed=len(made) + 1), folder)
            theirs = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32)
            made[name] = theirs.eval(), load_model(folder)
        return made[name]

    return pair


class Generated(NamedTuple):
    """What transformers made of a prompt with our numbers; decoder and encoder have an entry for each of their forwards."""

    ids: list[int]
    inputs: list[tuple[Tensor, Tensor | None]]  # canvas (C,) and self-conditioning logits (C, V)
    decoder: list[Tensor]  # logits (C, V)
    encoder: list[Tensor]  # logits (T, V)


def generate(theirs: Any, prompt: list[int], seed: int, canvases: int) -> Generated:
    text = theirs.config.text_config
    draws = Draws(seed, len(prompt), theirs.config.canvas_length, text.vocab_size)
    inputs: list[tuple[Tensor, Tensor | None]] = []

    def note(output: Any, *_: Any, decoder_input_ids: Tensor, self_conditioning_logits: Any, **__: Any) -> Tensor:
        before = self_conditioning_logits
        inputs.append((decoder_input_ids[0], None if before is None else before[0]))
        return output.logits[0]

    with (
        mock.patch("torch.randint", draws.randint),
        mock.patch("torch.multinomial", draws.multinomial),
        recorded(theirs, "forward", note) as decoder,
        recorded(theirs.model.encoder, "forward", lambda out, **_: theirs.lm_head(out.last_hidden_state[0])) as encoder,
        torch.no_grad(),
    ):
        output = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=canvases * theirs.config.canvas_length,
            max_denoising_steps=SAMPLING.max_steps,
            sampler_config=EntropyBoundSamplerConfig(SAMPLING.entropy_bound),
            t_min=SAMPLING.t_min,
            t_max=SAMPLING.t_max,
            confidence_threshold=SAMPLING.confidence,
            stability_threshold=SAMPLING.stability,
            eos_token_id=None,
        )
    return Generated(output.sequences[0, len(prompt) :].tolist(), inputs, decoder, encoder)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_generation_is_transformers_token_for_token(name: str, pairs: Pairs) -> None:
    theirs, ours = pairs(name)
    canvases = 3
    expected = generate(theirs, PROMPT, 41, canvases)
    core = make_core(ours, replace(SAMPLING, max_tokens=canvases * ours.config.canvas), encode_tokens=16)
    result = run(core, submit(core, PROMPT, seed=41))[0][0]
    assert list(result.token_ids) == expected.ids
    assert sum(result.signals.steps) == len(expected.decoder)
    assert result.finish_reason == "length"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_forward_has_transformers_logits(name: str, pairs: Pairs) -> None:
    """Each step starts from what theirs started from: self-conditioning would blow up differences of rounding threefold a step."""
    theirs, ours = pairs(name)
    canvases, length = 3, ours.config.canvas
    expected = generate(theirs, PROMPT, 41, canvases)
    embedding, cap = ours.weights.embedding, ours.config.softcap or 1.0
    given = iter(expected.inputs)
    forward = Model.forward

    def forced(model: Model, rows: Rows, canvas: Tensor, soft: Tensor | None, cache: KVCache) -> Tensor:
        if len(canvas):
            canvas, before = next(given)
            soft = None if before is None else before.softmax(-1) @ embedding
        return forward(model, rows, canvas, soft, cache)

    core = make_core(ours, replace(SAMPLING, max_tokens=canvases * length), encode_tokens=16)
    with (
        mock.patch.object(Model, "forward", forced),
        recorded(
            Model, "forward", lambda out, model, rows, *_: (out[: len(rows.tokens)], out[len(rows.tokens) :])
        ) as out,
    ):
        result = run(core, submit(core, PROMPT, seed=41))[0][0]
    assert list(result.token_ids) == expected.ids
    assert result.signals.forwards == len(out)
    canvas = [cap * (rows @ embedding.T / cap).tanh() for _, rows in out if len(rows)]
    torch.testing.assert_close(torch.stack(canvas), torch.stack(expected.decoder), atol=1e-4, rtol=0)
    encoded = torch.cat([rows for rows, _ in out]) @ embedding.T
    torch.testing.assert_close(encoded, torch.cat(expected.encoder), atol=1e-4, rtol=0)
    assert len(encoded) == len(PROMPT) + (canvases - 1) * length, "nothing is encoded after the last canvas"


@pytest.mark.parametrize("name", ["sliding and full", "window shorter than the prompt"])
def test_eight_requests_together_get_what_transformers_gives_each_alone(name: str, pairs: Pairs) -> None:
    theirs, ours = pairs(name)
    core = make_core(ours, replace(SAMPLING, max_tokens=2 * ours.config.canvas), encode_tokens=40)
    prompts = [PROMPT[i : 2 + 5 * i] for i in range(1, 9)]
    results = run(core, *[submit(core, prompt, seed=seed) for seed, prompt in enumerate(prompts)])
    for seed, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        assert list(result[0].token_ids) == generate(theirs, prompt, seed, 2).ids
        single = alone(ours, prompt, replace(SAMPLING, max_tokens=2 * ours.config.canvas), seed=seed)
        assert essence(result[0]) == essence(single)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_the_positions_taken_are_those_of_transformers(data: st.DataObject) -> None:
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSampler

    logits = torch.tensor(
        data.draw(st.lists(st.lists(st.floats(-9, 9), min_size=5, max_size=5), min_size=1, max_size=9))
    )
    bound = data.draw(st.floats(0.01, 5.0))
    sampler: Any = EntropyBoundSampler(EntropyBoundSamplerConfig(bound), len(logits), 5, 1)
    zeros = torch.zeros(1, len(logits), dtype=torch.int64)
    sampler.accept_canvas(zeros, zeros, logits[None], 1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert torch.equal(take(entropy[None], torch.tensor([bound])), sampler.accepted_token_mask)
