"""Loaded models answer as transformers' own: from plain checkpoints, and from NVFP4 ones with the names that NVIDIA and Red Hat publish."""

import gc
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, T5Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ar_engine import nvfp4
from ar_engine.attention import WrongModel
from ar_engine.load_model import load_model
from moe_kernels.checkpoint import Checkpoint, CheckpointError, write_modelopt
from moe_kernels.loading import WrongTensors
from moe_kernels.nvfp4 import Convention
from moe_kernels.testing import assert_close
from tests.tiny_causal import EOS, NAMES, VOCAB, WINDOW, tiny_config, tiny_model
from tests.unit.ar_engine.checkpoints import EXPERTS, MLP, TEXT_LINEARS, Published, edited, publish, raw, save

CPU = torch.device("cpu")
MOE = ("gemma4_moe", "gemma4_multimodal")

FORMS = {
    "nvidia's experts": (MOE, Published("modelopt", EXPERTS)),
    "nvidia's dense": (("gemma4", "gemma4_shared_kv", "llama"), Published("modelopt", MLP)),
    "red hat's experts": (MOE, Published("compressed-tensors", f"{EXPERTS}|{MLP}")),
    "red hat's dense": (("gemma4", "gemma4_shared_kv", "qwen3"), Published("compressed-tensors", TEXT_LINEARS)),
}
CASES = [(name, form) for names, form in FORMS.values() for name in names]
CASE_IDS = [f"{name}, {how}" for how, (names, _) in FORMS.items() for name in names]


def load(folder: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    return load_model(str(folder), CPU, dtype, **options)


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


@torch.no_grad()
def logits(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    ids = torch.randint(9, VOCAB, (2, 2 * WINDOW), generator=torch.Generator().manual_seed(1))
    return model(**inputs or {"input_ids": ids}).logits


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load as for a chip with kernels; computed, on a CPU, by their twins."""
    monkeypatch.setattr(nvfp4, "backend", lambda op, device: "triton")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_checkpoint_is_the_model_that_was_saved(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save(tiny_model(name), tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = load(folder, dtype=dtype)
    assert not model.training
    assert type(model) is type(expected)
    assert model.generation_config.eos_token_id == list(EOS)
    assert torch.equal(logits(model), logits(expected))
    if dtype == torch.float32:
        assert torch.equal(logits(model), logits(tiny_model(name)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_quantised_is_what_transformers_would_load(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Every tensor, those that no checkpoint holds too: rotary frequencies, scales of embeddings."""
    publish(tiny_model(name), tmp_path, Published("modelopt", EXPERTS))
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=dtype)
    model = load(tmp_path, dtype=dtype)
    found, plain = tensors_of(model), tensors_of(expected)
    assert plain.keys() - found.keys() == {key for key in plain if ".experts." in key}
    for key, tensor in found.items():
        assert tensor.dtype == plain[key].dtype, key
        assert torch.equal(tensor, plain[key]), key
    assert not model.training
    assert model.generation_config.eos_token_id == list(EOS)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert head is not None
    assert (head.weight is embedding.weight) == model.config.get_text_config().tie_word_embeddings


@pytest.mark.parametrize(("name", "how"), CASES, ids=CASE_IDS)
def test_an_nvfp4_checkpoint_is_the_model_of_its_dequantised_weights(
    name: str, how: Published, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    twin = tiny_model(name)
    before = logits(twin)
    folder = publish(twin, tmp_path, how)
    assert not torch.equal(logits(twin), before)
    # float32 on both sides, in another order
    assert_close(logits(load(folder)), logits(twin), max_error=2e-3, rms_error=1e-4)
    request.getfixturevalue("packed")
    model = load(folder)
    linears = [module for module in model.modules() if isinstance(module, nvfp4.QuantizedLinear)]
    assert len(linears) == sum(bool(re.fullmatch(how.quantized, key)) for key in raw(tmp_path / "plain")) - (
        2 * model.config.get_text_config().num_hidden_layers if name in MOE else 0
    )
    assert_close(logits(model), logits(twin), max_error=2e-3, rms_error=1e-4)


@pytest.mark.parametrize(("name", "how"), CASES, ids=CASE_IDS)
def test_an_nvfp4_checkpoint_is_close_to_what_was_quantised(name: str, how: Published, tmp_path: Path) -> None:
    model = tiny_model(name)
    with torch.no_grad():  # the layers then add little, and errors don't grow from one to the next
        for key, tensor in model.named_parameters():
            if "post_" in key or re.search(r"(o|down)_proj\.weight", key):
                tensor *= 1 / 16 if "post_" in key else 1 / 4
    before = logits(model)
    after = logits(load(publish(model, tmp_path, how)))
    # logits have a spread of 2; the largest RMS seen here was 0.34, with every linear layer quantised
    assert_close(after, before, max_error=2.5, rms_error=0.4)


@pytest.mark.parametrize("name", MOE)
def test_quantising_while_loading_equals_loading_the_quantised(name: str, tmp_path: Path) -> None:
    plain = save(tiny_model(name), tmp_path / "plain")
    write_modelopt(Checkpoint(plain), tmp_path / "modelopt")
    model = load(plain, quantize=True)
    assert model.config.get_text_config()._experts_implementation == "nvfp4"
    assert torch.equal(logits(model), logits(load(tmp_path / "modelopt")))


@pytest.mark.parametrize("name", ["gemma4", "qwen3"])
def test_a_model_without_experts_has_nothing_to_quantise(name: str, tmp_path: Path) -> None:
    assert torch.equal(logits(load(save(tiny_model(name), tmp_path), quantize=True)), logits(tiny_model(name)))


def _dense() -> list[Tensor]:
    """All tensors there are with the shape of dense experts."""
    gc.collect()
    shapes = {(4, 64, 64), (4, 64, 32)}
    return [each for each in gc.get_objects() if issubclass(type(each), Tensor) and tuple(each.shape) in shapes]


@pytest.mark.usefixtures("packed")
@pytest.mark.parametrize("quantize", [False, True])
def test_nothing_dense_of_the_experts_survives(quantize: bool, tmp_path: Path) -> None:
    how = Published("modelopt", EXPERTS)
    folder = save(tiny_model("gemma4_moe"), tmp_path) if quantize else publish(tiny_model("gemma4_moe"), tmp_path, how)
    others = _dense()  # of models that other tests keep
    model = load(folder, quantize=quantize)
    assert [each for each in _dense() if not any(each is other for other in others)] == []
    stored = [module.nvfp4 for module in model.modules() if hasattr(module, "nvfp4")]
    sizes = [sum(t.nbytes for t in vars(experts).values() if t is not None) for experts in stored]
    scales = 3 * 4 * 4  # gate's, up's and down's, for each expert
    assert sizes == [3 * 4 * 64 * 32 * 9 // 16 + scales] * 4


def test_images_are_seen_as_before(tmp_path: Path) -> None:
    twin = tiny_model("gemma4_multimodal")
    folder = publish(twin, tmp_path, Published("modelopt", EXPERTS))
    generator = torch.Generator().manual_seed(0)
    place = torch.cartesian_prod(torch.arange(3), torch.arange(3))[None]
    seen = [
        logits(
            model,
            input_ids=torch.tensor([[9, 7, 6, 8, 10, 11]]),
            mm_token_type_ids=torch.tensor([[0, 0, 1, 0, 0, 0]]),
            pixel_values=pixels,
            image_position_ids=place,
        )
        for pixels in torch.rand(2, 1, 9, 48, generator=generator)
        for model in (twin, load(folder))
    ]
    assert_close(seen[1], seen[0], max_error=2e-3, rms_error=1e-4)
    assert_close(seen[3], seen[2], max_error=2e-3, rms_error=1e-4)
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantize", [False, True])
def test_the_text_model_alone_gets_another_attention(
    name: str, quantize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def attention(module: torch.nn.Module, *args: Any, **options: Any) -> Any:
        seen.append(type(module).__name__)
        return sdpa_attention_forward(module, *args, **options)

    folder = save(tiny_model(name), tmp_path)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "noted", attention)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "noted", sdpa_mask)  # else there would be no mask
    model = load(folder, quantize=quantize, attention="noted")
    assert torch.equal(logits(model), logits(load(folder, quantize=quantize)))
    assert len(seen) == model.config.get_text_config().num_hidden_layers
    if name == "gemma4_multimodal":
        assert model.config.get_text_config()._attn_implementation == "noted"
        assert model.config.vision_config._attn_implementation == "sdpa"


def test_an_unknown_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no_such_attention"):
        load(save(tiny_model("llama"), tmp_path), attention="no_such_attention")


def test_projections_of_layers_that_share_keys_and_values_may_be_there(tmp_path: Path) -> None:
    """Gemma 4 E2B and E4B are published with them."""
    twin = tiny_model("gemma4_shared_kv")
    publish(twin, tmp_path / "made", Published("modelopt", MLP))

    def edit(found: dict[str, Tensor]) -> None:
        found["model.layers.5.self_attn.k_proj.weight"] = torch.ones(32, 64)
        found["model.layers.5.self_attn.k_norm.weight"] = torch.ones(32)

    model = load(edited(tmp_path / "made", tmp_path / "more", edit))
    assert_close(logits(model), logits(twin), max_error=2e-3, rms_error=1e-4)


@pytest.mark.parametrize("form", ["modelopt", "compressed-tensors"])
def test_all_wrong_tensors_of_an_nvfp4_checkpoint_are_named_before_any_is_read(
    form: Convention, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(tiny_model("gemma4_moe"), tmp_path / "made", Published(form, f"{EXPERTS}|{MLP}"))
    packed = "weight" if form == "modelopt" else "weight_packed"

    def edit(found: dict[str, Tensor]) -> None:
        del found["model.norm.weight"]
        del found["model.layers.1.layer_scalar"]
        del found[f"model.layers.2.experts.3.up_proj.{packed}"]
        del found[f"model.layers.0.mlp.up_proj.{packed}"]
        found["model.layers.9.layer_scalar"] = torch.ones(1)
        found["model.layers.3.self_attn.v_proj.weight"] = torch.ones(32, 64)  # its values are its keys
        found["model.layers.0.router.scale"] = torch.ones(63)
        found["lm_head.weight"] = torch.ones(9, 64)

    folder = edited(made, tmp_path / "bad", edit)
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: pytest.fail(f"{name} was read"))
    with pytest.raises(WrongTensors) as caught:
        load(folder)
    message = str(caught.value)
    assert "4 missing (" in message
    assert "model.norm.weight (64,)" in message
    assert f"model.layers.2.experts.3.up_proj.{packed} (32, 32)" in message
    assert f"model.layers.0.mlp.up_proj.{packed} (96, 32)" in message
    assert (
        "2 surplus (model.layers.3.self_attn.v_proj.weight, model.layers.9.layer_scalar); 2 of another shape" in message
    )
    assert "router.scale: expected bfloat16 or float32 (64,), got float32 (63,)" in message
    assert "lm_head.weight: expected bfloat16 or float32 (256, 64), got float32 (9, 64)" in message


def test_a_duplicate_of_the_tied_embedding_may_be_there(tmp_path: Path) -> None:
    twin = tiny_model("gemma4_moe")
    made = publish(twin, tmp_path / "made", Published("modelopt", EXPERTS))

    def edit(found: dict[str, Tensor]) -> None:
        found["lm_head.weight"] = found["model.embed_tokens.weight"].clone()

    folder = edited(made, tmp_path / "more", edit)
    assert_close(logits(load(folder)), logits(twin), max_error=2e-3, rms_error=1e-4)


@pytest.mark.parametrize("name", ["gemma4_multimodal", "llama"])
def test_missing_and_misshapen_tensors_of_a_plain_checkpoint_are_named(name: str, tmp_path: Path) -> None:
    made = save(tiny_model(name), tmp_path / "made")
    prefix = "model.language_model" if name == "gemma4_multimodal" else "model"

    def edit(found: dict[str, Tensor]) -> None:
        del found[f"{prefix}.norm.weight"]
        found[f"{prefix}.layers.0.input_layernorm.weight"] = torch.ones(63)

    with pytest.raises(WrongTensors) as caught:
        load(edited(made, tmp_path / "bad", edit))
    assert f"1 missing ({prefix}.norm.weight)" in str(caught.value)
    assert f"{prefix}.layers.0.input_layernorm.weight: expected (64,), got (63,)" in str(caught.value)


@pytest.mark.parametrize("quantize", [False, True])
def test_a_truncated_file_is_refused(quantize: bool, tmp_path: Path) -> None:
    folder = save(tiny_model("gemma4_moe"), tmp_path)
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"expected .*safetensors file"):
        load(folder, quantize=quantize)


REFUSED = {
    "fp8": ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "format nvfp4-pack-quantized, got"),
    "fp8 of modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, "NVFP4 or W4A16_NVFP4, got 'FP8'"),
    "gptq": ({"quant_method": "gptq", "bits": 4}, "quant_method modelopt, compressed-tensors or .*, got 'gptq'"),
}


@pytest.mark.parametrize(("said", "message"), REFUSED.values(), ids=REFUSED)
def test_another_quantisation_is_refused(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = save(tiny_model("gemma4"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_what_modelopt_says_beside_the_config_counts_too(tmp_path: Path) -> None:
    twin = tiny_model("gemma4_moe")
    folder = publish(twin, tmp_path, Published("modelopt", EXPERTS))
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    (folder / "hf_quant_config.json").write_text(json.dumps(said))
    assert_close(logits(load(folder)), logits(twin), max_error=2e-3, rms_error=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_intermediate_size": 48}, "a multiple of 32, got 48"),
        ({"hidden_activation": "silu"}, "the activation gelu_pytorch_tanh, got silu"),
    ],
)
def test_experts_that_the_kernels_cannot_take_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = save(tiny_model("gemma4_moe", **changes), tmp_path)
    assert torch.equal(logits(load(folder)), logits(tiny_model("gemma4_moe", **changes)))
    with pytest.raises(CheckpointError, match=message):
        load(folder, quantize=True)


def test_linear_layers_that_the_kernels_cannot_take_are_refused(tmp_path: Path) -> None:
    folder = publish(tiny_model("gemma4", intermediate_size=80), tmp_path, Published("modelopt", MLP))
    with pytest.raises(CheckpointError, match=r"mlp.gate_proj: expected .* multiples of 32, got \(80, 64\)"):
        load(folder)


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    T5Config(num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(WrongModel, match="expected a causal language model, got a t5"):
        load(tmp_path)


@pytest.mark.parametrize("said", [{"model_type": "none_such"}, {"model_type": "gemma4_text", "head_dim": "wide"}])
def test_a_config_that_transformers_cannot_read_is_refused(said: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(WrongModel, match=r"expected a config.json that transformers can read"):
        load(tmp_path)


def test_a_checkpoint_that_is_not_there_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (str(tmp_path), "no/such/folder/at/all", "nobody/none-such"):
        with pytest.raises(OSError, match=r"\S"):
            load_model(name, CPU, torch.float32)
    tiny_config("llama").save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):  # a config, and no weights
        load_model(str(tmp_path), CPU, torch.float32)
