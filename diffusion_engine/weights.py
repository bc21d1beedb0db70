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

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_engine.config import ModelConfig
from diffusion_engine.model import GatedMLP, Layer, Weights
from moe_kernels import nvfp4
from moe_kernels.checkpoint import OWN, Checkpoint, CheckpointError, Header, packed_tensors, stored_headers
from moe_kernels.dispatch import backend
from moe_kernels.linear import NVFP4Linear
from moe_kernels.moe import DenseExperts, Experts, by_column
from moe_kernels.norms import AttentionNorms, ExpertsNorms
from moe_kernels.nvfp4 import BLOCK, NVFP4

DECODER = "model.decoder"
ENCODER = "model.encoder.language_model"
EMBEDDING = f"{DECODER}.embed_tokens.weight"
VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
UNREAD_SCALES = (".input_scale", ".input_global_scale", ".k_scale", ".v_scale")
PLAIN = (torch.bfloat16, torch.float32)
LISTED = 8  # of each kind of wrong tensors


class WrongTensors(CheckpointError):
    """A checkpoint's tensors are not those its config.json calls for; the message names the missing, the surplus and the unfit."""


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


def packed_experts(checkpoint: Checkpoint, prefix: str, count: int, device: torch.device) -> Experts:
    """A layer's experts in NVFP4: those of a plain checkpoint are quantised in ModelOpt's convention, others keep their bytes.

    Raises:
        CheckpointError: as `Checkpoint.experts`, or plain experts are not finite.
    """
    if checkpoint.form == OWN:
        return checkpoint.packed(prefix, Experts).to(device)
    if checkpoint.form is not None:
        return Experts.from_nvfp4(*(weight.to(device) for weight in checkpoint.experts(prefix, count)))
    gate_up, down = (checkpoint.tensor(f"{prefix}.{name}_proj").to(device) for name in ("gate_up", "down"))
    try:
        return Experts.from_nvfp4(*(nvfp4.quantize(part, "modelopt") for part in (*gate_up.chunk(2, dim=1), down)))
    except ValueError as error:
        raise CheckpointError(f"{prefix}: {error}") from error


def packed_linear(checkpoint: Checkpoint, module: str, device: torch.device) -> NVFP4Linear:
    """A quantised module of any form but the plain one. Raises CheckpointError as `Checkpoint.linear`."""
    if checkpoint.form == OWN:
        return checkpoint.packed(module, NVFP4Linear).to(device)
    return NVFP4Linear.from_nvfp4(checkpoint.linear(module).to(device))


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
        self._expected: dict[str, _Expected] = {}

    def plain(self, name: str, *shape: int) -> Tensor:
        self._contents.plain.append(name)
        self._expected[name] = _Expected(PLAIN, shape)
        return torch.empty(shape, device="meta")

    def mlp(self, prefix: str) -> GatedMLP:
        modules = _mlp_shapes(self._config, prefix)
        if not _is_quantized(self._checkpoint, modules):
            for module, shape in modules.items():
                self.plain(f"{module}.weight", *shape)
        else:
            self._contents.linears += modules
            for module, shape in modules.items():
                self._linear(module, *shape)
        return GatedMLP(_NOTHING, _NOTHING)

    def experts(self, prefix: str) -> DenseExperts:
        count, inner, hidden = self._config.experts, self._config.expert_inner, self._config.hidden
        self._contents.experts.append(prefix)
        if self._checkpoint.form is None:
            self._expected[f"{prefix}.gate_up_proj"] = _Expected(PLAIN, (count, 2 * inner, hidden))
            self._expected[f"{prefix}.down_proj"] = _Expected(PLAIN, (count, hidden, inner))
            return DenseExperts(_NOTHING, _NOTHING)
        one = _one_expert(inner, hidden)  # in every form: what can't be repacked must fail now
        if self._checkpoint.form == OWN:
            for name, tensor in packed_tensors(prefix, one).items():
                self._expected[name] = _Expected((tensor.dtype,), (count, *tensor.shape[1:]))
        else:
            for expert in range(count):
                for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
                    self._linear(f"{prefix}.{expert}.{part}_proj", *shape)
        return DenseExperts(_NOTHING, _NOTHING)

    def _linear(self, module: str, n: int, k: int) -> None:
        form = self._checkpoint.form
        if form is None or form == OWN:
            tensors = packed_tensors(module, _one_linear(n, k))
            self._expected |= {name: _Expected((tensor.dtype,), tensor.shape) for name, tensor in tensors.items()}
        else:
            headers = stored_headers(form, module, n, k)
            self._expected |= {name: _Expected((header.dtype,), header.shape) for name, header in headers.items()}

    def finish(self) -> Contents:
        """Compare what was asked for with what is there."""
        missing, surplus, unfit = [], [], []
        duplicates: dict[str, _Expected] = {}
        for name in sorted(self._checkpoint.names() - self._expected.keys()):
            if name.startswith(VISION):
                self._contents.vision.append(name)
            elif (repeated := _repeated(name)) in self._expected:
                duplicates[name] = self._expected[repeated]
            elif not name.endswith(UNREAD_SCALES):
                surplus.append(name)
        for name, expected in (self._expected | duplicates).items():
            if (header := self._checkpoint.header(name)) is None:
                missing.append(f"{name} {tuple(expected.shape)}")
            elif not expected.fits(header):
                unfit.append(f"{name}: expected {expected}, got {_Expected((header.dtype,), header.shape)}")
            elif name not in duplicates:
                self._contents.nbytes += header.nbytes
        kinds = {"missing": missing, "surplus": surplus, "of another shape or dtype": unfit}
        if found := [_listing(kind, names) for kind, names in kinds.items() if names]:
            folder = self._checkpoint.folder
            raise WrongTensors(f"{folder}: expected the tensors its config.json calls for, got {'; '.join(found)}")
        for name in duplicates:  # the encoder's biases alone are not tied in transformers, and here a layer has but one
            if name.endswith(".bias") and not self._checkpoint.tensor(name).equal(
                self._checkpoint.tensor(_repeated(name))
            ):
                raise WrongTensors(f"{name}: expected the values of {_repeated(name)}, got others")
        return self._contents


class _Expected(NamedTuple):
    dtypes: tuple[torch.dtype, ...]
    shape: tuple[int, ...]

    def fits(self, header: Header) -> bool:
        """Whether a tensor is as expected; one number may be () or (1,)."""
        alike = header.shape == self.shape or math.prod(header.shape) == math.prod(self.shape) == 1
        return alike and header.dtype in self.dtypes

    def __str__(self) -> str:
        return f"{' or '.join(str(dtype).removeprefix('torch.') for dtype in self.dtypes)} {tuple(self.shape)}"


def _listing(kind: str, names: list[str]) -> str:
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} {kind} ({', '.join(names[:LISTED])}{more})"


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


@cache
def _one_expert(inner: int, hidden: int) -> Experts:
    """What the repack makes of an expert of zeros, for the shapes and dtypes."""
    gate, down = _zeros(1, inner, hidden), _zeros(1, hidden, inner)
    return Experts.from_nvfp4(gate, gate, down)


@cache
def _one_linear(n: int, k: int) -> NVFP4Linear:
    return NVFP4Linear.from_nvfp4(_zeros(n, k))


def _zeros(*shape: int) -> NVFP4:
    *lead, n, k = shape
    packed = torch.zeros(*lead, n, k // 2, dtype=torch.uint8)
    return NVFP4(packed, torch.zeros(*lead, n, k // BLOCK, dtype=torch.float8_e4m3fn), torch.ones(lead), "modelopt")
