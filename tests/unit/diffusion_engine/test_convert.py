"""`draftgate convert`: every form from every form, and what it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from diffusion_engine.convert import FORMS, convert, main
from moe_kernels import checkpoint as checkpoint_module
from moe_kernels.checkpoint import Checkpoint, CheckpointError
from router import cli
from tests.unit.diffusion_engine.checkpoints import raw, rewrite, save, tiny_config, tiny_model, write_all_forms

LAYER = "model.decoder.layers.0"


@pytest.fixture(scope="module")
def model() -> DiffusionGemmaForBlockDiffusion:
    return tiny_model(tiny_config())


@pytest.fixture(scope="module")
def forms(model: DiffusionGemmaForBlockDiffusion, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = write_all_forms(model, tmp_path_factory.mktemp("forms"))
    for folder in made.values():
        (folder / "tokenizer.json").write_text('{"a": "tokenizer"}')
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    return made


def assert_same(left: Path, right: Path) -> None:
    """The same tensors, to the bit."""
    ours, theirs = raw(left), raw(right)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert tensor.contiguous().flatten().view(torch.uint8).equal(theirs[name].flatten().view(torch.uint8)), name


def logits(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    prompt, canvas, before = (torch.randint(9, 160, (1, size), generator=generator) for size in (21, 8, 8))
    soft = 8 * torch.nn.functional.one_hot(before, 160).float()
    with torch.no_grad():
        return model(input_ids=prompt, decoder_input_ids=canvas, self_conditioning_logits=soft).logits


# What it writes


@pytest.mark.parametrize("source", FORMS)
def test_our_own_form_is_written_from_any_form(source: str, forms: dict[str, Path], tmp_path: Path) -> None:
    convert(forms[source], tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert config.pop("quantization_config") == {"quant_method": "draftgate", "version": 1}
    before = json.loads((forms[source] / "config.json").read_text())
    before.pop("quantization_config", None)
    assert config == before
    names = raw(tmp_path / "own").keys()
    assert f"{LAYER}.experts.gate_up" in names
    assert (f"{LAYER}.mlp.up_proj.words" in names) == (source == "compressed-tensors")
    assert f"{LAYER}.experts.gate_up_proj" not in names
    assert f"{LAYER}.experts.0.up_proj.weight_scale" not in names
    if source != "compressed-tensors":  # plain experts become ModelOpt's, and our own are copied
        assert_same(tmp_path / "own", forms["draftgate"])


@pytest.mark.parametrize("form", ["modelopt", "compressed-tensors"])
def test_the_published_forms_are_those_of_the_kernels_writers(
    form: str, forms: dict[str, Path], tmp_path: Path
) -> None:
    convert(forms["plain"], tmp_path / "out", form)
    assert_same(tmp_path / "out", forms[form])
    assert Checkpoint(tmp_path / "out").form == form


@pytest.mark.parametrize("form", FORMS)
def test_all_other_files_come_along(form: str, forms: dict[str, Path], tmp_path: Path) -> None:
    convert(forms["plain"], tmp_path / "out", form)
    others = ["chat_template.jinja", "config.json", "generation_config.json"]
    others += ["model.safetensors.index.json", "tokenizer.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors") == others
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (forms["plain"] / name).read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_vision_stays_and_what_is_left_unread_goes(form: str, forms: dict[str, Path], tmp_path: Path) -> None:
    def edit(found: dict[str, Tensor]) -> None:
        found["lm_head.weight"] = found["model.decoder.embed_tokens.weight"].clone()
        if form in ("modelopt", "compressed-tensors"):
            found[f"{LAYER}.experts.0.gate_proj.input_scale"] = torch.tensor(1.0)

    source = rewrite(forms[form], tmp_path / "in", edit)
    convert(source, tmp_path / "own")
    names = raw(tmp_path / "own").keys()
    assert not names & {"lm_head.weight", f"{LAYER}.experts.0.gate_proj.input_scale"}
    vision = {name for name in raw(source) if "vision" in name}
    assert vision
    assert vision <= names


def test_shards_are_cut_at_the_limit(forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "SHARD_BYTES", 30_000)
    convert(forms["modelopt"], tmp_path / "own")
    shards = list((tmp_path / "own").glob("*.safetensors"))
    assert len(shards) > 4
    assert all(shard.stat().st_size < 40_000 for shard in shards)  # headers come on top
    assert_same(tmp_path / "own", forms["draftgate"])


def test_what_says_how_the_source_was_quantised_is_left_behind(forms: dict[str, Path], tmp_path: Path) -> None:
    source = rewrite(forms["modelopt"], tmp_path / "in", lambda found: None)
    config = json.loads((source / "config.json").read_text())
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    del config["quantization_config"]
    (source / "config.json").write_text(json.dumps(config))
    (source / "hf_quant_config.json").write_text(json.dumps(said))
    convert(source, tmp_path / "own")
    assert not (tmp_path / "own" / "hf_quant_config.json").exists()
    assert_same(tmp_path / "own", forms["draftgate"])


# Plain copies, for transformers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_copy_of_a_plain_checkpoint_is_the_same_model(
    dtype: torch.dtype, model: DiffusionGemmaForBlockDiffusion, forms: dict[str, Path], tmp_path: Path
) -> None:
    convert(forms["plain"], tmp_path / "out", "plain", dtype)
    assert {tensor.dtype for tensor in raw(tmp_path / "out").values()} == {dtype}
    loaded = DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == dtype
    assert loaded.config.to_dict().get("quantization_config") is None
    torch.testing.assert_close(logits(loaded.float()), logits(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["modelopt", "compressed-tensors", "draftgate"])
def test_a_plain_copy_of_a_quantised_checkpoint_has_its_values(
    form: str, model: DiffusionGemmaForBlockDiffusion, forms: dict[str, Path], tmp_path: Path
) -> None:
    convert(forms[form], tmp_path / "out", "plain", torch.float32)
    loaded: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path / "out", dtype="auto")
    expected: Any = tiny_model(model.config)
    checkpoint = Checkpoint(forms["modelopt" if form == "draftgate" else form])
    with torch.no_grad():  # transformers' model, given the values of the published form
        for i, layer in enumerate(expected.model.decoder.layers):
            at = f"model.decoder.layers.{i}"
            gate, up, down = (part.dequantize(torch.float32) for part in checkpoint.experts(f"{at}.experts", 4))
            layer.experts.gate_up_proj.copy_(torch.cat([gate, up], dim=1))
            layer.experts.down_proj.copy_(down)
            for name in ("gate_proj", "up_proj", "down_proj"):
                if checkpoint.is_quantized(f"{at}.mlp.{name}"):
                    values = checkpoint.linear(f"{at}.mlp.{name}").dequantize(torch.float32)
                    getattr(layer.mlp, name).weight.copy_(values)
    torch.testing.assert_close(logits(loaded), logits(expected), rtol=0, atol=1e-4)
    assert (logits(loaded) - logits(model)).abs().max() > 0.05  # quantisation is seen


def test_the_dtype_of_a_plain_copy_is_that_of_the_embedding_unless_told(forms: dict[str, Path], tmp_path: Path) -> None:
    convert(forms["compressed-tensors"], tmp_path / "out", "plain")
    assert {tensor.dtype for tensor in raw(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


# What it refuses


def test_a_folder_with_files_in_it_is_not_written_to(forms: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    for target in (tmp_path, tmp_path / "kept"):
        with pytest.raises(FileExistsError, match="expected an empty folder or none, got"):
            convert(forms["plain"], target)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_conversion_broken_off_leaves_nothing_that_loads(forms: dict[str, Path], tmp_path: Path) -> None:
    name = f"{LAYER}.experts.2.up_proj.weight_scale"
    source = rewrite(forms["modelopt"], tmp_path / "in", lambda found: found[name].view(torch.uint8).fill_(0x7F))
    with pytest.raises(CheckpointError, match=name):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def edited(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy whose config.json, or its text_config, has other entries."""
    rewrite(source, folder, lambda found: None)
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        (config if key in config else config["text_config"])[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model_type": "gemma4"}, "expected a DiffusionGemma checkpoint .*, got gemma4"),
    "untied": ({"tie_word_embeddings": False}, "expected tie_word_embeddings True, got False"),
    "no experts": ({"num_experts": None}, "expected experts in every layer, got num_experts None"),
    "another activation": ({"hidden_activation": "silu"}, "expected hidden_activation gelu_pytorch_tanh, got silu"),
    "another width": ({"hidden_size": 96}, "expected the tensors its config.json calls for, got .* of another shape"),
    "another form": ({"quantization_config": {"quant_method": "gptq"}}, "expected quant_method .*'gptq'"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_checkpoint_ends_with_one_sentence(
    changes: dict[str, Any], message: str, forms: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = edited(forms["modelopt"], tmp_path / "in", **changes)
    assert main([str(source), str(tmp_path / "out")]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert re.match(f"draftgate convert: .*{message}", said[0])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["modelopt", "compressed-tensors"])
def test_the_published_forms_are_written_from_plain_checkpoints_only(
    target: str, forms: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(forms["draftgate"]), str(tmp_path / "out"), "--to", target]) == 2
    assert "expected a plain checkpoint to quantise, got one in draftgate" in capfd.readouterr().err


def test_a_dtype_is_for_plain_checkpoints(forms: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(forms["plain"]), str(tmp_path / "out"), "--dtype", "float32"])


def test_the_command_is_known(forms: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["convert", str(forms["draftgate"]), str(out), "--to", "plain", "--dtype", "float32"]) == 0
    assert Checkpoint(out).form is None
    assert capfd.readouterr().err == ""


def test_a_float32_checkpoint_is_quantised_from_its_own_values(tmp_path: Path) -> None:
    model = tiny_model(tiny_config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)  # no longer what bfloat16 has
    save(model, tmp_path / "plain")
    convert(tmp_path / "plain", tmp_path / "own")
    convert(tmp_path / "plain", tmp_path / "modelopt", "modelopt")
    convert(tmp_path / "modelopt", tmp_path / "again")
    assert_same(tmp_path / "own", tmp_path / "again")
    assert raw(tmp_path / "own")["model.decoder.norm.weight"].equal(model.state_dict()["model.decoder.norm.weight"])
