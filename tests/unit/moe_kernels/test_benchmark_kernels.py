"""The GPU benchmark script, at tiny shapes on whatever device there is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import kernels
from moe_kernels.testing import error

OPS = {
    "experts_mlp",
    "experts_mlp: gate-up",
    "experts_mlp: down",
    "route and sort",
    "nvfp4_linear",
    "denoise_head, confident",
    "denoise_head, knowing nothing",
    "rms_norm",
    "norms_after_attention",
    "norms_after_experts",
    "qk_norm_rope, sliding layers",
    "qk_norm_rope, full layers",
}


def test_a_smoke_run_times_every_op_and_says_where_and_with_what_it_ran(tmp_path: Path) -> None:
    file = tmp_path / "new" / "kernels.json"
    assert kernels.main(["--smoke", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert {"git_sha", "machine", "versions", "seed", "sizes", "gpu", "repeats"} <= set(report)
    assert all(value > 0 for value in report["roofline"].values())
    rows = report["results"]
    assert {(row["op"], row["tokens"]) for row in rows} == {(op, t) for op in OPS for t in kernels.SMOKE.tokens}
    for row in rows:
        assert 0 < row["seconds"]["p10"] <= row["seconds"]["median"] <= row["seconds"]["p90"]
        assert row["bytes_per_s"] == row["bytes"] / row["seconds"]["median"]
        assert row["share_of_read"] > 0
    # A CPU can't tell the products of one op apart; nothing else may be missing.
    left_out = {(row["op"], row["way"]) for row in report["skipped"]}
    expected = {("experts_mlp: gate-up", kernels.OURS), ("experts_mlp: down", kernels.OURS)}
    assert left_out == (set() if torch.cuda.is_available() else expected)


@torch.inference_mode()
def test_all_ways_to_compute_the_experts_agree() -> None:
    torch.manual_seed(0)
    case = next(kernels.experts_cases(kernels.SMOKE, torch.device("cpu")))
    results: dict[str, Any] = {way.name: way.run() for way in case.ways}
    expected = results.pop(kernels.OURS)
    in_fp4 = results.pop("moe_kernels, activations in FP4")
    assert error(in_fp4, expected).rms < 0.25  # E2M1 activations have 1 bit of mantissa
    assert isinstance(expected, torch.Tensor)
    for name, found in results.items():
        # bfloat16 rounds after each product (2^-9), in another order.
        torch.testing.assert_close(found, expected, rtol=0.03, atol=0.02, msg=lambda text, name=name: f"{name}: {text}")


def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.main(["--json", str(tmp_path / "report.json")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "benchmarks.kernels: needs an NVIDIA GPU, found none (--smoke runs tiny shapes anywhere)"
    ]
    assert not list(tmp_path.iterdir())
