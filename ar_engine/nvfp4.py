"""Loads a causal language model whose weights are, or become, NVFP4: experts, as `moe_kernels` computes with them, and linear layers.

Which linear layers are quantised differs between publishers: the checkpoint's tensors say it of each. The model is made without data, on
torch's meta device, and filled tensor by tensor; its headers have been compared with the model's own names before that. Names are those
of transformers' modules; a quantised weight's are in `moe_kernels.checkpoint`.

Where the torch twins compute, linear layers are decoded, and experts are decoded as well as packed, for the twins would decode them anew for
every forward.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from moe_kernels.checkpoint import Checkpoint
from moe_kernels.dispatch import backend
from moe_kernels.linear import NVFP4Linear, nvfp4_linear
from moe_kernels.loading import ExpectedTensors, packed_experts, packed_linear
from moe_kernels.moe import Experts, by_column
from moe_kernels.transformers_experts import experts_modules, install


class QuantizedLinear(nn.Module):
    """A linear layer y = x W^T + b over an NVFP4 weight, in place of an nn.Linear."""

    def __init__(self, weight: NVFP4Linear, bias: nn.Parameter | None) -> None:
        """Take a weight that is on its device already: `to` doesn't move it."""
        super().__init__()
        self.nvfp4 = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        y = nvfp4_linear(x, self.nvfp4)
        return y if self.bias is None else y + self.bias


def load_quantized(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    progress: str | None = None,
) -> PreTrainedModel:
    """Load a model, with its generation config if there is one.

    Beyond the weights themselves, memory holds one tensor, or one layer's experts: on the host twice as stored, on the device some six times
    while they are repacked.

    Args:
        checkpoint: in any form; plain experts are quantised as `moe_kernels.checkpoint.write_modelopt` does it.
        config: from its config.json, without what that says of quantisation.
        device: where the weights go.
        dtype: of everything that is not NVFP4.
        progress: what to call it on a bar over the bytes read, which shows on terminals only; None for no bar.

    Raises:
        WrongTensors: tensors are missing or surplus, or have another dtype or shape; all are named, and nothing has been read.
        CheckpointError: a file is missing or broken, a scale is NaN or not positive, or plain experts to quantise are not finite.
        KernelUnsupported: NVFP4 weights whose sides are no multiples of 32, or experts of another activation than gelu with tanh.
    """
    model = _without_weights(config, device, dtype)
    contents = _check(model, checkpoint)
    on_twins = backend("experts_mlp", device) == "torch"

    def experts(prefix: str) -> Experts:
        packed = packed_experts(checkpoint, prefix, contents.experts[prefix], device)
        return replace(packed, dense=by_column(*packed.decode(dtype))) if on_twins else packed

    with tqdm(
        total=contents.nbytes, desc=progress, unit="B", unit_scale=True, disable=None if progress else True
    ) as bar:
        checkpoint.on_read = bar.update
        if contents.experts:
            install(model, experts)
        for module in contents.linears:
            weight = packed_linear(checkpoint, module, device)
            if on_twins:
                _fill(model, f"{module}.weight", weight.decode(dtype))
            else:
                model.set_submodule(module, QuantizedLinear(weight, model.get_submodule(module).bias))  # pyright: ignore
        for name in contents.plain:
            slot = model.get_parameter_or_buffer(name)
            # A copy, for what the checkpoint gives is a view of a mapped file.
            _fill(model, name, checkpoint.tensor(name).to(device, slot.dtype, copy=True).reshape(slot.shape))
    model.tie_weights()
    with suppress(OSError):  # if there is none, the model has made one of its config
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    return model


@dataclass
class _Contents:
    plain: list[str] = field(default_factory=list)  # names of tensors
    linears: list[str] = field(default_factory=list)  # quantised modules
    experts: dict[str, int] = field(default_factory=dict)  # how many, by module
    nbytes: int = 0


def _without_weights(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the meta device, but for the buffers that no checkpoint holds: these are on the device, and filled."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, buffer in list(model.named_non_persistent_buffers()):
        module, _, last = name.rpartition(".")
        setattr(model.get_submodule(module), last, torch.empty_like(buffer, device=device))
    model.initialize_weights()  # costs nothing on the meta device
    return model


def _check(model: PreTrainedModel, checkpoint: Checkpoint) -> _Contents:
    """What the checkpoint holds of what the model calls for, which is all of it."""
    contents, expected = _Contents(), ExpectedTensors(checkpoint)
    for prefix, _ in experts_modules(model):
        count, twice_inner, hidden = model.get_parameter(f"{prefix}.gate_up_proj").shape
        contents.experts[prefix] = count
        expected.experts(prefix, count, twice_inner // 2, hidden)
    tied: dict[str, str] = model.all_tied_weights_keys
    for name, tensor in model.state_dict(keep_vars=True).items():
        module, _, last = name.rpartition(".")
        if module in contents.experts or name in tied:
            continue
        if last == "weight" and isinstance(model.get_submodule(module), nn.Linear) and checkpoint.is_quantized(module):
            contents.linears.append(module)
            expected.linear(module, *tensor.shape)
        else:
            contents.plain.append(name)
            expected.plain(name, *tensor.shape)
    # Layers that share keys and values are published with projections of their own, which are of no use.
    unread = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    found = expected.compare(lambda name: any(pattern.search(name) for pattern in unread), tied.get)
    contents.nbytes = found.nbytes
    return contents


def _fill(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    """Give a parameter or buffer its data."""
    module, _, last = name.rpartition(".")
    owner = model.get_submodule(module)
    is_buffer = last in owner._buffers
    setattr(owner, last, tensor if is_buffer else nn.Parameter(tensor, requires_grad=False))
