"""The experts' twin on a CPU against transformers' own: `python -m benchmarks.experts_cpu --json FILE`.

Both compute with the same dequantised float32 weights on the same tokens, in turns, at the demo model's shape and at one layer of
DiffusionGemma 26B-A4B (3 GB of weights). Decoding the four-bit weights on each call, for machines without that memory, is timed too.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks._harness import environment, publish
from benchmarks._rivals import transformers_experts
from demo_models.train import keep_freed_memory
from moe_kernels.moe import Experts, experts_mlp
from moe_kernels.nvfp4 import quantize

SHAPES = {  # experts, top k, hidden, inner, tokens
    "demo, 1 canvas of 64": (8, 2, 128, 64, 64),
    "demo, 16 canvases of 64": (8, 2, 128, 64, 1024),
    "26B-A4B, 1 canvas of 256": (128, 8, 2816, 704, 256),
}


def measure(shape: tuple[int, int, int, int, int], repeats: int, seed: int) -> dict[str, object]:
    """Median milliseconds of each way and how many times faster than transformers' eager experts ours are."""
    count, top_k, hidden, inner, tokens = shape
    rng = torch.Generator().manual_seed(seed)
    sizes = ((inner, hidden), (inner, hidden), (hidden, inner))
    weights = [quantize(torch.randn(count, *size, generator=rng) * 0.02, "modelopt") for size in sizes]
    experts = Experts.from_nvfp4(*weights, keep=torch.float32)
    packed = experts.to("cpu")
    assert experts.dense is not None
    x = torch.randn(tokens, hidden, generator=rng)
    index = torch.rand(tokens, count, generator=rng).argsort(dim=1)[:, :top_k]
    routed = torch.rand(tokens, top_k, generator=rng)
    dense = [weight.contiguous() for weight in experts.dense]  # as transformers loads them
    eager, grouped = (transformers_experts(*dense, name) for name in ("eager", "grouped_mm"))
    ways: dict[str, Callable[[], Tensor]] = {
        "transformers eager": lambda: eager(x, index, routed),
        "transformers grouped_mm": lambda: grouped(x, index, routed),
        "moe_kernels, weights kept decoded": lambda: experts_mlp(x, experts, index, routed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    times = {name: median(found[1:]) for name, found in seconds.items()}
    started = time.perf_counter()
    experts_mlp(x, packed, index, routed)
    times["moe_kernels, decoded on each call"] = time.perf_counter() - started
    ours = times["moe_kernels, weights kept decoded"]
    return {
        "milliseconds": {name: round(1000 * value, 3) for name, value in times.items()},
        "times as fast as": {name: round(value / ours, 2) for name, value in times.items() if "transformers" in name},
        "largest difference from eager": (ways["transformers eager"]() - experts_mlp(x, experts, index, routed))
        .abs()
        .max()
        .item(),
    }


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experts_cpu", description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keep_freed_memory()  # or one way's large blocks make glibc give memory back that the next then faults in again
    with torch.inference_mode():
        found = {name: measure(shape, options.repeats, options.seed) for name, shape in SHAPES.items()}
    report = {**environment(options.seed), "threads": torch.get_num_threads(), "shapes": found}
    publish(report, options.json)


if __name__ == "__main__":
    main()
