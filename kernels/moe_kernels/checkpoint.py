"""Checkpoints in safetensors, plain or in one of the two published NVFP4 forms, read and written one tensor at a time.

|                       | `modelopt`                             | `compressed-tensors`                          |
|---|---|---|
| said by config.json   | quant_method modelopt (or by hf_quant_config.json) | quant_method compressed-tensors, format nvfp4-pack-quantized |
| (N, K/2) uint8        | MODULE.weight                          | MODULE.weight_packed                          |
| (N, K/16) E4M3        | MODULE.weight_scale                    | MODULE.weight_scale                           |
| float32, one number   | MODULE.weight_scale_2                  | MODULE.weight_global_scale                    |
| experts               | PREFIX.E.{gate,up,down}_proj as MODULE | the same                                      |

Input scales (`input_scale`, `input_global_scale`) are left unread: they belong to four-bit activations. A plain checkpoint holds a
layer's experts as PREFIX.gate_up_proj (E, 2I, H), gate before up, and PREFIX.down_proj (E, H, I), as transformers saves them.
"""

import json
import re
import shutil
from collections.abc import Iterator, KeysView
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moe_kernels import nvfp4
from moe_kernels.nvfp4 import BLOCK, NVFP4, Convention

CONFIG = "config.json"
MODELOPT_CONFIG = "hf_quant_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FORMAT = "nvfp4-pack-quantized"
ALGORITHMS = ("NVFP4", "W4A16_NVFP4")  # with and without four-bit activations; the weights are the same

_PARTS: dict[Convention, tuple[str, str, str]] = {
    "modelopt": ("weight", "weight_scale", "weight_scale_2"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_global_scale"),
}
_DTYPES = (torch.uint8, torch.float8_e4m3fn, torch.float32)
_DENSE_MLP = re.compile(r".*\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight")


class CheckpointError(ValueError):
    """A checkpoint is not what it should be; the message names the file or tensor, what was expected and what was got."""


class ExpertsNVFP4(NamedTuple):
    """A layer's experts: gate (E, I, H), up (E, I, H) and down (E, H, I), global scales (E,) as stored."""

    gate: NVFP4
    up: NVFP4
    down: NVFP4


class Checkpoint:
    """A folder with config.json and model.safetensors, or shards beside model.safetensors.index.json.

    Tensors are read when asked for; files stay mapped for as long as this object lives.

    Attributes:
        config: config.json.
        form: how weights are quantised, which is also the convention of their global scales; None for a plain checkpoint.

    Raises:
        CheckpointError: files are missing or malformed, or the quantisation is not one of the two forms in blocks of 16.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _read_json(folder / CONFIG)
        self.form: Convention | None = _form(folder, self.config)
        self._open: dict[str, Any] = {}
        if (folder / INDEX).exists():
            self._files: dict[str, str] = _read_json(folder / INDEX).get("weight_map", {})
        else:
            self._files = dict.fromkeys(self._file(SINGLE).keys(), SINGLE)
        if absent := set(self._files.values()) - {path.name for path in folder.iterdir()}:
            raise CheckpointError(f"{folder / INDEX}: expected the files {sorted(absent)} beside it, got none")

    def names(self) -> KeysView[str]:
        """The names of all tensors."""
        return self._files.keys()

    def is_quantized(self, module: str) -> bool:
        """Whether `linear` can read this module; if not, its weight is a plain tensor."""
        return self.form is not None and f"{module}.weight_scale" in self._files

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored.

        Raises:
            CheckpointError: there is none of that name, or its file is broken.
        """
        if name not in self._files:
            raise CheckpointError(f"{self.folder}: expected a tensor {name}, got none of that name")
        try:
            return self._file(self._files[name]).get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self._files[name]}: expected a tensor {name}, got {error}") from error

    def linear(self, module: str) -> NVFP4:
        """The weight (N, K) of a linear layer, its bytes and scales as stored.

        Raises:
            CheckpointError: the checkpoint is plain, a tensor is missing or has another dtype or shape, the global scale is not
                finite and positive, or a block scale is NaN, as no quantiser writes it: the file is damaged.
        """
        if self.form is None:
            raise CheckpointError(f"{module}: expected an NVFP4 checkpoint, got a plain one in {self.folder}")
        packed, scales, global_scale = (
            self._typed(f"{module}.{part}", dtype) for part, dtype in zip(_PARTS[self.form], _DTYPES, strict=True)
        )
        if global_scale.numel() != 1 or not 0 < global_scale.item() < float("inf"):
            raise CheckpointError(f"{module}: expected one finite positive global scale, got {global_scale.tolist()}")
        if damaged := int(scales.isnan().sum()):
            raise CheckpointError(f"{module}.weight_scale: expected finite block scales, got {damaged} NaN")
        try:
            return NVFP4(packed, scales, global_scale.reshape(()), self.form)
        except ValueError as error:
            raise CheckpointError(f"{module}: {error}") from error

    def experts(self, prefix: str, count: int) -> ExpertsNVFP4:
        """The `count` experts of the layer whose names begin with `prefix`, such as model.decoder.layers.0.experts.

        Raises:
            CheckpointError: as `linear`; an expert is missing or surplus; experts differ in shape, or gate, up and down do not fit.
        """
        numbers = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        found = {int(match[1]) for name in self._files if (match := numbers.match(name))}
        if found != (expected := set(range(count))):
            raise CheckpointError(
                f"{prefix}: expected experts 0 to {count - 1}, got {len(found)}: "
                f"missing {sorted(expected - found)}, surplus {sorted(found - expected)}"
            )
        gate, up, down = (
            self._stack([f"{prefix}.{i}.{name}_proj" for i in range(count)]) for name in ("gate", "up", "down")
        )
        _, inner, hidden = gate.shape
        if up.shape != gate.shape or down.shape != (count, hidden, inner):
            raise CheckpointError(
                f"{prefix}: expected up {gate.shape} and down {(count, hidden, inner)} beside gate {gate.shape}, "
                f"got {up.shape} and {down.shape}"
            )
        return ExpertsNVFP4(gate, up, down)

    def _stack(self, modules: list[str]) -> NVFP4:
        weights = [self.linear(module) for module in modules]
        for module, weight in zip(modules, weights, strict=True):
            if weight.shape != weights[0].shape:
                raise CheckpointError(
                    f"{module}: expected shape {weights[0].shape} as {modules[0]}, got {weight.shape}"
                )
        return nvfp4.stack(weights)

    def _typed(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor = self.tensor(name)
        if tensor.dtype != dtype:
            raise CheckpointError(f"{name}: expected {dtype}, got {tensor.dtype}")
        return tensor

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.folder / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{self.folder / name}: expected a safetensors file, got {error}") from error
        return self._open[name]


def write_modelopt(source: Checkpoint, folder: Path) -> None:
    """Write a plain checkpoint with its experts in ModelOpt's form and all else as it is, as NVIDIA publishes DiffusionGemma.

    Weight-only: without calibration there are no input scales. One shard is held in memory at a time; other files are copied.
    """
    _write(source, folder, "modelopt")


def write_compressed_tensors(source: Checkpoint, folder: Path) -> None:
    """As `write_modelopt`, in compressed-tensors' form, with each layer's dense MLP in NVFP4 too, as Red Hat publishes it."""
    _write(source, folder, "compressed-tensors")


def _write(source: Checkpoint, folder: Path, form: Convention) -> None:
    if source.form is not None:
        raise CheckpointError(f"{source.folder}: expected a plain checkpoint to quantise, got one in {source.form}")
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in (CONFIG, INDEX):
            shutil.copy(path, folder)
    shards: dict[str, list[str]] = {}
    for name in source.names():
        shards.setdefault(source._files[name], []).append(name)
    weight_map: dict[str, str] = {}
    ignored: list[str] = []
    size = 0
    for shard, names in shards.items():
        tensors: dict[str, Tensor] = {}
        for name in names:
            tensor = source.tensor(name)
            if matrices := list(_to_quantize(name, tensor, form)):
                for module, weight in matrices:
                    tensors |= _stored(module, nvfp4.quantize(weight, form))
            else:
                tensors[name] = tensor
                if name.endswith(".weight") and tensor.dim() == 2:
                    ignored.append(name.removesuffix(".weight"))
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if SINGLE not in shards:
        _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    _write_json(folder / CONFIG, {**source.config, "quantization_config": _quantization(form, sorted(ignored))})


def _stored(module: str, weight: NVFP4) -> dict[str, Tensor]:
    global_scale = weight.global_scale if weight.convention == "modelopt" else weight.global_scale.reshape(1)
    values = (weight.packed, weight.scales, global_scale)
    return {f"{module}.{part}": value for part, value in zip(_PARTS[weight.convention], values, strict=True)}


def _to_quantize(name: str, tensor: Tensor, form: Convention) -> Iterator[tuple[str, Tensor]]:
    """The modules and matrices that a plain tensor becomes; none if it stays as it is."""
    if match := re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj", name):
        for i, expert in enumerate(tensor):
            parts = zip(("gate", "up"), expert.chunk(2), strict=True) if match[2] == "gate_up" else [("down", expert)]
            yield from ((f"{match[1]}.{i}.{part}_proj", weight) for part, weight in parts)
    elif form == "compressed-tensors" and _DENSE_MLP.fullmatch(name):
        yield name.removesuffix(".weight"), tensor


def _quantization(form: Convention, ignored: list[str]) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "float", "dynamic": False, "group_size": BLOCK}
    said: dict[str, Any] = {"quant_method": form, "ignore": ignored}
    if form == "modelopt":
        said["quant_algo"] = "W4A16_NVFP4"
    else:
        weights |= {"strategy": "tensor_group", "symmetric": True, "scale_dtype": "torch.float8_e4m3fn"}
        said |= {"format": FORMAT, "quantization_status": "compressed"}
    return {**said, "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def _form(folder: Path, config: dict[str, Any]) -> Convention | None:
    said: dict[str, Any] = config.get("quantization_config") or {}
    where = folder / CONFIG
    if not said and (folder / MODELOPT_CONFIG).exists():
        where = folder / MODELOPT_CONFIG
        found = _read_json(where)
        said = {"quant_method": found.get("producer", {}).get("name"), **found.get("quantization", {})}
    if not said:
        return None
    if (method := said.get("quant_method")) not in get_args(Convention):
        raise CheckpointError(f"{where}: expected quant_method modelopt or compressed-tensors, got {method!r}")
    if method == "modelopt" and (algorithm := said.get("quant_algo")) not in ALGORITHMS:
        raise CheckpointError(f"{where}: expected quant_algo {' or '.join(ALGORITHMS)}, got {algorithm!r}")
    if method == "compressed-tensors" and said.get("format") != FORMAT:
        raise CheckpointError(f"{where}: expected format {FORMAT}, got {said.get('format')!r}")
    groups = [said, *((group.get("weights") or {}) for group in (said.get("config_groups") or {}).values())]
    if other := {group["group_size"] for group in groups if "group_size" in group} - {BLOCK}:
        raise CheckpointError(f"{where}: expected a group_size of {BLOCK}, got {other}")
    return method


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a JSON object, got {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
