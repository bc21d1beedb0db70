"""What the engine needs to know of a DiffusionGemma checkpoint: its shape, and how it likes to be sampled."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationConfig

from diffusion_engine.sequence import Sampling
from engine_core.pages import Kind

MODEL_TYPE = "diffusion_gemma"
ACTIVATION = "gelu_pytorch_tanh"


class WrongModel(ValueError):
    """The checkpoint is not a DiffusionGemma that this engine can run; the message says expected and got."""


@dataclass(frozen=True)
class LayerShape:
    """One layer's attention."""

    kind: Kind
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def has_values(self) -> bool:
        """Whether there is a v_proj; without one the values are the keys, before their norm and rotation."""
        return self.kind == "sliding_attention"


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a DiffusionGemma."""

    layers: tuple[LayerShape, ...]
    vocab: int
    hidden: int
    inner: int  # of the dense MLP and of self-conditioning
    experts: int
    top_k: int
    expert_inner: int
    window: int  # a causal row of a sliding layer sees this many keys, its own included
    canvas: int
    context: int  # the longest sequence
    softcap: float | None
    eps: float
    bias: bool  # of the attention's projections
    text: Any  # transformers' text config, for its rotary embeddings

    @classmethod
    def from_transformers(cls, config: Any) -> "ModelConfig":
        """Take what transformers read from config.json.

        Raises:
            WrongModel: another architecture, or a variant of this one that is not supported.
        """
        if config.model_type != MODEL_TYPE:
            raise WrongModel(f"expected a DiffusionGemma checkpoint (model_type {MODEL_TYPE}), got {config.model_type}")
        text = config.text_config
        for what, expected, got in (
            ("hidden_activation", ACTIVATION, text.hidden_activation),
            ("tie_word_embeddings", True, config.tie_word_embeddings),
            ("a causal encoder: use_bidirectional_attention", (None, "vision"), text.use_bidirectional_attention),
        ):
            if got != expected and not (isinstance(expected, tuple) and got in expected):
                raise WrongModel(f"expected {what} {expected}, got {got}")
        if not text.num_experts or not text.top_k_experts or not text.moe_intermediate_size:
            raise WrongModel(f"expected experts in every layer, got num_experts {text.num_experts}")
        layers = []
        for i, kind in enumerate(text.layer_types):
            own = text.per_layer_config[i]
            layers.append(LayerShape(kind, text.num_attention_heads, own.num_key_value_heads, own.head_dim))
        return cls(
            layers=tuple(layers),
            vocab=text.vocab_size,
            hidden=text.hidden_size,
            inner=text.intermediate_size,
            experts=text.num_experts,
            top_k=text.top_k_experts,
            expert_inner=text.moe_intermediate_size,
            window=text.sliding_window,
            canvas=config.canvas_length,
            context=text.max_position_embeddings,
            softcap=text.final_logit_softcapping,
            eps=text.rms_norm_eps,
            bias=text.attention_bias,
            text=text,
        )

    @classmethod
    def load(cls, folder: Path) -> "ModelConfig":
        """Read config.json of a folder. Raises WrongModel, or OSError when there is none."""
        try:
            config = AutoConfig.from_pretrained(folder)
        except (StrictDataclassError, ValueError) as error:
            raise WrongModel(f"expected a config.json that transformers can read in {folder}, got: {error}") from error
        return cls.from_transformers(config)


def sampling_defaults(folder: Path) -> Sampling:
    """What the checkpoint's generation_config.json says, and transformers' defaults where it says nothing."""
    try:
        said: Any = DiffusionGemmaGenerationConfig.from_pretrained(folder)
    except OSError:
        said = DiffusionGemmaGenerationConfig()
    default: dict[str, Any] = said._get_default_generation_params()
    values = {key: default[key] if getattr(said, key) is None else getattr(said, key) for key in default}
    ends = said.eos_token_id
    return Sampling(
        max_steps=values["max_denoising_steps"],
        t_min=values["t_min"],
        t_max=values["t_max"],
        entropy_bound=values["sampler_config"].entropy_bound,
        confidence=values["confidence_threshold"],
        stability=values["stability_threshold"],
        max_tokens=values["max_new_tokens"],
        end_ids=tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,),
    )
