"""From settings to a running core: weights, cache and scheduler on the device there is."""

from functools import partial
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm

from ar_engine import attention
from ar_engine.api import RefineSettings
from ar_engine.attention import layers_of
from ar_engine.core import Core
from ar_engine.load_model import load_model
from ar_engine.memory import budget_of, gpu_cache_tokens
from ar_engine.prompts import Prompts
from ar_engine.runner import Runner
from ar_engine.scheduler import Scheduler
from engine_core.device import use_threads
from moe_kernels.norms import rms_norm


def load_core(settings: RefineSettings) -> Core:
    """Load a checkpoint by name or folder: bfloat16 on a GPU, float32 on a CPU.

    Raises:
        WrongModel: not a causal language model, or one whose attention is not ours to do.
        ValueError: its tensors are not what they should be.
        OSError: there is no such checkpoint.
    """
    on_gpu = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if on_gpu else (torch.device("cpu"), torch.float32)
    torch.set_flush_denormal(True)  # of this thread: probabilities near 0 are many, and slow to compute with
    model = load_model(settings.model, device, dtype, quantize=on_gpu and settings.quantize, attention=attention.NAME)
    return core_of(model, Prompts.load(settings.model, multimodal=hasattr(model.config, "vision_config")), settings)


def core_of(model: PreTrainedModel, prompts: Prompts, settings: RefineSettings) -> Core:
    """A core around a loaded model that attends with `attention.NAME`.

    Raises:
        WrongModel: its attention is not ours to do.
    """
    text: Any = model.config.get_text_config()
    use_threads(settings.threads, text.hidden_size)
    context: int = text.max_position_embeddings
    if model.device.type == "cuda":  # the gateway has chosen already, for it knows how long prompts may be
        settings = replace(settings, cache_tokens=gpu_cache_tokens(settings, context, settings.max_tokens))
    _fuse_norms(model)
    layers = layers_of(model)
    budget = budget_of(layers, settings, context)
    runner = Runner(model, layers, budget, context, settings.typical_floor, settings.typical_share)
    generation: Any = model.generation_config
    end = generation.eos_token_id
    end_ids = frozenset(end if isinstance(end, list) else [] if end is None else [end])
    whole_images = getattr(text, "use_bidirectional_attention", None) == "vision"
    embeddings: Any = model.get_input_embeddings()
    vocab = embeddings.num_embeddings
    return Core(runner, Scheduler(budget), prompts, settings, end_ids, context, vocab=vocab, whole_images=whole_images)


def _fuse_norms(model: PreTrainedModel) -> None:
    """Gemma 4's norms as one kernel each, which rounds as they do, instead of seven: a layer has up to ten."""
    for module in model.modules():
        if isinstance(module, Gemma4RMSNorm):
            module.forward = partial(_norm, module)  # pyright: ignore[reportAttributeAccessIssue]


def _norm(module: Gemma4RMSNorm, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight if module.with_scale else None, module.eps)
