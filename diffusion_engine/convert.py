"""`draftgate convert IN OUT`: a DiffusionGemma checkpoint in another form.

The default, our own form, is quantised and repacked once, so that the engine starts by copying. `plain` is what transformers loads: the very
values that our engine computes with, decoded. The two published forms are written from plain checkpoints only.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_engine.config import ModelConfig
from diffusion_engine.weights import EMBEDDING, Contents, check_tensors
from engine_core.published import checkpoint_folder
from moe_kernels.checkpoint import (
    OWN,
    OWN_VERSION,
    Checkpoint,
    packed_tensors,
    write,
    write_compressed_tensors,
    write_modelopt,
)
from moe_kernels.dispatch import KernelUnsupported
from moe_kernels.loading import packed_experts, packed_linear

FORMS = (OWN, "modelopt", "compressed-tensors", "plain")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CPU = torch.device("cpu")  # where the published forms' libraries are matched to the bit


def convert(
    source: Path, target: Path, form: str = OWN, dtype: torch.dtype | None = None, *, progress: str | None = None
) -> None:
    """Write a checkpoint in another form, with its tokenizer, template and other files.

    Memory: one shard of at most 4 GB, and one layer's experts.

    Args:
        source: folder of a checkpoint in any form.
        target: must be empty, or not there yet.
        form: one of FORMS.
        dtype: of every tensor of the form plain; None for that of the embedding.
        progress: what to call it on a bar over the bytes read, which shows on terminals only; None for no bar.

    Raises:
        WrongModel: the source is no DiffusionGemma that the engine can run.
        CheckpointError: the source's tensors are not what they should be, or are quantised where plain ones are needed.
        FileExistsError: there is something in the target.
        KernelUnsupported: sides of quantised weights are no multiples of 32.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target}: expected an empty folder or none, got one with files in it")
    config, checkpoint = ModelConfig.load(source), Checkpoint(source)
    found = check_tensors(checkpoint, config)
    headers = [checkpoint.header(name) for name in found.vision]
    total = found.nbytes + sum(header.nbytes for header in headers if header)
    with tqdm(total=total, desc=progress, unit="B", unit_scale=True, disable=None if progress else True) as bar:
        checkpoint.on_read = bar.update
        if form == "modelopt":
            write_modelopt(checkpoint, target)
        elif form == "compressed-tensors":
            write_compressed_tensors(checkpoint, target)
        elif form == OWN:
            said = {"quant_method": OWN, "version": OWN_VERSION}
            write(checkpoint, target, _own(checkpoint, config, found), {"quantization_config": said})
        else:
            dtype = dtype or checkpoint.tensor(EMBEDDING).dtype
            changes = {"quantization_config": None, "dtype": str(dtype).removeprefix("torch.")}
            write(checkpoint, target, _plain(checkpoint, config, found, dtype), changes)


def _own(checkpoint: Checkpoint, config: ModelConfig, found: Contents) -> Iterator[tuple[str, Tensor]]:
    for prefix in found.experts:
        yield from packed_tensors(prefix, packed_experts(checkpoint, prefix, config.experts, CPU)).items()
    for module in found.linears:
        yield from packed_tensors(module, packed_linear(checkpoint, module, CPU)).items()
    for name in (*found.plain, *found.vision):
        yield name, checkpoint.tensor(name)


def _plain(
    checkpoint: Checkpoint, config: ModelConfig, found: Contents, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    for prefix in found.experts:
        names = [f"{prefix}.gate_up_proj", f"{prefix}.down_proj"]
        if checkpoint.form is None:
            yield from ((name, checkpoint.tensor(name).to(dtype)) for name in names)
        else:
            yield from zip(names, packed_experts(checkpoint, prefix, config.experts, CPU).decode(dtype), strict=True)
    for module in found.linears:
        yield f"{module}.weight", packed_linear(checkpoint, module, CPU).decode(dtype)
    for name in (*found.plain, *found.vision):
        yield name, checkpoint.tensor(name).to(dtype)


def main(argv: list[str]) -> int:
    """Convert; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="draftgate convert", description="Write a DiffusionGemma checkpoint in another form."
    )
    parser.add_argument("source", metavar="IN", help="a folder, or the name of a repository on the hub")
    parser.add_argument("target", metavar="OUT", type=Path, help="an empty folder, made if need be")
    parser.add_argument("--to", choices=FORMS, default=OWN, help="the form (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help="of a plain checkpoint (default: that of the embedding)")
    options = parser.parse_args(argv)
    if options.dtype and options.to != "plain":
        parser.error(f"expected --dtype with --to plain, got --to {options.to}")
    dtype = DTYPES[options.dtype] if options.dtype else None
    try:
        convert(checkpoint_folder(options.source), options.target, options.to, dtype, progress=options.source)
    except (OSError, ValueError, KernelUnsupported) as error:
        sys.stderr.write(f"draftgate convert: {' '.join(str(error).split())}\n")
        return 2
    return 0
