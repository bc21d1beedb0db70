"""Loads a causal language model of transformers from any form of checkpoint.

| quant_method | who writes it | loaded by |
|---|---|---|
| none | everyone | transformers, into memory and then onto the device; or, to quantise a Gemma 4's experts on the way, `nvfp4` |
| modelopt | NVIDIA | `nvfp4`: transformers can't |
| compressed-tensors, format nvfp4-pack-quantized | Red Hat | `nvfp4` |

Any other quantisation is refused. A multimodal Gemma 4 is loaded whole: its vision tower is small beside the rest.

Error tree:
 * OSError            there is no such checkpoint
 * ValueError
   - WrongModel       it is no causal language model that transformers knows
   - CheckpointError  its files are not what they should be
     - WrongTensors   tensors are missing, surplus, or have another shape; all are named
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ar_engine.attention import WrongModel, use_in
from ar_engine.nvfp4 import load_quantized
from engine_core.published import checkpoint_folder
from moe_kernels.checkpoint import CONFIG, Checkpoint, CheckpointError, form_of
from moe_kernels.dispatch import KernelUnsupported
from moe_kernels.loading import refuse_wrong


def load_model(
    name: str, device: torch.device, dtype: torch.dtype, *, quantize: bool = False, attention: str | None = None
) -> PreTrainedModel:
    """Load a model, ready to answer.

    Args:
        name: a folder, or the name of a repository on the hub.
        device: where it goes.
        dtype: of everything that is not NVFP4.
        quantize: whether a Gemma 4's experts, where they are plain, become NVFP4, as `moe_kernels.checkpoint.write_modelopt` does it.
            Other models have nothing to quantise.
        attention: what the text model's attention is to be, a name in transformers' ALL_ATTENTION_FUNCTIONS; a vision tower keeps its own.

    Raises:
        OSError: there is no such checkpoint.
        WrongModel: it is of another architecture.
        WrongTensors: its tensors are not those that its config.json calls for; all are named.
        CheckpointError: its quantisation is not one of those above, a file is broken, weights can't be quantised, or can't be repacked for
            the kernels.
        ValueError: there is no attention of that name, or the model's can't be replaced.
    """
    folder = checkpoint_folder(name)
    config = _config(folder)
    # transformers would try to load a quantised checkpoint itself, or fail for want of a package.
    form = form_of(folder, {"quantization_config": config.__dict__.pop("quantization_config", None)})
    if form is not None or (quantize and getattr(config.get_text_config(), "enable_moe_block", False)):
        try:
            model = load_quantized(Checkpoint(folder), config, device, dtype, progress=name)
        except KernelUnsupported as error:
            raise CheckpointError(f"{folder}: {error}") from error
    else:
        model = _by_transformers(folder, config, dtype)
        model.to(device)  # pyright: ignore[reportArgumentType]
    if attention is not None:
        use_in(model, attention)
    return model.eval()


def _config(folder: Path) -> PreTrainedConfig:
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(f"{folder}: expected a checkpoint, got a folder without {CONFIG}")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (StrictDataclassError, ValueError) as error:
        raise WrongModel(f"expected a config.json that transformers can read in {folder}, got: {error}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise WrongModel(f"{folder}: expected a causal language model, got a {config.model_type}")
    return config


def _by_transformers(folder: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A plain checkpoint. Tensors that the model has no use for may be there: many are published with some."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except SafetensorError as error:
        raise CheckpointError(f"{folder}: expected safetensors files, got {error}") from error
    model, info = loaded
    unfit = [f"{name}: expected {tuple(want)}, got {tuple(got)}" for name, got, want in sorted(info["mismatched_keys"])]
    refuse_wrong(folder, sorted(info["missing_keys"]), (), unfit)
    return model
