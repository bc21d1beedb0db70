"""How much memory the draft engine takes, from shapes alone, and how large a cache what is left allows.

Weights and cache are exact. Workspace is the largest moment of a step, with all canvases and as many encoded tokens as a step may have: what
the kernels allocate between a layer's launches or in the denoise head. A GPU has it twice, because CUDA graphs keep a pool of their own.
"""

from bisect import bisect_right
from math import ceil
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from diffusion_engine.api import DraftSettings
from diffusion_engine.config import Kind, LayerShape, ModelConfig
from engine_core.memory import DoesNotFit, Memory
from engine_core.pages import PAGE
from engine_core.published import find_config
from engine_core.scheduler import Budget
from moe_kernels import checkpoint, denoise_head
from moe_kernels.checkpoint import Checkpoint, CheckpointError
from moe_kernels.nvfp4 import BLOCK

Form = Literal["plain", "nvfp4", "nvfp4+mlp"]  # NVFP4: nothing, the experts, the experts and the dense MLP
_FLOAT32 = 4


def find_model(name: str) -> tuple[ModelConfig, Form]:
    """Shape and stored form of a checkpoint, without its weights.

    Raises:
        WrongModel: it is not a DiffusionGemma.
        CheckpointError: it is quantised in a way that is not supported.
        OSError: there is none of that name here.
    """
    config, folder = find_config(name)
    return ModelConfig.from_transformers(config), stored_form(config, folder)


def stored_form(config: Any, folder: Path | None) -> Form:
    """What is quantised in a checkpoint, by its config and, where they are there, by the names of its tensors.

    Raises:
        CheckpointError: it is quantised in a way that is not supported.
    """
    said = getattr(config, "quantization_config", None)
    form = checkpoint.form_of(folder or Path(), {"quantization_config": said})
    if form is None:
        return "plain"
    published = form == "compressed-tensors"
    return "nvfp4+mlp" if (published if (held := _holds_mlp(folder)) is None else held) else "nvfp4"


def _holds_mlp(folder: Path | None) -> bool | None:
    """Whether a quantised checkpoint's dense MLP is quantised too; None if only its config is here."""
    try:
        return Checkpoint(folder).is_quantized("model.decoder.layers.0.mlp.gate_proj") if folder else None
    except CheckpointError:
        return None


def budget_of(config: ModelConfig, settings: DraftSettings) -> Budget:
    """What a step and the cache may hold. Raises ValueError: a setting is out of its range."""
    least = {"max_running": 1, "encode_tokens": 1, "max_tokens": 1, "max_steps": 0, "cache_tokens": 0}
    for name, low in least.items():
        if getattr(settings, name) < low:
            raise ValueError(f"expected draft.{name} of at least {low}, got {getattr(settings, name)}")
    windows: dict[Kind, int | None] = {
        layer.kind: config.window if layer.kind == "sliding_attention" else None for layer in config.layers
    }
    rows = max(settings.encode_tokens, config.canvas) + config.canvas
    return Budget.of(settings.max_running, settings.encode_tokens, windows, _tokens(config, settings), rows)


def longest(config: ModelConfig, settings: DraftSettings, prompt_tokens: int) -> int:
    """Positions of a request with that prompt and the longest answer, as far as the context goes."""
    answer = ceil(settings.max_tokens / config.canvas) * config.canvas
    return min(prompt_tokens + answer, config.context + config.canvas)


def memory_of(config: ModelConfig, settings: DraftSettings, stored: Form, *, on_gpu: bool) -> Memory:
    """What the engine takes: in bfloat16 on a GPU, where plain experts may be quantised as they are loaded; in float32 on a CPU.

    Args:
        config: of the checkpoint.
        settings: a `cache_tokens` of 0 stands for four of the longest requests.
        stored: the checkpoint's form.
        on_gpu: else on a CPU.
    """
    held: Form = "nvfp4" if stored == "plain" and on_gpu and settings.quantize else stored
    budget = budget_of(config, settings)
    return Memory(
        weights=weight_bytes(config, held, on_gpu=on_gpu),
        cache=cache_bytes(config, budget, on_gpu=on_gpu),
        state=_state(config, settings, on_gpu),
        workspace=_workspace(config, settings, held, on_gpu),
        cache_tokens=_tokens(config, settings),
    )


def fitting_cache_tokens(
    config: ModelConfig, settings: DraftSettings, stored: Form, free: int, at_least: int | None = None
) -> int:
    """The `cache_tokens` of a GPU with that much room for the engine: all that weights, state and workspace leave.

    No more than all slots need at the full context: beyond that the cache would only remember what nobody is sure to ask again.

    Args:
        config: of the checkpoint.
        settings: their own `cache_tokens` is not looked at.
        stored: the checkpoint's form.
        free: bytes for this engine alone, without what is reserved for all.
        at_least: positions of a request that must be possible; None for an answer of `max_tokens` to a prompt of as many.

    Raises:
        DoesNotFit: there is no room for one such request.
    """

    def total(pages: int) -> int:
        return memory_of(config, replace(settings, cache_tokens=pages * PAGE), stored, on_gpu=True).total

    least = ceil((at_least or longest(config, settings, settings.max_tokens)) / PAGE)
    most = max(least, settings.max_running * (config.context + config.canvas) // PAGE)
    fitting = bisect_right(range(1, most + 1), free, key=total)
    if fitting < least:
        raise DoesNotFit(
            f"expected {total(least) / 1e9:.1f} GB for {settings.model} and a cache of {least * PAGE} tokens, got {free / 1e9:.1f} GB"
        )
    return fitting * PAGE


def weight_bytes(config: ModelConfig, held: Form, *, on_gpu: bool) -> int:
    """Bytes of `model.Weights`, to the last one.

    A CPU computes with decoded weights; it keeps packed experts beside them.
    """
    value, hidden = _value(on_gpu), config.hidden
    mlp, experts = 3 * hidden * config.inner, 3 * config.experts * hidden * config.expert_inner
    plain = config.vocab * hidden + 2 * hidden + mlp + 2 * len(config.layers)
    packed = 0
    for layer in config.layers:
        keys = layer.kv_heads * layer.head_dim * (2 if layer.has_values else 1)
        queries = layer.heads * layer.head_dim
        plain += (2 * queries + keys) * hidden + 2 * layer.head_dim + 8 * hidden + (hidden + 1) * config.experts
        plain += (queries + keys + hidden) * config.bias
        if held == "plain" or not on_gpu:
            plain += experts
        if held != "plain":
            packed += _packed(experts) + 3 * config.experts * _FLOAT32
        if held == "nvfp4+mlp" and on_gpu:
            packed += _packed(mlp) + 3 * _FLOAT32
        else:
            plain += mlp
    return plain * value + packed


def cache_bytes(config: ModelConfig, budget: Budget, *, on_gpu: bool) -> int:
    """Bytes of `model.KVCache`."""
    a_page = PAGE * 2 * _value(on_gpu)
    return sum(budget.pages[layer.kind] * a_page * layer.kv_heads * layer.head_dim for layer in config.layers)


def _state(config: ModelConfig, settings: DraftSettings, on_gpu: bool) -> int:
    """`sampler.Canvases` and the page tables, with a slot more than there are."""
    a_canvas = config.canvas * (4 * 8 + 3 * 4 + 1 + config.hidden * _value(on_gpu)) + 8
    pages = ceil(config.context / PAGE) + ceil(config.canvas / PAGE) + 1
    return (settings.max_running + 1) * (a_canvas + len(_kinds(config)) * pages * 4)


def _workspace(config: ModelConfig, settings: DraftSettings, held: Form, on_gpu: bool) -> int:
    canvases = settings.max_running * config.canvas
    step = _step(config, canvases, settings.encode_tokens, held, on_gpu)
    if not on_gpu:
        return step
    graphs = settings.max_running * (settings.max_running + 1) // 2  # canvases in all of them together
    return step + _step(config, canvases, 0, held, on_gpu) + graphs * config.canvas * _row_inputs(config, on_gpu)


def _step(config: ModelConfig, canvases: int, encoded: int, held: Form, on_gpu: bool) -> int:
    """Bytes of a step of so many rows of canvases and encoded rows, at the largest of its moments."""
    value, rows = _value(on_gpu), canvases + encoded
    kept = rows * _row_inputs(config, on_gpu) + canvases * config.hidden * value  # the last step's soft embeddings
    attention = max(_attention_values(layer, config.hidden) for layer in config.layers) * value
    layer = rows * max(attention, _experts_row(config, held, on_gpu))
    head = (rows + canvases) * config.hidden * value + _head(config, canvases, on_gpu)
    return kept + max(layer, head)


def _row_inputs(config: ModelConfig, on_gpu: bool) -> int:
    """Bytes a row of `model.Rows`: token and position; of each kind its place, its range, sines and cosines."""
    sizes = {layer.kind: layer.head_dim for layer in config.layers}
    return 16 + sum(8 + 2 * 4 + 2 * size * _value(on_gpu) for size in sizes.values())


def _attention_values(layer: LayerShape, hidden: int) -> int:
    """Values a row: hidden states, normed and result; queries, keys and values before and after their norms; what was seen."""
    queries, keys = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
    projected = queries + keys * (2 if layer.has_values else 1)
    return 3 * hidden + projected + queries + 2 * keys + queries


def _experts_row(config: ModelConfig, held: Form, on_gpu: bool) -> int:
    """Bytes a row: seven hidden states, router scores, and for each chosen expert its products."""
    value, hidden, inner = _value(on_gpu), config.hidden, config.expert_inner
    seen = max(layer.heads * layer.head_dim for layer in config.layers)
    slot = (hidden + inner) * value + 8  # an expert's output and inner activations, and where it stands in the order
    if held == "plain" or not on_gpu:  # the twin sorts copies of rows, and sums in float32
        slot += (hidden + 2 * inner) * value + hidden * _FLOAT32
    return (7 * hidden + seen + config.experts) * value + config.top_k * slot


def _head(config: ModelConfig, canvases: int, on_gpu: bool) -> int:
    """What the denoise head holds beside inputs and outputs; see the cost in `moe_kernels.denoise_head`."""
    groups = ceil(config.vocab / denoise_head.GROUP)
    if not on_gpu:
        part = denoise_head._CPU_TOKENS * (config.hidden + 4 * denoise_head._CPU_ROWS)
        return (part + canvases * config.hidden) * _FLOAT32
    rows = min(canvases, denoise_head._ROWS)
    blocks = ceil(rows / denoise_head._BLOCK_ROWS)
    part = ceil(groups / denoise_head._SPLITS)
    slots = ceil(part / denoise_head._ROUNDS)
    weights = blocks * denoise_head._SPLITS * slots * denoise_head._BLOCK_ROWS * denoise_head.GROUP
    return (
        rows * (groups * 4 + denoise_head.GROUP + denoise_head._SPLITS * config.hidden) * _FLOAT32
        + weights * _value(on_gpu)
        + blocks * denoise_head._SPLITS * part * 4
    )


def _tokens(config: ModelConfig, settings: DraftSettings) -> int:
    return settings.cache_tokens or 4 * (config.context + config.canvas)


def _kinds(config: ModelConfig) -> set[Kind]:
    return {layer.kind for layer in config.layers}


def _packed(values: int) -> int:
    """Bytes of NVFP4: four bits a value, and a byte for every 16."""
    return values // 2 + values // BLOCK


def _value(on_gpu: bool) -> int:
    """Bytes of a value that is not quantised."""
    return 2 if on_gpu else _FLOAT32
