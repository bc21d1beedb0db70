"""What the loader says of checkpoints with something wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion_engine.config import ModelConfig
from diffusion_engine.model import DenseExperts, Weights
from diffusion_engine.weights import load_weights
from moe_kernels.checkpoint import Checkpoint, CheckpointError, write_modelopt
from moe_kernels.dispatch import KernelUnsupported
from moe_kernels.loading import WrongTensors
from tests.unit.diffusion_engine.checkpoints import Edit, rewrite, save, tiny_config, tiny_model, write_all_forms

FORMS = ("plain", "modelopt", "compressed-tensors", "draftgate")
LAYER = "model.decoder.layers.0"


def load(folder: Path, *, quantize: bool = False) -> Weights:
    return load_weights(folder, ModelConfig.load(folder), torch.device("cpu"), torch.float32, quantize=quantize)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all_forms(tiny_model(tiny_config()), tmp_path_factory.mktemp("forms"))


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Checkpoint, name: str) -> Tensor:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Checkpoint, "tensor", refuse)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("form", FORMS)
def test_all_wrong_tensors_are_named_together_before_any_is_read(
    form: str, forms: dict[str, Path], tmp_path: Path
) -> None:
    def edit(found: dict[str, Tensor]) -> None:
        del found["model.decoder.norm.weight"]
        del found["model.encoder.language_model.layers.1.layer_scalar"]
        found["model.decoder.layers.9.layer_scalar"] = torch.ones(1)
        found[f"{LAYER}.router.scale"] = torch.ones(63)
        found[f"{LAYER}.self_attn.q_proj.weight"] = torch.ones(64, 64, dtype=torch.float16)

    with pytest.raises(WrongTensors) as caught:
        load(rewrite(forms[form], tmp_path / "bad", edit))
    message = str(caught.value)
    assert "2 missing (" in message
    assert "model.decoder.norm.weight (64,)" in message
    assert "model.encoder.language_model.layers.1.layer_scalar (1,)" in message
    assert "1 surplus (model.decoder.layers.9.layer_scalar)" in message
    assert "2 of another shape or dtype (" in message
    assert f"{LAYER}.router.scale: expected bfloat16 or float32 (64,), got float32 (63,)" in message
    assert f"{LAYER}.self_attn.q_proj.weight: expected bfloat16 or float32 (64, 64), got float16 (64, 64)" in message


def without(part: str) -> Edit:
    def edit(found: dict[str, Tensor]) -> None:
        for name in [name for name in found if part in name]:
            del found[name]

    return edit


def reshape(name: str, *shape: int) -> Edit:
    return lambda found: found.update({name: torch.ones(shape, dtype=found[name].dtype)})


def rename(name: str, other: str) -> Edit:
    return lambda found: found.update({other: found.pop(name)})


WRONG = {
    "an expert": ("modelopt", without(".layers.0.experts.2."), r"9 missing \(.*experts.2.gate_proj.weight \(32, 32\)"),
    "many": ("plain", without(".layers.1."), r"22 missing \(.*, and 14 more\)"),
    "experts": ("plain", without("layers.0.experts."), r"2 missing \(.*gate_up_proj \(4, 64, 64\), .*\(4, 64, 32\)\)"),
    "a surplus expert": (
        "compressed-tensors",
        rename(f"{LAYER}.experts.3.up_proj.weight_scale", f"{LAYER}.experts.4.up_proj.weight_scale"),
        r"1 missing \(.*3.up_proj.weight_scale \(32, 4\)\); 1 surplus \(.*4.up_proj.weight_scale\)",
    ),
    "a block scale": (
        "modelopt",
        reshape(f"{LAYER}.experts.1.down_proj.weight_scale", 64, 1),
        r"1.down_proj.weight_scale: expected float8_e4m3fn \(64, 2\), got float8_e4m3fn \(64, 1\)",
    ),
    "part of a quantised MLP": (
        "compressed-tensors",
        without(f"{LAYER}.mlp.up_proj.weight_packed"),
        r"1 missing \(.*mlp.up_proj.weight_packed \(96, 32\)\)$",
    ),
    "words of our own form": (
        "draftgate",
        reshape(f"{LAYER}.experts.gate_up", 4, 1, 1, 2, 32, 4),
        r"experts.gate_up: expected int32 \(4, 1, 1, 2, 32, 8\), got int32 \(4, 1, 1, 2, 32, 4\)",
    ),
    "a scale of our own form": ("draftgate", without("layers.0.experts.up_scale"), r"experts.up_scale \(4,\)\)$"),
    "values of a full layer": (
        "plain",
        lambda found: found.update({"model.decoder.layers.1.self_attn.v_proj.weight": torch.ones(32, 64)}),
        r"1 surplus \(model.decoder.layers.1.self_attn.v_proj.weight\)",
    ),
}


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(("form", "edit", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_tensor_is_named(form: str, edit: Edit, message: str, forms: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(WrongTensors, match=message):
        load(rewrite(forms[form], tmp_path / "bad", edit))


@pytest.mark.usefixtures("unread")
def test_the_form_is_what_the_config_says(forms: dict[str, Path], tmp_path: Path) -> None:
    folder = rewrite(forms["modelopt"], tmp_path / "bad", lambda found: None)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WrongTensors, match=r"4 missing .*; 72 surplus .*, and 64 more\)$"):
        load(folder)


@pytest.mark.parametrize("form", ["modelopt", "compressed-tensors"])
def test_a_damaged_scale_is_named(form: str, forms: dict[str, Path], tmp_path: Path) -> None:
    name = f"{LAYER}.experts.2.up_proj.weight_scale"
    folder = rewrite(forms[form], tmp_path / "bad", lambda found: found[name].view(torch.uint8).fill_(0x7F))
    with pytest.raises(CheckpointError, match=f"{name}: expected finite block scales, got 128 NaN"):
        load(folder)


def test_plain_experts_that_are_not_finite_are_not_quantised(forms: dict[str, Path], tmp_path: Path) -> None:
    folder = rewrite(
        forms["plain"], tmp_path / "bad", lambda found: found[f"{LAYER}.experts.down_proj"][0, 0].fill_(torch.inf)
    )
    with pytest.raises(CheckpointError, match=f"{LAYER}.experts: expected finite weights, got NaN or infinity"):
        load(folder, quantize=True)


@pytest.mark.usefixtures("unread")
def test_a_truncated_file_is_named(forms: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(forms["plain"], tmp_path / "bad")
    file = sorted((tmp_path / "bad").glob("*.safetensors"))[3]
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=file.name):
        load(tmp_path / "bad")


def test_quantised_experts_must_be_multiples_of_32(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    plain = save(tiny_model(tiny_config(moe_intermediate_size=48)), tmp_path / "plain")
    write_modelopt(Checkpoint(plain), tmp_path / "modelopt")
    assert isinstance(load(plain).layers[0].experts, DenseExperts)
    request.getfixturevalue("unread")
    with pytest.raises(KernelUnsupported, match="a multiple of 32, got 48"):
        load(tmp_path / "modelopt")


def test_a_duplicate_of_another_shape_is_refused(forms: dict[str, Path], tmp_path: Path) -> None:
    folder = rewrite(
        forms["plain"], tmp_path / "bad", lambda found: found.update({"lm_head.weight": torch.ones(9, 64)})
    )
    with pytest.raises(
        WrongTensors, match=r"1 of another .*lm_head.weight: .*float32 \(160, 64\), got float32 \(9, 64\)"
    ):
        load(folder)


def test_biases_that_the_encoder_has_for_itself_are_refused(tmp_path: Path) -> None:
    name = "model.encoder.language_model.layers.1.self_attn.q_proj.bias"
    plain = save(tiny_model(tiny_config(attention_bias=True)), tmp_path / "plain")
    folder = rewrite(plain, tmp_path / "bad", lambda found: found.update({name: found[name] + 1}))
    with pytest.raises(WrongTensors, match=f"{name}: expected the values of model.decoder.layers.1.*, got others"):
        load(folder)
