"""Our attention inside transformers' models: rows of many sequences side by side, keys and values in pages.

transformers lets a model's attention be replaced by name, and passes what else its forward is given on to it. So a model runs over one line of rows,
(1, T), each with its position; nothing is padded, sequences of any length join and leave, and a row sees what its own sequence has
written into its pages.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine_core.pages import PAGE, Kind
from moe_kernels.attention import Spans, paged_attention

NAME = "draftgate_paged"


class WrongModel(ValueError):
    """Not a model that the engine can run; the message says expected and got."""


class Layer(NamedTuple):
    """One layer's attention."""

    kind: Kind
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    source: int  # the layer whose keys and values it reads: its own number, or that of an earlier layer


class Attended(NamedTuple):
    """For the layers of one kind: where rows write keys and values, and what they see."""

    places: Tensor  # (T,) int64: 16 * page + offset
    tables: Tensor  # (slots, most pages) int32
    spans: Spans


class _Attention(Protocol):
    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor: ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    paged: _Attention | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """(1, T, N, D) of queries (1, N, T, D), keys and values (1, M, T, D), as transformers calls it."""
    if paged is None:
        raise WrongModel(f"expected a model that passes its arguments on to attention, got {type(module).__name__}")
    return paged.attend(module, query, key, value, options), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


@dataclass
class PagedCache:
    """Keys and values of every layer that has its own, in pages (P, 16, M, D); page 0 is nobody's."""

    layers: list[Layer]
    keys: dict[int, Tensor]
    values: dict[int, Tensor]

    @classmethod
    def empty(
        cls, layers: list[Layer], pages: dict[Kind, int], dtype: torch.dtype, device: torch.device
    ) -> "PagedCache":
        """Room for so many pages in each layer of a kind."""

        def room(layer: Layer) -> Tensor:
            shape = (pages[layer.kind], PAGE, layer.kv_heads, layer.head_dim)
            return torch.zeros(shape, dtype=dtype, device=device)

        own = [i for i, layer in enumerate(layers) if layer.source == i]
        return cls(layers, {i: room(layers[i]) for i in own}, {i: room(layers[i]) for i in own})


class PagedStep:
    """One forward's attention."""

    def __init__(self, cache: PagedCache, attended: dict[Kind, Attended]) -> None:
        self._cache = cache
        self._attended = attended

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        """Write the rows' keys and values, unless an earlier layer has, and let every row see what it may."""
        index: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
        layer = self._cache.layers[index]
        places, tables, spans = self._attended[layer.kind]
        keys, values = self._cache.keys[layer.source], self._cache.values[layer.source]
        if layer.source == index:
            keys.flatten(0, 1).index_copy_(0, places, k[0].transpose(0, 1))
            values.flatten(0, 1).index_copy_(0, places, v[0].transpose(0, 1))
        rows = q[0].transpose(0, 1)
        return paged_attention(rows, keys, values, tables, spans, _scale(options, rows)).unsqueeze(0)


class _Probe:
    """Takes note of how each layer attends."""

    def __init__(self) -> None:
        self.layers: dict[int, Layer] = {}
        self._seen: list[tuple[Tensor, int]] = []  # keys, and whose they are

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        index: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
        unknown = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
        if unknown or k.shape != v.shape or q.shape[0] != 1:
            got = f"{', '.join(unknown)} and shapes {[*map(tuple, (q.shape, k.shape, v.shape))]}"
            raise WrongModel(f"expected plain attention in layer {index}, keys as large as values, got {got}")
        source = next((whose for seen, whose in self._seen if seen is k), index)
        if source == index:
            self._seen.append((k, index))
        window = options.get("sliding_window")
        kind: Kind = "full_attention" if window is None else "sliding_attention"
        self.layers[index] = Layer(kind, q.shape[1], k.shape[1], k.shape[3], window, source)
        return torch.zeros_like(q).transpose(1, 2)


@torch.inference_mode()
def layers_of(model: PreTrainedModel) -> list[Layer]:
    """How each layer of a model attends, found out by running it on one token.

    Raises:
        WrongModel: not all of its attention is ours to do, or it is of a kind that we don't do.
    """
    probe, text = _Probe(), model.config.get_text_config()
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    model(input_ids=token, position_ids=token, use_cache=False, paged=probe)
    layers = [probe.layers[index] for index in sorted(probe.layers)]
    name, count = type(model).__name__, text.num_hidden_layers
    if len(layers) != count:
        raise WrongModel(f"expected {name} to have attention in each of its {count} layers, got it in {len(layers)}")
    if unknown := set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        raise WrongModel(f"expected full and sliding attention in {name}, got {', '.join(sorted(unknown))}")
    if len(windows := {layer.window for layer in layers if layer.window is not None}) > 1:
        raise WrongModel(f"expected one window in {name}, got {sorted(windows)}")
    return layers


def _scale(options: dict[str, Any], rows: Tensor) -> float:
    scale = options.get("scaling")
    return rows.shape[-1] ** -0.5 if scale is None else scale


def use_in(model: PreTrainedModel, attention: str = NAME) -> None:
    """Make a model's text part attend in this way; an image tower keeps its own.

    Raises:
        WrongModel: its attention can't be replaced.
    """
    config: Any = model.config
    text = config.get_text_config()
    part = next((key for key in config.sub_configs if getattr(config, key, None) is text), None)
    model.set_attn_implementation({part: attention} if part else attention)
    if text._attn_implementation != attention:
        raise WrongModel(f"expected a model whose attention can be {attention}, got {type(model).__name__}")
