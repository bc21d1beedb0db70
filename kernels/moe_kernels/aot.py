"""Compile every kernel ahead of time, without a GPU, and read what the compiler made: `python -m moe_kernels.aot`.

For each kernel in its default configuration and each NVIDIA generation it prints the registers of a thread, the bytes spilled,
the shared memory of a block and the matrix instructions chosen (`mma.sync`, `wgmma`, `tcgen05`; with `mxf4nvf4` where both
operands stay in FP4). The exit status is 1 if a kernel fails to compile, spills, or needs more shared memory than the chip has.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

CHIPS = {80: 163, 90: 227, 100: 227, 120: 99}  # compute capability: KiB of shared memory a block can have
_MATRIX = re.compile(r"(tcgen05\.mma|wgmma\.mma_async|mma\.sync)\S*")
_KIND = re.compile(r"kind::(\w+)")


class Case(NamedTuple):
    """A kernel as it is compiled for the shapes it is made for."""

    name: str
    kernel: Any  # a triton.JITFunction
    signature: Mapping[str, str]  # parameter: "*bf16", "i32", "fp32", ... or "constexpr"
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    chips: tuple[int, ...] = tuple(CHIPS)
    aligned: tuple[str, ...] = ()  # parameters known to be multiples of 16; pointers always are

    @staticmethod
    def of(name: str, kernel: Any, types: str, constexprs: Mapping[str, Any], **options: Any) -> "Case":
        """A case whose `types` name, in order and space between, the parameters that are no constexprs."""
        others = [parameter for parameter in kernel.arg_names if parameter not in constexprs]
        signature = dict(zip(others, types.split(), strict=True)) | dict.fromkeys(constexprs, "constexpr")
        return Case(name, kernel, signature, constexprs, **options)


class Compiled(NamedTuple):
    """What came out: registers a thread, bytes spilled a thread, bytes of shared memory a block, matrix instructions."""

    registers: int
    spilled: int
    shared: int
    matrix: tuple[str, ...]
    ptx: str


def cases() -> list[Case]:
    """Every kernel of the package at the true shapes."""
    from moe_kernels import attention, denoise_head, linear, moe, moe_fp4, norms, random_tokens, routing

    modules = (routing, moe, moe_fp4, linear, denoise_head, norms, attention, random_tokens)
    return [case for module in modules for case in module.kernels_to_compile()]


def compile_case(case: Case, chip: int) -> Compiled:
    """Compile one kernel for one compute capability (80, 90, 100, 120) on any machine.

    Raises:
        RuntimeError: the kernels were imported for Triton's interpreter.
        triton.CompilationError, subprocess.CalledProcessError: the kernel does not compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(case.kernel, triton.JITFunction):
        raise RuntimeError(
            "expected compiled kernels, got the interpreter's: unset TRITON_INTERPRET before importing them"
        )
    names = case.kernel.arg_names
    attributes = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(names)
        if case.signature[name].startswith("*") or name in case.aligned
    }
    signature = {name: case.signature[name] for name in names}
    source = ASTSource(case.kernel, signature, constexprs=dict(case.constexprs), attrs=attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    made = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)
    ptx = made.asm["ptx"]
    registers, spilled = _resources(ptx)
    found = {" ".join([match[1], *_KIND.findall(match[0])]) for match in _MATRIX.finditer(ptx)}
    return Compiled(registers, spilled, made.metadata.shared, tuple(sorted(found)), ptx)


def _resources(ptx: str) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, as ptxas tells them."""
    import triton

    target = re.search(r"\.target (sm_\w+)", ptx)
    assert target is not None
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    blackwell = tools / "ptxas-blackwell"
    tool = blackwell if target[1] >= "sm_1" and target[1][3] == "1" and blackwell.exists() else tools / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [tool, "-v", f"--gpu-name={target[1]}", source, "-o", Path(folder, "kernel.cubin")]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = re.search(r"Used (\d+) registers", told)
    assert registers is not None
    return int(registers[1]), sum(map(int, re.findall(r"(\d+) bytes spill", told)))


def main() -> int:
    """Compile everything and print a table."""
    parser = argparse.ArgumentParser(prog="python -m moe_kernels.aot", description=__doc__)
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--chips", type=int, nargs="+", default=list(CHIPS), choices=list(CHIPS))
    options = parser.parse_args()
    failed = 0
    print(f"{'kernel':34} {'chip':>5} {'regs':>5} {'spilled':>8} {'shared':>7}  matrix instructions")
    for case in (case for case in cases() if options.only in case.name):
        for chip in (chip for chip in options.chips if chip in case.chips):
            made = compile_case(case, chip)
            bad = made.spilled > 0 or made.shared > CHIPS[chip] * 1024
            failed += bad
            matrix = ", ".join(made.matrix) or "-"
            note = "  <- spills, or too much shared memory" if bad else ""
            print(
                f"{case.name:34} {f'sm_{chip}':>5} {made.registers:5} {made.spilled:8} {made.shared:7}  {matrix}{note}"
            )
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    sys.exit(main())
