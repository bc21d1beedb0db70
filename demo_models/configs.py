"""The shapes of the two demo models: the real architectures, small.

The refiner's active compute per token is about four times the draft's (the real pair: up to 31 B dense against 3.8 B
active), fixed before anything was measured.
"""

from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, Gemma4ForCausalLM, Gemma4TextConfig
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)

from demo_models.tokenizer import BOI, BOS, EOI, EOS, IMAGE, PAD, SPECIAL, TURN_END, VOCAB_SIZE

CANVAS = 64
CONTEXT = 2048
_IDS = {token: i for i, token in enumerate(SPECIAL)}
_LAYERS = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
_TEXT = {
    "vocab_size": VOCAB_SIZE,
    "num_hidden_layers": len(_LAYERS),
    "layer_types": _LAYERS,
    "sliding_window": 128,
    "max_position_embeddings": CONTEXT,
    "final_logit_softcapping": 30.0,
    "pad_token_id": _IDS[PAD],
    "eos_token_id": [_IDS[EOS], _IDS[TURN_END]],
    "bos_token_id": _IDS[BOS],
}


def new_draft() -> DiffusionGemmaForBlockDiffusion:
    """A fresh DiffusionGemma: hidden 128, 4 layers, 8 experts of width 64 of which 2 work, canvas 64."""
    config = DiffusionGemmaConfig(
        text_config={
            **_TEXT,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_global_key_value_heads": 1,
            "head_dim": 32,
            "global_head_dim": 64,
            "num_experts": 8,
            "top_k_experts": 2,
            "moe_intermediate_size": 64,
        },
        vision_config={
            "model_type": "gemma4_vision",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "patch_size": 4,
            "position_embedding_size": 16,
        },
        boi_token_id=_IDS[BOI],
        eoi_token_id=_IDS[EOI],
        image_token_id=_IDS[IMAGE],
        canvas_length=CANVAS,
    )
    model = DiffusionGemmaForBlockDiffusion(config)
    model.generation_config = DiffusionGemmaGenerationConfig(
        max_new_tokens=CANVAS,
        max_denoising_steps=24,
        sampler_config=EntropyBoundSamplerConfig(entropy_bound=0.1),
        t_min=0.4,
        t_max=0.8,
        stability_threshold=0,  # a canvas this certain never changed in a second look: same accuracy, half the steps
        confidence_threshold=0.005,
        bos_token_id=_IDS[BOS],
        eos_token_id=[_IDS[EOS], _IDS[TURN_END]],
        pad_token_id=_IDS[PAD],
    )
    return model


def new_refine() -> Gemma4ForCausalLM:
    """A fresh dense Gemma 4: hidden 256, 4 layers, MLP 768."""
    model = Gemma4ForCausalLM(
        Gemma4TextConfig(
            **_TEXT,
            hidden_size=256,
            intermediate_size=768,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            head_dim=64,
            global_head_dim=128,
            hidden_size_per_layer_input=0,
            vocab_size_per_layer_input=VOCAB_SIZE,
        )
    )
    model.generation_config.max_new_tokens = CANVAS
    model.generation_config.eos_token_id = [_IDS[EOS], _IDS[TURN_END]]
    return model
