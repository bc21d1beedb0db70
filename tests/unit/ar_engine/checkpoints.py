"""Checkpoints of tiny causal models: as transformers saves them, and in NVFP4 under the names that NVIDIA and Red Hat publish."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from moe_kernels.nvfp4 import Convention, quantize

Edit = Callable[[dict[str, Tensor]], object]  # changes tensors in place
EXPERTS = r".*\.experts\.(gate_up|down)_proj"
MLP = r".*layers\.\d+\.mlp\.(gate|up|down)_proj\.weight"
TEXT_LINEARS = r".*layers\.\d+\.(mlp|self_attn|per_layer)[._].*(proj|gate|projection)\.weight"
IGNORED_BY_NVIDIA = [
    "lm_head",
    "model.embed_vision*",
    "model.vision_tower*",
    "model.language_model.layers.0.self_attn*",
]
FP8_CACHE = {"kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}}


class Published(NamedTuple):
    """A way in which Gemma 4 is published in NVFP4."""

    form: Convention
    quantized: str  # names of the plain tensors that are


def save(model: PreTrainedModel, folder: Path) -> Path:
    """As transformers saves it, in several shards."""
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder


def publish(model: PreTrainedModel, folder: Path, how: Published) -> Path:
    """Write a model in NVFP4, under the published names; what it loses in that, the model given loses too."""
    save(model, folder / "plain")
    tensors: dict[str, Tensor] = {}
    values = model.state_dict()
    for name, tensor in raw(folder / "plain").items():
        if not re.fullmatch(how.quantized, name):
            tensors[name] = tensor
            continue
        weight = quantize(tensor, how.form)
        if ".experts." not in name:
            values[name].copy_(weight.dequantize(torch.float32))
            tensors |= stored(name.removesuffix(".weight"), tensor, how.form)
            continue
        prefix, _, part = name.rpartition(".")
        for i, expert in enumerate(tensor):
            parts = expert.chunk(2) if part == "gate_up_proj" else [expert]
            for which, matrix in zip(("gate", "up") if len(parts) == 2 else ("down",), parts, strict=True):
                tensors |= stored(f"{prefix}.{i}.{which}_proj", matrix, how.form)
            decoded = [quantize(matrix.contiguous(), how.form).dequantize(torch.float32) for matrix in parts]
            values[name][i].copy_(torch.cat(decoded))
    write(folder, tensors, json.loads((folder / "plain" / "config.json").read_text()), how.form)
    model.generation_config.save_pretrained(folder)
    return folder


def stored(module: str, matrix: Tensor, form: Convention) -> dict[str, Tensor]:
    """A module's tensors, with the scales of activations and cached keys that belong to them."""
    weight = quantize(matrix.contiguous(), form)
    if form == "modelopt":
        found = {"weight": weight.packed, "weight_scale": weight.scales, "weight_scale_2": weight.global_scale}
        found |= {"input_scale": torch.tensor(0.5), "k_scale": torch.tensor(1.0)}
    else:
        found = {"weight_packed": weight.packed, "weight_scale": weight.scales}
        found |= {"weight_global_scale": weight.global_scale.reshape(1), "input_global_scale": torch.ones(1)}
    return {f"{module}.{part}": tensor for part, tensor in found.items()}


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], form: Convention) -> None:
    said: dict[str, Any] = {"quant_method": form, "ignore": IGNORED_BY_NVIDIA}
    if form == "modelopt":
        said |= {"quant_algo": "NVFP4", **FP8_CACHE}
    else:
        said |= {"format": "nvfp4-pack-quantized", "config_groups": {"group_0": {"weights": {"group_size": 16}}}}
    names = sorted(tensors)
    files = {"model-00001.safetensors": names[::2], "model-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name].contiguous() for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))


def raw(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def edited(folder: Path, target: Path, edit: Edit) -> Path:
    """A plain checkpoint's copy in one file, its tensors edited."""
    tensors = raw(folder)
    edit(tensors)
    target.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    return target
