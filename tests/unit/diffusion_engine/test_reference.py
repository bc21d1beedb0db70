"""The reference drafter on a small random model: transformers' own answer, with signals that add up."""

import asyncio
from typing import Any

import pytest
import torch
from transformers import DiffusionGemmaForBlockDiffusion

from demo_models.configs import CANVAS, CONTEXT, new_draft, new_refine
from demo_models.tokenizer import make_tokenizer
from diffusion_engine.api import CanvasUpdate, DraftFailed, DraftRejected, DraftRequest, DraftResult, DraftSettings
from diffusion_engine.engine import DiffusionEngine
from diffusion_engine.reference import ReferenceDrafter

MESSAGES = ({"role": "user", "content": "What is the lamp made of?"},)
STEPS = 5


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(samples=2000)


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    """A checkpoint in the published form: bfloat16, several shards, configs, tokenizer."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("draft")
    new_draft().bfloat16().save_pretrained(folder, max_shard_size="1MB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def drafter(checkpoint):
    return ReferenceDrafter.load(DraftSettings(model=str(checkpoint), max_steps=STEPS, max_tokens=CANVAS))


def draft(drafter, **options):
    updates = []
    result = drafter.draft(DraftRequest(request_id="d", messages=MESSAGES, **options), updates.append)
    return result, updates


def test_the_draft_is_what_generate_says_with_the_same_seed(drafter, tokenizer, checkpoint):
    result, _ = draft(drafter, seed=11)
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template(
        list(MESSAGES), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    torch.manual_seed(11)
    output: Any = model.generate(prompt, max_new_tokens=CANVAS, max_denoising_steps=STEPS)
    expected = output.sequences[0, prompt.shape[1] :].tolist()
    assert list(result.token_ids) == expected[: len(result.token_ids)]
    assert result.prompt_tokens == prompt.shape[1]
    assert result.finish_reason == ("stop" if len(result.token_ids) < CANVAS else "length")


def test_a_seed_repeats_its_text_and_another_seed_has_another(drafter):
    texts = [draft(drafter, seed=seed)[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_every_step_is_reported_canvas_by_canvas(checkpoint):
    drafter = ReferenceDrafter.load(DraftSettings(model=str(checkpoint), max_steps=STEPS, max_tokens=2 * CANVAS))
    drafter._end_ids = drafter._model.generation_config.eos_token_id = [1]
    result, updates = draft(drafter)
    assert [(update.canvas, update.step) for update in updates] == [
        (canvas, step + 1) for canvas, steps in enumerate(result.signals.steps) for step in range(steps)
    ]
    assert len(result.signals.steps) == len(result.signals.converged)


def test_there_is_one_entropy_and_one_log_probability_for_each_token(drafter):
    result, _ = draft(drafter)
    signals = result.signals
    assert len(signals.token_entropy) == len(result.token_logprobs) == len(result.token_ids) > 0
    assert all(entropy >= 0 for entropy in signals.token_entropy)
    assert all(logprob <= 0 for logprob in result.token_logprobs)
    assert signals.steps == (STEPS,)
    assert signals.converged == (False,)  # a random model is never confident


def test_a_step_limit_above_the_engines_own_is_lowered(drafter):
    assert draft(drafter, max_steps=2)[0].signals.steps == (2,)
    assert draft(drafter, max_steps=50)[0].signals.steps == (STEPS,)


def test_an_exception_of_the_listener_ends_the_work_at_that_step(drafter):
    class Enough(Exception):
        pass

    seen = []

    def listen(update):
        seen.append(update.step)
        if update.step == 2:
            raise Enough

    with pytest.raises(Enough):
        drafter.draft(DraftRequest(request_id="d", messages=MESSAGES), listen)
    assert seen == [1, 2]


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(drafter):
    messages = ({"role": "user", "content": "7" * CONTEXT},)
    with pytest.raises(DraftRejected, match=rf"at most {CONTEXT} tokens.*a prompt of 20\d\d"):
        drafter.draft(DraftRequest(request_id="d", messages=messages), lambda _: None)


def test_messages_that_the_template_refuses_are_refused(drafter, monkeypatch):
    monkeypatch.setattr(drafter._tokenizer._tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DraftRejected, match="roles must alternate"):
        draft(drafter)


def test_a_checkpoint_of_another_architecture_is_refused_by_name(tokenizer, tmp_path):
    new_refine().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"diffusion_gemma.*got gemma4_text"):
        ReferenceDrafter.load(DraftSettings(model=str(tmp_path)))


def test_the_engine_serves_a_checkpoint_by_its_folder(checkpoint):
    async def scenario():
        engine = DiffusionEngine(DraftSettings(model=str(checkpoint), max_steps=2, max_tokens=CANVAS))
        assert engine.load().state == "loading"
        await engine.start()
        assert (engine.load().state, engine.load().context_tokens) == ("ready", CONTEXT)
        events = [event async for event in engine.draft(DraftRequest(request_id="d", messages=MESSAGES))]
        await engine.close()
        return events, engine.load().state

    events, state = asyncio.run(scenario())
    assert isinstance(events[-1], DraftResult)
    assert [update.step for update in events if isinstance(update, CanvasUpdate)] == [1, 2]
    assert state == "closed"


def test_a_missing_checkpoint_fails_the_start_and_names_the_cause(tmp_path):
    async def scenario():
        engine = DiffusionEngine(DraftSettings(model=str(tmp_path / "nowhere")))
        with pytest.raises(DraftFailed, match="could not be loaded"):
            await engine.start()
        await engine.close()
        return engine

    assert "nowhere" in asyncio.run(scenario())._thread.status().detail
