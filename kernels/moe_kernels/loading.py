"""What loaders of models have in common: to say beforehand which tensors they will read, and to read packed weights of any form.

A bad checkpoint so fails before any of its data is read, and its error names all that is wrong with it.
"""

import math
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from moe_kernels import nvfp4
from moe_kernels.checkpoint import OWN, Checkpoint, CheckpointError, Header, packed_tensors, stored_headers
from moe_kernels.dispatch import expect
from moe_kernels.linear import NVFP4Linear
from moe_kernels.moe import Experts
from moe_kernels.nvfp4 import BLOCK, NVFP4

PLAIN = (torch.bfloat16, torch.float32)
# Of activations and of cached keys and values: both stay in sixteen bits here.
UNREAD_SCALES = (".input_scale", ".input_global_scale", ".k_scale", ".v_scale")
LISTED = 8  # of each kind of wrong tensors


class WrongTensors(CheckpointError):
    """A checkpoint's tensors are not those its config.json calls for; the message names the missing, the surplus and the unfit."""


class Found(NamedTuple):
    """What a checkpoint holds beside the tensors called for, and how large these are."""

    nbytes: int
    unread: list[str]
    duplicates: dict[str, str]  # each with the name of the tensor that it repeats


class ExpectedTensors:
    """The tensors that a model calls for, in the form of a checkpoint: named one by one, then compared with what is there."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._expected: dict[str, _Expected] = {}

    def plain(self, name: str, *shape: int) -> None:
        """A tensor that is not quantised."""
        self._expected[name] = _Expected(PLAIN, shape)

    def linear(self, module: str, n: int, k: int) -> None:
        """A quantised weight (N, K), as `packed_linear` reads it.

        Raises:
            KernelUnsupported: N or K is no multiple of 32.
        """
        expect(n % 32 == k % 32 == 0, module, "a weight whose sides are multiples of 32", (n, k))
        form = self._checkpoint.form
        if form is None or form == OWN:
            tensors = packed_tensors(module, _one_linear(n, k))
            self._expected |= {name: _Expected((tensor.dtype,), tensor.shape) for name, tensor in tensors.items()}
        else:
            headers = stored_headers(form, module, n, k)
            self._expected |= {name: _Expected((header.dtype,), header.shape) for name, header in headers.items()}

    def experts(self, prefix: str, count: int, inner: int, hidden: int) -> None:
        """A layer's experts, as `packed_experts` reads them.

        Raises:
            KernelUnsupported: they are quantised, and H or I is no multiple of 32.
        """
        if self._checkpoint.form is None:
            self.plain(f"{prefix}.gate_up_proj", count, 2 * inner, hidden)
            self.plain(f"{prefix}.down_proj", count, hidden, inner)
            return
        one = _one_expert(inner, hidden)  # in every form: what can't be repacked must fail now
        if self._checkpoint.form == OWN:
            for name, tensor in packed_tensors(prefix, one).items():
                self._expected[name] = _Expected((tensor.dtype,), (count, *tensor.shape[1:]))
        else:
            for expert in range(count):
                for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
                    self.linear(f"{prefix}.{expert}.{part}_proj", *shape)

    def compare(self, is_unread: Callable[[str], bool], repeated: Callable[[str], str | None]) -> Found:
        """Compare what was named with what is there, from the files' headers alone.

        Args:
            is_unread: whether a tensor of this name may be there, though it is of no use; scales of activations, and of cached keys and
                values, always may.
            repeated: the name of the tensor that one of this name repeats, if it is a duplicate of a tied weight. It must have its shape.

        Raises:
            WrongTensors: there is a difference.
            CheckpointError: a file is broken.
        """
        nbytes = 0
        missing: list[str] = []
        surplus: list[str] = []
        unfit: list[str] = []
        unread: list[str] = []
        duplicates: dict[str, str] = {}
        for name in sorted(self._checkpoint.names() - self._expected.keys()):
            if is_unread(name):
                unread.append(name)
            elif (other := repeated(name)) in self._expected:
                duplicates[name] = other
            elif not name.endswith(UNREAD_SCALES):
                surplus.append(name)
        for name, expected in (self._expected | {name: self._expected[of] for name, of in duplicates.items()}).items():
            if (header := self._checkpoint.header(name)) is None:
                missing.append(f"{name} {tuple(expected.shape)}")
            elif not expected.fits(header):
                unfit.append(f"{name}: expected {expected}, got {_Expected((header.dtype,), header.shape)}")
            elif name not in duplicates:
                nbytes += header.nbytes
        refuse_wrong(self._checkpoint.folder, missing, surplus, unfit)
        return Found(nbytes, unread, duplicates)


def refuse_wrong(folder: Path, missing: Iterable[str], surplus: Iterable[str], unfit: Iterable[str]) -> None:
    """Raise WrongTensors if there are any of these."""
    kinds = {"missing": list(missing), "surplus": list(surplus), "of another shape or dtype": list(unfit)}
    if found := [_listing(kind, names) for kind, names in kinds.items() if names]:
        raise WrongTensors(f"{folder}: expected the tensors its config.json calls for, got {'; '.join(found)}")


def packed_experts(checkpoint: Checkpoint, prefix: str, count: int, device: torch.device) -> Experts:
    """A layer's experts in NVFP4: those of a plain checkpoint are quantised in ModelOpt's convention, others keep their bytes.

    Raises:
        CheckpointError: as `Checkpoint.experts`, or plain experts are not finite.
    """
    if checkpoint.form == OWN:
        return checkpoint.packed(prefix, Experts).to(device)
    if checkpoint.form is not None:
        return Experts.from_nvfp4(*(weight.to(device) for weight in checkpoint.experts(prefix, count)))
    gate_up, down = (checkpoint.tensor(f"{prefix}.{name}_proj").to(device) for name in ("gate_up", "down"))
    try:
        return Experts.from_nvfp4(*(nvfp4.quantize(part, "modelopt") for part in (*gate_up.chunk(2, dim=1), down)))
    except ValueError as error:
        raise CheckpointError(f"{prefix}: {error}") from error


def packed_linear(checkpoint: Checkpoint, module: str, device: torch.device) -> NVFP4Linear:
    """A quantised module of any form but the plain one. Raises CheckpointError as `Checkpoint.linear`."""
    if checkpoint.form == OWN:
        return checkpoint.packed(module, NVFP4Linear).to(device)
    return NVFP4Linear.from_nvfp4(checkpoint.linear(module).to(device))


class _Expected(NamedTuple):
    dtypes: tuple[torch.dtype, ...]
    shape: tuple[int, ...]

    def fits(self, header: Header) -> bool:
        """Whether a tensor is as expected; one number may be () or (1,)."""
        alike = header.shape == self.shape or math.prod(header.shape) == math.prod(self.shape) == 1
        return alike and header.dtype in self.dtypes

    def __str__(self) -> str:
        return f"{' or '.join(str(dtype).removeprefix('torch.') for dtype in self.dtypes)} {tuple(self.shape)}"


def _listing(kind: str, names: list[str]) -> str:
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} {kind} ({', '.join(names[:LISTED])}{more})"


@cache
def _one_expert(inner: int, hidden: int) -> Experts:
    """What the repack makes of an expert of zeros, for the shapes and dtypes."""
    gate, down = _zeros(1, inner, hidden), _zeros(1, hidden, inner)
    return Experts.from_nvfp4(gate, gate, down)


@cache
def _one_linear(n: int, k: int) -> NVFP4Linear:
    return NVFP4Linear.from_nvfp4(_zeros(n, k))


def _zeros(*shape: int) -> NVFP4:
    *lead, n, k = shape
    packed = torch.zeros(*lead, n, k // 2, dtype=torch.uint8)
    return NVFP4(packed, torch.zeros(*lead, n, k // BLOCK, dtype=torch.float8_e4m3fn), torch.ones(lead), "modelopt")
