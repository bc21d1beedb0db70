"""Checkpoints in safetensors, plain, in one of the two published NVFP4 forms or in our own, read and written one tensor at a time.

|                       | `modelopt`                             | `compressed-tensors`                          |
|---|---|---|
| said by config.json   | quant_method modelopt (or by hf_quant_config.json) | quant_method compressed-tensors, format nvfp4-pack-quantized |
| (N, K/2) uint8        | MODULE.weight                          | MODULE.weight_packed                          |
| (N, K/16) E4M3        | MODULE.weight_scale                    | MODULE.weight_scale                           |
| float32, one number   | MODULE.weight_scale_2                  | MODULE.weight_global_scale                    |
| experts               | PREFIX.E.{gate,up,down}_proj as MODULE | the same                                      |

Input scales (`input_scale`, `input_global_scale`) are left unread: they belong to four-bit activations. A plain checkpoint holds a
layer's experts as PREFIX.gate_up_proj (E, 2I, H), gate before up, and PREFIX.down_proj (E, H, I), as transformers saves them.

Our own form (quant_method draftgate, with a version) holds quantised weights as the kernels do, so that loading them is copying: each
field of `moe.Experts` or `linear.NVFP4Linear` is a tensor MODULE.FIELD.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, KeysView
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

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
SHARD_BYTES = 4 * 10**9  # most that is written to one file, but for a tensor that alone is more
FORMAT = "nvfp4-pack-quantized"
ALGORITHMS = ("NVFP4", "W4A16_NVFP4")  # with and without four-bit activations; the weights are the same

OWN: Literal["draftgate"] = "draftgate"
OWN_VERSION = 1  # of the layout of the kernels' weights

Form = Convention | Literal["draftgate"]
Packed = TypeVar("Packed")

_PARTS: dict[Convention, tuple[str, str, str]] = {
    "modelopt": ("weight", "weight_scale", "weight_scale_2"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_global_scale"),
}
_DTYPES = (torch.uint8, torch.float8_e4m3fn, torch.float32)
_TYPES = {
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "F8_E4M3": torch.float8_e4m3fn,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}
_DENSE_MLP = re.compile(r".*\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight")


class CheckpointError(ValueError):
    """A checkpoint is not what it should be; the message names the file or tensor, what was expected and what was got."""


class Header(NamedTuple):
    """What a file tells of a tensor before any of it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


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
        form: how weights are quantised, which in the published forms is also the convention of their global scales; None for a plain
            checkpoint.
        on_read: called with the bytes of each tensor that is read.

    Raises:
        CheckpointError: files are missing or malformed, or the quantisation is not one of these forms in blocks of 16.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _read_json(folder / CONFIG)
        self.form: Form | None = form_of(folder, self.config)
        self.on_read: Callable[[int], object] = lambda nbytes: None
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

    def header(self, name: str) -> Header | None:
        """A tensor's dtype and shape, or None if there is none of that name.

        Raises:
            CheckpointError: its file is broken, or it has a dtype that no checkpoint of these forms has.
        """
        if name not in self._files:
            return None
        file = self._file(self._files[name])
        try:
            found = file.get_slice(name)
        except SafetensorError:  # the index promises what the file lacks
            return None
        if (kind := found.get_dtype()) not in _TYPES:
            raise CheckpointError(f"{name}: expected one of the dtypes {', '.join(_TYPES)}, got {kind}")
        return Header(_TYPES[kind], tuple(found.get_shape()))

    def is_quantized(self, module: str) -> bool:
        """Whether `linear`, or `packed` in our own form, can read this module; if not, its weight is a plain tensor."""
        part = "words" if self.form == OWN else "weight_scale"
        return self.form is not None and f"{module}.{part}" in self._files

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored.

        Raises:
            CheckpointError: there is none of that name, or its file is broken.
        """
        if name not in self._files:
            raise CheckpointError(f"{self.folder}: expected a tensor {name}, got none of that name")
        try:
            tensor = self._file(self._files[name]).get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self._files[name]}: expected a tensor {name}, got {error}") from error
        self.on_read(tensor.nbytes)
        return tensor

    def linear(self, module: str) -> NVFP4:
        """The weight (N, K) of a linear layer, its bytes and scales as stored.

        Raises:
            CheckpointError: the checkpoint is in neither published form, a tensor is missing or has another dtype or shape, the
                global scale is not finite and positive, or a block scale is NaN, as no quantiser writes it: the file is damaged.
        """
        if self.form is None or self.form == OWN:
            got = self.form or "a plain one"
            raise CheckpointError(f"{module}: expected an NVFP4 checkpoint, got {got} in {self.folder}")
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

    def packed(self, module: str, kind: type[Packed]) -> Packed:
        """Weights of our own form: a dataclass, made of the tensors named after the fields that it must be given.

        Raises:
            CheckpointError: the checkpoint is in another form, or a tensor is missing.
        """
        if self.form != OWN:
            raise CheckpointError(
                f"{module}: expected a checkpoint in the form {OWN}, got {self.form or 'a plain one'}"
            )
        return kind(*(self.tensor(f"{module}.{field}") for field in packed_fields(kind)))

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


def packed_fields(kind: type) -> list[str]:
    """The fields of `moe.Experts` or `linear.NVFP4Linear` that our own form holds: those that must be given."""
    return [field.name for field in fields(kind) if field.default is MISSING]


def packed_tensors(module: str, weights: Any) -> dict[str, Tensor]:
    """Weights as our own form holds them, by name: the inverse of `Checkpoint.packed`."""
    return {f"{module}.{field}": getattr(weights, field) for field in packed_fields(type(weights))}


def stored_headers(form: Convention, module: str, n: int, k: int) -> dict[str, Header]:
    """The tensors that `Checkpoint.linear` reads for a weight (N, K), by name."""
    shapes = ((n, k // 2), (n, k // BLOCK), ())
    return {
        f"{module}.{part}": Header(dtype, shape)
        for part, dtype, shape in zip(_PARTS[form], _DTYPES, shapes, strict=True)
    }


def write_modelopt(source: Checkpoint, folder: Path) -> None:
    """Write a plain checkpoint with its experts in ModelOpt's form and all else as it is, as NVIDIA publishes DiffusionGemma.

    Weight-only: without calibration there are no input scales. Memory and files are those of `write`.
    """
    _quantize_to(source, folder, "modelopt")


def write_compressed_tensors(source: Checkpoint, folder: Path) -> None:
    """As `write_modelopt`, in compressed-tensors' form, with each layer's dense MLP in NVFP4 too, as Red Hat publishes it."""
    _quantize_to(source, folder, "compressed-tensors")


def _quantize_to(source: Checkpoint, folder: Path, form: Convention) -> None:
    if source.form is not None:
        raise CheckpointError(f"{source.folder}: expected a plain checkpoint to quantise, got one in {source.form}")
    ignored = sorted(name.removesuffix(".weight") for name in source.names() if _is_ignored(source, name, form))
    write(source, folder, _quantized(source, form), {"quantization_config": _quantization(form, ignored)})


def _quantized(source: Checkpoint, form: Convention) -> Iterator[tuple[str, Tensor]]:
    for name in source.names():
        tensor = source.tensor(name)
        if matrices := list(_to_quantize(name, tensor, form)):
            for module, weight in matrices:
                yield from _stored(module, nvfp4.quantize(weight, form)).items()
        else:
            yield name, tensor


def _is_ignored(source: Checkpoint, name: str, form: Convention) -> bool:
    """Whether this is the weight of a linear layer that stays as it is."""
    header, quantized = source.header(name), form == "compressed-tensors" and _DENSE_MLP.fullmatch(name)
    return name.endswith(".weight") and not quantized and header is not None and len(header.shape) == 2


def write(source: Checkpoint, folder: Path, tensors: Iterable[tuple[str, Tensor]], changes: dict[str, Any]) -> None:
    """Write tensors into a folder, in shards of at most `SHARD_BYTES`, with source's other files and its config, changed.

    Memory: one shard. config.json comes last, so that what was broken off is not taken for a checkpoint.

    Args:
        source: where everything but tensors comes from.
        folder: made if need be.
        tensors: by name.
        changes: entries of config.json that are new or other; None takes one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in (CONFIG, MODELOPT_CONFIG, INDEX):
            shutil.copyfile(path, folder / path.name)
    weight_map, total = dict[str, str](), 0
    for i, shard in enumerate(_shards(tensors)):
        file = f"model-{i + 1:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors lets nobody but the owner read it
        weight_map |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in shard.values())
        del shard  # before the next is gathered
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    config = {key: value for key, value in source.config.items() if key not in changes}
    _write_json(folder / CONFIG, config | {key: value for key, value in changes.items() if value is not None})


def _shards(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


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


def form_of(folder: Path, config: dict[str, Any]) -> Form | None:
    """How config.json, or hf_quant_config.json beside it, says that weights are stored; None for plain.

    Raises:
        CheckpointError: in a way that is not supported.
    """
    said: dict[str, Any] = config.get("quantization_config") or {}
    where = folder / CONFIG
    if not said and (folder / MODELOPT_CONFIG).exists():
        where = folder / MODELOPT_CONFIG
        found = _read_json(where)
        said = {"quant_method": found.get("producer", {}).get("name"), **found.get("quantization", {})}
    if not said:
        return None
    if (method := said.get("quant_method")) == OWN:
        if (version := said.get("version")) != OWN_VERSION:
            raise CheckpointError(f"{where}: expected version {OWN_VERSION} of {OWN}, got {version!r}: convert anew")
        return OWN
    if method not in _PARTS:
        raise CheckpointError(f"{where}: expected quant_method modelopt, compressed-tensors or {OWN}, got {method!r}")
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
