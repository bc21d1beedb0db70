"""Every kernel compiles for every NVIDIA generation without a GPU, spills nothing and uses the matrix units it is made for."""

import os
import subprocess
import sys

import pytest

from moe_kernels import aot
from tests.marks import interpreted


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], list[str]]:
    """(kernel, chip) -> the rest of its row, as a process without the interpreter prints it."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-m", "moe_kernels.aot"], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, (
        ran.stdout + ran.stderr
    )  # 1 if anything spills or needs more shared memory than there is
    rows = (line.split("  ") for line in ran.stdout.splitlines()[1:])
    cells = ([cell.strip() for cell in row if cell.strip()] for row in rows)
    return {(row[0], row[1]): row[2:] for row in cells}


def test_every_kernel_is_compiled_for_every_chip_it_is_made_for(table: dict[tuple[str, str], list[str]]):
    assert set(table) == {(case.name, f"sm_{chip}") for case in aot.cases() for chip in case.chips}


@pytest.mark.parametrize(
    ("chip", "instruction"),
    [("sm_80", "mma.sync"), ("sm_90", "wgmma.mma_async"), ("sm_100", "tcgen05.mma"), ("sm_120", "mma.sync")],
)
def test_weights_in_four_bits_meet_the_chips_best_matrix_unit(
    table: dict[tuple[str, str], list[str]], chip: str, instruction: str
):
    made_for = (
        "gate_up_kernel",
        "down_kernel",
        "linear",
        "denoise_head.scan",
        "denoise_head.weigh",
        "denoise_head.mix",
    )
    used = {
        kernel: row[-1].split()[0] for (kernel, on), row in table.items() if on == chip and kernel.startswith(made_for)
    }
    assert {kernel.split()[0].rstrip(",") for kernel in used} == set(made_for)
    assert set(used.values()) == {instruction}


@pytest.mark.parametrize("chip", ["sm_100", "sm_120"])
def test_both_operands_stay_in_four_bits_on_block_scaled_units(table: dict[tuple[str, str], list[str]], chip: str):
    for kernel in ("gate_up_fp4_kernel", "down_fp4_kernel"):
        assert table[f"{kernel} T=256", chip][-1].endswith("mxf4nvf4")


@interpreted
def test_kernels_imported_for_the_interpreter_are_not_compiled_but_refused():
    with pytest.raises(RuntimeError, match="expected compiled kernels, got the interpreter's"):
        aot.compile_case(aot.cases()[0], 90)
