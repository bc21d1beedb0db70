"""The refiner against transformers' own `generate`, on tiny random models."""

import random
from typing import Any

import pytest
import torch
from transformers import (
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ar_engine.api import Draft, RefineRejected, RefineRequest, RefineSettings, ScoreRequest
from ar_engine.refiner import CausalRefiner
from demo_models.tokenizer import make_tokenizer
from engine_core.chat import ChatTokenizer

TINY: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 5,
}  # fmt: skip
GEMMA: dict[str, Any] = {"global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
         "layer_types": ["sliding_attention", "full_attention"] * 2}  # fmt: skip
PER_LAYER: dict[str, Any] = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 1024}
MODELS = {
    "gemma4, window longer than the text": lambda: Gemma4ForCausalLM(
        Gemma4TextConfig(**TINY, **GEMMA, sliding_window=512)
    ),
    "gemma4, window shorter than the prompt": lambda: Gemma4ForCausalLM(
        Gemma4TextConfig(**TINY, **GEMMA, sliding_window=8)
    ),
    "gemma4, two layers share keys and values": lambda: Gemma4ForCausalLM(
        Gemma4TextConfig(**TINY, **GEMMA | PER_LAYER, sliding_window=8, num_kv_shared_layers=2)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**TINY)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY)),
}
MESSAGES = ({"role": "user", "content": "How much are 3 lamps and 2 mugs with 20% off?"},)
MOST = 24


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(samples=2000)


@pytest.fixture(scope="module", params=MODELS.values(), ids=list(MODELS))
def refiner(request, tokenizer):
    torch.manual_seed(3)
    model = request.param().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)  # logits far enough apart that the greedy choice is no tie
    return CausalRefiner(model, ChatTokenizer(tokenizer), RefineSettings(max_tokens=MOST))


@pytest.fixture(scope="module")
def alone(refiner, tokenizer):
    """What transformers' greedy `generate` says."""
    prompt = tokenizer.apply_chat_template(
        list(MESSAGES), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = refiner._model.generate(**prompt, do_sample=False, max_new_tokens=MOST)
    return output[0, prompt["input_ids"].shape[1] :].tolist()


def refine(refiner, draft_ids=None, **options):
    pieces = []
    draft = None
    if draft_ids is not None:
        draft = Draft(text="", token_ids=tuple(draft_ids), tokenizer_fingerprint=refiner._tokenizer.fingerprint)
    request = RefineRequest(request_id="r", messages=MESSAGES, draft=draft, **options)
    result = refiner.refine(request, lambda delta: pieces.append(delta.text))
    assert "".join(pieces) == result.text
    return result


def without_end(ids):
    return tuple(ids[: ids.index(5)] if 5 in ids else ids)


def test_without_a_draft_the_answer_is_that_of_generate(refiner, alone):
    result = refine(refiner)
    assert result.token_ids == without_end(alone)
    assert result.kept_tokens == 0


def test_a_right_draft_is_kept_whole(refiner, alone):
    draft = without_end(alone)[:-1]
    result = refine(refiner, draft)
    assert result.token_ids == without_end(alone)
    assert result.kept_tokens == len(draft)
    assert result.forwards <= 2


@pytest.mark.parametrize("seed", range(4))
def test_any_draft_leads_to_the_answer_of_generate(refiner, alone, seed):
    rng = random.Random(seed)
    right = list(without_end(alone))
    at = rng.randrange(len(right))
    wrong_once = [*right[:at], (right[at] + 1) % 1024, *right[at + 1 :]]
    drafts = [wrong_once, right[:at], [], [rng.randrange(9, 1024) for _ in range(40)], right + right]
    kept = [at, at, 0, None, None]
    for draft, count in zip(drafts, kept, strict=True):
        result = refine(refiner, draft)
        assert result.token_ids == without_end(alone)
        assert count is None or result.kept_tokens == min(count, MOST - 1)


def test_mode_fresh_ignores_the_draft(refiner, alone):
    result = refine(refiner, without_end(alone), mode="fresh")
    assert result.token_ids == without_end(alone)
    assert result.kept_tokens == 0


def test_an_answer_that_is_cut_says_length(refiner, alone):
    result = refine(refiner, max_tokens=3)
    assert result.token_ids == without_end(alone[:3])
    assert result.finish_reason == ("stop" if 5 in alone[:3] else "length")


def test_an_answer_ends_at_a_stop_string(refiner):
    whole = refine(refiner)
    stop = whole.text[len(whole.text) // 2 :][:3]
    result = refine(refiner, stop=("never there", stop))
    assert whole.text.startswith(result.text)
    assert stop in result.text
    assert result.finish_reason == "stop"
    assert result.forwards < whole.forwards


def test_messages_that_the_template_refuses_are_refused(refiner, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RefineRejected, match="roles must alternate"):
        refine(refiner)


def test_scores_are_those_of_a_plain_forward(refiner, tokenizer):
    ids = tuple(range(300, 312))
    draft = Draft(text="", token_ids=ids, tokenizer_fingerprint=refiner._tokenizer.fingerprint)
    score = refiner.score(ScoreRequest(request_id="s", messages=MESSAGES, draft=draft))
    prompt = tokenizer.apply_chat_template(list(MESSAGES), add_generation_prompt=True, return_dict=True)["input_ids"]
    with torch.no_grad():
        logits = refiner._model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)[range(len(ids)), list(ids)]
    torch.testing.assert_close(torch.tensor(score.token_logprobs), expected, atol=1e-4, rtol=0)
    assert list(score.greedy_tokens) == logits.argmax(-1).tolist()


def test_a_draft_of_another_tokenizer_is_encoded_anew(refiner, tokenizer):
    draft = Draft(text="The total is $5.", token_ids=(1, 2, 3), tokenizer_fingerprint="another")
    score = refiner.score(ScoreRequest(request_id="s", messages=MESSAGES, draft=draft))
    assert list(score.token_ids) == tokenizer("The total is $5.", add_special_tokens=False)["input_ids"]


def test_sampling_repeats_with_its_seed_and_differs_with_another(refiner):
    first, again, other = (refine(refiner, temperature=1.5, top_p=0.95, seed=seed).token_ids for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(refiner):
    messages = ({"role": "user", "content": "7" * 300},)
    with pytest.raises(RefineRejected, match=r"at most 256 tokens.*a prompt of 3\d\d"):
        refiner.refine(RefineRequest(request_id="r", messages=messages), lambda _: None)
    with pytest.raises(RefineRejected, match="and 250 answer tokens"):
        refiner.refine(RefineRequest(request_id="r", messages=MESSAGES, max_tokens=250), lambda _: None)


def test_a_multimodal_checkpoint_loads_by_its_folder_and_answers_text(tokenizer, tmp_path):
    """Published Gemma 4 checkpoints are multimodal; only their text model is needed here."""
    torch.manual_seed(7)
    vision = {
        "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "patch_size": 4, "position_embedding_size": 16,
    }  # fmt: skip
    config = Gemma4Config(text_config={**TINY, **GEMMA, "sliding_window": 8}, vision_config=vision, audio_config=None)
    model = Gemma4ForConditionalGeneration(config)
    model.generation_config.eos_token_id = 5
    model.bfloat16().save_pretrained(tmp_path, max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path)
    loaded = CausalRefiner.load(RefineSettings(model=str(tmp_path), max_tokens=6))
    first = refine(loaded)
    assert 1 <= first.forwards <= 6
    assert refine(loaded, first.token_ids).token_ids == first.token_ids
    assert loaded.context_tokens == TINY["max_position_embeddings"]
