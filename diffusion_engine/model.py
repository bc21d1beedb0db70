"""DiffusionGemma's forward pass: encoder and decoder in one, over the same weights and one batch of rows.

A row is a token at a position. Encoder rows are causal: prompt tokens, or those of a finished canvas, whose keys and values stay in the
cache. Decoder rows are a canvas: each sees the cached prefix and the whole canvas, whose keys and values lie in the cache as well, behind the
prefix, until the next step overwrites them. Because every row writes its keys and values before any row reads, the rows of a finished canvas and
those of the next one, which must see it, can share a forward.

Between the two kinds only three things differ: how a row is embedded, which keys it sees, and its `layer_scalar`.

Source: transformers' `models/diffusion_gemma`, which is the reference for every rounding.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from diffusion_engine.config import LayerShape, ModelConfig
from engine_core.pages import PAGE, Kind
from moe_kernels.activation import gated_gelu
from moe_kernels.attention import Spans, paged_attention
from moe_kernels.linear import NVFP4Linear, nvfp4_linear
from moe_kernels.moe import DenseExperts, Experts, experts_mlp
from moe_kernels.norms import (
    AttentionNorms,
    ExpertsNorms,
    norms_after_attention,
    norms_after_experts,
    qk_norm_rope,
    rms_norm,
)
from moe_kernels.routing import route

Weight = Tensor | NVFP4Linear  # (N, K)
_MLP_ROWS = 256  # of a dense MLP at a time on a CPU: what lies between its products stays in the cache


@dataclass
class GatedMLP:
    """down(gelu(gate x) * up x): gate above up in one weight (2I, H), where they are not quantised one by one."""

    gate_up: Tensor | tuple[NVFP4Linear, NVFP4Linear]
    down: Weight

    def __call__(self, x: Tensor) -> Tensor:
        """(T, H) to (T, H)."""
        if x.is_cuda or len(x) <= _MLP_ROWS:
            return self._of(x)
        return torch.cat([self._of(rows) for rows in x.tensor_split(-(-len(x) // _MLP_ROWS))])

    def _of(self, x: Tensor) -> Tensor:
        if isinstance(self.gate_up, Tensor):
            gate, up = linear(x, self.gate_up).chunk(2, dim=-1)
        else:
            gate, up = (nvfp4_linear(x, weight) for weight in self.gate_up)
        inner = gated_gelu(gate, up)
        return linear(inner, self.down) if isinstance(self.down, Tensor) else nvfp4_linear(inner, self.down)


@dataclass
class Layer:
    """One layer's weights."""

    shape: LayerShape
    qkv: Tensor  # (N D + M D [+ M D], H), the last part where the layer has values of its own
    qkv_bias: Tensor | None
    out: Tensor  # (H, N D)
    out_bias: Tensor | None
    q_norm: Tensor  # (D,)
    k_norm: Tensor  # (D,)
    attention_norms: AttentionNorms
    mlp: GatedMLP
    router: Tensor  # (E, H)
    per_expert_scale: Tensor  # (E,)
    experts: Experts | DenseExperts
    experts_norms: ExpertsNorms  # its `next` is the next layer's first norm, or the final one


@dataclass
class Weights:
    """All weights of a DiffusionGemma; the head is the embedding."""

    embedding: Tensor  # (V, H)
    first_norm: Tensor  # (H,) of layer 0
    conditioning_norm: Tensor  # (H,)
    conditioning: GatedMLP
    layers: list[Layer]
    encoder_scalars: Tensor  # (L,)
    decoder_scalars: Tensor  # (L,)


@dataclass
class KVCache:
    """Keys and values of every layer, in pages (P, 16, M, D) that sequences are given; page 0 is nobody's."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, config: ModelConfig, pages: dict[Kind, int], dtype: torch.dtype, device: torch.device) -> "KVCache":
        """Room for so many pages in each layer of a kind."""
        shapes = [(pages[layer.kind], PAGE, layer.kv_heads, layer.head_dim) for layer in config.layers]
        keys, values = ([torch.zeros(shape, dtype=dtype, device=device) for shape in shapes] for _ in range(2))
        return cls(keys, values)


class Attended(NamedTuple):
    """For the layers of one kind: where rows write keys and values, and what they see."""

    places: Tensor  # (T,) int64: 16 * page + offset
    tables: Tensor  # (S, pages of the longest) int32
    spans: Spans
    turn: tuple[Tensor, Tensor]  # cos and sin (T, D) of the rows' positions


class Rows(NamedTuple):
    """The rows of a forward: T encoder rows first, then those of the canvases."""

    tokens: Tensor  # (T,) int64, of the encoder rows
    positions: Tensor  # (T + B C,) int64
    attended: dict[Kind, Attended]


@dataclass
class Model:
    """A DiffusionGemma on one device."""

    config: ModelConfig
    weights: Weights
    _frequencies: dict[Kind, tuple[Tensor, float]] = field(init=False)

    def __post_init__(self) -> None:
        device = self.device
        self._frequencies = {kind: _frequencies(self.config, kind, device) for kind in self.kinds}
        self._scale = torch.tensor(self.config.hidden**0.5, dtype=self.dtype, device=device)
        encoder, decoder = self.weights.encoder_scalars, self.weights.decoder_scalars
        self._scalars = torch.stack([decoder, encoder]).to(self.dtype)  # (2, L)

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of layers there are."""
        return list(dict.fromkeys(layer.kind for layer in self.config.layers))

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.weights.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.weights.embedding.dtype

    def forward(self, rows: Rows, canvas: Tensor, soft: Tensor | None, cache: KVCache) -> Tensor:
        """Write every row's keys and values, and return the normed last hidden states.

        Args:
            rows: T encoder rows and B canvases of C rows.
            canvas: (B C,) int64, their tokens.
            soft: (B C, H), the previous step's mean embedding of each canvas position, unscaled; 0 in a canvas's first step. None is 0 for
                all, without the work.
            cache: written to.

        Returns:
            (T + B C, H). Those of canvas rows are what the denoise head takes; encoder rows' are of no use but to compare.
        """
        weights, eps = self.weights, self.config.eps
        hidden = self._embed(rows.tokens, canvas, soft)
        scalars = self._layer_scalars(len(rows.tokens), len(canvas))
        normed = rms_norm(hidden, weights.first_norm, eps)
        for i, layer in enumerate(weights.layers):
            seen = self._attention(layer, normed, rows.attended[layer.shape.kind], cache.keys[i], cache.values[i])
            hidden, mlp, experts, router = norms_after_attention(hidden, seen, layer.attention_norms, eps)
            routed = route(linear(router, layer.router), self.config.top_k, layer.per_expert_scale)
            experts = experts_mlp(experts, layer.experts, routed.experts, routed.weights)
            hidden, normed = norms_after_experts(hidden, layer.mlp(mlp), experts, layer.experts_norms, scalars[i], eps)
        return normed

    def turn(self, positions: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, D) of a kind's rotary embedding, in the model's dtype, as transformers rounds them."""
        frequencies, scale = self._frequencies[kind]
        angles = positions[:, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * scale).to(self.dtype), (angles.sin() * scale).to(self.dtype)

    def _embed(self, tokens: Tensor, canvas: Tensor, soft: Tensor | None) -> Tensor:
        embedding, eps = self.weights.embedding, self.config.eps
        encoder = embedding[tokens] * self._scale
        if not len(canvas):
            return encoder
        decoder = embedding[canvas] * self._scale
        if soft is not None:
            decoder += self.weights.conditioning(rms_norm(soft * self._scale, self.weights.conditioning_norm, eps))
        decoder = rms_norm(decoder, None, eps)
        return torch.cat([encoder, decoder]) if len(tokens) else decoder

    def _layer_scalars(self, causal: int, canvas: int) -> list[Tensor]:
        """For each layer one number, or one for each row where both kinds of rows are there."""
        if causal and canvas:
            kind = torch.zeros(causal + canvas, dtype=torch.int64, device=self.device)
            kind[:causal] = 1
            return list(self._scalars.T[:, kind])
        return list(self._scalars[1 if causal else 0])

    def _attention(self, layer: Layer, x: Tensor, attended: Attended, keys: Tensor, values: Tensor) -> Tensor:
        shape, size = layer.shape, layer.shape.head_dim
        heads = linear(x, layer.qkv, layer.qkv_bias).unflatten(1, (-1, size))
        q, k = heads[:, : shape.heads], heads[:, shape.heads : shape.heads + shape.kv_heads]
        v = heads[:, -shape.kv_heads :] if shape.has_values else k
        normed = qk_norm_rope(q, k, layer.q_norm, layer.k_norm, *attended.turn, self.config.eps, v)
        assert normed.v is not None, "given values, it gives values"
        keys.flatten(0, 1).index_copy_(0, attended.places, normed.k)
        values.flatten(0, 1).index_copy_(0, attended.places, normed.v)
        seen = paged_attention(normed.q, keys, values, attended.tables, attended.spans)
        return linear(seen.flatten(1), layer.out, layer.out_bias)


def _frequencies(config: ModelConfig, kind: Kind, device: torch.device) -> tuple[Tensor, float]:
    """Inverse frequencies (D/2,) and attention scale of the rotary embedding of a kind of layers."""
    rope = config.text.rope_parameters[kind]
    if (name := rope["rope_type"]) != "default":
        own = config.text.per_layer_config[kind]
        frequencies, scale = ROPE_INIT_FUNCTIONS[name](own, device, layer_type=kind)
        return frequencies.float(), scale
    size = next(layer.head_dim for layer in config.layers if layer.kind == kind)
    steps = torch.arange(0, size, 2, dtype=torch.float32) / size
    return (1.0 / rope["rope_theta"] ** steps).to(device), 1.0
