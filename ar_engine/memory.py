"""How much memory the refine engine takes, from a checkpoint's config alone.

The model is made on torch's meta device, where tensors have shapes and no data, and reads one token there: so parameters and cached keys
and values are counted as they are, whatever the architecture. That takes about a second for 31 B parameters.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from ar_engine.api import RefineSettings
from engine_core.memory import Memory
from engine_core.published import find_config

_MASK = 3  # bytes a pair of positions: what masks are made of and, in attention, their values in bfloat16


@dataclass(frozen=True)
class RefinerShape:
    """What a causal language model's memory follows from; bytes are those of its dtype."""

    weights: int
    cached: tuple[int, ...]  # bytes a position, of each layer that caches
    windows: tuple[int | None, ...]  # of these layers
    row: int  # bytes a position of a prefill, at the largest moment of a layer
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
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
            cache = DynamicCache()
            try:
                model(input_ids=torch.zeros(1, 1, dtype=torch.int64), past_key_values=cache, use_cache=True)
            except RuntimeError as error:
                raise ValueError(f"{name}: expected a model that runs without data, got {error}") from error
        weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        layers: list[Any] = [layer for layer in cache.layers if isinstance(getattr(layer, "keys", None), torch.Tensor)]
        cached = [layer.keys.nbytes + layer.values.nbytes for layer in layers]
        text = config.get_text_config()
        text.allow_global_per_layer_attribute_access = (
            True  # of sizes that differ between layers the common one will do
        )
        size = max((layer.keys.shape[-1] for layer in layers), default=0)
        return cls(
            weights=stored or weights,
            cached=tuple(cached),
            windows=_windows(text, len(cached)),
            row=_row(text, size) * dtype.itemsize,
            vocab=text.vocab_size,
            context=text.max_position_embeddings,
        )


def memory_of(shape: RefinerShape, settings: RefineSettings, prompt_tokens: int, *, windowed: bool = False) -> Memory:
    """What the engine takes for one request, for it serves one at a time.

    The prompt and the draft of an answer are read in one forward; its logits are those of the draft's positions, as the model gives them and
    in float32. A layer's keys are copied as they grow.

    Args:
        shape: of the model.
        settings: `max_tokens` is the longest answer.
        prompt_tokens: of the longest prompt; cut to what the context leaves.
        windowed: whether sliding layers keep their window only. `refiner` keeps all of it, so that a draft's tail can be cut off again.
    """
    positions = min(prompt_tokens + settings.max_tokens, shape.context)
    kept = [min(positions, window or positions) if windowed else positions for window in shape.windows]
    caches = [nbytes * count for nbytes, count in zip(shape.cached, kept, strict=True)]
    masked = positions if any(window and window < positions for window in shape.windows) else 0
    logits = min(settings.max_tokens + 1, positions) * shape.vocab * (2 + 4)
    return Memory(
        weights=shape.weights,
        cache=sum(caches),
        state=0,
        workspace=positions * shape.row + max(caches, default=0) + max(masked**2 * _MASK, logits),
        cache_tokens=positions,
    )


def _windows(text: Any, layers: int) -> tuple[int | None, ...]:
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * layers
    return tuple(text.sliding_window if kind == "sliding_attention" else None for kind in kinds[:layers])


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
