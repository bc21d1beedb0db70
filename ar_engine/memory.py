"""How much memory the refine engine takes, from a checkpoint's config alone.

The model is made on torch's meta device, where tensors have shapes and no data, and reads one token there: so parameters and the keys and values of
its layers are counted as they are, whatever the architecture. That takes about a second for 31 B parameters.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM

from ar_engine import attention
from ar_engine.api import RefineSettings
from ar_engine.attention import Layer, layers_of
from ar_engine.sampler import PIECE
from engine_core.memory import Memory
from engine_core.pages import PAGE, Kind
from engine_core.published import find_config
from engine_core.scheduler import Budget

LEAST_CACHE = 16_384  # positions of the cache on a GPU, where the settings leave it open and requests are shorter
_FLOAT32, _FLOAT64 = 4, 8


@dataclass(frozen=True)
class RefinerShape:
    """What a causal language model's memory follows from; bytes are those of its dtype."""

    weights: int
    experts: int  # numbers in plain experts, which may be quantised as they are loaded
    layers: tuple[Layer, ...]
    value: int  # bytes of a number among keys and values
    row: int  # bytes of a row, at the largest moment of a layer
    vocab: int
    context: int  # the longest sequence

    @classmethod
    def load(cls, name: str, *, on_gpu: bool) -> Self:
        """Measure a checkpoint by name or folder: in bfloat16 on a GPU, in float32 on a CPU.

        A quantised checkpoint's weights are taken to be as large as its files.

        Raises:
            OSError: there is none of that name here.
            ValueError: it is not a causal language model, or one that can't be measured in this way.
        """
        config, folder = find_config(name)
        dtype = torch.bfloat16 if on_gpu else torch.float32
        stored = _stored(folder) if folder and getattr(config, "quantization_config", None) else 0
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"), torch.inference_mode():
            # on the meta device experts are only multiplied in bfloat16
            model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            attention.use_in(model)
            try:
                layers = layers_of(model)
            except RuntimeError as error:
                raise ValueError(f"{name}: expected a model that runs without data, got {error}") from error
            if not on_gpu:
                model.float()
        weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        text = config.get_text_config()
        text.allow_global_per_layer_attribute_access = (
            True  # of sizes that differ between layers the common one will do
        )
        return cls(
            weights=stored or weights,
            experts=0 if stored else sum(one.numel() for name, one in model.named_parameters() if ".experts." in name),
            layers=tuple(layers),
            value=dtype.itemsize,
            row=_row(text, max(layer.head_dim for layer in layers)) * dtype.itemsize,
            vocab=text.vocab_size,
            context=text.max_position_embeddings,
        )


def budget_of(layers: Sequence[Layer], settings: RefineSettings, context: int) -> Budget:
    """What a step and the cache may hold. Raises ValueError: a setting is out of its range."""
    least = {"max_running": 1, "encode_tokens": 1, "max_tokens": 1, "cache_tokens": 0, "speculate": 0}
    for name, low in least.items():
        if getattr(settings, name) < low:
            raise ValueError(f"expected refine.{name} of at least {low}, got {getattr(settings, name)}")
    windows: dict[Kind, int | None] = {layer.kind: layer.window for layer in layers}
    tokens = settings.cache_tokens or 4 * context
    return Budget.of(settings.max_running, settings.encode_tokens, windows, tokens, 2 * settings.encode_tokens + 1)


def memory_of(shape: RefinerShape, settings: RefineSettings, *, on_gpu: bool) -> Memory:
    """What the engine takes; a `cache_tokens` of 0 stands for four of the longest requests.

    A step reads `encode_tokens` of prompts, as many of drafts, and one token of every answer. The model gives logits of drafts and answers, capped in
    a second copy; the sampler looks at a piece of them at a time.
    """
    budget = budget_of(shape.layers, settings, shape.context)
    answered = settings.encode_tokens + settings.max_running
    logits = answered * shape.vocab * 2 * shape.value
    piece = min(answered, PIECE) * shape.vocab * (4 * _FLOAT32 + 6 * _FLOAT64)
    quantized = settings.quantize and on_gpu
    saved = (
        shape.experts * shape.value - shape.experts * 9 // 16 if quantized else 0
    )  # NVFP4: half a byte, and a scale for every 16
    return Memory(
        weights=shape.weights - saved,
        cache=cache_bytes(shape, budget),
        state=0,
        workspace=max((settings.encode_tokens + answered) * shape.row, logits + piece),
        cache_tokens=settings.cache_tokens or 4 * shape.context,
    )


def cache_bytes(shape: RefinerShape, budget: Budget) -> int:
    """Bytes of `attention.PagedCache`."""
    own = [layer for i, layer in enumerate(shape.layers) if layer.source == i]
    return sum(budget.pages[one.kind] * PAGE * 2 * one.kv_heads * one.head_dim * shape.value for one in own)


def gpu_cache_tokens(settings: RefineSettings, context: int, prompt_tokens: int) -> int:
    """The `cache_tokens` of a GPU where the settings leave it open: enough for the longest request there may be."""
    return settings.cache_tokens or max(LEAST_CACHE, min(prompt_tokens + settings.max_tokens, context))


def _row(text: Any, size: int) -> int:
    """Values a position: four hidden states; beside them queries, keys and values twice, or the products of the MLP or of the experts."""
    hidden, heads = text.hidden_size, text.num_attention_heads
    mlp = 3 * (getattr(text, "intermediate_size", 0) or 4 * hidden)
    chosen = getattr(text, "top_k_experts", 0) or getattr(text, "num_experts_per_tok", 0) or 0
    experts = chosen * (2 * hidden + 3 * (getattr(text, "moe_intermediate_size", 0) or 0))
    return 4 * hidden + max(4 * heads * size, mlp, experts)


def _stored(folder: Path) -> int:
    """Bytes of a checkpoint's tensors, by its index or the files themselves; 0 if neither is there."""
    index = folder / "model.safetensors.index.json"
    if index.exists() and (total := json.loads(index.read_text()).get("metadata", {}).get("total_size")):
        return int(total)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
