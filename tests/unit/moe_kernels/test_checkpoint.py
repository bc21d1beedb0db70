"""Readers of the two published NVFP4 forms, on a small DiffusionGemma in shards and on hand-made bad checkpoints."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo_models.configs import new_draft
from moe_kernels import checkpoint as checkpoint_module
from moe_kernels.checkpoint import (
    Checkpoint,
    CheckpointError,
    Header,
    packed_tensors,
    stored_headers,
    write,
    write_compressed_tensors,
    write_modelopt,
)
from moe_kernels.linear import NVFP4Linear
from moe_kernels.nvfp4 import NVFP4, Convention, quantize

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of transformers' version and uses torch.jit.script
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

LAYER = "model.decoder.layers.0"
EXPERTS, INNER, HIDDEN = 8, 64, 128  # of demo_models' draft
FORMS: tuple[Convention, ...] = ("modelopt", "compressed-tensors")
WRITE = {"modelopt": write_modelopt, "compressed-tensors": write_compressed_tensors}


def raw(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, read without our reader."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def library_dequantize(tensors: dict[str, Tensor], module: str, form: Convention) -> Tensor:
    if form == "modelopt":
        packed = tensors[f"{module}.weight"]
        made = NVFP4QTensor(torch.Size((packed.shape[0], 2 * packed.shape[1])), torch.bfloat16, packed)
        scale, global_scale = tensors[f"{module}.weight_scale"], tensors[f"{module}.weight_scale_2"]
        return made.dequantize(torch.bfloat16, scale=scale, double_scale=global_scale, block_sizes={-1: 16})
    state = {part: tensors[f"{module}.{part}"] for part in ("weight_packed", "weight_scale", "weight_global_scale")}
    return NVFP4PackedCompressor.decompress(state, preset_name_to_scheme("NVFP4A16", ["Linear"]))["weight"]


def assert_same_bytes(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.contiguous().flatten().view(torch.uint8).equal(expected.contiguous().flatten().view(torch.uint8))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random draft model as transformers saves it, in bfloat16 and several shards."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    new_draft().bfloat16().save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module", params=FORMS)
def quantized(request: pytest.FixtureRequest, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in one of the two forms."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_module, "SHARD_BYTES", 1 << 19)
        WRITE[request.param](Checkpoint(plain), folder)
    return folder


# The model in both forms


def test_a_plain_checkpoint_has_no_form_and_gives_its_tensors(plain: Path) -> None:
    checkpoint = Checkpoint(plain)
    tensors = raw(plain)
    assert checkpoint.form is None
    assert checkpoint.names() == tensors.keys()
    assert not checkpoint.is_quantized(f"{LAYER}.mlp.gate_proj")
    for name, tensor in tensors.items():
        assert_same_bytes(checkpoint.tensor(name), tensor)
    with pytest.raises(CheckpointError, match="expected an NVFP4 checkpoint, got a plain one"):
        checkpoint.linear(f"{LAYER}.mlp.gate_proj")


def test_names_dtypes_and_shapes_are_those_of_the_published_checkpoints(quantized: Path) -> None:
    form = Checkpoint(quantized).form
    packed, last, one = (
        ("weight", "weight_scale_2", ()) if form == "modelopt" else ("weight_packed", "weight_global_scale", (1,))
    )
    tensors = {name: tensor for name, tensor in raw(quantized).items() if name.startswith(f"{LAYER}.experts.")}
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for expert in range(EXPERTS):
        for projection, n, k in (("gate", INNER, HIDDEN), ("up", INNER, HIDDEN), ("down", HIDDEN, INNER)):
            module = f"{LAYER}.experts.{expert}.{projection}_proj"
            expected[f"{module}.{packed}"] = (torch.uint8, (n, k // 2))
            expected[f"{module}.weight_scale"] = (torch.float8_e4m3fn, (n, k // 16))
            expected[f"{module}.{last}"] = (torch.float32, one)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == expected


def test_the_form_is_read_from_the_configuration_and_the_shards_from_the_index(quantized: Path) -> None:
    checkpoint = Checkpoint(quantized)
    assert checkpoint.form == json.loads((quantized / "config.json").read_text())["quantization_config"]["quant_method"]
    assert checkpoint.names() == raw(quantized).keys()
    assert len(list(quantized.glob("*.safetensors"))) > 2
    assert (quantized / "generation_config.json").exists()


def test_every_expert_keeps_the_bytes_and_scales_of_its_own_quantisation(plain: Path, quantized: Path) -> None:
    checkpoint, source = Checkpoint(quantized), Checkpoint(plain)
    assert checkpoint.form in FORMS
    for layer in range(4):
        prefix = f"model.decoder.layers.{layer}.experts"
        gate_up, down = source.tensor(f"{prefix}.gate_up_proj"), source.tensor(f"{prefix}.down_proj")
        experts = checkpoint.experts(prefix, EXPERTS)
        for weight, dense in zip(experts, (*gate_up.chunk(2, dim=1), down), strict=True):
            expected = quantize(dense, checkpoint.form)
            assert weight.convention == checkpoint.form
            assert_same_bytes(weight.packed, expected.packed)
            assert_same_bytes(weight.scales, expected.scales)
            assert_same_bytes(weight.global_scale, expected.global_scale)
        assert not experts.gate.global_scale.equal(experts.up.global_scale)


def test_the_same_bytes_dequantised_by_the_library_and_by_us_are_equal(quantized: Path) -> None:
    checkpoint, tensors = Checkpoint(quantized), raw(quantized)
    assert checkpoint.form in FORMS
    modules = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    assert len(modules) == 4 * 3 * EXPERTS + (4 * 3 if checkpoint.form == "compressed-tensors" else 0)
    for module in modules:
        assert_same_bytes(checkpoint.linear(module).dequantize(), library_dequantize(tensors, module, checkpoint.form))
    experts = checkpoint.experts(f"{LAYER}.experts", EXPERTS)
    for name, weight in zip(experts._fields, experts, strict=True):
        for expert, values in enumerate(weight.dequantize()):
            module = f"{LAYER}.experts.{expert}.{name}_proj"
            assert_same_bytes(values, library_dequantize(tensors, module, checkpoint.form))


def test_the_dense_mlp_is_quantised_in_red_hats_form_only_and_all_else_is_kept(plain: Path, quantized: Path) -> None:
    checkpoint, source = Checkpoint(quantized), Checkpoint(plain)
    mlp = f"{LAYER}.mlp.down_proj"
    assert checkpoint.is_quantized(mlp) == (checkpoint.form == "compressed-tensors")
    kept = source.names() & checkpoint.names()
    rest = {name.rpartition(".layers.")[2][2:] for name in source.names() - kept}
    experts = {"experts.gate_up_proj", "experts.down_proj"}
    dense = {f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert rest == (experts | dense if checkpoint.form == "compressed-tensors" else experts)
    for name in kept:
        assert_same_bytes(checkpoint.tensor(name), source.tensor(name))


def test_compressed_tensors_accepts_the_configuration_we_write(plain: Path, tmp_path: Path) -> None:
    write_compressed_tensors(Checkpoint(plain), tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    read = QuantizationConfig.model_validate({key: value for key, value in said.items() if key != "quant_method"})
    weights = read.model_dump()["config_groups"]["group_0"]["weights"]
    scheme = preset_name_to_scheme("NVFP4A16", ["Linear"]).model_dump()["weights"]
    for field in ("num_bits", "type", "strategy", "symmetric", "dynamic", "group_size", "scale_dtype"):
        assert weights[field] == scheme[field]
    assert f"{LAYER}.self_attn.q_proj" in said["ignore"]
    assert f"{LAYER}.mlp.gate_proj" not in said["ignore"]


def test_a_quantised_checkpoint_is_not_quantised_again(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a plain checkpoint"):
        write_modelopt(Checkpoint(quantized), tmp_path)


def test_a_broken_shard_is_named_when_it_is_read_and_not_before(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "SHARD_BYTES", 1 << 19)
    write_modelopt(Checkpoint(plain), tmp_path)
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    broken = files[f"{LAYER}.experts.3.up_proj.weight"]
    (tmp_path / broken).write_bytes((tmp_path / broken).read_bytes()[:-5])
    checkpoint = Checkpoint(tmp_path)
    checkpoint.tensor(next(name for name, file in files.items() if file != broken))
    with pytest.raises(CheckpointError, match=broken):
        checkpoint.experts(f"{LAYER}.experts", EXPERTS)


# Hand-made checkpoints of three experts, and what can be wrong with them

Edit = Callable[[dict[str, Tensor], dict[str, Any]], None]
SAID: dict[Convention, dict[str, Any]] = {
    "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
}


def parts_of(form: Convention) -> tuple[str, str, str, str]:
    if form == "modelopt":
        return "weight", "weight_scale", "weight_scale_2", "input_scale"
    return "weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"


def small(folder: Path, form: Convention, edit: Edit = lambda tensors, said: None) -> Checkpoint:
    """Three experts with H = 32 and I = 16 in one file, written by hand and then edited."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for expert in range(3):
        for name, shape in (("gate", (16, 32)), ("up", (16, 32)), ("down", (32, 16))):
            made = quantize(torch.randn(shape), form)
            values = (made.packed, made.scales, made.global_scale, torch.tensor(0.5))
            for part, value in zip(parts_of(form), values, strict=True):
                tensors[f"layer.experts.{expert}.{name}_proj.{part}"] = value
    said = dict(SAID[form])
    edit(tensors, said)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": said}))
    return Checkpoint(folder)


def change(form: Convention, place: str, made: Callable[[Tensor], Tensor] | None) -> Edit:
    """Replace one part of expert 1, such as "scales of up", or delete it."""
    part, _, projection = place.partition(" of ")
    name = parts_of(form)[("packed", "scales", "global").index(part)]
    key = f"layer.experts.1.{projection}_proj.{name}"

    def edit(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
        before = tensors.pop(key)
        if made is not None:
            tensors[key] = made(before).contiguous()

    return edit


def nan_scale(scales: Tensor) -> Tensor:
    damaged = scales.view(torch.uint8).clone()
    damaged[0, 0], damaged[1, 0] = 0x7F, 0xFF
    return damaged.view(torch.float8_e4m3fn)


@pytest.mark.parametrize("form", FORMS)
def test_one_file_without_an_index_is_read_and_input_scales_are_ignored(form: Convention, tmp_path: Path) -> None:
    experts = small(tmp_path, form).experts("layer.experts", 3)
    assert [weight.shape for weight in experts] == [(3, 16, 32), (3, 16, 32), (3, 32, 16)]
    assert all(weight.global_scale.shape == (3,) for weight in experts)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(), (1,)], ids=["a scalar", "one number"])
def test_the_global_scale_may_be_a_scalar_or_one_number(
    form: Convention, shape: tuple[int, ...], tmp_path: Path
) -> None:
    edit = change(form, "global of up", lambda scale: scale.reshape(shape))
    assert small(tmp_path, form, edit).linear("layer.experts.1.up_proj").global_scale.shape == ()


def test_modelopts_own_configuration_file_is_enough(tmp_path: Path) -> None:
    small(tmp_path, "modelopt")
    (tmp_path / "config.json").write_text("{}")
    quantization = {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": "FP8",
        "group_size": 16,
        "exclude_modules": ["lm_head"],
    }
    said = {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": quantization}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(said))
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.form == "modelopt"
    assert checkpoint.linear("layer.experts.2.down_proj").shape == (32, 16)
    quantization["group_size"] = 32
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=r"hf_quant_config.json: expected a group_size of 16, got \{32\}"):
        Checkpoint(tmp_path)


BAD_TENSORS = {
    "no packed": ("packed of gate", None, "1.gate_proj.weight.*got none of that name"),
    "no scales": ("scales of up", None, "1.up_proj.weight_scale, got none of that name"),
    "no global scale": ("global of down", None, "1.down_proj.weight_.*, got none of that name"),
    "packed dtype": ("packed of gate", lambda t: t.to(torch.int8), "1.gate_proj.weight.*torch.uint8, got torch.int8"),
    "scales dtype": ("scales of gate", lambda t: t.bfloat16(), "expected torch.float8_e4m3fn, got torch.bfloat16"),
    "global dtype": ("global of gate", lambda t: t.double(), "expected torch.float32, got torch.float64"),
    "half a block": ("packed of down", lambda t: t[:, :4], r"1.down_proj: expected packed .* got \(32, 4\)"),
    "one dimension": ("packed of down", lambda t: t[0], r"1.down_proj: expected packed .* got \(8,\)"),
    "blocks of 32": ("scales of gate", lambda t: t[:, :1], r"1.gate_proj: expected scales \(16, 2\) .* got \(16, 1\)"),
    "fewer rows": ("scales of gate", lambda t: t[:8], r"expected scales \(16, 2\) .* got \(8, 2\)"),
    "NaN scales": ("scales of up", nan_scale, "1.up_proj.weight_scale: expected finite block scales, got 2 NaN"),
    "global zero": ("global of up", lambda t: t * 0, "1.up_proj: expected one finite positive global scale, got 0.0"),
    "global negative": ("global of up", lambda t: -t, "finite positive global scale, got -"),
    "global NaN": ("global of up", lambda t: t * float("nan"), "finite positive global scale, got nan"),
    "global infinite": ("global of up", lambda t: t / 0, "finite positive global scale, got inf"),
    "two global scales": ("global of up", lambda t: t.expand(2), r"finite positive global scale, got \["),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("place", "made", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_bad_tensor_is_named_with_what_was_expected(
    form: Convention, place: str, made: Callable[[Tensor], Tensor] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        small(tmp_path, form, change(form, place, made)).experts("layer.experts", 3)


def without_expert(number: int) -> Edit:
    def edit(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
        for name in [name for name in tensors if f".experts.{number}." in name]:
            del tensors[name]

    return edit


BAD_COUNTS = {
    "in the middle": (1, 3, r"experts 0 to 2, got 2: missing \[1\], surplus \[\]"),
    "the last": (2, 3, r"experts 0 to 2, got 2: missing \[2\], surplus \[\]"),
    "one too many": (None, 2, r"experts 0 to 1, got 3: missing \[\], surplus \[2\]"),
    "one too few": (None, 4, r"experts 0 to 3, got 3: missing \[3\], surplus \[\]"),
}


@pytest.mark.parametrize(("missing", "count", "message"), BAD_COUNTS.values(), ids=BAD_COUNTS)
@pytest.mark.parametrize("form", FORMS)
def test_missing_and_surplus_experts_are_counted(
    form: Convention, missing: int | None, count: int, message: str, tmp_path: Path
) -> None:
    checkpoint = small(tmp_path, form) if missing is None else small(tmp_path, form, without_expert(missing))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.experts("layer.experts", count)


def reshaped(modules: list[str], weight: NVFP4) -> Edit:
    def edit(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
        for module in modules:
            tensors[f"{module}.weight"] = weight.packed.clone()
            tensors[f"{module}.weight_scale"] = weight.scales.clone()

    return edit


def test_experts_of_different_shapes_are_refused(tmp_path: Path) -> None:
    edit = reshaped(["layer.experts.2.gate_proj"], quantize(torch.ones(32, 32), "modelopt"))
    with pytest.raises(CheckpointError, match=r"2.gate_proj: expected shape \(16, 32\) .* got \(32, 32\)"):
        small(tmp_path, "modelopt", edit).experts("layer.experts", 3)


def test_a_down_projection_that_does_not_fit_the_gate_is_refused(tmp_path: Path) -> None:
    edit = reshaped([f"layer.experts.{i}.down_proj" for i in range(3)], quantize(torch.ones(16, 16), "modelopt"))
    with pytest.raises(CheckpointError, match=r"down \(3, 32, 16\) .* got \(3, 16, 32\) and \(3, 16, 16\)"):
        small(tmp_path, "modelopt", edit).experts("layer.experts", 3)


BAD_FORMS = {
    "another method": ("modelopt", {"quant_method": "gptq"}, "modelopt, compressed-tensors or draftgate, got 'gptq'"),
    "no method": ("modelopt", {"quant_method": None}, "got None"),
    "another algorithm": ("modelopt", {"quant_algo": "FP8"}, "expected quant_algo NVFP4 or W4A16_NVFP4, got 'FP8'"),
    "another format": ("compressed-tensors", {"format": "dense"}, "expected format nvfp4-pack-quantized, got 'dense'"),
    "group size": ("modelopt", {"group_size": 32}, r"expected a group_size of 16, got \{32\}"),
    "of one group": ("compressed-tensors", {"config_groups": {"a": {"weights": {"group_size": 32}}}}, r"got \{32\}"),
}


@pytest.mark.parametrize(("form", "said", "message"), BAD_FORMS.values(), ids=BAD_FORMS)
def test_an_unknown_form_is_refused(form: Convention, said: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        small(tmp_path, form, lambda tensors, config: config.update(said))


# Headers, our own form and the writer


def test_headers_are_those_of_the_tensors_and_of_what_a_linear_reads(quantized: Path) -> None:
    checkpoint, tensors = Checkpoint(quantized), raw(quantized)
    assert checkpoint.form in FORMS
    for name, tensor in tensors.items():
        header = checkpoint.header(name)
        expected = Header(tensor.dtype, tuple(tensor.shape))
        assert header == expected
        assert expected.nbytes == tensor.nbytes
    assert checkpoint.header("absent") is None
    for name, header in stored_headers(checkpoint.form, f"{LAYER}.experts.0.down_proj", HIDDEN, INNER).items():
        assert tensors[name].dtype == header.dtype
        assert tensors[name].numel() == torch.Size(header.shape).numel()


def test_every_read_is_told_with_its_bytes(plain: Path) -> None:
    checkpoint = Checkpoint(plain)
    told: list[int] = []
    checkpoint.on_read = told.append
    sizes = [checkpoint.tensor(name).nbytes for name in checkpoint.names()]
    assert told == sizes


def own(folder: Path, source: Checkpoint, version: int = 1) -> NVFP4Linear:
    weight = NVFP4Linear.from_nvfp4(quantize(torch.randn(64, 128), "modelopt"))
    said = {"quant_method": "draftgate", "version": version}
    write(source, folder, packed_tensors("a.b", weight).items(), {"quantization_config": said})
    return weight


def test_our_own_form_keeps_the_kernels_weights(plain: Path, tmp_path: Path) -> None:
    weight = own(tmp_path, Checkpoint(plain))
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.form == "draftgate"
    assert checkpoint.names() == {"a.b.words", "a.b.scales", "a.b.scale"}
    assert checkpoint.is_quantized("a.b")
    assert not checkpoint.is_quantized("a")
    read = checkpoint.packed("a.b", NVFP4Linear)
    for field, tensor in vars(read).items():
        assert_same_bytes(tensor, getattr(weight, field))
    with pytest.raises(CheckpointError, match="expected an NVFP4 checkpoint, got draftgate"):
        checkpoint.linear("a.b")
    with pytest.raises(CheckpointError, match="expected a plain checkpoint to quantise, got one in draftgate"):
        write_modelopt(checkpoint, tmp_path / "again")
    with pytest.raises(CheckpointError, match=r"a\.b: expected a checkpoint in the form draftgate, got a plain one"):
        Checkpoint(plain).packed("a.b", NVFP4Linear)


def test_another_version_of_our_own_form_is_refused(plain: Path, tmp_path: Path) -> None:
    own(tmp_path, Checkpoint(plain), version=2)
    with pytest.raises(CheckpointError, match="expected version 1 of draftgate, got 2: convert anew"):
        Checkpoint(tmp_path)


def test_no_shard_is_over_the_limit_unless_one_tensor_is(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "SHARD_BYTES", 100)
    tensors = {str(i): torch.full((count,), i, dtype=torch.uint8) for i, count in enumerate((60, 40, 1, 101, 99, 2))}
    write(Checkpoint(plain), tmp_path, tensors.items(), {"canvas_length": None})
    shards = [list(load_file(path)) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert shards == [["0", "1"], ["2"], ["3"], ["4"], ["5"]]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.glob("*.safetensors"))
    assert raw(tmp_path).keys() == Checkpoint(tmp_path).names() == tensors.keys()
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"] == {"total_size": 303}
    before = json.loads((plain / "config.json").read_text())
    assert before.pop("canvas_length")
    assert json.loads((tmp_path / "config.json").read_text()) == before


BAD_FOLDERS = {
    "nothing": ({}, "config.json: expected a JSON object, got .*No such file"),
    "bad JSON": ({"config.json": "{"}, "config.json: expected a JSON object, got Expecting"),
    "not an object": ({"config.json": "[]"}, "config.json: expected a JSON object, got list"),
    "no tensors": ({"config.json": "{}"}, "model.safetensors: expected a safetensors file, got .*No such file"),
    "not safetensors": (
        {"config.json": "{}", "model.safetensors": "x"},
        "model.safetensors: expected a safetensors file",
    ),
    "a shard outside the folder": (
        {"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": "../b.safetensors"}}'},
        r"expected the files \['../b.safetensors'\] beside it",
    ),
}


@pytest.mark.parametrize(("files", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_folder_that_is_no_checkpoint_is_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path)


def test_a_tensor_the_index_promises_and_the_shard_lacks_is_named(tmp_path: Path) -> None:
    save_file({"there": torch.ones(1)}, tmp_path / "shard.safetensors")
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": dict.fromkeys(("there", "absent"), "shard.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.tensor("there").item() == 1.0
    with pytest.raises(CheckpointError, match="expected a tensor absent"):
        checkpoint.tensor("absent")
