"""Finding a checkpoint, or its config alone without the network; and the shapes of those published that are asked for most.

The shapes are those of the config.json of the checkpoints named, taken from public copies, and checked against what is published of their sizes:
25.2 B parameters of DiffusionGemma, 18.8 GB of its NVFP4 form, 30.7 B of Gemma 4 31B (the tests of both `memory.py`).
"""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig

_VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 72,
    "position_embedding_size": 10240,
    "standardize": True,
}
_TEXT = {
    "vocab_size": 262_144,
    "head_dim": 256,  # of sliding layers, five of six; ...
    "global_head_dim": 512,  # ... every sixth sees everything
    "sliding_window": 1024,
    "max_position_embeddings": 262_144,
    "final_logit_softcapping": 30.0,
}
_TEXT_26B_A4B = {
    **_TEXT,
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "num_hidden_layers": 30,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_global_key_value_heads": 2,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
}
_TEXT_31B = {
    **_TEXT,
    "hidden_size": 5376,
    "intermediate_size": 21_504,
    "num_hidden_layers": 60,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "num_global_key_value_heads": 4,
}
_GEMMA_4 = {"attention_k_eq_v": True, "hidden_size_per_layer_input": 0}
_DIFFUSION = {
    "model_type": "diffusion_gemma",
    "text_config": _TEXT_26B_A4B,
    "vision_config": {"model_type": "gemma4_vision", **_VISION},
    "canvas_length": 256,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "google/diffusiongemma-26B-A4B-it": _DIFFUSION,
    "nvidia/diffusiongemma-26B-A4B-it-NVFP4": {
        **_DIFFUSION,
        "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    },
    "RedHatAI/diffusiongemma-26B-A4B-it-NVFP4": {
        **_DIFFUSION,
        "quantization_config": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
    },
    "google/gemma-4-31B-it": {
        "model_type": "gemma4",
        "text_config": {**_TEXT_31B, **_GEMMA_4},
        "vision_config": _VISION,
    },
    "google/gemma-4-26B-A4B-it": {
        "model_type": "gemma4",
        "text_config": {**_TEXT_26B_A4B, **_GEMMA_4, "enable_moe_block": True},
        "vision_config": _VISION,
    },
}
"""What transformers needs to know of their config.json, by their names on the hub."""


def checkpoint_folder(name: str) -> Path:
    """Where a checkpoint lies: the folder of that name, or else the hub's repository of that name, fetched if need be.

    Raises:
        OSError: there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name))
    except HFValidationError as error:
        raise FileNotFoundError(f"expected a folder or the name of a checkpoint on the hub, got {name!r}") from error


def find_config(name: str) -> tuple[Any, Path | None]:
    """A checkpoint's config as transformers reads it, and the folder it lies in, if there is one.

    Args:
        name: a folder; the name of a repository that is in the hub's local cache, perhaps without its weights; or one of `PUBLISHED`, with or
            without its owner.

    Raises:
        OSError: it is none of these.
        ValueError: its config.json is of no architecture that transformers knows.
    """
    folder = _local(name)
    if folder is not None:
        return AutoConfig.from_pretrained(folder), folder
    known = next((full for full in PUBLISHED if name.lower() in (full.lower(), full.split("/")[1].lower())), None)
    if known is None:
        raise OSError(
            f"expected a checkpoint's folder, a name in the hub's local cache or one of {', '.join(PUBLISHED)}, got {name!r}"
        )
    return AutoConfig.for_model(**PUBLISHED[known]), None


def _local(name: str) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns="*.json"))
    except (OSError, ValueError):  # it isn't there, or can't be a repository's name
        return None
