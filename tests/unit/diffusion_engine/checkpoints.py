"""Tiny random DiffusionGemmas, and checkpoints of them in every form."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from diffusion_engine.convert import convert
from moe_kernels.checkpoint import Checkpoint, write_compressed_tensors, write_modelopt

Edit = Callable[[dict[str, Tensor]], object]  # changes tensors in place
SLIDING, FULL = "sliding_attention", "full_attention"
VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "patch_size": 4,
    "position_embedding_size": 16,
}


def tiny_config(**changes: Any) -> DiffusionGemmaConfig:
    """Two layers of hidden 64 with 4 experts of width 32, of which 2 work, and a canvas of 8.

    Changes are entries of the text config, but for `canvas_length`. The last layer must be a full one.
    """
    canvas = changes.pop("canvas_length", 8)
    text: dict[str, Any] = {
        "vocab_size": 160,
        "layer_types": [SLIDING, FULL],
        "sliding_window": 12,
        "max_position_embeddings": 512,
        "final_logit_softcapping": 30.0,
        "pad_token_id": 0,
        "eos_token_id": [1, 5],
        "bos_token_id": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
        **changes,
    }
    text["num_hidden_layers"] = len(text["layer_types"])
    return DiffusionGemmaConfig(
        text_config=text,
        vision_config=dict(VISION),
        boi_token_id=7,
        eoi_token_id=8,
        image_token_id=6,
        canvas_length=canvas,
    )


def tiny_model(config: DiffusionGemmaConfig, seed: int = 0) -> DiffusionGemmaForBlockDiffusion:
    """In float32, with nothing left at a value that would hide a mistake, and logits that are not flat.

    Norms, scales and biases are random; layer scalars differ between encoder and decoder, and all else is the same in both. Every value is one
    that bfloat16 has, so that a checkpoint in bfloat16 is the same model.
    """
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not name.endswith("layer_scalar"):
                name = name.replace("encoder.language_model", "decoder")
            generator = torch.Generator().manual_seed(crc32(f"{seed} {name}".encode()))
            tensor.copy_(_random(name, tensor.shape, generator).bfloat16())
    return model


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("layer_scalar"):
        return 1 + 0.3 * noise.tanh()
    if name.endswith("bias"):
        return 0.2 * noise
    if len(shape) == 1:  # norms, the router's scales
        return 1 + 0.2 * noise
    spread = 2 if name in ("lm_head.weight", "model.decoder.embed_tokens.weight") else 1
    return noise * spread * shape[-1] ** -0.5


def save(model: DiffusionGemmaForBlockDiffusion, folder: Path, max_shard_size: str = "64KB") -> Path:
    """As transformers saves it, in the model's dtype and several shards."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def write_all_forms(model: DiffusionGemmaForBlockDiffusion, folder: Path) -> dict[str, Path]:
    """Folders by form: plain, in bfloat16; modelopt; compressed-tensors; and draftgate, made from modelopt's."""
    forms = {form: folder / form for form in ("plain", "modelopt", "compressed-tensors", "draftgate")}
    save(deepcopy(model).bfloat16(), forms["plain"])  # a copy, for the rotary frequencies would be rounded for good
    write_modelopt(Checkpoint(forms["plain"]), forms["modelopt"])
    write_compressed_tensors(Checkpoint(forms["plain"]), forms["compressed-tensors"])
    convert(forms["modelopt"], forms["draftgate"])
    return forms


def raw(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, read without our reader."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def rewrite(source: Path, folder: Path, edit: Edit) -> Path:
    """A copy in one file, its tensors edited."""
    found = raw(source)
    edit(found)
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / "model.safetensors")
    return folder
