"""Loads the weights of a DiffusionGemma, one tensor at a time, from any form of checkpoint.

| quant_method | who writes it | experts | dense MLP |
|---|---|---|---|
| none | Google, transformers | bfloat16 or float32 | the same |
| modelopt | NVIDIA | NVFP4 | plain |
| compressed-tensors | Red Hat | NVFP4 | NVFP4 |
| draftgate | `draftgate convert` | as the kernels hold them | plain, or as the kernels hold it |

All else is plain in each of them. Names are those of transformers' `DiffusionGemmaForBlockDiffusion`: everything stands under model.decoder,
and of the encoder, whose weights are the decoder's, only the layer scalars. Unread on purpose: the vision tower, because images go to
the refiner; scales of activations and of cached keys and values, because both stay in sixteen bits here.

The same walk over the model is made twice. The first looks at headers only, so a bad checkpoint fails before any of its data is read.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_engine.config import ModelConfig
from diffusion_engine.model import GatedMLP, Layer, Weights
from moe_kernels.checkpoint import Checkpoint
from moe_kernels.dispatch import backend
from moe_kernels.loading import ExpectedTensors, WrongTensors, packed_experts, packed_linear
from moe_kernels.moe import DenseExperts, Experts, by_column
from moe_kernels.norms import AttentionNorms, ExpertsNorms

DECODER = "model.decoder"
ENCODER = "model.encoder.language_model"
EMBEDDING = f"{DECODER}.embed_tokens.weight"
VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")


@dataclass
class Contents:
    """What a checkpoint holds for us."""

    plain: list[str] = field(default_factory=list)  # names of tensors
    experts: list[str] = field(default_factory=list)  # prefixes, one a layer: model.decoder.layers.0.experts
    linears: list[str] = field(default_factory=list)  # quantised modules of dense MLPs
    vision: list[str] = field(default_factory=list)  # names of tensors
    nbytes: int = 0  # of all of these but vision


def load_weights(
    folder: Path,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    quantize: bool,
    progress: str | None = None,
) -> Weights:
    """Load a checkpoint onto a device.

    Weights that are NVFP4 keep their bytes. Where the torch twins compute, experts are decoded to `dtype` as well, and a dense MLP is
    decoded instead. Beyond the weights themselves, memory holds one tensor, or one layer's experts: on the host twice as stored, on the
    device some six times while they are repacked, which our own form is spared.

    Args:
        folder: of config.json and safetensors.
        config: from that config.json.
        device: where the weights go.
        dtype: of everything that is not NVFP4.
        quantize: whether plain experts become NVFP4, as `moe_kernels.checkpoint.write_modelopt` does it.
        progress: what to call it on a bar over the bytes read, which shows on terminals only; None for no bar.

    Raises:
        WrongTensors: tensors are missing or surplus, or have another dtype or shape; all are named, and nothing has been read.
        CheckpointError: a file is missing or broken, a scale is NaN or not positive, or plain experts to quantise are not finite.
        KernelUnsupported: NVFP4 weights whose sides are no multiples of 32.
    """
    checkpoint = Checkpoint(folder)
    total = check_tensors(checkpoint, config).nbytes
    loading = _Loading(checkpoint, config, device, dtype, quantize)
    with tqdm(total=total, desc=progress, unit="B", unit_scale=True, disable=None if progress else True) as bar:
        checkpoint.on_read = bar.update
        weights = _assemble(config, loading)
    if loading.on_twins():
        _store_by_column(weights)
    return weights


def check_tensors(checkpoint: Checkpoint, config: ModelConfig) -> Contents:
    """Compare names, dtypes and shapes with what the config calls for, from the files' headers alone.

    What is left unread may be there or not. So may duplicates of tied weights, lm_head and the encoder's, as some tools write them, if
    they have the shape of what they repeat.

    Raises:
        WrongTensors: there is a difference.
        CheckpointError: a file is broken.
        KernelUnsupported: as `load_weights`.
    """
    checking = _Checking(checkpoint, config)
    _assemble(config, checking)
    return checking.finish()


_NOTHING = torch.empty(0)


def _store_by_column(weights: Weights) -> None:
    """Store what matrix products take so that a row's result does not depend on how many rows there are; see `by_column`."""
    for layer in weights.layers:
        layer.qkv, layer.out, layer.router = by_column(layer.qkv, layer.out, layer.router)
    for mlp in (weights.conditioning, *(layer.mlp for layer in weights.layers)):
        if isinstance(mlp.gate_up, Tensor) and isinstance(mlp.down, Tensor):
            mlp.gate_up, mlp.down = by_column(mlp.gate_up, mlp.down)


class _Reader(Protocol):
    """What the walk over the model asks a checkpoint for."""

    def plain(self, name: str, *shape: int) -> Tensor: ...
    def mlp(self, prefix: str) -> GatedMLP: ...
    def experts(self, prefix: str) -> Experts | DenseExperts: ...


def _assemble(config: ModelConfig, read: _Reader) -> Weights:
    layers = [f"layers.{i}" for i in range(len(config.layers))]
    norms = [f"{DECODER}.{layer}.input_layernorm.weight" for layer in layers] + [f"{DECODER}.norm.weight"]
    first, *following = (read.plain(norm, config.hidden) for norm in norms)
    encoder, decoder = (
        torch.cat([read.plain(f"{root}.{layer}.layer_scalar", 1) for layer in layers]) for root in (ENCODER, DECODER)
    )
    return Weights(
        embedding=read.plain(EMBEDDING, config.vocab, config.hidden),
        first_norm=first,
        conditioning_norm=read.plain(f"{DECODER}.self_conditioning.pre_norm.weight", config.hidden),
        conditioning=read.mlp(f"{DECODER}.self_conditioning"),
        layers=[_layer(config, i, f"{DECODER}.{layer}", read, following[i]) for i, layer in enumerate(layers)],
        encoder_scalars=encoder,
        decoder_scalars=decoder,
    )


def _layer(config: ModelConfig, number: int, at: str, read: _Reader, following: Tensor) -> Layer:
    shape, hidden, attention = config.layers[number], config.hidden, f"{at}.self_attn"
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    parts = {"q": queries, "k": keys, "v": keys} if shape.has_values else {"q": queries, "k": keys}

    def norm(name: str) -> Tensor:
        return read.plain(f"{at}.{name}.weight", hidden)

    def biases(parts: dict[str, int]) -> Tensor | None:
        if not config.bias:
            return None
        return torch.cat([read.plain(f"{attention}.{part}_proj.bias", size) for part, size in parts.items()])

    return Layer(
        shape=shape,
        qkv=torch.cat([read.plain(f"{attention}.{part}_proj.weight", size, hidden) for part, size in parts.items()]),
        qkv_bias=biases(parts),
        out=read.plain(f"{attention}.o_proj.weight", hidden, queries),
        out_bias=biases({"o": hidden}),
        q_norm=read.plain(f"{attention}.q_norm.weight", shape.head_dim),
        k_norm=read.plain(f"{attention}.k_norm.weight", shape.head_dim),
        attention_norms=AttentionNorms(
            post_attention=norm("post_attention_layernorm"),
            pre_mlp=norm("pre_feedforward_layernorm"),
            pre_experts=norm("pre_feedforward_layernorm_2"),
            router_scale=read.plain(f"{at}.router.scale", hidden),
        ),
        mlp=read.mlp(f"{at}.mlp"),
        router=read.plain(f"{at}.router.proj.weight", config.experts, hidden),
        per_expert_scale=read.plain(f"{at}.router.per_expert_scale", config.experts),
        experts=read.experts(f"{at}.experts"),
        experts_norms=ExpertsNorms(
            post_mlp=norm("post_feedforward_layernorm_1"),
            post_experts=norm("post_feedforward_layernorm_2"),
            post=norm("post_feedforward_layernorm"),
            next=following,
        ),
    )


@dataclass
class _Loading:
    """Reads the tensors."""

    checkpoint: Checkpoint
    config: ModelConfig
    device: torch.device
    dtype: torch.dtype
    quantize: bool

    def plain(self, name: str, *shape: int) -> Tensor:
        # A copy, for what the checkpoint gives is a view of a mapped file.
        return self.checkpoint.tensor(name).to(self.device, self.dtype, copy=True).reshape(shape)

    def mlp(self, prefix: str) -> GatedMLP:
        modules = _mlp_shapes(self.config, prefix)
        if not _is_quantized(self.checkpoint, modules):
            gate, up, down = (self.plain(f"{module}.weight", *shape) for module, shape in modules.items())
            return GatedMLP(torch.cat([gate, up]), down)
        gate, up, down = (packed_linear(self.checkpoint, module, self.device) for module in modules)
        if self.on_twins():
            return GatedMLP(torch.cat([gate.decode(self.dtype), up.decode(self.dtype)]), down.decode(self.dtype))
        return GatedMLP((gate, up), down)

    def experts(self, prefix: str) -> Experts | DenseExperts:
        count, inner, hidden = self.config.experts, self.config.expert_inner, self.config.hidden
        if self.checkpoint.form is None and not self.quantize:
            gate_up = self.plain(f"{prefix}.gate_up_proj", count, 2 * inner, hidden)
            weights = gate_up, self.plain(f"{prefix}.down_proj", count, hidden, inner)
            return DenseExperts(*(by_column(*weights) if self.on_twins() else weights))
        experts = packed_experts(self.checkpoint, prefix, count, self.device)
        return replace(experts, dense=by_column(*experts.decode(self.dtype))) if self.on_twins() else experts

    def on_twins(self) -> bool:
        """Whether the torch twins compute."""
        return backend("experts_mlp", self.device) == "torch"


class _Checking:
    """Notes what is asked for; what it gives is empty."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._contents = Contents()
        self._expected = ExpectedTensors(checkpoint)

    def plain(self, name: str, *shape: int) -> Tensor:
        self._contents.plain.append(name)
        self._expected.plain(name, *shape)
        return torch.empty(shape, device="meta")

    def mlp(self, prefix: str) -> GatedMLP:
        modules = _mlp_shapes(self._config, prefix)
        if not _is_quantized(self._checkpoint, modules):
            for module, shape in modules.items():
                self.plain(f"{module}.weight", *shape)
        else:
            self._contents.linears += modules
            for module, shape in modules.items():
                self._expected.linear(module, *shape)
        return GatedMLP(_NOTHING, _NOTHING)

    def experts(self, prefix: str) -> DenseExperts:
        self._contents.experts.append(prefix)
        self._expected.experts(prefix, self._config.experts, self._config.expert_inner, self._config.hidden)
        return DenseExperts(_NOTHING, _NOTHING)

    def finish(self) -> Contents:
        """Compare what was asked for with what is there."""
        found = self._expected.compare(lambda name: name.startswith(VISION), _repeated)
        self._contents.vision, self._contents.nbytes = found.unread, found.nbytes
        for name, other in found.duplicates.items():
            # The encoder's biases alone are not tied in transformers, and here a layer has but one.
            if name.endswith(".bias") and not self._checkpoint.tensor(name).equal(self._checkpoint.tensor(other)):
                raise WrongTensors(f"{name}: expected the values of {other}, got others")
        return self._contents


def _repeated(name: str) -> str:
    """The tensor that one of this name repeats, if it is a duplicate of a tied weight."""
    return EMBEDDING if name == "lm_head.weight" else name.replace(f"{ENCODER}.", f"{DECODER}.", 1)


def _mlp_shapes(config: ModelConfig, prefix: str) -> dict[str, tuple[int, int]]:
    """The (N, K) of gate, up and down, by module."""
    inner, hidden = config.inner, config.hidden
    shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    return {f"{prefix}.{part}_proj": shape for part, shape in shapes.items()}


def _is_quantized(checkpoint: Checkpoint, modules: Iterable[str]) -> bool:
    """Whether an MLP is; one with some of its modules plain is found out as lacking tensors."""
    return any(checkpoint.is_quantized(module) for module in modules)
