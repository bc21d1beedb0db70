"""NVFP4 experts inside a transformers model: `install` puts them in place of the dense ones, for any MoE of the Gemma 4 shape."""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_kernels.dispatch import expect
from moe_kernels.moe import Experts, experts_mlp

IMPLEMENTATION = "nvfp4"


def _forward(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    return experts_mlp(hidden_states, module.nvfp4, top_k_index, top_k_weights)  # pyright: ignore[reportArgumentType]


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _forward)


def install(model: PreTrainedModel, load: Callable[[str], Experts]) -> int:
    """Replace every experts module's dense weights by NVFP4 ones and route its forward to `experts_mlp`.

    Args:
        model: with experts that hold gate_up_proj (E, 2I, H) and down_proj (E, H, I), on any device, "meta" included.
        load: the experts of the module with this name; modules that share their weights are asked for once.

    Returns:
        How many different sets of experts were loaded.

    Raises:
        KernelUnsupported: the activation is not gelu with tanh, or there is no such module.
        ValueError: the loaded experts have another shape than the module.
    """
    activation = getattr(model.config.get_text_config(), "hidden_activation", None)
    expect(activation == "gelu_pytorch_tanh", "install", "the activation gelu_pytorch_tanh", activation)
    modules = experts_modules(model)
    expect(bool(modules), "install", "a model with experts", type(model).__name__)
    expect(
        not any(module._is_expert_parallel for _, module in modules),
        "install",
        "every expert on this rank",
        "expert parallelism",
    )
    loaded: dict[int, Experts] = {}
    for name, module in modules:
        key = id(module.gate_up_proj)
        if key not in loaded:
            loaded[key] = load(name)
        expected = tuple(module.gate_up_proj.shape)  # pyright: ignore[reportArgumentType]
        got = (loaded[key].count, 2 * loaded[key].inner, loaded[key].hidden)
        if got != expected:
            raise ValueError(f"{name}: expected experts of gate_up {expected}, got {got}")
    for _, module in modules:
        module.nvfp4 = loaded[id(module.gate_up_proj)]  # pyright: ignore[reportArgumentType]
        module.register_parameter("gate_up_proj", None)  # frees the dense weights
        module.register_parameter("down_proj", None)
    model.set_experts_implementation(IMPLEMENTATION)
    return len(loaded)


def experts_modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The modules that hold dense experts, gate_up_proj (E, 2I, H) and down_proj (E, H, I), with their names."""
    return [(name, module) for name, module in model.named_modules() if _holds_experts(module)]


def _holds_experts(module: nn.Module) -> bool:
    return isinstance(getattr(module, "gate_up_proj", None), nn.Parameter) and module.gate_up_proj.dim() == 3  # pyright: ignore
