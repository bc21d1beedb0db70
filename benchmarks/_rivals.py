"""What others offer for the same work, over the same weights."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DiffusionGemmaTextConfig
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaTextExperts


def transformers_experts(gate_up: Tensor, down: Tensor, implementation: str = "grouped_mm") -> nn.Module:
    """transformers' module over weights that exist: (E, 2I, H) and (E, H, I)."""
    count, hidden, inner = down.shape
    shape = {"hidden_size": hidden, "moe_intermediate_size": inner, "num_experts": count}
    options: Any = {**shape, "experts_implementation": implementation}
    config = DiffusionGemmaTextConfig(**options)
    with torch.device("meta"):
        module = DiffusionGemmaTextExperts(config)
    module.gate_up_proj = nn.Parameter(gate_up, requires_grad=False)
    module.down_proj = nn.Parameter(down, requires_grad=False)
    return module
