"""Tiny random causal language models of every architecture that the refine engine is tested with, by name.

| name | what is peculiar |
|---|---|
| gemma4 | sliding layers with a window of 24, full layers with another head size and one key head, whose values are its keys |
| gemma4_moe | as gemma4, with 4 experts beside each dense MLP, of which 2 work |
| gemma4_shared_kv | per-layer inputs, a cap on logits, and the last two of six layers use the keys and values of others |
| gemma4_multimodal | as gemma4_moe, under a vision tower, as Gemma 4 is published |
| qwen3 | normed queries and keys, tied embeddings |
| llama | untied embeddings |

All have grouped queries, float32 weights that bfloat16 has too, and a context of 512.
"""

from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma4Config,
    Gemma4TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

NAMES = ("gemma4", "gemma4_moe", "gemma4_shared_kv", "gemma4_multimodal", "qwen3", "llama")
VOCAB, WINDOW, EOS = 256, 24, (1, 5)

_SLIDING, _FULL = "sliding_attention", "full_attention"
_ANY: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": list(EOS),
}  # fmt: skip
_GEMMA: dict[str, Any] = _ANY | {
    "layer_types": [_SLIDING, _SLIDING, _SLIDING, _FULL], "sliding_window": WINDOW, "global_head_dim": 32,
    "num_global_key_value_heads": 1, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
}  # fmt: skip
_MOE: dict[str, Any] = _GEMMA | {
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
}
_SHARED_KV: dict[str, Any] = _GEMMA | {
    "num_hidden_layers": 6, "layer_types": [_SLIDING, _SLIDING, _FULL] * 2, "attention_k_eq_v": False,
    "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": VOCAB,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "patch_size": 4, "position_embedding_size": 16,
    "standardize": True,
}  # fmt: skip


def tiny_config(name: str, **changes: Any) -> PreTrainedConfig:
    """The config of one of NAMES; changes are entries of the text config."""
    if name == "gemma4_multimodal":
        return Gemma4Config(
            text_config=_MOE | changes,
            vision_config=dict(_VISION),
            audio_config=None,
            boi_token_id=7,
            eoi_token_id=8,
            image_token_id=6,
        )
    kinds: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
        "gemma4": (Gemma4TextConfig, _GEMMA),
        "gemma4_moe": (Gemma4TextConfig, _MOE),
        "gemma4_shared_kv": (Gemma4TextConfig, _SHARED_KV),
        "qwen3": (Qwen3Config, _ANY | {"tie_word_embeddings": True}),
        "llama": (LlamaConfig, _ANY | {"tie_word_embeddings": False}),
    }
    kind, entries = kinds[name]
    return kind(**entries | changes)


def tiny_model(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of `tiny_config(name, **changes)`, whose greedy answers change from token to token and with the prompt.

    Tied embeddings would make it repeat its last token, so what layers add outweighs what the embedding says; norms and scalars are random,
    so that a forgotten one shows.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(name, **changes), dtype=torch.float32).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict(keep_vars=True).items():
            if key == "lm_head.weight" and model.config.get_text_config().tie_word_embeddings:
                continue
            generator = torch.Generator().manual_seed(crc32(f"{seed} {key}".encode()))
            tensor.copy_(_random(key, tensor.shape, generator).bfloat16())
    model.generation_config.eos_token_id = list(EOS)
    return model


def _random(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if key.endswith("layer_scalar"):
        return 1 + 0.2 * noise.tanh()
    if len(shape) == 1:  # norms, the router's scales, the vision tower's bias
        return (8 if "post_" in key else 1) * (1 + 0.2 * noise)
    return noise * 2 * shape[-1] ** -0.5
