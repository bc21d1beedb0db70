"""The loader, on tiny random models in every form of checkpoint."""

import weakref
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_engine import weights as weights_module
from diffusion_engine.config import ModelConfig
from diffusion_engine.convert import convert
from diffusion_engine.model import DenseExperts, Weights
from diffusion_engine.weights import load_weights
from moe_kernels.checkpoint import Checkpoint
from moe_kernels.linear import NVFP4Linear
from moe_kernels.moe import Experts
from tests.unit.diffusion_engine.checkpoints import (
    FULL,
    SLIDING,
    raw,
    rewrite,
    save,
    tiny_config,
    tiny_model,
    write_all_forms,
)

FORMS = ("plain", "modelopt", "compressed-tensors", "draftgate")
NVFP4_FORMS = ("modelopt", "compressed-tensors")
CPU = torch.device("cpu")
LAYER = "model.decoder.layers.0"
SHIPPED = Path(__file__).parents[3] / "demo_models" / "models" / "draft"


def load(folder: Path, dtype: torch.dtype = torch.float32, *, quantize: bool = False) -> Weights:
    return load_weights(folder, ModelConfig.load(folder), CPU, dtype, quantize=quantize)


def tensors(found: Any, path: str = "") -> dict[str, Tensor]:
    """Every tensor of some weights, by its path."""
    if isinstance(found, Tensor):
        return {path: found}
    if is_dataclass(found):
        parts = {field.name: getattr(found, field.name) for field in fields(found)}
    elif isinstance(found, tuple) and hasattr(found, "_asdict"):
        parts = found._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    else:
        parts = dict(enumerate(found)) if isinstance(found, list | tuple) else {}
    return {name: tensor for key, part in parts.items() for name, tensor in tensors(part, f"{path}.{key}").items()}


def assert_equal(actual: Any, expected: Any) -> None:
    """The same tensors in the same places, to the bit."""
    left, right = tensors(actual), tensors(expected)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert tensor.equal(right[name]), name


def dense(layer: Any) -> tuple[Tensor, Tensor]:
    decoded = layer.experts.dense
    assert decoded is not None
    return decoded


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model = tiny_model(tiny_config(layer_types=[SLIDING, FULL, SLIDING, FULL]))
    return write_all_forms(model, tmp_path_factory.mktemp("forms"))


# Where everything goes


@pytest.mark.parametrize("bias", [False, True])
def test_every_weight_is_where_the_forward_pass_looks_for_it(bias: bool, tmp_path: Path) -> None:
    model = tiny_model(tiny_config(attention_bias=bias))
    state = model.state_dict()
    loaded = load(save(model, tmp_path))
    assert loaded.embedding.equal(state["model.decoder.embed_tokens.weight"])
    assert loaded.conditioning_norm.equal(state["model.decoder.self_conditioning.pre_norm.weight"])
    followers = ["model.decoder.layers.1.input_layernorm.weight", "model.decoder.norm.weight"]
    assert loaded.first_norm.equal(state[f"{LAYER}.input_layernorm.weight"])
    for name, mlp in (("self_conditioning", loaded.conditioning), ("layers.1.mlp", loaded.layers[1].mlp)):
        gate, up, down = (state[f"model.decoder.{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        assert isinstance(mlp.gate_up, Tensor)
        assert isinstance(mlp.down, Tensor)
        assert mlp.gate_up.equal(torch.cat([gate, up]))
        assert mlp.down.equal(down)
    for i, layer in enumerate(loaded.layers):
        own = {
            name.removeprefix(f"model.decoder.layers.{i}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"model.decoder.layers.{i}.")
        }
        parts = "qkv" if layer.shape.kind == SLIDING else "qk"
        assert ("self_attn.v_proj.weight" in own) == (parts == "qkv")
        assert layer.qkv.equal(torch.cat([own[f"self_attn.{part}_proj.weight"] for part in parts]))
        assert layer.out.equal(own["self_attn.o_proj.weight"])
        if bias:
            assert layer.qkv_bias is not None
            assert layer.out_bias is not None
            assert layer.qkv_bias.equal(torch.cat([own[f"self_attn.{part}_proj.bias"] for part in parts]))
            assert layer.out_bias.equal(own["self_attn.o_proj.bias"])
        else:
            assert layer.qkv_bias is layer.out_bias is None
        assert layer.q_norm.equal(own["self_attn.q_norm.weight"])
        assert layer.k_norm.equal(own["self_attn.k_norm.weight"])
        assert layer.attention_norms.post_attention.equal(own["post_attention_layernorm.weight"])
        assert layer.attention_norms.pre_mlp.equal(own["pre_feedforward_layernorm.weight"])
        assert layer.attention_norms.pre_experts.equal(own["pre_feedforward_layernorm_2.weight"])
        assert layer.attention_norms.router_scale.equal(own["router.scale"])
        assert layer.router.equal(own["router.proj.weight"])
        assert layer.per_expert_scale.equal(own["router.per_expert_scale"])
        assert isinstance(layer.experts, DenseExperts)
        assert layer.experts.gate_up.equal(own["experts.gate_up_proj"])
        assert layer.experts.down.equal(own["experts.down_proj"])
        assert layer.experts_norms.post_mlp.equal(own["post_feedforward_layernorm_1.weight"])
        assert layer.experts_norms.post_experts.equal(own["post_feedforward_layernorm_2.weight"])
        assert layer.experts_norms.post.equal(own["post_feedforward_layernorm.weight"])
        assert layer.experts_norms.next.equal(state[followers[i]])
        scalar = state[f"model.encoder.language_model.layers.{i}.layer_scalar"]
        assert loaded.encoder_scalars[i] == scalar
        assert loaded.decoder_scalars[i] == own["layer_scalar"] != scalar


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_in_the_dtype_asked_for(form: str, dtype: torch.dtype, forms: dict[str, Path]) -> None:
    loaded = load(forms[form], dtype)
    own = {"gate_up", "gate_up_scales", "down", "down_scales", "gate_scale", "up_scale", "down_scale"}
    for name, tensor in tensors(loaded).items():
        if not (form != "plain" and ".experts." in name and name.rpartition(".")[2] in own):
            assert tensor.dtype == dtype, name
    expected = load(forms["plain"], dtype)
    for name in ("embedding", "conditioning", "encoder_scalars", "decoder_scalars", "first_norm"):
        assert_equal(getattr(loaded, name), getattr(expected, name))


def test_the_shipped_checkpoint_loads() -> None:
    assert len(load(SHIPPED, torch.bfloat16).layers) == 4


# Values of quantised weights


@pytest.mark.parametrize("form", NVFP4_FORMS)
def test_decoded_weights_are_those_of_the_published_form(form: str, forms: dict[str, Path]) -> None:
    # The reciprocal of compressed-tensors' global scale is rounded once, in `NVFP4.factor`.
    tolerance = 0.0 if form == "modelopt" else 2.0**-22
    checkpoint, loaded = Checkpoint(forms[form]), load(forms[form])
    for i, layer in enumerate(loaded.layers):
        at = f"model.decoder.layers.{i}"
        gate, up, down = (part.dequantize(torch.float32) for part in checkpoint.experts(f"{at}.experts", 4))
        expected = {"gate_up": torch.cat([gate, up], dim=1), "down": down}
        got = dict(zip(expected, dense(layer), strict=True))
        if form == "compressed-tensors":
            gate, up, down = (
                checkpoint.linear(f"{at}.mlp.{part}_proj").dequantize(torch.float32) for part in ("gate", "up", "down")
            )
            expected |= {"mlp gate_up": torch.cat([gate, up]), "mlp down": down}
            got |= {"mlp gate_up": layer.mlp.gate_up, "mlp down": layer.mlp.down}
        for name, values in expected.items():
            torch.testing.assert_close(got[name], values, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("form", NVFP4_FORMS)
def test_a_quantised_checkpoint_and_its_plain_copy_are_the_same_to_the_bit(
    form: str, forms: dict[str, Path], tmp_path: Path
) -> None:
    convert(forms[form], tmp_path / "plain", "plain", torch.float32)
    quantized, plain = load(forms[form]), load(tmp_path / "plain")
    for left, right in zip(quantized.layers, plain.layers, strict=True):
        assert isinstance(right.experts, DenseExperts)
        assert_equal(dense(left), right.experts.dense)
        assert_equal(left.mlp, right.mlp)


@pytest.mark.parametrize("form", NVFP4_FORMS)
def test_our_own_form_loads_as_what_it_was_made_of(form: str, forms: dict[str, Path], tmp_path: Path) -> None:
    convert(forms[form], tmp_path / "own")
    assert_equal(load(tmp_path / "own"), load(forms[form]))


def test_plain_experts_quantised_while_loading_are_those_of_modelopts_form(forms: dict[str, Path]) -> None:
    assert_equal(load(forms["plain"], quantize=True), load(forms["modelopt"]))


def test_a_quantised_form_is_near_the_plain_one(forms: dict[str, Path]) -> None:
    plain, quantized = load(forms["plain"]), load(forms["compressed-tensors"])
    for left, right in zip(plain.layers, quantized.layers, strict=True):
        pairs = [*zip(dense(left), dense(right), strict=True), (left.mlp.gate_up, right.mlp.gate_up)]
        for exact, near in pairs:
            error = (near - exact).square().mean().sqrt() / exact.square().mean().sqrt()
            assert 0.05 < error < 0.12  # of Gaussian weights


@pytest.mark.parametrize("form", FORMS)
def test_where_kernels_run_nothing_is_decoded(
    form: str, forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = load(forms[form], quantize=True)
    monkeypatch.setattr(weights_module, "backend", lambda op, device: "triton")
    for layer, other in zip(load(forms[form], quantize=True).layers, decoded.layers, strict=True):
        assert isinstance(layer.experts, Experts)
        assert layer.experts.dense is None
        assert_equal(layer.experts.decode(torch.float32), other.experts.dense)
        if form == "compressed-tensors":
            assert isinstance(layer.mlp.gate_up, tuple)
            assert isinstance(layer.mlp.down, NVFP4Linear)
            gate, up = layer.mlp.gate_up
            assert_equal(torch.cat([gate.decode(torch.float32), up.decode(torch.float32)]), other.mlp.gate_up)
            assert_equal(layer.mlp.down.decode(torch.float32), other.mlp.down)
        else:
            assert_equal(layer.mlp, other.mlp)


# What is left unread


def test_duplicates_of_tied_weights_activation_scales_and_vision_are_not_read(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    def edit(found: dict[str, Tensor]) -> None:
        for name in [name for name in found if name.startswith("model.decoder.") and ".self_conditioning." not in name]:
            if not name.endswith("layer_scalar"):
                found[name.replace("decoder", "encoder.language_model", 1)] = found[name].clone()
        found["lm_head.weight"] = found["model.decoder.embed_tokens.weight"].clone()
        found[f"{LAYER}.experts.0.gate_proj.input_scale"] = torch.tensor(1.0)
        found[f"{LAYER}.self_attn.k_proj.k_scale"] = torch.tensor(1.0)
        found["model.encoder.vision_tower.more"] = torch.ones(3, dtype=torch.int64)

    assert_equal(load(rewrite(forms["modelopt"], tmp_path / "more", edit)), load(forms["modelopt"]))

    def without_vision(found: dict[str, Tensor]) -> None:
        for name in [name for name in found if "vision" in name]:
            del found[name]

    assert_equal(load(rewrite(forms["plain"], tmp_path / "fewer", without_vision)), load(forms["plain"]))


# How it reads


def test_the_weights_are_copies_of_the_file(forms: dict[str, Path], tmp_path: Path) -> None:
    folder = rewrite(forms["plain"], tmp_path / "plain", lambda found: None)
    loaded, file = load(folder, torch.bfloat16), folder / "model.safetensors"
    with file.open("r+b") as target:
        target.seek(file.stat().st_size // 4)
        target.write(b"\xff" * (file.stat().st_size // 2))
    assert_equal(loaded, load(forms["plain"], torch.bfloat16))


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Bytes of tensors that were read and are still held: now and at most."""
    count, read = {"now": 0, "most": 0}, Checkpoint.tensor

    def counting(self: Checkpoint, name: str) -> Tensor:
        tensor = read(self, name)
        count["now"] += tensor.nbytes
        count["most"] = max(count.values())

        def gone(size: int = tensor.nbytes) -> None:
            count["now"] -= size

        weakref.finalize(tensor, gone)
        return tensor

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "tensor", counting)
        yield count


@pytest.mark.parametrize(("form", "quantize"), [(form, False) for form in FORMS] + [("plain", True)])
def test_no_more_than_a_layers_experts_or_the_largest_tensor_is_held_as_read(
    form: str, quantize: bool, forms: dict[str, Path], live: dict[str, int]
) -> None:
    sizes = {name: tensor.nbytes for name, tensor in raw(forms[form]).items()}
    experts = sum(size for name, size in sizes.items() if name.startswith(f"{LAYER}.experts."))
    assert sum(sizes.values()) > 3 * max(experts, *sizes.values())
    kept = load(forms[form], quantize=quantize)
    # On a CPU our own form's packed experts stay as they are mapped.
    staying = sum(layer.experts.gate_up.nbytes for layer in kept.layers) * 2 if form == "draftgate" else 0
    assert 0 < live["most"] <= max(experts, *sizes.values()) + staying


@pytest.mark.parametrize("form", FORMS)
def test_the_bar_counts_every_byte_that_is_read(
    form: str, forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    steps: list[int] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, step: int) -> None:
            steps.append(step)

    monkeypatch.setattr(weights_module, "tqdm", Bar)
    load_weights(forms[form], ModelConfig.load(forms[form]), CPU, torch.float32, quantize=False, progress="a model")
    load(forms[form])
    assert [options["total"] for options in made] == [sum(steps) // 2] * 2
    assert [options["disable"] for options in made] == [None, True]  # None: where stderr is no terminal
    assert made[0]["desc"] == "a model"
