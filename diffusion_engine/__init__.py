"""DiffusionGemma in process: `DiffusionGemmaModel` for scripts, `engine.DiffusionEngine` for servers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_engine.library import DiffusionGemmaModel as DiffusionGemmaModel


def __getattr__(name: str) -> Any:
    """Import torch only when the model is asked for: the gateway needs but `api`."""
    if name == "DiffusionGemmaModel":
        from diffusion_engine.library import DiffusionGemmaModel

        return DiffusionGemmaModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
